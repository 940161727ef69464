"""The files of a run of a task: run.json with its settings, and rows of predictions, appended as they come."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

from etils import epath

from dreamjax.document import Document
from dreamjax.errors import ConfigError, SourceError
from dreamjax.filesystem import atomic

T = TypeVar("T")


def check_settings(out: epath.Path, settings: dict) -> None:
    """Writes run.json, or raises ConfigError if another run's predictions are there."""
    out.mkdir(parents=True, exist_ok=True)
    path, settings = out / "run.json", json.loads(json.dumps(settings))
    if path.exists() and (out / "predictions.jsonl").exists():
        before = _read_settings(path)
        name = next((name for name in settings if before.get(name) != settings[name]), None)
        if name is not None:
            raise ConfigError(
                f"--out: {out} holds predictions with {name} = {before.get(name)!r}, not "
                f"{settings[name]!r}; use another folder"
            )
    atomic.write_text(path, json.dumps(settings, indent=1) + "\n")


def _read_settings(path: epath.Path) -> dict:
    try:
        settings = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ConfigError(
            f"--out: {path}, which says whose the predictions beside it are, is damaged; delete its "
            "folder or use another one"
        )
    return settings


def begin(out: epath.Path, settings: dict) -> None:
    """`check_settings`, but predictions of another run, which cost little to make again, are deleted first."""
    path, before = out / "predictions.jsonl", out / "run.json"
    if path.exists() and (not before.exists() or _read_settings(before) != json.loads(json.dumps(settings))):
        print(f"dreamjax.evaluate: {path} is of another model or other data, and is begun anew", file=sys.stderr)
        path.unlink()
    check_settings(out, settings)


def read_rows(path: epath.Path, **fields: type) -> list[dict]:
    """The rows of a file of predictions, none without such a file; half a line at its end is removed.

    Each row has the named `fields`, of these types; raises SourceError for one that lacks any: the file is read as if
    anybody had written it.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        atomic.write_bytes(path, complete)
    lines = enumerate(complete.split(b"\n"), 1)
    return [_parse_row(line, f"{path}: line {number}", fields) for number, line in lines if line]


def _parse_row(line: bytes, location: str, fields: dict[str, type]) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise SourceError(f"{location} is not JSON; delete the file or use another folder") from None
    wrong = next(
        (name for name, kind in fields.items() if not isinstance(row, dict) or type(row.get(name)) is not kind), None
    )
    if wrong:
        raise SourceError(
            f"{location} is no prediction of a run: has no {wrong}; delete the file or use another folder"
        )
    return row


def read_document(record: dict, folder: epath.Path, location: str) -> Document:
    """The document of a row, with its images in the row or in `folder`. Raises SourceError."""
    try:
        return Document.from_json(record, folder)
    except (ValueError, TypeError) as error:
        raise SourceError(
            f"{location}: holds a document that cannot be read: {error}; delete the file or use another folder"
        ) from None


def append_rows(path: epath.Path, rows: Sequence[dict]) -> None:
    """Adds rows and forces them to the disk."""
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
        file.flush()
        if "://" not in os.fspath(path):
            os.fsync(file.fileno())


def batched(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Slices of `size`, the last one shorter."""
    for start in range(0, len(values), size):
        yield values[start : start + size]
