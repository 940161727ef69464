"""Multiple choice and one-word answers: ScienceQA, MMBench, GQA."""

import json

import pytest
from evaluation.files import write_json, write_lines

from dreamjax.errors import SourceError
from dreamjax.evaluation.benchmarks import gqa, mmbench, scienceqa
from dreamjax.evaluation.files import read_table, write_table

# ----------------------------------------------------------------------------------------------------------------------
# ScienceQA


@pytest.mark.parametrize(
    "text, letter",
    [
        ("A", "A"),
        ("B. increased", "B"),
        ("The answer is C.", "C"),
        ("So. The answer is D. Yes", "D"),
        ("The answer is A. The answer is B.", ""),
        ("The answer is A", ""),
        ("a", ""),
        ("AB", ""),
        ("", ""),
        ("F", ""),
        ("B.", ""),
        ("Answer: B", ""),
    ],
)
def test_the_letter_of_an_answer(text, letter):
    assert scienceqa.chosen(text) == letter


@pytest.fixture()
def science(tmp_path):
    rows = []
    for number, (answer, image) in enumerate((("A", True), ("B", True), ("C", False), ("A", False)), 4):
        last = {"from": "gpt", "value": f"The answer is {answer}." if number % 2 else answer}
        rows.append(
            {
                "id": str(number),
                "conversations": [{"from": "human", "value": "Which? (A) a (B) b"}, last],
                **({"image": f"{number}/image.png"} if image else {}),
            }
        )
    return write_json(tmp_path / "llava_test_CQM-A.json", rows)


def test_scienceqa(science, tmp_path):
    rows = [
        {"question_id": str(number), "prompt": "<image>", "text": text}
        for number, text in ((4, "A"), (5, "A. a"), (6, "The answer is C."), (7, "none"))
    ]
    found = scienceqa.score(write_lines(tmp_path / "a.jsonl", rows), science)
    assert (
        found.metrics == {"accuracy": 50.0, "image_accuracy": 50.0, "text_accuracy": 50.0}
        and found.counts["no_letter"] == 1
    )
    of_scorer = write_json(
        tmp_path / "result.json",
        {"acc": 0, "results": {}, "outputs": {row["question_id"]: row["text"] for row in rows[:3]}},
    )
    found = scienceqa.score(of_scorer, science)
    assert found.metrics["accuracy"] == 50.0 and found.metrics["text_accuracy"] == 50.0 and found.counts["missing"] == 1
    problems = {
        str(number): {"answer": answer, "image": image, "choices": []}
        for number, answer, image in ((4, 0, "a.png"), (5, 1, None), (6, 2, None), (8, 0, None))
    }
    write_json(tmp_path / "own" / "problems.json", problems)
    write_json(tmp_path / "own" / "pid_splits.json", {"train": ["8"], "test": ["4", "5", "6"]})
    found = scienceqa.score(tmp_path / "a.jsonl", tmp_path / "own")
    assert (
        found.metrics["image_accuracy"] == 100.0
        and found.metrics["text_accuracy"] == 50.0
        and found.counts["unmatched"] == 1
    )


def test_scienceqa_wrong_data(science, tmp_path):
    rows = [{"question_id": "4", "text": "A"}, {"question_id": 4, "text": "B"}]
    with pytest.raises(SourceError, match="answers question 4 a second time"):
        scienceqa.score(write_lines(tmp_path / "a.jsonl", rows), science)
    write_json(science, [{"id": "4", "conversations": [{"value": "?"}, {"value": "who knows"}]}])
    with pytest.raises(SourceError, match="4: the last turn names no letter"):
        scienceqa.score(write_lines(tmp_path / "a.jsonl", rows[:1]), science)
    write_json(science, [{"id": "4"}])
    with pytest.raises(SourceError, match="is no file of conversations"):
        scienceqa.score(tmp_path / "a.jsonl", science)


# ----------------------------------------------------------------------------------------------------------------------
# MMBench

CHOICES = {"A": "a red car", "B": "a dog", "C": "the sea"}


@pytest.mark.parametrize(
    "text, letter",
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("The answer is B", "B"),
        ("A", "A"),
        ("A. a red car", "A"),
        ("I see a Dog here", "B"),
        ("A dog is what it shows", "B"),
        ("A or B", ""),
        ("", ""),
        ("D", ""),
        ("a dog at the sea", ""),
        ("b", ""),
    ],
)
def test_the_choice_of_an_answer(text, letter):
    assert mmbench.chosen(text, CHOICES) == letter


HEADER = [
    "index",
    "question",
    "hint",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "image",
    "source",
    "l2-category",
    "comment",
    "split",
]


@pytest.fixture(params=["tsv", "xlsx"])
def bench(tmp_path, request):
    """Two questions: one of three choices in its three turns, one of two."""

    def row(index, choices, answer, category, skill):
        return [index, "Q?", "", *choices, *[""] * (4 - len(choices)), answer, category, "aW1n", "s", skill, "", "dev"]

    rows = [
        row(3, ["cat", "dog", "cow"], "A", "identity", "coarse_perception"),
        row(4, ["yes", "no"], "B", "logic", "logic_reasoning"),
        row(1000003, ["dog", "cow", "cat"], "C", "identity", "coarse_perception"),
        row(2000003, ["cow", "cat", "dog"], "B", "identity", "coarse_perception"),
        row(1000004, ["no", "yes"], "A", "logic", "logic_reasoning"),
    ]
    write_table(tmp_path / f"mmbench_dev.{request.param}", HEADER, rows)
    return tmp_path / f"mmbench_dev.{request.param}"


def test_mmbench(bench, tmp_path):
    texts = {3: "A", 1000003: "cat", 2000003: "A. cow", 4: "B", 1000004: "no"}
    predictions = write_lines(tmp_path / "a.jsonl", [{"question_id": key, "text": text} for key, text in texts.items()])
    found = mmbench.score(predictions, bench)
    assert found.metrics == {
        "accuracy": 50.0,
        "circular_accuracy": 50.0,
        "plain_accuracy": 100.0,
        "CP": 0.0,
        "LR": 100.0,
        "category/identity": 0.0,
        "category/logic": 100.0,
    }
    assert found.counts == {
        "questions": 5,
        "predictions": 5,
        "missing": 0,
        "unmatched": 0,
        "distinct_questions": 2,
        "turns": 3,
        "no_choice": 0,
    }
    rows = read_table(mmbench.export(predictions, bench, tmp_path).path)
    assert list(rows[0]) == ["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"]
    assert [(row["index"], row["prediction"]) for row in rows] == [
        (3, "A"),
        (4, "B"),
        (1000003, "cat"),
        (2000003, "A. cow"),
        (1000004, "no"),
    ]
    for ending in ("xlsx", "tsv"):  # a table of predictions
        assert mmbench.score(tmp_path / f"mmbench_submission.{ending}", bench).metrics == found.metrics
    lacking = write_lines(tmp_path / "b.jsonl", [{"question_id": 4, "text": "B"}])
    assert (
        mmbench.score(lacking, bench).metrics["plain_accuracy"] == 50.0
        and mmbench.score(lacking, bench).metrics["accuracy"] == 0.0
    )


def test_mmbench_without_answers(tmp_path):
    write_table(
        tmp_path / "test.tsv", ["index", "question", "A", "B", "l2-category"], [[1, "Q?", "x", "y", "logic_reasoning"]]
    )
    predictions = write_lines(tmp_path / "a.jsonl", [{"question_id": 1, "text": "A"}])
    with pytest.raises(SourceError, match="holds no answers to score against"):
        mmbench.score(predictions, tmp_path / "test.tsv")
    assert read_table(mmbench.export(predictions, tmp_path / "test.tsv", tmp_path).path) == [
        {"index": 1, "question": "Q?", "A": "x", "B": "y", "prediction": "A"}
    ]
    write_table(tmp_path / "other.tsv", ["id", "question"], [[1, "Q?"]])
    with pytest.raises(SourceError, match="has no column index"):
        mmbench.score(predictions, tmp_path / "other.tsv")


# ----------------------------------------------------------------------------------------------------------------------
# GQA


def test_gqa(tmp_path):
    def question(answer, kind, balanced):
        return {
            "imageId": "n1",
            "question": "Q?",
            "answer": answer,
            "types": {"structural": kind},
            "isBalanced": balanced,
        }

    rows = {
        "1": question("cat", "query", True),
        "2": question("yes", "verify", True),
        "3": question("left", "choose", True),
        "4": question("x", "query", False),
    }
    write_json(tmp_path / "testdev_balanced_questions.json", rows)
    said = {"1": "Cat.", "2": "yes it is", "3": "Left"}
    predictions = write_lines(tmp_path / "a.jsonl", [{"question_id": key, "text": text} for key, text in said.items()])
    found = gqa.score(predictions, tmp_path)
    assert (
        found.metrics == {"accuracy": pytest.approx(200 / 3), "open_accuracy": 100.0, "binary_accuracy": 50.0}
        and found.counts["questions"] == 3
    )
    assert found.counts["neither_yes_nor_no"] == 1  # "yes it is" is right nowhere
    own = gqa.export(predictions, tmp_path / "testdev_balanced_questions.json", tmp_path).path
    assert json.loads(own.read_text())[0] == {"questionId": "1", "prediction": "cat"}
    assert gqa.score(own, tmp_path).metrics == found.metrics
    write_json(
        tmp_path / "test" / "submission_all_questions.json",
        {key: {"imageId": "n1", "question": "Q?"} for key in "1234"},
    )
    with pytest.raises(SourceError, match="holds no answers to score against"):
        gqa.score(predictions, tmp_path / "test")
    exported = gqa.export(predictions, tmp_path / "test", tmp_path / "test")
    assert [row["questionId"] for row in json.loads(exported.path.read_text())] == list(
        "1234"
    ) and "1 of 4 questions have no prediction" in exported.warnings[0]
    with pytest.raises(SourceError, match="is no file of questions of GQA"):
        gqa.score(predictions, write_json(tmp_path / "x.json", {"1": {"question": "Q?"}}))
