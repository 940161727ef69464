"""ScienceQA (Lu et al.

2022): questions of several choices, with or without a picture. Answers are read as LLaVA's eval_science_qa.py does.
"""

import dataclasses
import re

from etils import epath

from dreamjax.errors import SourceError
from dreamjax.evaluation.files import expected_form, find_file, read_json
from dreamjax.evaluation.predictions import Answer, Score, answers_of, by_id, first, percent, read_answers, rows_of

LETTERS = "ABCDE"


@dataclasses.dataclass(frozen=True)
class Question:
    """One question: its right letter, and whether a picture belongs to it."""

    id: str
    answer: str
    has_image: bool


def chosen(text: str) -> str:
    """The letter that an answer chooses.

    It alone, or before ". ", or once in "The answer is X."; "" where none is to be read.
    """
    if text in tuple(LETTERS):
        return text
    if text[:1] in tuple(LETTERS) and text[1:3] == ". ":
        return text[0]
    found = re.findall(r"The answer is ([A-Z]).", text)
    return found[0] if len(found) == 1 else ""


def load_questions(data: epath.PathLike, count: int | None = None) -> list[Question]:
    """LLaVA's file of conversations (llava_test_*.json), or the folder with the benchmark's problems.json and
    pid_splits.json (split test).
    """
    data = epath.Path(data)
    if (data / "problems.json").exists():
        path = data / "problems.json"
        problems = read_json(path)
        with expected_form(path, "file of problems"):
            chosen_ids = read_json(data / "pid_splits.json")["test"]
            questions = [
                Question(key, LETTERS[problems[key]["answer"]], bool(problems[key].get("image"))) for key in chosen_ids
            ]
    else:
        path = find_file(data, "llava_test*.json", "*.json")
        with expected_form(path, "file of conversations"):
            questions = [
                Question(
                    str(row["id"]), _right(row["conversations"][-1]["value"], row["id"], path), bool(row.get("image"))
                )
                for row in read_json(path)
            ]
    if not questions or len({question.id for question in questions}) < len(questions):
        raise SourceError(f"{path}: {'holds an id twice' if questions else 'holds no questions'}")
    return first(questions, count)


def _right(text: str, name: str, path: epath.Path) -> str:
    """The right letter out of what the conversation's last turn says.

    It alone, or "The answer is X." after (or before) reasons.
    """
    letter = chosen(text.strip()) or next(iter(re.findall(r"answer is ([A-E])\b", text)), "")
    if not letter:
        raise SourceError(f"{path}: {name}: the last turn names no letter: {text[:60]!r}")
    return letter


def read_predictions(path: epath.PathLike) -> list[Answer]:
    """LLaVA's answer file, or the file of results that its scorer writes (`outputs`: {id: text})."""
    path = epath.Path(path)
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("outputs"), dict) and content["outputs"]:
        return answers_of(rows_of(content["outputs"]), path)
    return read_answers(path)


def score(predictions: epath.PathLike, data: epath.PathLike, count: int | None = None) -> Score:
    """`accuracy` over all questions, `image_accuracy` over those with a picture and `text_accuracy` over the others, in
    percent.

    A missing answer, and one that names no letter, is wrong.
    """
    questions = load_questions(data, count)
    matched = by_id(read_predictions(predictions), [question.id for question in questions], str(data))
    letters = {key: chosen(text) for key, text in matched.texts.items()}
    right = {question: letters.get(question.id) == question.answer for question in questions}
    metrics = {
        "accuracy": percent(right.values()),
        "image_accuracy": percent(value for question, value in right.items() if question.has_image),
        "text_accuracy": percent(value for question, value in right.items() if not question.has_image),
    }
    return Score(
        metrics, matched.counts | {"no_letter": sum(not letter for letter in letters.values())}, matched.warnings
    )
