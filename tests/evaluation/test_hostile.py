"""Files of predictions that no program should have written: a score, or one line that says what is wrong."""

import json

import pytest
from evaluation import layouts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreamjax.errors import SourceError
from dreamjax.evaluation.benchmarks.registry import BENCHMARKS
from dreamjax.evaluation.files import write_table
from dreamjax.evaluation.metrics import captions

TEXTS = st.sampled_from(
    ["A", "yes", "0", "red", "=1+1", "\x00", "\ud800", "", "_x0001_", "a\nb\tc\r", "9" * 5000, "x" * 40_000]
)
ODD = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        1e400,
        float("nan"),
        10**30,
        10**400,
        0.5,
        [],
        {},
        ["A"],
        {"a": "A"},
        "9" * 5000,
        "\ud800",
        "../../x.png",
        "http://127.0.0.1/x",
    ]
)
FIELDS = ("question_id", "prompt", "category", "text", "image", "score")
CHANGES = st.dictionaries(st.sampled_from(FIELDS), ODD | TEXTS, max_size=2)
OTHER = (
    st.binary(max_size=40)
    | st.sampled_from(["[" * 100_000, '{"a":' * 100_000, '{"1": "a", "1": "b"}', "9" * 5000])
    | ODD
    | st.dictionaries(TEXTS, ODD, max_size=2)
)


def written(path, content):
    """A file of predictions in the form of its name."""
    if isinstance(content, bytes | str):
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    elif path.suffix in (".xlsx", ".tsv") and isinstance(content, list):
        write_table(
            path,
            FIELDS,
            [
                [row.get(name) if isinstance(row.get(name), str | bool) else "" for name in FIELDS]
                for row in content
                if isinstance(row, dict)
            ],
        )
    elif path.suffix == ".jsonl" and isinstance(content, list):
        path.write_text("".join(json.dumps(row) + "\r\n" for row in content), encoding="utf-8-sig")
    else:
        path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    for name in BENCHMARKS:
        getattr(layouts, name if name != "captions" else "coco")(folder / name)
    return folder


@pytest.fixture()
def no_java(monkeypatch):
    monkeypatch.setattr(captions, "has_java", lambda: False)


def valid(name, data):
    """A row for each question of a task."""
    if BENCHMARKS[name].rankings:
        return [{"question_id": ranking.id, "prompt": "?", "text": "0"} for ranking in BENCHMARKS[name].rankings(data)]
    asked = BENCHMARKS["coco" if name == "captions" else name].questions(data)
    return [
        {
            "question_id": question.id,
            "prompt": question.text,
            "category": question.category,
            "text": "yes",
            "score": 0.5,
        }
        for question in asked
    ]


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize("field", FIELDS)
def test_numbers_of_hundreds_of_digits(name, field, data, no_java):
    rows = valid(name, data / name)
    path = written(data / "predictions.jsonl", [rows[0] | {field: 10**400}, *rows[1:]])
    try:
        BENCHMARKS[name].score(path, data / name)
    except SourceError as error:
        assert str(error).isprintable() and len(str(error)) < 1000


@pytest.mark.parametrize("name", BENCHMARKS)
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data(), ending=st.sampled_from(["jsonl", "json", "tsv", "xlsx", "txt"]))
def test_every_score_entry_takes_any_file(name, data, no_java, draw, ending):
    rows = [row | draw.draw(CHANGES) for row in valid(name, data / name)]
    ids = {str(row["question_id"]): row.get("text") for row in rows}
    content = draw.draw(st.sampled_from([rows, rows, [*rows, rows[-1]], ids, {"outputs": ids}, *rows]) | OTHER)
    path = written(data / f"predictions.{ending}", content)
    benchmark = BENCHMARKS[name]
    for entry, *rest in [(benchmark.score,), *([(benchmark.export, data)] if benchmark.export else [])]:
        try:
            found = entry(path, data / name, *rest)
            assert all(warning.isprintable() and len(warning) < 1000 for warning in found.warnings)
        except SourceError as error:
            assert str(error).isprintable() and len(str(error)) < 1000 and "predictions" in str(error)
