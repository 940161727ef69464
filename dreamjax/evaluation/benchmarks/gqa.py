"""GQA (Hudson and Manning 2019): one-word answers, right only when equal. As its eval.py counts, over the balanced
questions.

Predictions lose their last full stops and are put in lower case first, as LLaVA's convert_gqa_for_eval.py does.
"""

import dataclasses
import json

from etils import epath

from dreamjax.errors import SourceError
from dreamjax.evaluation.files import expected_form, find_file, read_json
from dreamjax.evaluation.predictions import Exported, Score, by_id, first, percent, read_answers
from dreamjax.filesystem import atomic

YES_OR_NO = ("yes", "no")


@dataclasses.dataclass(frozen=True)
class Question:
    """A balanced question; `is_open` ones ask for a word, the others for yes or no or one of two."""

    id: str
    image: str
    text: str
    answer: str
    is_open: bool


def plain(text: str) -> str:
    """A prediction as it is compared."""
    return text.rstrip(".").lower()


def load_questions(data: epath.PathLike, count: int | None = None) -> list[Question]:
    """The balanced questions of testdev_balanced_questions.json (or another split's file, perhaps without answers).

    Raises SourceError.
    """
    path = find_file(data, "testdev_balanced_questions.json", "*balanced_questions.json", "*questions.json")
    with expected_form(path, "file of questions of GQA"):
        questions = [
            Question(
                str(key),
                str(row["imageId"]),
                row["question"],
                row.get("answer", ""),
                row.get("types", {}).get("structural") == "query",
            )
            for key, row in read_json(path).items()
            if row.get("isBalanced", True)
        ]
    if not questions:
        raise SourceError(f"{path}: holds no balanced questions")
    return first(questions, count)


def score(predictions: epath.PathLike, data: epath.PathLike, count: int | None = None) -> Score:
    """`accuracy`, `open_accuracy` and `binary_accuracy` in percent; a missing answer is wrong.

    What says neither to a question of yes or no is wrong, and counted as `neither_yes_nor_no`.
    """
    questions = load_questions(data, count)
    if not all(question.answer for question in questions):
        raise SourceError(
            f"{data}: holds no answers to score against; with --out=DIR the file for the server is written"
        )
    matched = by_id(read_answers(predictions), [question.id for question in questions], str(data))
    right = {question: plain(matched.texts.get(question.id, "")) == question.answer for question in questions}
    metrics = {
        "accuracy": percent(right.values()),
        "open_accuracy": percent(value for question, value in right.items() if question.is_open),
        "binary_accuracy": percent(value for question, value in right.items() if not question.is_open),
    }
    unclear = sum(
        question.answer in YES_OR_NO and plain(matched.texts.get(question.id, "yes")) not in YES_OR_NO
        for question in questions
    )
    return Score(metrics, matched.counts | {"neither_yes_nor_no": unclear}, matched.warnings)


def export(predictions: epath.PathLike, data: epath.PathLike, out: epath.Path) -> Exported:
    """Writes testdev_balanced_predictions.json, [{"questionId", "prediction"}], for GQA's own scorer and server.

    Questions without an answer get "".
    """
    ids = [question.id for question in load_questions(data)]
    matched = by_id(read_answers(predictions), ids, str(data))
    path = out / "testdev_balanced_predictions.json"
    atomic.write_text(
        path, json.dumps([{"questionId": key, "prediction": plain(matched.texts.get(key, ""))} for key in ids])
    )
    return Exported(path, matched.warnings)
