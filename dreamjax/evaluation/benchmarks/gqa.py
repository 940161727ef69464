"""GQA (Hudson and Manning 2019): one-word answers, right only when equal. As its eval.py counts, over the balanced
questions.

Predictions lose their last full stops and are put in lower case first, as LLaVA's convert_gqa_for_eval.py does.
"""

import json

from etils import epath

from dreamjax.errors import SourceError
from dreamjax.evaluation.benchmark import Benchmark
from dreamjax.evaluation.files import expected_form, find_file, read_json
from dreamjax.evaluation.predictions import Exported, Score, match_ids, percent, read_predictions
from dreamjax.evaluation.prompts import SHORT_ANSWER
from dreamjax.evaluation.question import Question, limit
from dreamjax.filesystem import atomic

YES_OR_NO = ("yes", "no")
OPEN = "query"  # the structural type of questions that ask for a word, not for yes or no or one of two


def plain(text: str) -> str:
    """A prediction in the form in which it is compared."""
    return text.rstrip(".").lower()


def load_questions(data: epath.PathLike, count: int | None = None) -> list[Question]:
    """The balanced questions of testdev_balanced_questions.json (or another split's file, perhaps without answers).

    Their group is their structural type. Raises SourceError.
    """
    path = find_file(data, "testdev_balanced_questions.json", "*balanced_questions.json", "*questions.json")
    with expected_form(path, "file of questions of GQA"):
        questions = [
            Question(
                str(key),
                row["question"],
                (str(row["imageId"]),),
                references=(row["answer"],) if row.get("answer") else (),
                groups=(row.get("types", {}).get("structural", ""),),
            )
            for key, row in read_json(path).items()
            if row.get("isBalanced", True)
        ]
    if not questions:
        raise SourceError(f"{path}: holds no balanced questions")
    return limit(questions, count)


def score(predictions: epath.PathLike, data: epath.PathLike, count: int | None = None) -> Score:
    """`accuracy`, `open_accuracy` and `binary_accuracy` in percent; a missing answer is wrong.

    Other words than yes and no are wrong for a question of yes or no, and counted as `neither_yes_nor_no`.
    """
    questions = load_questions(data, count)
    if not all(question.answer for question in questions):
        raise SourceError(
            f"{data}: holds no answers to score against; with --out=DIR the file for the server is written"
        )
    matched = match_ids(read_predictions(predictions), [question.id for question in questions], str(data))
    right = {question: plain(matched.texts.get(question.id, "")) == question.answer for question in questions}
    metrics = {
        "accuracy": percent(right.values()),
        "open_accuracy": percent(value for question, value in right.items() if OPEN in question.groups),
        "binary_accuracy": percent(value for question, value in right.items() if OPEN not in question.groups),
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
    matched = match_ids(read_predictions(predictions), ids, str(data))
    path = out / "testdev_balanced_predictions.json"
    rows = [{"questionId": key, "prediction": plain(matched.texts.get(key, ""))} for key in ids]
    atomic.write_text(path, json.dumps(rows))
    return Exported(path, matched.warnings)


BENCHMARK = Benchmark(name="gqa", questions=load_questions, score=score, export=export, prompts={"clean": SHORT_ANSWER})
