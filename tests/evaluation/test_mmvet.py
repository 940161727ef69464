"""MM-Vet: figures from grades by hand, and the file for the grader."""

import json

import pytest
from evaluation.files import write_json, write_lines

from dreamjax.errors import SourceError
from dreamjax.evaluation.benchmarks import mmvet
from dreamjax.evaluation.files import write_table

NEEDS = {"v1_0": ["ocr", "math"], "v1_1": ["rec"], "v1_2": ["math", "ocr"], "v1_3": ["rec", "know", "gen"]}


@pytest.fixture()
def data(tmp_path):
    write_json(
        tmp_path / "mm-vet" / "mm-vet.json",
        {
            key: {"question": "Q?", "answer": "x", "imagename": "a.png", "capability": need}
            for key, need in NEEDS.items()
        },
    )
    return tmp_path / "mm-vet"


def graded(path, grades):
    return write_json(
        path,
        {
            key: {"model": ["gpt-4"] * len(runs), "content": [str(grade) for grade in runs], "score": runs}
            for key, runs in grades.items()
        },
    )


def test_figures_by_hand(data, tmp_path):
    grades = {"v1_0": [1.0, 0.5], "v1_1": [0.0, 0.5], "v1_2": [0.5, 0.5], "v1_3": [1.0, 1.0]}
    found = mmvet.score(graded(tmp_path / "x_gpt-4-grade-2runs.json", grades), data)
    assert found.metrics == pytest.approx(
        {
            "total": 62.5,
            "std": 0.0,
            "rec": 62.5,
            "ocr": 62.5,
            "know": 100.0,
            "gen": 100.0,
            "math": 62.5,
            "ocr+math": 62.5,
            "rec+know+gen": 100.0,
        }
    )
    assert found.counts["runs"] == 2 and found.warnings == ()
    grades["v1_1"] = [0.0, 1.0]
    found = mmvet.score(graded(tmp_path / "y.json", grades), data)
    assert found.metrics["total"] == pytest.approx((62.5 + 75) / 2) and found.metrics["std"] == pytest.approx(6.25)


def test_what_is_not_graded_counts_as_nothing(data, tmp_path):
    found = mmvet.score(graded(tmp_path / "x.json", {"v1_0": [1.0], "v1_1": [1.0], "v2_9": [1.0]}), data)
    assert found.metrics["total"] == 50.0 and found.metrics["gen"] == 0.0 and found.counts["missing"] == 2
    assert "2 of 4 questions have no grade" in found.warnings[0] and "1 of 3 graded questions" in found.warnings[1]


def test_grades_in_rows(data, tmp_path):
    rows = [{"question_id": i, "text": "x", "score": grade} for i, grade in enumerate((1.0, 0.0, "0.5", [0.5]))]
    assert mmvet.score(write_lines(tmp_path / "a.jsonl", rows), data).metrics["total"] == 50.0
    write_table(tmp_path / "a.xlsx", ["index", "prediction", "score"], [[f"v1_{i}", "x", 0.25] for i in range(4)])
    assert mmvet.score(tmp_path / "a.xlsx", data).metrics["total"] == 25.0
    with pytest.raises(SourceError, match="row 5: grades question v1_0 a second time"):
        mmvet.score(write_lines(tmp_path / "b.jsonl", [*rows, {"question_id": "v1_0", "score": 1}]), data)
    (tmp_path / "x-cap-score-1runs.csv").write_text(",rec,ocr,total,std,runs\nllava,1.0,2.0,31.1,0.0,[31.1]\n")
    with pytest.raises(SourceError, match="holds the sums of MM-Vet's grader, not its grades"):
        mmvet.score(tmp_path / "x-cap-score-1runs.csv", data)


@pytest.mark.parametrize(
    "grades, named",
    [
        ({"v1_0": [1.0], "v1_1": [1.0, 0.0]}, "let the grader finish"),
        ({"v1_0": [1.5]}, "not numbers in 0..1"),
        ({"v1_0": []}, "not numbers in 0..1"),
        ({"x": [1.0]}, "x is no question of"),
        ({}, "holds no predictions"),
    ],
)
def test_wrong_grades(data, tmp_path, grades, named):
    with pytest.raises(SourceError, match=named):
        mmvet.score(graded(tmp_path / "x.json", grades), data)


def test_answers_go_to_the_grader(data, tmp_path):
    rows = [
        {"question_id": 0, "text": "x = 3"},
        {"question_id": "v1_1", "text": "a cat"},
        {"question_id": 3, "text": ""},
    ]
    predictions = write_lines(tmp_path / "a.jsonl", rows)
    assert json.loads(mmvet.export(predictions, data, tmp_path).path.read_text()) == {
        "v1_0": "x = 3",
        "v1_1": "a cat",
        "v1_2": "",
        "v1_3": "",
    }
    for file in (predictions, tmp_path / "mmvet_answers.json"):
        with pytest.raises(SourceError, match="holds answers, not grades"):
            mmvet.score(file, data)
