"""What an evaluation writes.

Killed at any write it is gone on with to the same end; results come first; rows are read as what anybody wrote.
"""

import json
import os
import types

import PIL.Image
import pytest

from dreamjax.document import Document, Text
from dreamjax.errors import ConfigError, SourceError
from dreamjax.evaluation import human_study, likelihood_runner, report, resumable, run_files
from dreamjax.evaluation.files import write_table
from dreamjax.evaluation.predictions import Exported, Score
from dreamjax.evaluation.ranking import Ranking
from dreamjax.evaluation.report import Result, Sample
from dreamjax.evaluation.results import Outcome, run_tasks
from dreamjax.filesystem import atomic


class Killed(BaseException):
    """The program ends here."""


@pytest.fixture()
def killed_at(monkeypatch):
    """Ends the program at the so manieth sync to the disk, before or after which each file is replaced or added to.

    None: never.
    """
    real = os.fsync

    def at(number):
        left = [number]

        def fsync(descriptor):
            real(descriptor)
            if left[0] is not None:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed

        monkeypatch.setattr(os, "fsync", fsync)

    return at


RANKINGS = [Ranking(str(i), (f"{i}?",) * 2, (" no", " yes"), i % 2) for i in range(5)]


def ranked(out, monkeypatch):
    """A task that ranks without a model, with a file for a server."""
    monkeypatch.setattr(likelihood_runner, "_fitting", lambda model, ranking: ((), 0))
    monkeypatch.setattr(
        likelihood_runner,
        "_sums",
        lambda model, batch, befores, size: [[-1.0, -2.0 + int(ranking.id) % 2 * 1.5] for ranking in batch],
    )

    def task(model, out):
        path, _ = likelihood_runner.predict(None, RANKINGS, out / "ranked", {"model": "m"}, batch_size=8)
        chosen = {row["question_id"]: row["text"] for row in run_files.read_rows(path)}
        score = Score(
            {"accuracy": 100.0 * sum(chosen[one.id] == str(one.right) for one in RANKINGS) / 5}, {"questions": 5}
        )
        result = Result("ranked", score, export=lambda: exported(out / "a.xlsx", chosen))
        return Outcome(result, report.format_summary(result), {})

    def exported(path, chosen):
        return Exported(path, write_table(path, ["index", "prediction"], sorted(chosen.items())))

    return run_tasks(None, {"ranked": task}, out, {"model": "m"})


def contents(folder):
    """What lies in a folder; an xlsx says when it was made."""
    return {
        str(path.relative_to(folder)): path.suffix == ".xlsx" or path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_killed_at_any_write_it_comes_to_the_same_end(tmp_path, monkeypatch, killed_at, capsys):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    found = ranked(tmp_path / "whole", monkeypatch)
    assert found["ranked"]["metrics"] == {"accuracy": 100.0} and set(contents(tmp_path / "whole")) == {
        "a.xlsx", "report.html", "results.json", "ranked/predictions.jsonl", "ranked/run.json",
    }  # fmt: skip
    number, out = 0, tmp_path / "killed"
    while True:
        killed_at(number)
        try:
            ranked(out, monkeypatch)
            break
        except Killed:
            assert all(json.loads(path.read_text()) for path in out.rglob("*.json"))  # whole, whenever that was
            number += 1
    same = {
        name: text.replace("/killed/", "/whole/") if isinstance(text, str) else text
        for name, text in contents(out).items()
    }
    assert number > 8 and same == contents(tmp_path / "whole")


def test_results_are_there_whatever_the_page_and_the_table_come_to(tmp_path, monkeypatch, capsys):
    samples = [Sample("\ud800", Document((Text("half a pair \udc00"),)), "\ud800 and = \x00")]
    score = Score(
        {"accuracy": 50.0, "category/\ud800": float("inf")}, {"questions": 2, "no_choice": 1}, ("a warning \ud800",)
    )

    def broken():
        return 1 / 0

    words = report.format_summary(Result("odd", score))

    def task(export):
        return lambda model, out: Outcome(
            Result("odd", score, samples=samples, export=export), words, {"x": [float("nan")]}
        )

    for export, render in ((broken, report.render), (None, lambda *arguments: broken())):
        monkeypatch.setattr(report, "render", render)
        with pytest.raises(ZeroDivisionError):
            run_tasks(None, {"odd": task(export)}, tmp_path, {})
        results = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
        assert results["odd"]["metrics"] == {"accuracy": 50.0, "category/\ud800": None} and results["odd"]["x"] == [
            None
        ]
        (tmp_path / "results.json").unlink()
    monkeypatch.undo()
    run_tasks(None, {"odd": task(None)}, tmp_path, {})
    page = (tmp_path / "report.html").read_text()
    assert (
        "half a pair \\udc00" in page
        and "of 2 questions, 1 no choice" in page
        and "of 2 questions, 1 no choice" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "line",
    [
        b"\0\0\0",
        b"5",
        b"[]",
        b"{}",
        b'{"key": "a", "document": []}',
        b'{"key": 1, "document": {}}',
        b"[" * 99_999,
        b'{"key": NaN, "document": {}}',
        b"\xff",
    ],
)
def test_rows_are_what_anybody_wrote(tmp_path, line):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(b'{"key": "a", "document": {}}\n\n' + line + b'\n{"key": ')
    with pytest.raises(
        SourceError,
        match="predictions.jsonl: line 3 is (not JSON|no prediction of a run: has no (key|document)); delete "
        "the file or use another",
    ):
        run_files.read_rows(path, key=str, document=dict)


@pytest.mark.parametrize("settings", [b"", b"{", b"5", b"\0\0", b"[" * 99_999])
def test_damaged_settings_are_named(tmp_path, settings):
    (tmp_path / "predictions.jsonl").touch()
    (tmp_path / "run.json").write_bytes(settings)
    for begin in (run_files.check_settings, run_files.begin):
        with pytest.raises(ConfigError, match="run.json, which says whose .* is damaged; delete its folder"):
            begin(tmp_path, {"model": "m"})


OUTSIDE = [
    "../secret.png",
    "/etc/hostname",
    "http://127.0.0.1:9/a.png",
    "gs://bucket/a.png",
    "link.png",
    "",
    "a\0.png",
    "data:image/png,x",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_images_of_rows_lie_in_their_folder(tmp_path, name):
    """A file of predictions that somebody else wrote: nothing outside its folder is read, and no request goes out."""
    out = tmp_path / "out"
    out.mkdir()
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (out / "drawn").mkdir()
    for folder in (out, out / "drawn"):
        (folder / "link.png").symlink_to(tmp_path / "secret.png")
    document = {"parts": [{"type": "image", "image": name}]}
    with pytest.raises(SourceError, match="holds a document that cannot be read"):
        run_files.read_document(document, out, "row")
    model = resumable.ResumableModel(None, out / "predictions.jsonl", {resumable._key(Document(()), 0, {}): document})
    with pytest.raises(SourceError, match="predictions.jsonl: holds a document that cannot be read"):
        model.generate_batch([Document(())], [0])
    asked = [human_study.Instruction("0", "", Document((Text("?"),)), Document(()))]
    atomic.write_text(out / "run.json", "{}")
    run_files.append_rows(out / "predictions.jsonl", [{"question_id": "0", "document": document}])
    with pytest.raises(SourceError, match="cannot be read"):
        human_study.write(types.SimpleNamespace(), asked, out, {}, 1)


def test_the_page_names_the_model_and_its_metrics_in_words():
    score = Score({"random_f1": 50.0, "CIDEr": 80.0}, {"questions": 4})
    page = report.render("t", [Result("pope", score), Result("coco", score)], ["model m", "checkpoint 7", "2026-11-30"])
    assert "model m · checkpoint 7 · 2026-11-30" in page and "of 4 questions" in page
    assert "random: F1</td>" in page and "random_f1" not in page and "x 100</td>" in page and "%</td>" in page
