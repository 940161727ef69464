"""POPE's reading of answers, its figures by hand arithmetic, and both revisions of its labels."""

import json

import pytest
from evaluation.files import real_data, write_lines

from dreamjax.errors import SourceError
from dreamjax.evaluation.benchmarks import pope


@pytest.mark.parametrize(
    "text, yes",
    [
        ("Yes", True),
        ("yes, there is", True),
        ("No", False),
        ("no", False),
        ("No.", False),
        ("No, there is", False),
        ("There is not a dog", False),
        ("NO", True),
        ("Nothing is there", True),
        ("Yes. No", True),
        ("no. Yes", False),
        ("Yes, there is no doubt", False),
        ("", True),
        ("Yes\nno", True),
    ],
)
def test_what_counts_as_yes(text, yes):
    assert pope.says_yes(text) == yes


def test_answers_that_say_neither_are_counted_beside(data, tmp_path):
    """They count as yes, as in POPE's script, and the score says how many."""
    texts = [
        "Yes",
        "maybe",
        "",
        "No",
        "It is there.",
        "There is. YES",
        "I do not know",
        "Nothing",
        "yesterday",
        "no",
        "Yes",
        "No",
    ]
    rows = [
        row(category, i, texts[4 * at + i - 1], category=category)
        for at, category in enumerate(pope.CATEGORIES)
        for i in range(1, 5)
    ]
    found = pope.score(write_lines(tmp_path / "a.jsonl", rows), data)
    assert (
        found.counts["neither_yes_nor_no"] == 5 and found.metrics["random_accuracy"] == 75.0
    )  # "maybe" and "" count as yes
    warning = "5 of 12 answers say neither yes nor no and count as yes, as in POPE's own script; the first is 'maybe'"
    assert warning in found.warnings
    clear = pope.score(write_lines(tmp_path / "b.jsonl", [{**one, "text": "No, it is not"} for one in rows]), data)
    assert clear.counts["neither_yes_nor_no"] == 0 and clear.warnings == ()


def test_figures_by_hand():
    said = [True, True, True, False, False, False, False, False]
    right = [True, True, False, True, False, False, False, False]
    expected = {"accuracy": 75.0, "precision": 200 / 3, "recall": 200 / 3, "f1": 200 / 3, "yes_ratio": 37.5}
    assert pope.binary_metrics(said, right) == pytest.approx(expected)
    nothing = pope.binary_metrics([False] * 4, [True, False, False, False])
    assert nothing == {"accuracy": 75.0, "precision": 0.0, "recall": 0.0, "f1": 0.0, "yes_ratio": 0.0}


def labels(folder, category, given="yes no yes no"):
    rows = [
        {"question_id": i, "image": f"{i}.jpg", "text": f"Is there a {category} {i} in the imange?", "label": label}
        for i, label in enumerate(given.split(), 1)
    ]
    return write_lines(folder / f"coco_pope_{category}.json", rows)


@pytest.fixture()
def data(tmp_path):
    folder = tmp_path / "coco"
    folder.mkdir()
    for category in pope.CATEGORIES:
        labels(folder, category)
    return folder


def row(asked, number, text, **more):
    return {
        "question_id": number,
        "prompt": f"Is there a {asked} {number % 10_000} in the image?\nAnswer in a word.",
        "text": text,
        **more,
    }


@pytest.mark.parametrize("numbered", ["by category", "as LLaVA"])
def test_categories_are_scored_apart(data, tmp_path, numbered):
    offsets = {"adversarial": 0, "random": 10_000_000, "popular": 20_000_000}
    rows = []
    for category, wrong in (("random", 0), ("popular", 1), ("adversarial", 2)):
        for i, label in enumerate(("Yes", "No", "Yes", "No"), 1):
            text = label if i > wrong else {"Yes": "No", "No": "Yes"}[label]
            rows.append(
                row(category, i, text, category=category)
                if numbered == "by category"
                else row(category, i + offsets[category], text)
            )
    found = pope.score(write_lines(tmp_path / "a.jsonl", rows), data)
    assert found.metrics["random_f1"] == 100.0
    assert found.metrics["popular_f1"] == pytest.approx(200 / 3)  # one of two yes found, none claimed falsely
    assert found.metrics["adversarial_f1"] == 50.0 and found.metrics["adversarial_accuracy"] == 50.0
    assert found.metrics["accuracy"] == 75.0 and found.metrics["mean_f1"] == pytest.approx((100 + 200 / 3 + 50) / 3)
    assert found.warnings == ()


def test_missing_answers_are_wrong_ones(data, tmp_path):
    rows = [row("random", i, text, category="random") for i, text in ((1, "Yes"), (2, "No"))]
    found = pope.score(write_lines(tmp_path / "a.jsonl", rows), data / "coco_pope_random.json")
    assert (
        found.metrics["accuracy"] == 50.0 and found.counts["missing"] == 2 and "2 of 4 questions" in found.warnings[0]
    )


def test_files_of_one_category_and_popes_own(data, tmp_path):
    own = [
        {"question": f"Is there a popular {i} in the image?", "answer": text}
        for i, text in enumerate(("Yes", "No", "No", "No"), 1)
    ]
    found = pope.score(write_lines(tmp_path / "answers.json", own), data / "coco_pope_popular.json")
    assert found.metrics["accuracy"] == 75.0 and found.warnings == ()
    found = pope.score(write_lines(tmp_path / "coco_pope_popular_answers.json", own), data)
    assert found.metrics["popular_accuracy"] == 75.0 and found.counts["missing"] == 8
    with pytest.raises(SourceError, match="predictions name no category"):
        pope.score(tmp_path / "answers.json", data)


def test_questions_of_another_revision_are_told(data, tmp_path):
    rows = [row("random", i, "Yes", category="popular") for i in range(1, 5)]
    found = pope.score(write_lines(tmp_path / "a.jsonl", rows), data)
    assert "4 of 4 predictions were asked another question" in found.warnings[-1]


def test_wrong_data(tmp_path):
    predictions = write_lines(tmp_path / "a.jsonl", [row("random", 1, "Yes")])
    with pytest.raises(SourceError, match="holds no label file"):
        pope.score(predictions, tmp_path)
    labels(tmp_path, "random").rename(tmp_path / "labels.json")
    with pytest.raises(SourceError, match="the name ends in none of random, popular, adversarial"):
        pope.score(predictions, tmp_path / "labels.json")


@pytest.mark.parametrize("revision, random_no", [("coco_head", 1500), ("coco_e3e3926", 1410)])
def test_constant_answers_on_both_revisions(tmp_path, revision, random_no):
    data = real_data("pope") / revision
    for text in ("Yes", "No"):
        rows = []
        for category in pope.CATEGORIES:
            given = [json.loads(line) for line in (data / f"coco_pope_{category}.json").read_text().splitlines()]
            rows += [
                {
                    "question_id": one["question_id"],
                    "category": category,
                    "prompt": one["text"] + "\nAnswer",
                    "text": text,
                }
                for one in given
            ]
        found = pope.score(write_lines(tmp_path / "a.jsonl", rows), data)
        total = 1500 + random_no
        share = {"Yes": 1500, "No": random_no}[text] / total
        assert found.metrics["random_accuracy"] == pytest.approx(100 * share)
        assert found.metrics["random_f1"] == pytest.approx(100 * 2 * 1500 / (total + 1500) if text == "Yes" else 0)
        assert (
            found.metrics["popular_f1"]
            == found.metrics["adversarial_f1"]
            == pytest.approx(200 / 3 if text == "Yes" else 0)
        )
        assert found.metrics["accuracy"] == pytest.approx(
            100 * (3000 + {"Yes": 1500, "No": random_no}[text]) / (6000 + total)
        )
        assert found.warnings == ()


def test_label_files_of_other_images_beside(data, tmp_path):
    predictions = write_lines(tmp_path / "a.jsonl", [row("random", i, "Yes", category="random") for i in range(1, 5)])
    labels(data, "random").rename(data / "gqa_pope_random.json")
    labels(data, "random")
    assert pope.score(predictions, data).metrics["random_accuracy"] == 50.0
    for category in pope.CATEGORIES:
        (data / f"coco_pope_{category}.json").rename(data / f"aokvqa_pope_{category}.json")
    with pytest.raises(SourceError, match="holds aokvqa_pope_random.json, gqa_pope_random.json; leave"):
        pope.score(predictions, data)
    labels(data, "random", "yes no maybe no")
    with pytest.raises(SourceError, match="the label 'maybe' is neither yes nor no"):
        pope.score(predictions, data / "coco_pope_random.json")
