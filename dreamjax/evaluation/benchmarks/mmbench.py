"""MMBench (Liu et al. 2023): multiple choice in six skills, from and to its tables (TSV, XLSX).

Each question stands there several times with its choices turned round, its number raised by a million each time.
Circular evaluation counts it as right only when every turn is; plain evaluation counts the first turn alone. A choice
is read from an answer by the two rules of the benchmark's evaluation (its letter, or the words of one choice); what
these cannot read, which the server gives to a language model, counts as wrong here and is counted as `no_choice`.
"""

import collections
import dataclasses
from collections.abc import Mapping

from etils import epath

from dreamjax.errors import SourceError
from dreamjax.evaluation.files import expected_form, find_file, read_table, whole_number, write_table
from dreamjax.evaluation.predictions import Exported, Score, by_id, first, percent, percent_by, read_answers

LETTERS = "ABCDE"
TURN = 1_000_000
SKILLS = {  # l2-category: how the paper abbreviates it
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "attribute_reasoning": "AR",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
}


@dataclasses.dataclass(frozen=True)
class Question:
    """One turn of a question; `answer` is "" on the test split."""

    index: int
    text: str
    hint: str
    choices: tuple[tuple[str, str], ...]  # (letter, words)
    answer: str
    skill: str
    category: str
    image: str  # a picture's file as base64, or the number of the turn that has it

    @property
    def number(self) -> int:
        """What its turns have in common."""
        return self.index % TURN


def chosen(text: str, choices: Mapping[str, str]) -> str:
    """The letter that an answer chooses.

    The only one of `choices` among its words, else the only choice whose words it holds; "" for neither.
    """
    words = text.translate(str.maketrans({mark: " " for mark in ".()[],:;!*#{}"})).split()
    letters = [letter for letter in choices if letter in words]
    if len(letters) == 1 and not ("A" in words and len(words) > 3):  # there A is more likely the article
        return letters[0]
    held = [letter for letter, choice in choices.items() if choice.lower() in text.lower()]
    return held[0] if len(held) == 1 else ""


def load_table(data: epath.PathLike) -> list[dict]:
    """The rows of the benchmark's table, a file or the only one in a folder."""
    path = find_file(data, "*.tsv", "*.xlsx")
    rows = read_table(path)
    lacking = [name for name in ("index", "question", "A", "B") if not rows or name not in rows[0]]
    if lacking:
        raise SourceError(f"{path}: is no table of MMBench: has no column {lacking[0]}")
    return rows


def load_questions(data: epath.PathLike, count: int | None = None) -> list[Question]:
    """All turns of all (or the first `count`) questions; raises SourceError."""
    with expected_form(data, "table of MMBench"):
        questions = [_question(row) for row in load_table(data)]
    if len({question.index for question in questions}) < len(questions):
        raise SourceError(f"{data}: an index stands there twice")
    numbers = set(first(dict.fromkeys(question.number for question in questions), count))
    return [question for question in questions if question.number in numbers]


def _question(row: dict) -> Question:
    choices = tuple((letter, str(row[letter])) for letter in LETTERS if str(row.get(letter, "")) not in ("", "nan"))

    def text(name):
        return "" if str(row.get(name, "")) == "nan" else str(row.get(name, ""))

    return Question(
        int(row["index"]),
        text("question"),
        text("hint"),
        choices,
        text("answer"),
        text("l2-category"),
        text("category"),
        text("image"),
    )


def score(predictions: epath.PathLike, data: epath.PathLike, count: int | None = None) -> Score:
    """`accuracy` (circular where questions have several turns), `circular_accuracy`, `plain_accuracy`, and the former
    by skill and category.

    In percent. Predictions are a table with index and prediction, or an answer file with question_id and text; a
    missing one is wrong.
    """
    questions = load_questions(data, count)
    if not all(question.answer for question in questions):
        raise SourceError(
            f"{data}: holds no answers to score against; with --out=DIR the table for the server is written"
        )
    matched = by_id(read_answers(predictions), [str(question.index) for question in questions], str(data))
    letters = {
        question.index: chosen(matched.texts.get(str(question.index), ""), dict(question.choices))
        for question in questions
    }
    circular: dict[int, bool] = {}
    for question in questions:
        circular[question.number] = circular.get(question.number, True) and letters[question.index] == question.answer
    first = {
        question.number: question for question in sorted(questions, key=lambda question: -question.index)
    }  # the lowest index stays
    plain = {number: letters[question.index] == question.answer for number, question in first.items()}
    metrics = {
        "accuracy": percent(circular.values()),
        "circular_accuracy": percent(circular.values()),
        "plain_accuracy": percent(plain.values()),
    }
    by_skill = percent_by(circular, lambda number: SKILLS.get(first[number].skill, first[number].skill))
    by_category = percent_by(circular, lambda number: f"category/{first[number].category}")
    counts = {
        "distinct_questions": len(first),
        "turns": max(collections.Counter(question.number for question in questions).values()),
    }
    unread = sum(not letters[question.index] for question in questions if str(question.index) in matched.texts)
    named = {name: value for name, value in (by_skill | by_category).items() if name not in ("", "category/")}
    return Score(metrics | named, matched.counts | counts | {"no_choice": unread}, matched.warnings)


def export(predictions: epath.PathLike, data: epath.PathLike, out: epath.Path) -> Exported:
    """Writes mmbench_submission.xlsx, and .tsv.

    The table without pictures and what the server has itself, with a column `prediction`.
    """
    rows = load_table(data)
    matched = by_id(read_answers(predictions), [str(row["index"]) for row in rows], str(data))
    dropped = ("hint", "category", "source", "image", "comment", "l2-category", "prediction")
    header = [name for name in rows[0] if name not in dropped]
    header.insert(min(6, len(header)), "prediction")  # where LLaVA's convert_mmbench_for_submission.py has it
    path = out / "mmbench_submission.xlsx"
    rows = [
        [matched.texts.get(str(row["index"]), "") if name == "prediction" else _as_number(row[name]) for name in header]
        for row in rows
    ]
    warnings = [warning for kind in (path, path.with_suffix(".tsv")) for warning in write_table(kind, header, rows)]
    return Exported(path, (*matched.warnings, *warnings))


def _as_number(cell):
    """A cell of digits as a number: tables of text have its index as text."""
    number = whole_number(str(cell))
    return cell if number is None else number
