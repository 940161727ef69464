"""Documents in ArrayRecord files, as `python -m dreamjax.prepare` writes them: one record a document, pictures as their
encoded files.

A record is the length of a head (4 bytes, little endian), the head (JSON: version, id, kind, key of the split, parts,
where a picture has its number of bytes), and the pictures' bytes behind each other.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import re
import struct
import sys
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from array_record.python import array_record_module
from array_record.python.array_record_data_source import ArrayRecordDataSource

from dreamjax.config import SourceConfig
from dreamjax.config.aliases import current_names
from dreamjax.data.sources.records import Unusable, bad_record, optional, parse_json, require, texts_of
from dreamjax.data.storage import files
from dreamjax.data.storage.index import cache_folder
from dreamjax.document import Document, Image, Part, Text, image_io
from dreamjax.errors import BadRecord, SourceError, Unreadable, gist

VERSION = 1
SUFFIX = ".array_record"
WRITER_OPTIONS = "group_size:1,uncompressed"  # one record at a time is read, and pictures are compressed already
LENGTHS = "lengths.npy"
SETTINGS = "prepare.json"  # of `prepare`, written first
DROPPED = "dropped.jsonl"  # of `prepare`, written when all documents are
_HEAD = struct.Struct("<I")
_OF = re.compile(r"documents-\d+-of-(\d+)" + re.escape(SUFFIX))  # a file as `prepare` names it


def encode(document: Document, key: str = "") -> bytes:
    """The record of a document and of the key that decides its split; without one, its place in the files will.

    Pictures keep the bytes of their files; those that have none become PNG. Raises BadImage.
    """
    parts, blobs = [], []
    for part in document.parts:
        if isinstance(part, Text):
            parts.append({"text": part.text, "supervised": part.supervised, "role": part.role})
        else:
            blobs.append(image_io.file_bytes(part.source))
            parts.append(
                {"bytes": len(blobs[-1]), "is_input": part.is_input, "is_target": part.is_target, "role": part.role}
            )
    head = json.dumps(
        {"version": VERSION, "id": document.id, "kind": document.kind, "key": key, "parts": parts}
    ).encode()
    return b"".join([_HEAD.pack(len(head)), head, *blobs])


def decode(record: bytes) -> Document:
    """The inverse of `encode`. Raises Unusable."""
    try:
        return _decode(record)
    except (Unusable, ValueError) as error:  # a ValueError: of a role or a kind that there is not
        raise Unusable("no document", ": ".join(error.args)) from None


def _decode(record: bytes) -> Document:
    head, at = _head(record)
    parts: list[Part] = []
    for part in require(head, "parts", list, of=dict):
        part = current_names(Text if "text" in part else Image, part)
        role = optional(part, "role", str, None)
        if "text" in part:
            parts.append(Text(require(part, "text", str), require(part, "supervised", bool), role))
        else:
            end = at + require(part, "bytes", int)
            if not at <= end <= len(record):
                raise ValueError(f"a picture of {part['bytes']} bytes in a record of {len(record)}")
            parts.append(Image(record[at:end], require(part, "is_input", bool), require(part, "is_target", bool), role))
            at = end
    if at != len(record):
        raise ValueError(f"{len(record)} bytes, of which the head describes {at}")
    return Document(tuple(parts), require(head, "id", str), kind=require(head, "kind", str))


def key_of(record: bytes) -> str:
    """The key that a document was encoded with; empty where it has none. Raises Unusable."""
    return optional(_head(record)[0], "key", str, "")


def _head(record: bytes) -> tuple[dict, int]:
    """The head, and where it ends; raises Unusable."""
    if len(record) < _HEAD.size:
        raise Unusable("no document", f"{len(record)} bytes")
    end = _HEAD.size + _HEAD.unpack_from(record)[0]
    head = parse_json(record[_HEAD.size : end])
    if head.get("version") != VERSION:
        raise Unusable("no document", f"not of version {VERSION}")
    return head, end


@dataclasses.dataclass(frozen=True)
class ArrayRecords:
    """The documents of all files, in the order of the files."""

    records: ArrayRecordDataSource
    names: tuple[str, ...]  # of the files
    ends: np.ndarray  # [files] one past the last document of each
    fingerprint: str
    skipped: tuple[BadRecord, ...]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Document:
        name = self._name(index)
        try:
            with bad_record(name):
                document = decode(self.records[index])
        except RuntimeError as error:  # what the reader raises, whatever is wrong
            raise BadRecord(name, "damaged record", str(error)) from None
        return dataclasses.replace(document, id=document.id or name)

    def key(self, index: int) -> str:
        """The key that the document was written with, or else the file and the number in it."""
        name = self._name(index)
        with contextlib.suppress(RuntimeError, Unusable):  # which reading the document says
            if key := key_of(self.records[index]):
                return key
        return os.path.basename(name)

    def _name(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"there are documents 0 to {len(self) - 1}, not {index}")
        file = int(np.searchsorted(self.ends, index, side="right"))
        return f"{self.names[file]}:{index - (int(self.ends[file - 1]) if file else 0)}"

    def texts(self) -> Iterable[str]:
        """All text."""
        return texts_of(self)

    def lengths(self) -> np.ndarray | None:
        """[n, 3] int32 that `prepare` stored.

        Tokens without the slots' own, input and target images; None where the files are not just those.
        """
        file = files.join(os.path.dirname(self.names[0]), LENGTHS)
        if not files.exists(file):
            return None
        try:
            stored = np.load(io.BytesIO(files.read_bytes(file)))
            if stored.dtype != np.int32 or stored.ndim != 2 or stored.shape[1] != 3 or stored.min(initial=0) < 0:
                raise ValueError(f"{stored.dtype} {list(stored.shape)}, not int32 [n, 3] of counts")
        except Exception as error:  # numpy's reader of headers raises almost anything
            print(f"{file}: is damaged ({gist(error)}); the lengths are measured anew", file=sys.stderr)
            return None
        return stored if len(stored) == len(self) else None


def open_array_record(config: SourceConfig, seed: int = 0) -> ArrayRecords:
    """The documents of the files that the path means.

    Files that cannot be opened are skipped; SourceError where none is left.

    ArrayRecord is read from disk alone: files in a bucket are copied into the cache folder first. Of many, mount the
    bucket.
    """
    path = config.path
    try:
        paths = files.expand(path, (SUFFIX,))
    except OSError as error:
        raise SourceError(str(error)) from None
    if files.is_folder(path):
        _check_finished(path)
    cache = cache_folder(config.cache) if files.is_remote(path) else ""
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        counted = list(pool.map(functools.partial(_count, cache=cache), paths))
    skipped = tuple(count for count in counted if isinstance(count, BadRecord))
    readable = [
        (path, *count)
        for path, count in zip(paths, counted, strict=True)
        if not isinstance(count, BadRecord) and count[1]
    ]
    if not readable:
        raise SourceError(f"{path}: there is no document to read{f': {skipped[0]}' if skipped else ''}")
    file_versions = hashlib.sha256(
        json.dumps([(path, files.file_version(path)) for path, _, _ in readable]).encode()
    ).hexdigest()[:32]
    instructions = [_WholeFile(local, 0, count, count) for _, local, count in readable]  # counted already
    ends = np.cumsum([count for _, _, count in readable])
    return ArrayRecords(
        ArrayRecordDataSource(instructions),
        tuple(path for path, _, _ in readable),
        ends,
        f"array_record-{file_versions}",
        skipped,
    )


def _check_finished(folder: str):
    """Raises SourceError where `prepare` was stopped in the folder, or files of it are missing.

    What is there would be taken for everything.
    """
    names = files.names_in(folder)
    of = [match for match in map(_OF.fullmatch, names) if match]
    most = max((int(match[1]) for match in of), default=0)
    if (SETTINGS not in names or DROPPED in names) and len(of) >= most:
        return
    try:
        command = optional(parse_json(files.read_bytes(files.join(folder, SETTINGS))), "command", str, "")
    except (Unusable, OSError):
        command = ""
    remedy = (
        f"run {command or 'python -m dreamjax.prepare with the same flags'} again, which goes on, or give "
        f"{files.join(folder, '*' + SUFFIX)} to read those alone"
    )
    raise SourceError(f"{folder}: is an unfinished set of documents, {len(of)} of {most} files are there; {remedy}")


class _WholeFile(NamedTuple):
    """Has what array_record's FileInstruction asks for."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def _count(path: str, cache: str) -> tuple[str, int] | BadRecord:
    """The file's name on this machine and how many records it has."""
    try:
        files.file_version(path)  # Unreadable where it is no file
        path.encode()  # as the reader does
        local = files.fetched(path, cache)
        reader = array_record_module.ArrayRecordReader(local)
        count = reader.num_records()
        reader.close()
        return local, count
    except Unreadable as error:
        return BadRecord(path, error.reason)
    except UnicodeEncodeError:
        return BadRecord(path, "file cannot be read", "its name is not UTF-8; rename it")
    except (RuntimeError, OSError) as error:
        return BadRecord(path, "file damaged", str(error))
