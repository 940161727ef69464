"""What the formats share: checked access to records of JSON, and records in JSON files by index.

Files are JSON lines, or JSON of one list, plain or compressed (gzip, zip). They are scanned once for where each record lies
(`dreamjax.data.index`); a record is read and parsed when it is asked for.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterable

from dreamjax.data import files
from dreamjax.data.index import Index, Scan, open_index
from dreamjax.data.sources import BadRecord, SourceError
from dreamjax.data.unpack import unpacked
from dreamjax.document import Document, Text

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zip")
CHUNK = 2**22  # bytes of JSON looked at together


class Unusable(Exception):
    """What is wrong with a record: a fixed phrase to count by, and more of it."""


def require(record: dict, key: str, kind: type, where: str = "", of: type | None = None):
    """The value of a key, of a type (an int will do for a float); a list's items may be held to a type as well. Raises Unusable."""
    if not isinstance(record, dict) or key not in record or record[key] is None:
        raise Unusable("missing key", f"{where}{key}")
    value = record[key]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise Unusable("wrong type", f"{where}{key} is {type(value).__name__}, not {kind.__name__}")
    for number, item in enumerate(value if of else ()):
        if not isinstance(item, of):
            raise Unusable("wrong type", f"{where}{key}[{number}] is {type(item).__name__}, not {of.__name__}")
    return value


def parse_json(data: bytes) -> dict:
    """One JSON object; raises Unusable."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8
        raise Unusable("bad JSON", str(error)) from None
    if not isinstance(record, dict):
        raise Unusable("bad JSON", f"{type(record).__name__}, not an object")
    return record


def read_text(data: bytes) -> str:
    """UTF-8; raises Unusable."""
    try:
        return data.decode()
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
    """Pictures by name under a folder, on disk or in a bucket."""

    path: str

    def find(self, name: str, number: int = 0) -> str | None:
        """The picture's path, or None where there is no such file."""
        path = self.path_of(name)
        return path if name and files.exists(path) else None

    def path_of(self, name: str) -> str:
        """Where the picture would lie."""
        return os.path.join(self.path, name)


@dataclasses.dataclass(frozen=True)
class JsonRecords:
    """Documents of JSON files. `parse(record, folder, **options)` makes a record's Document, a function of a module."""

    index: Index
    folder: Folder
    parse: Callable[..., Document]
    options: dict = dataclasses.field(default_factory=dict)
    key_of: Callable[[dict], str] | None = None  # what records have in common that must lie in one split; raises Unusable

    @property
    def skipped(self) -> tuple[BadRecord, ...]:
        """Files and parts of files that could not be scanned."""
        return self.index.skipped

    @property
    def fingerprint(self) -> str:
        """Of the files and the settings; not of the pictures, of which only the names are known."""
        return f"{self.index.fingerprint}-{self.parse.__module__}-{self.folder.path}-{self.options}"

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Document:
        name = self.index.name(index)
        try:
            document = self.parse(self._record(index), self.folder, **self.options)
            if not document.parts:
                raise Unusable("empty", "neither text nor a picture")
        except Unusable as error:
            raise BadRecord(name, *error.args) from None
        except OSError as error:
            raise BadRecord(name, getattr(error, "reason", "file cannot be read"), str(error)) from None
        return dataclasses.replace(document, id=name)

    def key(self, index: int) -> str:
        """The record's file and number, or what `key_of` finds in the record."""
        if self.key_of is not None:
            with contextlib.suppress(Unusable, OSError):  # which reading the document says
                return self.key_of(self._record(index))
        return self.index.key(index)

    def _record(self, index: int) -> dict:
        record = {}
        for member in self.index.members(index).values():  # nearly always one
            record |= parse_json(member.read_bytes())
        return record

    def texts(self) -> Iterable[str]:
        """All text."""
        return texts_of(self)


def open_json(
    path: str,
    parse: Callable[..., Document],
    folder: str = "",
    cache: str = "",
    key_of: Callable[[dict], str] | None = None,
    scan: Callable[[str, str], Scan] | None = None,
    **options,
) -> JsonRecords:
    """The documents of all JSON files that a path means; pictures lie in `folder`, or else beside the first file. Raises SourceError."""
    try:
        paths = files.expand(path, SUFFIXES)
    except OSError as error:
        raise SourceError(str(error)) from None
    return JsonRecords(open_index(paths, scan or scan_json, cache), Folder(folder or os.path.dirname(paths[0])), parse, options, key_of)


def scan_json(path: str, cache: str) -> Scan:
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
    at = 0
    for number, line in enumerate(file, start=1):
        if line.strip():
            scan.add(str(number), [(at, len(line), "")])
        at += len(line)


def _scan_list(file, scan: Scan, path: str):
    """Records of one JSON list, a window of the file at a time. One record that is no JSON ends it: where the next begins cannot be told."""
    decode = json.JSONDecoder().raw_decode
    # Latin-1 makes one character of each byte, so that places in the text are places in the file.
    before, window, more = 0, file.read(CHUNK).decode("latin-1"), True
    at = window.index("[") + 1
    while True:
        while at < len(window) and window[at] in " \t\r\n,":
            at += 1
        try:
            end = decode(window, at)[1] if window[at : at + 1] != "]" else 0
            if end == 0:
                return
            if end < len(window) or not more:
                scan.add(str(len(scan.ends)), [(before + at, end - at, "")])
                at = end
                continue
        except (json.JSONDecodeError, RecursionError) as error:
            if not more:
                scan.skipped.append((f"{path}:{len(scan.ends)}", "bad JSON", f"at byte {before + at:,d}: {str(error).split(':')[0]}; the rest of the file is left out"))
                return
        more_text = file.read(max(CHUNK, len(window) - at)).decode("latin-1")
        before, window, at, more = before + at, window[at:] + more_text, 0, bool(more_text)
