"""Compressed files, unpacked once into the cache folder, since no record in their middle can be read otherwise."""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable

from dreamjax.data import files

_OPENERS: dict[bytes, Callable] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open, b"PK\x03\x04": zipfile.ZipFile}


def unpacked(path: str, cache: str) -> tuple[str, str]:
    """The path of the file's content, its own where it is not compressed (gzip, bzip2, xz, zip), and what was wrong with it, if anything.

    What can be read of a damaged file is kept. Of a zip its only file is taken; OSError where it has several or cannot be opened.
    """
    with files.opened(path) as file:
        magic = file.read(6)
    opener = next((opener for start, opener in _OPENERS.items() if magic.startswith(start)), None)
    if opener is None:
        return path, ""
    name = hashlib.sha256(f"{path} {files.stamp(path)}".encode()).hexdigest()[:32]
    target = os.path.join(cache, f"unpacked-{name}")
    problem = ""
    if not os.path.exists(target):
        with files.opened(path) as packed, _content(packed, opener, path) as content, files.atomic_file(target) as out:
            try:
                for block in iter(lambda: content.read1(2**20), b""):  # as far as it goes, where it is cut
                    out.write(block)
            except (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
                problem = str(error)
    return target, problem


def _content(packed: io.IOBase, opener: Callable, path: str):
    if opener is not zipfile.ZipFile:
        return opener(packed)
    try:
        archive = zipfile.ZipFile(packed)
        names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
        if len(names) == 1:
            return archive.open(names[0])
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise files.Unreadable(f"{path}: {error}", "file damaged") from None
    raise files.Unreadable(f"{path}: holds {len(names)} files; unpack it and give them", "archive of several files")
