"""Predictions and scores: files of predictions, ours and other models', and the match of predictions with questions.

    JSONL       a row a line: LLaVA's answer files (question_id, prompt, text), ours
    JSON        a list of rows (VQA servers, COCO captions), or an object {id: text}
    XLSX, TSV   a table with a header (MMBench)

A prediction belongs to a question by (id, question): ids of images may stand for several questions, which the prompt
tells apart.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from etils import epath

from dreamjax.errors import SourceError
from dreamjax.evaluation.files import quote, quote_name, read_json, read_table, without_repeats

ID_KEYS = ("question_id", "questionId", "index", "image_id", "image", "id")
TEXT_KEYS = ("text", "prediction", "caption", "answer")  # `answer` last: tables of MMBench have the right one there
PROMPT_KEYS = ("prompt", "question")

Key = TypeVar("Key", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One prediction. `prompt` is the question as it was asked, as far as the file tells it."""

    id: str
    text: str
    prompt: str
    category: str
    location: str  # file and row, for messages


@dataclasses.dataclass(frozen=True)
class Score:
    """Metrics, the counts they are of, and warnings for the user, a line each."""

    metrics: dict[str, float]
    counts: dict[str, int]
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Exported:
    """The file for a benchmark's server or grader, and warnings of what it lacks."""

    path: epath.Path
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Matched(Generic[Key]):
    """Texts of predictions by question, and the counts of questions, predictions, missing and unmatched ones."""

    texts: dict[Key, str]
    counts: dict[str, int]
    warnings: tuple[str, ...]


# ----------------------------------------------------------------------------------------------------------------------
# Reading


def read_predictions(path: epath.PathLike) -> list[Prediction]:
    """All predictions of a file. Raises SourceError for no such file, a file without rows, and a row that is none."""
    return parse_predictions(read_rows(path), path)


def parse_predictions(rows: Iterable[tuple[str, Any]], path: epath.PathLike) -> list[Prediction]:
    """The predictions of rows (location, row) that were read from `path`."""
    predictions = [_parse(row, f"{path}: {location}") for location, row in rows]
    if not predictions:
        raise SourceError(f"{path}: holds no predictions")
    return predictions


def read_rows(path: epath.PathLike) -> list[tuple[str, Any]]:
    """(location, row) for each row of a JSONL, JSON, XLSX, TSV or CSV file; a row of JSON may be no object."""
    path = epath.Path(path)
    if path.suffix in (".xlsx", ".tsv", ".csv"):
        return [(f"row {number}", row) for number, row in enumerate(read_table(path), 2)]
    return rows_of(read_json(path, without_repeats))


def rows_of(content: list | dict) -> list[tuple[str, Any]]:
    """`read_rows` of the content of a JSON file."""
    if isinstance(content, dict) and set(ID_KEYS) & set(content) and set(TEXT_KEYS) & set(content):
        content = [content]  # a JSONL file of one line
    if isinstance(content, dict):
        rows = ((key, value if isinstance(value, dict) else {"text": value}) for key, value in content.items())
        return [(f"key {quote_name(key)}", {"question_id": key, **row}) for key, row in rows]
    return [(f"row {number}", row) for number, row in enumerate(content, 1)]


def _parse(row: Any, location: str) -> Prediction:
    if not isinstance(row, dict):
        raise SourceError(f"{location} is no object with an id and a text")
    key, text = _field(row, ID_KEYS, "id", location), _field(row, TEXT_KEYS, "text", location)
    if key is None:
        raise SourceError(f"{location} has no id (one of {', '.join(ID_KEYS)})")
    if text is None:
        raise SourceError(f"{location} has no text (one of {', '.join(TEXT_KEYS)})")
    prompt, category = _field(row, PROMPT_KEYS, "prompt", location), _field(row, ("category",), "category", location)
    return Prediction(key, text, prompt or "", category or "", location)


def _field(row: dict, keys: Sequence[str], name: str, location: str) -> str | None:
    """The first value under `keys` as text; raises SourceError for what is neither text nor a finite number."""
    value = next((row[key] for key in keys if row.get(key) is not None), None)
    if value is None or isinstance(value, str):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) < math.inf:  # math.isfinite fails on integers of hundreds of digits
        raise SourceError(f"{location}: {quote(value)} is no {name}")
    # Tables have no integers.
    return str(int(value) if isinstance(value, float) and name == "id" and value.is_integer() else value)


# ----------------------------------------------------------------------------------------------------------------------
# Matching


def match(
    predictions: Sequence[Prediction],
    find: Callable[[Prediction], Sequence[Key]],
    questions: Sequence[Key],
    source: str,
) -> Matched[Key]:
    """Predictions by question. `find` gives the question that a prediction answers, or none; `source` names the data.

    It may give several where the data ask the same of the same image again; predictions take them in turn. A question
    answered twice is an error, and so is a file of which nothing matches. Questions without a prediction, and
    predictions without a question, are counted and warned of: every figure is over all `questions`.
    """
    matched: dict[Key, Prediction] = {}
    unmatched = []
    for prediction in predictions:
        keys = find(prediction)
        key = next((key for key in keys if key not in matched), None)
        if not keys:
            unmatched.append(prediction)
        elif key is None:
            first = matched[keys[0]].location
            raise SourceError(
                f"{prediction.location}: answers {_describe(keys[0])} a second time; the first is {first}"
            )
        else:
            matched[key] = prediction
    count = len(predictions)
    if not matched:
        raise SourceError(
            f"{unmatched[0].location}: id {quote(unmatched[0].id)} is of no question in {source}, and so are all "
            f"{count} predictions"
        )
    missing = [key for key in questions if key not in matched]
    empty = [prediction for prediction in matched.values() if not prediction.text.strip()]
    warnings = []
    if missing:
        warnings.append(
            f"{len(missing)} of {len(questions)} questions have no prediction and count as wrong; the first is "
            f"{_describe(missing[0])}"
        )
    if unmatched:
        warnings.append(
            f"{len(unmatched)} of {count} predictions are of no question in {source} and left out; the first is "
            f"{unmatched[0].location}"
        )
    if empty:
        warnings.append(
            f"{len(empty)} of {count} predictions are empty texts, which are scored as they are; the first is "
            f"{empty[0].location}"
        )
    counts = dict(questions=len(questions), predictions=count, missing=len(missing), unmatched=len(unmatched))
    return Matched({key: prediction.text for key, prediction in matched.items()}, counts, tuple(warnings))


def match_ids(predictions: Sequence[Prediction], questions: Sequence[str], source: str) -> Matched[str]:
    """`match` by the ids of questions alone."""
    ids = set(questions)
    return match(predictions, lambda prediction: (prediction.id,) if prediction.id in ids else (), questions, source)


def _describe(key: Hashable) -> str:
    return "question " + quote_name(" ".join(map(str, key)) if isinstance(key, tuple) else str(key))


# ----------------------------------------------------------------------------------------------------------------------
# Means


def percent(values: Iterable[float]) -> float:
    """The mean in percent; the values may be truths. Empty: nan."""
    values = list(values)
    return 100.0 * math.fsum(values) / len(values) if values else float("nan")


def percent_by(values: Mapping[Key, float], group_of: Callable[[Key], str]) -> dict[str, float]:
    """`percent` of the values of each group, in order of first appearance."""
    groups = collections.defaultdict(list)
    for key, value in values.items():
        groups[group_of(key)].append(value)
    return {group: percent(members) for group, members in groups.items()}
