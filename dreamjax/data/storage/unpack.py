"""Compressed files, unpacked once into the cache folder, since no record in their middle can be read otherwise.

Beside the content lies a .json with its version and what was wrong with the file, if anything; it is written last, so
that content without it, or of another version, is not whole and is made anew. A file that grows more than data do is
refused: 1.5 MB can unpack to 1.5 GiB, or to more than a disk holds.
"""

import bz2
import dataclasses
import gzip
import hashlib
import io
import json
import lzma
import os
import struct
import typing
import zipfile
import zlib
from collections.abc import Callable

from dreamjax.data.storage import files
from dreamjax.errors import Unreadable

_OPENERS: dict[bytes, Callable] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"PK\x03\x04": zipfile.ZipFile,
}
_UNREAD = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
    b"PK\x05\x06": "empty zip",
    b"\x1f\x9d": "compress",
}
_BAD_ZIP = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    EOFError,
    IndexError,
    struct.error,
)
_BAD_CONTENT = (
    EOFError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    MemoryError,
)  # the last where xz asks for a dictionary of gigabytes
UNCHECKED = 2**24  # bytes that any file may unpack to, however small it is
MEMBER = 2**30  # bytes at most of what is unpacked in memory


@dataclasses.dataclass(frozen=True)
class Cache:
    """The folder of what is made of the data, and limits to what compressed files may grow to there."""

    folder: str = ""
    max_growth: float = (
        200.0  # times a file's size; text and JSON reach 2 to 17, a tar of tiny members 73, an attack 1,000
    )
    max_unpacked: float = 256.0  # GiB of one file

    def limit(self, packed: int, of: int = 1) -> int:
        """The most bytes that so many may become, where `of` files share what is free."""
        return int(min(self.max_unpacked * 2**30, max(UNCHECKED // of, self.max_growth * packed)))

    def check(self, path: str, packed: int, unpacked: int, of: int = 1):
        """Raises Unreadable where it has become more."""
        if unpacked > self.limit(packed, of):
            message = (
                f"{path}: {packed:,d} bytes unpack to more than {self.limit(packed, of):,d}; if they are "
                f"meant to, raise max_growth ({self.max_growth:g} times) or "
            )
            raise Unreadable(f"{message}max_unpacked ({self.max_unpacked:g} GiB)", "unpacks to too much")


def unpacked(path: str, cache: Cache) -> tuple[str, str]:
    """The path of the file's content, its own where it is not compressed (gzip, bzip2, xz, zip), and what was wrong
    with it, if anything.

    What can be read of a damaged file is kept. Of a zip its only file is taken. OSError where it has several, cannot be
    opened or written, or grows too much.
    """
    with files.opened(path) as file:
        magic = file.read(6)
    if unread := next((name for start, name in _UNREAD.items() if magic.startswith(start)), ""):
        raise Unreadable(
            f"{path}: is packed as {unread}, which is not read; unpack it, or pack it as gzip", "unknown compression"
        )
    opener = next((opener for start, opener in _OPENERS.items() if magic.startswith(start)), None)
    if opener is None:
        return path, ""
    name = hashlib.sha256(os.fsencode(f"{path} {files.file_version(path)}")).hexdigest()[:32]
    target, facts = os.path.join(cache.folder, f"unpacked-{name}"), os.path.join(cache.folder, f"whole-{name}.json")
    note = _kept(target, facts)
    if note is None:
        problem = _unpack(path, opener, target, cache)
        note = {"stamp": files.file_version(target), "packed": _size(path), "problem": problem}
        with files.atomic_file(facts) as file:
            file.write(json.dumps(note).encode())
    cache.check(path, note["packed"], os.path.getsize(target))
    return target, note["problem"]


def unzip(data: bytes, name: str, cache: Cache, of: int = 1) -> bytes:
    """The content of gzip-packed data, in memory, one of `of` that are there together. Raises Unreadable."""
    most = min(MEMBER, cache.limit(len(data), of))
    try:
        with gzip.open(io.BytesIO(data)) as file:
            content = file.read(most + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise Unreadable(f"{name}: gzip: {error}", "file damaged") from None
    cache.check(name, len(data), len(content), of)
    if len(content) > MEMBER:
        raise Unreadable(
            f"{name}: {len(data):,d} bytes unpack to more than {MEMBER:,d}, which is the most of a member",
            "unpacks to too much",
        )
    return content


def _kept(target: str, facts: str) -> dict | None:
    """The note on unpacked content; None where that is not there, or is not what was written."""
    try:
        with open(facts, "rb") as file:
            note = json.load(file)
        return (
            note
            if note["stamp"] == files.file_version(target)
            and isinstance(note["problem"], str)
            and isinstance(note["packed"], int)
            else None
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _size(path: str) -> int:
    return int(files.file_version(path).partition("-")[0])


def _unpack(path: str, opener: Callable, target: str, cache: Cache) -> str:
    """Writes the content, as far as it goes; what ended it early."""
    size, written = _size(path), 0
    with (
        files.opened(path) as packed,
        _content(packed, opener, path) as content,
        files.atomic_path(target) as temporary,
    ):
        with open(temporary, "wb") as out:
            block, problem = _next_block(content)
            while block:
                written += len(block)
                cache.check(path, size, written)
                out.write(block)
                block, problem = _next_block(content)
        os.utime(temporary, (0, 0))  # so that whoever else unpacks the file makes one of the same stamp
    return problem


def _next_block(content) -> tuple[bytes, str]:
    """The next bytes, none at the end, and what ended it early."""
    try:
        return content.read1(2**20), ""
    except _BAD_CONTENT as error:
        return b"", str(error) or type(error).__name__
    except OSError as error:
        if error.errno is not None:  # a disk's or a network's: the file itself may be whole
            raise
        return b"", str(error)


def _content(packed: typing.BinaryIO, opener: Callable, path: str):
    if opener is not zipfile.ZipFile:
        return opener(packed)
    try:
        archive = zipfile.ZipFile(packed)
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        if len(entries) == 1:
            if entries[0].compress_type not in (
                zipfile.ZIP_STORED,
                zipfile.ZIP_DEFLATED,
            ):  # the others unpack any amount at once
                raise NotImplementedError(f"compression method {entries[0].compress_type} is not read")
            return archive.open(entries[0])
    except _BAD_ZIP as error:
        raise Unreadable(f"{path}: {error}", "file damaged") from None
    raise Unreadable(f"{path}: holds {len(entries)} files; unpack it and give them", "archive of several files")
