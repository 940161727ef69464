"""Shared by the formats: checked access to records of JSON, and records in JSON files by index.

Files are JSON lines, or JSON of one list, plain or compressed (gzip, zip). They are scanned once for where each record
lies (`dreamjax.data.storage.index`); a record is read and parsed when it is asked for.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from dreamjax.config import SourceConfig
from dreamjax.data.storage import files
from dreamjax.data.storage.index import LONGEST, Index, Scan, open_index
from dreamjax.data.storage.unpack import Cache, unpacked
from dreamjax.document import Document, Text
from dreamjax.errors import BadImage, BadRecord, OutsideFolder, SourceError
from dreamjax.filesystem.containment import inside

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zip")
CHUNK = 2**22  # bytes of JSON looked at together
_STRUCTURE = re.compile(
    r'"[^"\\]*(?:\\.[^"\\]*)*(?P<close>"?)|[\[\]{},]', re.DOTALL
)  # of JSON: strings, brackets and commas
T = TypeVar("T")
D = TypeVar("D")
BOM = "\ufeff"  # which editors put before a text, and joining files into its middle


class Unusable(Exception):
    """A record cannot be used: a fixed phrase to count by, and more of it."""


@contextlib.contextmanager
def bad_record(name: str) -> Iterator[None]:
    """Raises whatever is wrong with a record, or with a picture that it cannot do without, as BadRecord."""
    try:
        yield
    except Unusable as error:
        raise BadRecord(name, *error.args) from None
    except BadImage as error:
        raise BadRecord(name, error.reason, str(error)) from None
    except OSError as error:
        raise BadRecord(name, getattr(error, "reason", "file cannot be read"), str(error)) from None


def with_id(document: Document, name: str) -> Document:
    """The document of the record of that name; raises Unusable where nothing is in it."""
    if not document.parts:
        raise Unusable("empty", "; ".join(["neither text nor a picture", *map(str, document.left_out[:1])]))
    return dataclasses.replace(document, id=name)


# ----------------------------------------------------------------------------------------------------------------------
# Values by key: whatever a record holds, these give what the caller asked for or raise Unusable


def require(record: dict, key: str, kind: type[T], prefix: str = "", of: type | types.UnionType | None = None) -> T:
    """The value of a key, of a type (an int will do for a float).

    A list's items may be held to a type as well. Raises Unusable.
    """
    if not isinstance(record, dict) or record.get(key) is None:
        raise Unusable("missing key", f"{prefix}{key}")
    value: Any = record[key]
    if kind is float and type(value) is int:
        value = _as_float(value, f"{prefix}{key}")
    if type(value) is not kind:
        raise Unusable("wrong type", f"{prefix}{key} is {type(value).__name__}, not {kind.__name__}")
    items: list = record[key] if of is not None else []
    for number, item in enumerate(items):
        if not isinstance(item, of or object) or isinstance(item, bool):  # a bool is an int
            raise Unusable(
                "wrong type", f"{prefix}{key}[{number}] is {type(item).__name__}, not {getattr(of, '__name__', of)}"
            )
    return value


def _as_float(value: int, name: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise Unusable("wrong type", f"{name} is larger than any float") from None


def optional(record: dict, key: str, kind: type[T], default: D, prefix: str = "") -> T | D:
    """As `require`, or the default where the key is absent or null."""
    return default if record.get(key) is None else require(record, key, kind, prefix)


def text_at(record: dict, key: str, prefix: str = "") -> str:
    """A text, without byte order marks. Raises Unusable."""
    return require(record, key, str, prefix).replace(BOM, "")


def texts_at(record: dict, key: str, of: type | types.UnionType = str) -> list:
    """A list of texts, without byte order marks; of `str | None` some may be null. Raises Unusable."""
    return [text and text.replace(BOM, "") for text in require(record, key, list, of=of)]


def is_similar(record: dict, key: str, least: float, prefix: str = "") -> bool:
    """True if a similarity is at least so large.

    One that is NaN or infinite is none. Raises Unusable where it is no number.
    """
    value = require(record, key, float, prefix)
    return math.isfinite(value) and value >= least


def parse_json(data: bytes) -> dict:
    """One JSON object; raises Unusable."""
    try:
        record = json.loads(data, object_pairs_hook=_object)
    except (
        ValueError,
        RecursionError,
    ) as error:  # also bytes that are not UTF-8, and numbers of more digits than Python reads
        raise Unusable("bad JSON", str(error)) from None
    if not isinstance(record, dict):
        raise Unusable("bad JSON", f"{type(record).__name__}, not a JSON object")
    return record


def _object(pairs: list[tuple]) -> dict:
    values = {}
    for key, value in pairs:
        if key in values:  # which of its values is meant nobody can tell
            raise Unusable("repeated key", key)
        values[key] = value
    return values


def read_text(data: bytes) -> str:
    """UTF-8, without byte order marks; raises Unusable."""
    try:
        return data.decode().replace(BOM, "")
    except UnicodeDecodeError as error:
        raise Unusable("bad UTF-8", str(error)) from None


def texts_of(source) -> Iterable[str]:
    """All text of a source, record by record, without those that cannot be used."""
    for index in range(len(source)):
        try:
            yield from (part.text for part in source[index].parts if isinstance(part, Text) and part.text)
        except BadRecord:
            continue


# ----------------------------------------------------------------------------------------------------------------------
# Files of records


@dataclasses.dataclass(frozen=True)
class Folder:
    """Pictures by name under a folder, on disk or in a bucket.

    The names are what others wrote: they lead to nowhere else.
    """

    path: str
    allow_outside: bool = False  # unless the user wants them to

    def find(self, name: str, number: int = 0) -> str:
        """The picture's path.

        Raises BadImage with the reason "image missing", "not downloaded" (a URL) or "outside the folder".
        """
        path = self.place(name)
        if not files.is_file(path):
            raise BadImage(f"{path}: no such file", "image missing")
        return path

    def place(self, name: str) -> str:
        """The path that the image would have; raises BadImage as `find` does."""
        if not name:
            raise BadImage("no file is named", "image missing")
        if "://" in name:
            raise BadImage(f"{name}: is a URL", "not downloaded")
        if self.allow_outside:
            return files.join(self.path, name)
        try:
            return inside(self.path, name)
        except OutsideFolder as error:
            raise BadImage(str(error), "outside the folder") from None


@dataclasses.dataclass(frozen=True)
class JsonRecords:
    """Documents of JSON files. `parse(record, folder, **options)` makes a record's Document, a function of a module."""

    index: Index
    folder: Folder
    parse: Callable[..., Document]
    options: dict = dataclasses.field(default_factory=dict)
    key_of: Callable[[dict], str] | None = (
        None  # what records have in common that must lie in one split; raises Unusable
    )

    @property
    def skipped(self) -> tuple[BadRecord, ...]:
        """Files and parts of files that could not be scanned."""
        return self.index.skipped

    @property
    def fingerprint(self) -> str:
        """A hash of the files and the settings; not of the images, of which only the names are known."""
        outside = "-outside" * self.folder.allow_outside
        return f"{self.index.fingerprint}-{self.parse.__module__}-{self.folder.path}-{self.options}{outside}"

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Document:
        name = self.index.name(index)
        with bad_record(name):
            return with_id(self.parse(self._record(index), self.folder, **self.options), name)

    def key(self, index: int) -> str:
        """The record's file and number, or what `key_of` finds in the record."""
        if self.key_of is not None:
            with contextlib.suppress(Unusable, OSError):  # which reading the document says
                return self.key_of(self._record(index))
        return self.index.key(index)

    def _record(self, index: int) -> dict:
        record: dict = {}
        for byte_range in self.index.members(index).values():  # nearly always one
            record |= parse_json(byte_range.read_bytes())
        return record

    def texts(self) -> Iterable[str]:
        """All text."""
        return texts_of(self)


def open_json(
    config: SourceConfig,
    parse: Callable[..., Document],
    key_of: Callable[[dict], str] | None = None,
    scan: Callable[[str, Cache], Scan] | None = None,
    **options: str | float | bool | None,
) -> JsonRecords:
    """The documents of all JSON files that the path means; `parse` gets the options.

    Images lie in the folder `images`, or else beside the first file. Raises SourceError.
    """
    try:
        paths = files.expand(config.path, SUFFIXES)
    except OSError as error:
        raise SourceError(str(error)) from None
    folder = Folder(config.images or os.path.dirname(paths[0]), config.allow_outside)
    return JsonRecords(open_index(paths, scan or scan_json, cache_of(config)), folder, parse, options, key_of)


def cache_of(config: SourceConfig) -> Cache:
    """The cache folder of a source and its limits for compressed files."""
    return Cache(config.cache, config.max_growth, config.max_unpacked)


def scan_json(path: str, cache: Cache) -> Scan:
    """The range of each record of one file."""
    stored, problem = unpacked(path, cache)
    scan = Scan(stored=stored)
    if problem:
        scan.skipped.append((path, "file damaged", f"{problem}; used is what could be unpacked"))
    with files.opened(stored) as file:
        start = file.read(CHUNK).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    with files.opened(stored) as file:
        (_scan_list if start == b"[" else _scan_lines)(file, scan, path)
    return scan


def _scan_lines(file, scan: Scan, path: str):
    at, number = 0, 0
    while piece := file.readline(CHUNK):
        number, size, is_blank = number + 1, len(piece), not piece.strip()
        while not piece.endswith(b"\n") and (piece := file.readline(CHUNK)):  # a line may be as long as the file
            size, is_blank = size + len(piece), is_blank and not piece.strip()
        if size > LONGEST and not is_blank:
            scan.skipped.append(
                (f"{path}:{number}", "record too large", f"{size:,d} bytes, a record may have {LONGEST:,d}")
            )
        elif not is_blank:
            scan.add(str(number), [(at, size, "")])
        at += size


def _scan_list(file, scan: Scan, path: str):
    """Records of one JSON list, a window of the file at a time."""
    decode = json.JSONDecoder().raw_decode
    # Latin-1 makes one character of each byte, so that places in the text are places in the file.
    before, window, more = 0, file.read(CHUNK).decode("latin-1"), True
    at = window.index("[") + 1
    while True:
        while at < len(window) and window[at] in " \t\r\n,":
            at += 1
        if window[at : at + 1] == "]":
            if (window[at + 1 :] + file.read(CHUNK).decode("latin-1")).strip():
                scan.skipped.append((path, "more behind the list", f"at byte {before + at + 1:,d}: it is left out"))
            return
        try:
            end: int | None = decode(window, at)[1]
        except (ValueError, RecursionError):  # a part of a record, or one that reading it will say is bad
            end = value_end(window, at)
        if end is not None and (end < len(window) or not more):
            scan.add(str(len(scan.ends)), [(before + at, end - at, "")])
            at = end
        elif not more:
            scan.skipped.append(
                (
                    f"{path}:{len(scan.ends)}",
                    "bad JSON",
                    f"at byte {before + at:,d}: it has no end; the rest of the file is left out",
                )
            )
            return
        elif len(window) - at > LONGEST:
            detail = (
                f"at byte {before + at:,d}: it has no end within {LONGEST:,d} bytes; the rest of the file is left out"
            )
            scan.skipped.append((f"{path}:{len(scan.ends)}", "record too large", detail))
            return
        else:
            more_text = file.read(max(CHUNK, len(window) - at)).decode("latin-1")
            before, window, at, more = before + at, window[at:] + more_text, 0, bool(more_text)


def value_end(text: str, at: int) -> int | None:
    """The end of a value of a list that is no JSON, or more than Python reads, by its brackets alone; None where the
    text ends before.
    """
    depth = 0
    for token in _STRUCTURE.finditer(text, at):
        if token[0] in "[{":
            depth += 1
        elif token[0] == "," and not depth or token[0] in "]}" and depth < 2:
            return max(token.start(), at + 1) if not depth else token.end()
        elif token[0] in "]}":
            depth -= 1
        elif token["close"] == "":
            return None
    return None
