"""Files of predictions, ours and other models': rows of (id, text) in the forms that benchmarks and their scorers use.

    JSONL       a row a line: LLaVA's answer files (question_id, prompt, text), ours
    JSON        a list of rows (VQA servers, COCO captions), or an object {id: text}
    XLSX, TSV   a table with a header (MMBench)

A prediction belongs to a question by (id, question): ids of pictures may stand for several questions, which the prompt tells apart.
"""

import collections
import contextlib
import csv
import dataclasses
import io
import json
import math
import sys
import zipfile
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

from etils import epath

from dreamjax.data.sources import SourceError

ID_KEYS = ("question_id", "questionId", "index", "image_id", "image", "id")
TEXT_KEYS = ("text", "prediction", "caption", "answer")  # before `answer`, which tables of MMBench use for the right one
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
    answers = [_answer(row, where, path, str(number) if numbered else None) for number, (where, row) in enumerate(rows, 1)]
    if not answers:
        raise SourceError(f"{path}: holds no predictions")
    return answers


def read_rows(path: epath.PathLike) -> Iterable[tuple[str, dict]]:
    """(where it stands, row) for each row of a JSONL, JSON, XLSX, TSV or CSV file."""
    path = epath.Path(path)
    if path.suffix in (".xlsx", ".tsv", ".csv"):
        return [(f"row {number}", row) for number, row in enumerate(read_table(path), 2)]
    return rows_of(read_json(path))


def rows_of(content: list | dict) -> list[tuple[str, dict]]:
    """`read_rows` of what a JSON file holds."""
    if isinstance(content, dict) and set(ID_KEYS) & set(content) and set(TEXT_KEYS) & set(content):  # a file of one line
        content = [content]
    if isinstance(content, dict):
        return [(f"key {key}", {"question_id": key, **(value if isinstance(value, dict) else {"text": value})}) for key, value in content.items()]
    return [(f"row {number}", row) for number, row in enumerate(content, 1)]


def read_json(path: epath.PathLike) -> list | dict:
    """What a JSON file holds, a list or an object; of a JSONL file, one object a line, the list of them. Raises SourceError."""
    text = read_text(path)
    if epath.Path(path).suffix != ".jsonl":
        try:
            content = json.loads(text)
        except json.JSONDecodeError:  # lines under another name, such as POPE's .json
            pass
        else:
            if not isinstance(content, list | dict):
                raise SourceError(f"{path}: holds {text.strip()[:40]}, needs a list or an object")
            return content
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines, which also cuts at separators inside of strings
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise SourceError(f"{path}: line {number} is not JSON: {error.msg}") from None
    return rows


def read_text(path: epath.PathLike) -> str:
    """A file's text, without a byte order mark, lines ended by a line feed; raises SourceError where there is none."""
    path = epath.Path(path)
    if not path.is_file():
        raise SourceError(f"{path}: {'is a folder, needs a file' if path.is_dir() else 'no such file'}")
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: is not UTF-8 text: {error.reason} at byte {error.start}") from None


def read_table(path: epath.PathLike) -> list[dict]:
    """The rows of an XLSX, TSV or CSV file by the names of its first row; empty cells are ""."""
    path = epath.Path(path)
    if path.suffix == ".xlsx":
        import openpyxl  # only tables of this kind need it

        if not path.is_file():
            raise SourceError(f"{path}: no such file")
        try:
            with path.open("rb") as file:
                cells = list(openpyxl.load_workbook(file, read_only=True, data_only=True).active.iter_rows(values_only=True))
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise SourceError(f"{path}: is no XLSX file ({error})") from None
        header, *rows = cells or [()]
        return [{str(name): "" if cell is None else cell for name, cell in zip(header, row)} for row in rows if any(cell is not None for cell in row)]
    csv.field_size_limit(sys.maxsize)  # MMBench keeps its pictures in the table
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter="\t" if path.suffix == ".tsv" else ",")
    rows = [{name: cell or "" for name, cell in row.items()} for row in reader]
    wide = next((number for number, row in enumerate(rows, 2) if None in row), None)
    if wide:
        raise SourceError(f"{path}: row {wide} has more cells than the header names")
    return rows


def write_table(path: epath.PathLike, header: Sequence[str], rows: Iterable[Sequence]):
    """An XLSX or TSV file with a header."""
    path = epath.Path(path)
    if path.suffix == ".xlsx":
        import openpyxl

        book = openpyxl.Workbook()
        for row in (header, *rows):
            book.active.append(list(row))
        with path.open("wb") as file:
            book.save(file)
        return
    with path.open("w") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([header, *rows])


def find_file(data: epath.PathLike, *patterns: str) -> epath.Path:
    """`data` itself where it is a file, else the only file in it for the first of `patterns` that has any; raises SourceError."""
    data = epath.Path(data)
    if data.is_file():
        return data
    if not data.is_dir():
        raise SourceError(f"{data}: no such file or folder")
    for pattern in patterns:
        found = sorted(data.glob(pattern))
        if len(found) > 1:
            raise SourceError(f"{data}: holds {len(found)} files {pattern}: {', '.join(file.name for file in found[:3])}; name one")
        if found:
            return found[0]
    raise SourceError(f"{data}: holds no file {' or '.join(patterns)}")


@contextlib.contextmanager
def expected_form(path: epath.PathLike, what: str) -> Iterator[None]:
    """Turns what goes wrong with content of another form into a SourceError: `path` is no `what`."""
    try:
        yield
    except SourceError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise SourceError(f"{path}: is no {what} ({type(error).__name__}: {error})") from None


def _answer(row, where: str, path: epath.PathLike, number: str | None) -> Answer:
    if not isinstance(row, dict):
        raise SourceError(f"{path}: {where} is no object with an id and a text")
    key = _value(row, ID_KEYS, number)
    text = _value(row, TEXT_KEYS, None)
    for name, keys, value in (("id", ID_KEYS, key), ("text", TEXT_KEYS, text)):
        if value is None:
            raise SourceError(f"{path}: {where} has no {name} (one of {', '.join(keys)})")
        if not isinstance(value, str | int | float):
            raise SourceError(f"{path}: {where}: {value!r} is no {name}")
    if isinstance(key, float) and key.is_integer():  # tables know no whole numbers
        key = int(key)
    return Answer(str(key), str(text), str(_value(row, PROMPT_KEYS, "")), str(_value(row, ("category",), "")), f"{path}: {where}")


def _value(row: dict, keys: Sequence[str], otherwise):
    return next((row[key] for key in keys if row.get(key) is not None), otherwise)


# ----------------------------------------------------------------------------------------------------------------------
# Whose answer it is


def match(answers: Sequence[Answer], find: Callable[[Answer], Sequence[Hashable]], questions: Sequence[Hashable], named: str) -> Matched:
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
            raise SourceError(f"{answer.where}: answers {_named(keys[0])} a second time; the first is {found[keys[0]].where}")
        else:
            found[key] = answer
    if not found:
        first = unmatched[0]
        raise SourceError(f"{first.where}: id {first.id!r} is of no question in {named}, and so are all {len(answers)} predictions")
    missing = [key for key in questions if key not in found]
    warnings = []
    if missing:
        warnings.append(f"{len(missing)} of {len(questions)} questions have no prediction and count as wrong; the first is {_named(missing[0])}")
    if unmatched:
        warnings.append(f"{len(unmatched)} of {len(answers)} predictions are of no question in {named} and left out; the first is {unmatched[0].where}")
    empty = [answer for answer in found.values() if not answer.text.strip()]
    if empty:
        warnings.append(f"{len(empty)} of {len(answers)} predictions are empty texts, which are scored as they are; the first is {empty[0].where}")
    counts = {"questions": len(questions), "predictions": len(answers), "missing": len(missing), "unmatched": len(unmatched)}
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
    return "question " + (" ".join(str(part) for part in key) if isinstance(key, tuple) else str(key))
