"""Files of predictions, ours and other models': rows of (id, text) in the forms that benchmarks and their scorers use.

    JSONL       a row a line: LLaVA's answer files (question_id, prompt, text), ours
    JSON        a list of rows (VQA servers, COCO captions), or an object {id: text}
    XLSX, TSV   a table with a header (MMBench)

A prediction belongs to a question by (id, question): ids of pictures may stand for several questions, which the prompt
tells apart.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from etils import epath

from dreamjax.errors import SourceError
from dreamjax.evaluation.files import read_json, read_table, shown, shown_name, without_repeats

ID_KEYS = ("question_id", "questionId", "index", "image_id", "image", "id")
TEXT_KEYS = (
    "text",
    "prediction",
    "caption",
    "answer",
)  # before `answer`, which tables of MMBench use for the right one
PROMPT_KEYS = ("prompt", "question")


@dataclasses.dataclass(frozen=True)
class Answer:
    """One prediction: whose, what, and where in the file it stands."""

    id: str
    text: str
    prompt: str  # the question as it was put, or as far as the file tells it; "" where it does not
    category: str
    where: str


@dataclasses.dataclass(frozen=True)
class Score:
    """A task's figures and what they were counted on; `warnings` are lines for the user."""

    metrics: dict[str, float]
    counts: dict[str, int]
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Exported:
    """The file for a benchmark's server or grader; `warnings` say what it lacks."""

    path: epath.Path
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Matched:
    """Predictions by question; `counts` has the questions, predictions, missing and unmatched ones."""

    texts: dict[Hashable, str]
    counts: dict[str, int]
    warnings: tuple[str, ...]


# ----------------------------------------------------------------------------------------------------------------------
# Reading


def read_answers(path: epath.PathLike, numbered: bool = False) -> list[Answer]:
    """All predictions of a file; where rows bear no id and `numbered` is set, the row's number from 1 is its id.

    Raises SourceError where there is no such file, no row in it, or a row that is none.
    """
    return answers_of(read_rows(path), path, numbered)


def answers_of(rows: Iterable[tuple[str, dict]], path: epath.PathLike, numbered: bool = False) -> list[Answer]:
    """`read_answers` of rows that were read from `path` already."""
    answers = [
        _answer(row, where, path, str(number) if numbered else None) for number, (where, row) in enumerate(rows, 1)
    ]
    if not answers:
        raise SourceError(f"{path}: holds no predictions")
    return answers


def read_rows(path: epath.PathLike) -> Iterable[tuple[str, dict]]:
    """(where it stands, row) for each row of a JSONL, JSON, XLSX, TSV or CSV file."""
    path = epath.Path(path)
    if path.suffix in (".xlsx", ".tsv", ".csv"):
        return [(f"row {number}", row) for number, row in enumerate(read_table(path), 2)]
    return rows_of(read_json(path, without_repeats))


def rows_of(content: list | dict) -> list[tuple[str, dict]]:
    """`read_rows` of what a JSON file holds."""
    if (
        isinstance(content, dict) and set(ID_KEYS) & set(content) and set(TEXT_KEYS) & set(content)
    ):  # a file of one line
        content = [content]
    if isinstance(content, dict):
        rows = ((key, value if isinstance(value, dict) else {"text": value}) for key, value in content.items())
        return [(f"key {shown_name(key)}", {"question_id": key, **row}) for key, row in rows]
    return [(f"row {number}", row) for number, row in enumerate(content, 1)]


def _answer(row, where: str, path: epath.PathLike, number: str | None) -> Answer:
    where = f"{path}: {where}"
    if not isinstance(row, dict):
        raise SourceError(f"{where} is no object with an id and a text")
    key, text = _words(row, ID_KEYS, "id", where, number), _words(row, TEXT_KEYS, "text", where)
    for name, keys, value in (("id", ID_KEYS, key), ("text", TEXT_KEYS, text)):
        if value is None:
            raise SourceError(f"{where} has no {name} (one of {', '.join(keys)})")
    return Answer(
        key,
        text,
        _words(row, PROMPT_KEYS, "prompt", where, ""),
        _words(row, ("category",), "category", where, ""),
        where,
    )


def _words(row: dict, keys: Sequence[str], what: str, where: str, otherwise: str | None = None) -> str | None:
    """The first value under `keys` as text; raises SourceError where it is neither text nor a finite number."""
    value = next((row[key] for key in keys if row.get(key) is not None), otherwise)
    if value is None or isinstance(value, str):
        return value
    if (
        isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf
    ):  # isfinite fails on longer ints
        raise SourceError(f"{where}: {shown(value)} is no {what}")
    return str(
        int(value) if isinstance(value, float) and what == "id" and value.is_integer() else value
    )  # tables know no whole numbers


# ----------------------------------------------------------------------------------------------------------------------
# Whose answer it is


def match(
    answers: Sequence[Answer], find: Callable[[Answer], Sequence[Hashable]], questions: Sequence[Hashable], named: str
) -> Matched:
    """Predictions by question, where `find` says which question a prediction answers: none of these, or one.

    It may name several where the data ask the same of the same picture again; predictions take them in turn. A question
    answered twice is an error, and so is a file of which nothing matches. What has no prediction, and what matches no
    question, is counted and warned of: every figure is over all `questions`.
    """
    found, unmatched = {}, []
    for answer in answers:
        keys = find(answer)
        key = next((key for key in keys if key not in found), None)
        if not keys:
            unmatched.append(answer)
        elif key is None:
            raise SourceError(
                f"{answer.where}: answers {_named(keys[0])} a second time; the first is {found[keys[0]].where}"
            )
        else:
            found[key] = answer
    if not found:
        first = unmatched[0]
        raise SourceError(
            f"{first.where}: id {shown(first.id)} is of no question in {named}, and so are all "
            f"{len(answers)} predictions"
        )
    missing = [key for key in questions if key not in found]
    warnings = []
    if missing:
        warnings.append(
            f"{len(missing)} of {len(questions)} questions have no prediction and count as wrong; the "
            f"first is {_named(missing[0])}"
        )
    if unmatched:
        warnings.append(
            f"{len(unmatched)} of {len(answers)} predictions are of no question in {named} and left out; "
            f"the first is {unmatched[0].where}"
        )
    empty = [answer for answer in found.values() if not answer.text.strip()]
    if empty:
        warnings.append(
            f"{len(empty)} of {len(answers)} predictions are empty texts, which are scored as they are; "
            f"the first is {empty[0].where}"
        )
    counts = {
        "questions": len(questions),
        "predictions": len(answers),
        "missing": len(missing),
        "unmatched": len(unmatched),
    }
    return Matched({key: answer.text for key, answer in found.items()}, counts, tuple(warnings))


def by_id(answers: Sequence[Answer], questions: Sequence[str], named: str) -> Matched:
    """`match` where ids are of questions."""
    known = set(questions)
    return match(answers, lambda answer: (answer.id,) if answer.id in known else (), questions, named)


def first(values: Iterable, count: int | None, group: Callable[..., Hashable] = lambda value: "") -> list:
    """The first `count` values of each group, in their order; all where `count` is None."""
    if count is None:
        return list(values)
    taken, kept = collections.Counter(), []
    for value in values:
        taken[group(value)] += 1
        if taken[group(value)] <= count:
            kept.append(value)
    return kept


def percent(values: Iterable[float]) -> float:
    """The mean in percent; the values may be truths. Empty: nan."""
    values = list(values)
    return 100.0 * math.fsum(values) / len(values) if values else float("nan")


def percent_by(groups: Mapping[Hashable, float], group_of: Callable[[Hashable], str]) -> dict[str, float]:
    """`percent` of the values of each group, in order of first appearance."""
    found = collections.defaultdict(list)
    for key, value in groups.items():
        found[group_of(key)].append(value)
    return {group: percent(values) for group, values in found.items()}


def _named(key: Hashable) -> str:
    return "question " + shown_name(" ".join(str(part) for part in key) if isinstance(key, tuple) else str(key))
