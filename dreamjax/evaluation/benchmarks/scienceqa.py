"""ScienceQA (Lu et al. 2022): multiple choice, with or without an image.

Answers are read as LLaVA's eval_science_qa.py does.
"""

import re

from etils import epath

from dreamjax.errors import SourceError
from dreamjax.evaluation.benchmark import Benchmark
from dreamjax.evaluation.files import expected_form, find_file, read_json
from dreamjax.evaluation.predictions import (
    Prediction,
    Score,
    match_ids,
    parse_predictions,
    percent,
    read_predictions,
    rows_of,
)
from dreamjax.evaluation.prompts import LETTER_OF_CHOICE
from dreamjax.evaluation.question import Question, limit

LETTERS = "ABCDE"


def chosen(text: str) -> str:
    """The letter that an answer chooses: it alone, or before ". ", or once in "The answer is X."; "" without one."""
    if text in tuple(LETTERS):
        return text
    if text[:1] in tuple(LETTERS) and text[1:3] == ". ":
        return text[0]
    letters = re.findall(r"The answer is ([A-Z]).", text)
    return letters[0] if len(letters) == 1 else ""


def load_questions(data: epath.PathLike, count: int | None = None) -> list[Question]:
    """LLaVA's file of conversations (llava_test_*.json), or the folder with the benchmark's problems.json and
    pid_splits.json (split test).
    """
    problems = epath.Path(data) / "problems.json"
    if problems.exists():
        path, questions = problems, _read_problems(problems)
    else:
        path = find_file(data, "llava_test*.json", "*.json")
        questions = _read_conversations(path)
    if not questions or len({question.id for question in questions}) < len(questions):
        raise SourceError(f"{path}: {'holds an id twice' if questions else 'holds no questions'}")
    return limit(questions, count)


def _read_problems(path: epath.Path) -> list[Question]:
    problems = read_json(path)
    with expected_form(path, "file of problems"):
        return [
            Question(
                key,
                str(problems[key].get("question", "")),
                (f"{key}/{problems[key]['image']}",) if problems[key].get("image") else (),
                tuple(zip(LETTERS, map(str, problems[key].get("choices", ())), strict=False)),
                str(problems[key].get("hint", "")),
                references=(LETTERS[problems[key]["answer"]],),
            )
            for key in read_json(path.parent / "pid_splits.json")["test"]
        ]


def _read_conversations(path: epath.Path) -> list[Question]:
    """Questions whose text has the choices already."""
    with expected_form(path, "file of conversations"):
        return [
            Question(
                str(row["id"]),
                row["conversations"][0]["value"].replace("<image>", "").strip(),
                (str(row["image"]),) if row.get("image") else (),
                references=(_right_letter(row["conversations"][-1]["value"], row["id"], path),),
            )
            for row in read_json(path)
        ]


def _right_letter(text: str, name: str, path: epath.Path) -> str:
    """The letter of a conversation's last turn: it alone, or "The answer is X." after (or before) reasons."""
    letter = chosen(text.strip()) or next(iter(re.findall(r"answer is ([A-E])\b", text)), "")
    if not letter:
        raise SourceError(f"{path}: {name}: the last turn names no letter: {text[:60]!r}")
    return letter


def read_answers(path: epath.PathLike) -> list[Prediction]:
    """LLaVA's answer file, or the file of results that its scorer writes (`outputs`: {id: text})."""
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("outputs"), dict) and content["outputs"]:
        return parse_predictions(rows_of(content["outputs"]), path)
    return read_predictions(path)


def score(predictions: epath.PathLike, data: epath.PathLike, count: int | None = None) -> Score:
    """`accuracy` over all questions, `image_accuracy` over those with an image and `text_accuracy` over the others.

    In percent. A missing answer, and one that names no letter, is wrong.
    """
    questions = load_questions(data, count)
    matched = match_ids(read_answers(predictions), [question.id for question in questions], str(data))
    letters = {key: chosen(text) for key, text in matched.texts.items()}
    right = {question: letters.get(question.id) == question.answer for question in questions}
    metrics = {
        "accuracy": percent(right.values()),
        "image_accuracy": percent(value for question, value in right.items() if question.images),
        "text_accuracy": percent(value for question, value in right.items() if not question.images),
    }
    no_letter = sum(not letter for letter in letters.values())
    return Score(metrics, matched.counts | {"no_letter": no_letter}, matched.warnings)


BENCHMARK = Benchmark(name="scienceqa", questions=load_questions, score=score, prompts={"clean": LETTER_OF_CHOICE})
