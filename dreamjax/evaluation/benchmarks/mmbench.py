"""MMBench (Liu et al. 2023): multiple choice in six skills, from and to its tables (TSV, XLSX).

Each question stands there several times with its choices turned round, its number raised by a million each time.
Circular evaluation counts it as right only when every turn is; plain evaluation counts the first turn alone. A choice
is read from an answer by the two rules of the benchmark's evaluation (its letter, or the words of one choice); what
these cannot read, which the server gives to a language model, counts as wrong here and is counted as `no_choice`.
"""

import base64
import binascii
import collections
import dataclasses
from collections.abc import Mapping

from etils import epath

from dreamjax.errors import SourceError
from dreamjax.evaluation.benchmark import Benchmark
from dreamjax.evaluation.files import expected_form, find_file, parse_digits, read_table, write_table
from dreamjax.evaluation.predictions import Exported, Score, match_ids, percent, percent_by, read_predictions
from dreamjax.evaluation.prompts import ANSWERABLE, LETTER_OF_CHOICE, AnswerableCheck, begins_with_no, official
from dreamjax.evaluation.question import Question, limit

LETTERS = "ABCDE"
TURN = 1_000_000
PUNCTUATION = str.maketrans(".()[],:;!*#{}", " " * 13)
SKILLS = {  # l2-category: the paper's abbreviation
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "attribute_reasoning": "AR",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
}


def chosen(text: str, choices: Mapping[str, str]) -> str:
    """The letter that an answer chooses: the only one among its words, else that of the only choice whose words it
    holds; "" for neither.
    """
    words = text.translate(PUNCTUATION).split()
    letters = [letter for letter in choices if letter in words]
    if len(letters) == 1 and not ("A" in words and len(words) > 3):  # there A is more likely the article
        return letters[0]
    held = [letter for letter, choice in choices.items() if choice.lower() in text.lower()]
    return held[0] if len(held) == 1 else ""


def number_of(question: Question) -> int:
    """The number that all turns of a question share."""
    return int(question.id) % TURN


# ----------------------------------------------------------------------------------------------------------------------
# Files


def load_table(data: epath.PathLike) -> list[dict]:
    """The rows of the benchmark's table, a file or the only one in a folder."""
    path = find_file(data, "*.tsv", "*.xlsx")
    rows = read_table(path)
    lacking = [name for name in ("index", "question", "A", "B") if not rows or name not in rows[0]]
    if lacking:
        raise SourceError(f"{path}: is no table of MMBench: has no column {lacking[0]}")
    return rows


def load_turns(data: epath.PathLike, count: int | None = None) -> list[Question]:
    """All turns of all (or the first `count`) questions, with their images as in the table; raises SourceError."""
    with expected_form(data, "table of MMBench"):
        turns = [_parse(row) for row in load_table(data)]
    if len({turn.id for turn in turns}) < len(turns):
        raise SourceError(f"{data}: an index stands there twice")
    numbers = set(limit(dict.fromkeys(map(number_of, turns)), count))
    return [turn for turn in turns if number_of(turn) in numbers]


def _parse(row: dict) -> Question:
    def text(name: str) -> str:
        return "" if str(row.get(name, "")) == "nan" else str(row.get(name, ""))

    return Question(
        str(int(row["index"])),
        text("question"),
        (text("image"),),
        tuple((letter, text(letter)) for letter in LETTERS if text(letter)),
        text("hint"),
        text("category"),
        (text("answer"),) if text("answer") else (),
        (text("l2-category"),),
    )


def load_questions(data: epath.PathLike, count: int | None = None) -> list[Question]:
    """`load_turns` with the bytes of their images, which the table has as base64 or as the index of another turn."""
    turns = load_turns(data, count)
    images = {turn.id: str(turn.images[0]) for turn in turns}

    def decode(turn: Question) -> bytes:
        image = images[turn.id]
        image = images.get(image, image) if len(image) < 64 else image
        try:
            return base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError):
            raise SourceError(f"{data}: index {turn.id}: the picture is not base64") from None

    return [dataclasses.replace(turn, images=(decode(turn),)) for turn in turns]


# ----------------------------------------------------------------------------------------------------------------------
# Scoring


def score(predictions: epath.PathLike, data: epath.PathLike, count: int | None = None) -> Score:
    """`accuracy` (circular where questions have several turns), `circular_accuracy`, `plain_accuracy`, and the former
    by skill and category.

    In percent. Predictions are a table with index and prediction, or an answer file with question_id and text; a
    missing one is wrong.
    """
    turns = load_turns(data, count)
    if not all(turn.answer for turn in turns):
        raise SourceError(
            f"{data}: holds no answers to score against; with --out=DIR the table for the server is written"
        )
    matched = match_ids(read_predictions(predictions), [turn.id for turn in turns], str(data))
    letters = {turn.id: chosen(matched.texts.get(turn.id, ""), dict(turn.choices)) for turn in turns}
    circular: dict[int, bool] = {}
    for turn in turns:
        circular[number_of(turn)] = circular.get(number_of(turn), True) and letters[turn.id] == turn.answer
    # Of each question the turn with the lowest index, which overwrites the others.
    first = {number_of(turn): turn for turn in sorted(turns, key=lambda turn: -int(turn.id))}
    plain = {number: letters[turn.id] == turn.answer for number, turn in first.items()}
    metrics = {
        "accuracy": percent(circular.values()),
        "circular_accuracy": percent(circular.values()),
        "plain_accuracy": percent(plain.values()),
    }
    skills = {number: turn.groups[0] for number, turn in first.items()}
    by_group = percent_by(circular, lambda number: SKILLS.get(skills[number], skills[number]))
    by_group |= percent_by(circular, lambda number: f"category/{first[number].category}")
    metrics |= {name: value for name, value in by_group.items() if name not in ("", "category/")}
    counts = {
        "distinct_questions": len(first),
        "turns": max(collections.Counter(map(number_of, turns)).values()),
        "no_choice": sum(not letters[turn.id] for turn in turns if turn.id in matched.texts),
    }
    return Score(metrics, matched.counts | counts, matched.warnings)


def export(predictions: epath.PathLike, data: epath.PathLike, out: epath.Path) -> Exported:
    """Writes mmbench_submission.xlsx and .tsv: the table with a column `prediction`, without images and what the
    server has itself.
    """
    rows = load_table(data)
    matched = match_ids(read_predictions(predictions), [str(row["index"]) for row in rows], str(data))
    dropped = ("hint", "category", "source", "image", "comment", "l2-category", "prediction")
    header = [name for name in rows[0] if name not in dropped]
    header.insert(min(6, len(header)), "prediction")  # its place in LLaVA's convert_mmbench_for_submission.py
    cells = [
        [matched.texts.get(str(row["index"]), "") if name == "prediction" else _as_number(row[name]) for name in header]
        for row in rows
    ]
    path = out / "mmbench_submission.xlsx"
    warnings = [warning for kind in (path, path.with_suffix(".tsv")) for warning in write_table(kind, header, cells)]
    return Exported(path, (*matched.warnings, *warnings))


def _as_number(cell: str | int | float) -> str | int | float:
    """A cell of digits as a number: tables of text have its index as text."""
    number = parse_digits(str(cell))
    return cell if number is None else number


_HINTED = "Hint:{hint}Question:{question}"
_DETAILED = "Please provide an accurate and detailed answer."
# A question without a hint has pandas' "nan" there, and every choice is numbered 0.
_EXAM = {
    "before_image": "This is an exam, please answer according to the image, hint and question.",
    "no_hint": "nan",
}
_WITH_CHOICES = official(
    f"{_HINTED}Options: {{choices}} {_DETAILED}", choice="(0). {words}", choice_separator=" ", **_EXAM
)
_ANSWERABLE = AnswerableCheck(official(f"{_HINTED}{ANSWERABLE}", no_hint="nan"), begins_with_no, _WITH_CHOICES)
BENCHMARK = Benchmark(
    name="mmbench",
    questions=load_questions,
    score=score,
    export=export,
    prompts={
        "clean": LETTER_OF_CHOICE,
        "official": official(f"{_HINTED}{_DETAILED}", answerable=_ANSWERABLE, **_EXAM),
    },
    paper={"accuracy": {"DreamLLM": 49.9, "+ SFT": 58.2}},
)
