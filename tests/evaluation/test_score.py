"""The command `score` as a user meets it.

The figures as JSON on the last line, what is wrong in one line with status 2.
"""

import json
import sys
import types

import numpy as np
import pytest
from evaluation import layouts
from evaluation.files import write_json, write_lines

from dreamjax import evaluate
from dreamjax.errors import SourceError
from dreamjax.evaluation.benchmarks.registry import BENCHMARKS
from dreamjax.evaluation.metrics import captions


@pytest.fixture()
def science(tmp_path):
    rows = [{"id": str(i), "conversations": [{"value": "?"}, {"value": "The answer is A."}]} for i in range(4)]
    write_lines(
        tmp_path / "a.jsonl", [{"question_id": str(i), "prompt": "?", "text": text} for i, text in enumerate("AABA")]
    )
    return write_json(tmp_path / "llava_test.json", rows)


def test_the_last_line_is_json(score, science, tmp_path):
    status, out, err = score("--task=scienceqa", f"--predictions={tmp_path / 'a.jsonl'}", f"--data={science}")
    assert status == 0 and err == ""
    result = json.loads(out.splitlines()[-1])
    assert result["task"] == "scienceqa" and result["metrics"]["accuracy"] == 75.0
    assert (
        result["metrics"]["image_accuracy"] is None
    )  # no question has a picture: nothing, and not NaN, which is no JSON
    assert "accuracy                           75.0000\n" in out and "\nof 4 questions, 4 predictions\n" in out


def test_warnings_are_counted(score, science, tmp_path):
    write_lines(tmp_path / "b.jsonl", [{"question_id": "0", "text": "A"}])
    status, out, err = score("--task=scienceqa", f"--predictions={tmp_path / 'b.jsonl'}", f"--data={science}")
    result = json.loads(out.splitlines()[-1])
    assert status == 0 and result["metrics"]["accuracy"] == 25.0 and result["counts"]["missing"] == 3
    assert (
        err == "dreamjax.evaluate: warning: 3 of 4 questions have no prediction and count as wrong; the first "
        "is question 1\n"
    )


@pytest.mark.parametrize(
    "arguments, named",
    [
        (("--task=scienceqa", "--predictions=nowhere.jsonl", "--data={data}"), "nowhere.jsonl: no such file"),
        (("--task=scienceqa", "--predictions={empty}", "--data={data}"), "holds no predictions"),
        (("--task=scienceqa", "--predictions={twice}", "--data={data}"), "row 2: answers question 0 a second time"),
        (("--task=scienceqa", "--predictions={strange}", "--data={data}"), "id 'x' is of no question"),
        (("--task=scienceqa", "--predictions={twice}", "--data=nowhere"), "nowhere: no such file or folder"),
        (("--task=scienceqa", "--predictions={twice}"), "--data: is missing"),
        (("--task=science", "--predictions={twice}", "--data={data}"), "--task: 'science' is unknown; there are coco,"),
        (("--task=mme", "--predictions={twice}", "--data={data}", "--out=x"), "--out: mme has no server or grader"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(score, science, tmp_path, arguments, named):
    files = {"data": science, "empty": tmp_path / "empty.jsonl"}
    files["empty"].touch()
    files["twice"] = write_lines(tmp_path / "twice.jsonl", [{"question_id": 0, "text": "A"}] * 2)
    files["strange"] = write_lines(tmp_path / "strange.jsonl", [{"question_id": "x", "text": "A"}])
    status, out, err = score(*(argument.format(**files) for argument in arguments))
    assert status == 2 and out == "" and err.startswith("dreamjax.evaluate: ") and err.count("\n") == 1 and named in err


def test_a_file_for_the_grader_without_grades(score, tmp_path):
    data = write_json(tmp_path / "mm-vet.json", {"v1_0": {"capability": ["rec"]}})
    predictions = write_lines(tmp_path / "a.jsonl", [{"question_id": 0, "text": "a cat"}])
    status, out, err = score(
        "--task=mmvet", f"--predictions={predictions}", f"--data={data}", f"--out={tmp_path / 'out'}"
    )
    result = json.loads(out.splitlines()[-1])
    assert (
        status == 0
        and result["metrics"] == {}
        and "not scored" in err
        and "holds answers, not grades" in err
        and "warning" not in err
    )
    assert json.loads(open(result["exported"]).read()) == {"v1_0": "a cat"}
    write_json(data, {"v1_0": {"capability": ["rec"]}, "v1_1": {"capability": ["rec"]}})
    status, out, err = score(
        "--task=mmvet", f"--predictions={predictions}", f"--data={data}", f"--out={tmp_path / 'out'}"
    )
    assert status == 0 and "warning: 1 of 2 questions have no prediction" in err  # what is exported lacks it too


# Files that are none of predictions, whatever the task.
MALFORMED = {
    "null.json": "null",
    "number.json": "3",
    "string.json": '"x"',
    "numbers.json": "[1, 2]",
    "empty.json": "{}",
    "list.json": "[]",
    "empty.jsonl": "\n\n",
    "nested.json": '{"a": {"b": 1}}',
    "no_text.jsonl": '{"question_id": 1, "text": null}',
    "list_text.jsonl": '{"question_id": "4", "text": ["A"]}',
    "object_text.json": '{"question_id": "4", "text": {"a": 1}}',
    "list_id.jsonl": '{"question_id": [1], "text": "A"}',
    "empty.tsv": "",
    "header.tsv": "index\tprediction\n",
    "wide.tsv": "index\tprediction\n1\tA\tB\n",
    "other.csv": "a,b\n1\n",
    "no.xlsx": "no",
    "bytes.json": "\xff",
}


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "captions"])
def test_no_task_takes_a_malformed_file(tmp_path, monkeypatch, name):
    """As predictions, as data, or to be exported, it ends with an error that names it in one line."""
    monkeypatch.setattr(captions, "has_java", lambda: False)
    getattr(layouts, name)(tmp_path / "data")
    good = write_lines(tmp_path / "good.jsonl", [{"question_id": "4", "text": "A", "prompt": "?"}])
    task = BENCHMARKS[name]
    for file, content in MALFORMED.items():
        path = tmp_path / file
        path.write_bytes(content.encode("latin-1"))
        attempts = [(task.score, path, tmp_path / "data"), (task.score, good, path)]
        attempts += [(task.export, path, tmp_path / "data", tmp_path)] if task.export else []
        for attempt, *files in attempts:
            with pytest.raises(SourceError) as raised:
                attempt(*files)
            assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


def test_the_distance_of_two_folders_of_images(score, tmp_path, monkeypatch):
    def mean_colour(images):
        return np.stack([np.asarray(image).mean((0, 1)) for image in images])

    monkeypatch.setitem(sys.modules, "mine", types.SimpleNamespace(colours=mean_colour))
    for folder, shade in (("a", 0), ("b", 7)):
        for i in range(6):
            layouts.plain_image(tmp_path / folder / f"{i}.png", (10 * i + shade, 5, 9))
    arguments = ("--task=fid", f"--predictions={tmp_path / 'a'}", f"--data={tmp_path / 'b'}")
    status, out, err = score(*arguments, "--features=mine:colours")
    metrics = json.loads(out.splitlines()[-1])["metrics"]
    assert status == 0 and metrics["frechet"] == pytest.approx(49) and "the features are of mine:colours" in err
    status, out, err = score(*arguments)
    assert status == 2 and out == "" and "--inception: is missing" in err and err.count("\n") == 1


def test_the_names_that_others_call():
    assert {
        "textvqa",
        "vqav2",
        "okvqa",
        "vizwiz",
        "pope",
        "mme",
        "mmbench",
        "mmvet",
        "scienceqa",
        "gqa",
        "coco",
        "nocaps",
        "image2paragraph",
    } <= set(BENCHMARKS)
    assert all(name in evaluate.__doc__ for name in BENCHMARKS)
