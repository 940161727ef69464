"""MME's scores by hand, LLaVA's and the benchmark's own files."""

import pytest
from evaluation.files import write_lines

from dreamjax.errors import SourceError
from dreamjax.evaluation.benchmarks import mme

YES_OR_NO = "Please answer yes or no."
GT = {
    "existence": [
        ("a.png", "Is there a cat?", "Yes"),
        ("a.png", "Is there a dog?", "No"),
        ("b.c.png", "Is there a man?", "Yes"),
        ("b.c.png", "Is there a man? Really?", "No"),
    ],
    "OCR": [("a.png", "Is the word A?", "Yes"), ("a.png", "Is the word B?", "No")],
    "code_reasoning": [("x.png", "Is it code?", "Yes"), ("x.png", "Is  it art?", "No")],
}


@pytest.fixture()
def data(tmp_path):
    folder = tmp_path / "data" / "gt"
    folder.mkdir(parents=True)
    for category, rows in GT.items():
        (folder / f"{category}.txt").write_text(
            "".join(f"{image}\t{question} {YES_OR_NO}\t{answer}\n" for image, question, answer in rows)
        )
    return folder.parent


def llava(texts, folder=""):
    """Rows as LLaVA's answer file has them, for all questions in order."""
    rows = [(category, *row) for category, rows in GT.items() for row in rows]
    return [
        {
            "question_id": f"{category}/{folder}{image}",
            "prompt": f"{question}\nAnswer the question using a single word or phrase.",
            "text": text,
        }
        for (category, image, question, _), text in zip(rows, texts, strict=True)
    ]


@pytest.mark.parametrize(
    "text, said",
    [
        ("Yes", "yes"),
        ("no", "no"),
        ("NO.", "no"),
        ("Yes, no", "yes"),
        ("It is", "other"),
        ("  yes", "other"),
        (" Yes", "yes"),
        ("not", "no"),
        ("", "other"),
        ("I know", "other"),
    ],
)
def test_what_is_said(text, said):
    assert mme.read_answer(text) == said


def test_scores_by_hand(data, tmp_path):
    # existence: 3 of 4 right, 1 of 2 pictures; OCR: 1 of 2, none; code_reasoning: both.
    rows = llava(["Yes", "No", "yes", "Yes", "yes", "maybe", "Yes", "No"], "images/")
    found = mme.score(write_lines(tmp_path / "a.jsonl", rows), data)
    expected = {
        "existence": 125.0,
        "OCR": 50.0,
        "code_reasoning": 200.0,
        "perception": 175.0,
        "cognition": 200.0,
        "total": 375.0,
        "accuracy": 75.0,
    }
    assert found.metrics == expected
    assert found.counts == {
        "questions": 8,
        "predictions": 8,
        "missing": 0,
        "unmatched": 0,
        "neither_yes_nor_no": 1,
        "categories": 3,
    }
    assert len(found.warnings) == 1 and "lack 11 of 14 categories" in found.warnings[0]
    backwards = mme.score(write_lines(tmp_path / "b.jsonl", rows[::-1]), data)
    assert backwards.metrics == found.metrics  # pairs are of pictures, not of lines


def test_missing_answers_are_wrong_and_images_stay(data, tmp_path):
    rows = llava(["Yes", "No", "Yes", "No", "Yes", "No", "Yes", "No"])[:-1]
    found = mme.score(write_lines(tmp_path / "a.jsonl", rows), data)
    assert found.metrics["cognition"] == 50.0 and found.counts["missing"] == 1
    with pytest.raises(SourceError, match="answers question code_reasoning x Is it code\\? a second time"):
        mme.score(write_lines(tmp_path / "a.jsonl", rows + rows[-1:]), data)


def test_the_benchmarks_own_folders(data, tmp_path):
    release = tmp_path / "release"
    for category, rows in GT.items():
        folder = release / category / ("questions_answers_YN" if category == "existence" else "")
        folder.mkdir(parents=True)
        for image, question, answer in rows:
            with (folder / f"{mme.stem(image)}.txt").open("a") as file:
                file.write(f"{question} {YES_OR_NO}\t{answer}\n")
    (release / "existence" / "images").mkdir()
    results = tmp_path / "results"
    results.mkdir()
    texts = iter(["Yes", "No", "yes", "Yes", "yes", "maybe", "Yes", "No"])
    for category, rows in GT.items():
        (results / f"{category}.txt").write_text(
            "".join(f"{mme.stem(p)}.txt\t{q} {YES_OR_NO}\t{a}\t{next(texts)}\n" for p, q, a in rows)
        )
    for where in (release, data):
        assert mme.score(results, where).metrics["total"] == 375.0


def test_wrong_data(data, tmp_path):
    predictions = write_lines(tmp_path / "a.jsonl", llava(["Yes"] * 8))
    file = data / "gt" / "OCR.txt"
    for content, named in (
        ("a.png\tQ? \tYes\n", "OCR, a: has 1 questions"),
        ("a.png\tQ?\n", "line 1 has 2 fields"),
        ("a.png\tQ?\tYes\na.png\tR?\tperhaps\n", "neither Yes nor No"),
    ):
        file.write_text(content)
        with pytest.raises(SourceError, match=named):
            mme.score(predictions, data)
    with pytest.raises(SourceError, match="holds neither CATEGORY.txt"):
        mme.score(predictions, tmp_path)
    with pytest.raises(SourceError, match="no such folder"):
        mme.score(predictions, tmp_path / "nowhere")


def test_an_image_asked_the_same_twice(data, tmp_path):
    """Both rows count, in turn; a third is one too many."""
    twice = "x.png\tIs it code? Please answer yes or no.\tYes\nx.png\tIs it code? Please answer yes or no.\tNo\n"
    (data / "gt" / "code_reasoning.txt").write_text(twice)
    rows = llava(["Yes", "No", "yes", "No", "yes", "No", "Yes", "No"])
    rows[-1]["prompt"] = rows[-2]["prompt"]
    found = mme.score(write_lines(tmp_path / "a.jsonl", rows), data)
    assert found.metrics["cognition"] == 200.0 and found.counts["missing"] == 0
    with pytest.raises(SourceError, match="a second time"):
        mme.score(write_lines(tmp_path / "b.jsonl", rows + rows[-1:]), data)
