"""Files that are replaced whole: a reader, and a program that was killed at any moment, finds the old contents or the
new, never a part.

What is written goes beside the file first, is forced to the disk, and is then renamed over it. In a bucket an object is
replaced as a whole by itself.
"""

import contextlib
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator

from etils import epath

SUFFIX = ".tmp"  # of what is not whole yet, and of what a killed program left behind


def temporary_name(path: str) -> str:
    """A name beside `path` that nobody else uses."""
    return f"{path}.{uuid.uuid4().hex[:12]}{SUFFIX}"


@contextlib.contextmanager
def replaced(path: str | os.PathLike) -> Iterator[str]:
    """The name of a file on this machine to write to; it replaces `path` when the block ends without an error."""
    target = os.fspath(path)
    temporary = temporary_name(target)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
        _sync(os.path.dirname(target) or ".")
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


@contextlib.contextmanager
def folder(path: str | os.PathLike) -> Iterator[str]:
    """A folder on this machine to write files to.

    It gets its name when the block ends without an error, unless another process was first.
    """
    target = os.fspath(path)
    temporary = temporary_name(target)
    os.makedirs(temporary)
    try:
        yield temporary
        try:
            name_folder(temporary, target)
        except OSError:  # not empty: another process has put its own there
            if not os.path.isdir(target):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def name_folder(temporary: str | os.PathLike, target: str | os.PathLike):
    """Gives a finished folder its name, when it is on the disk.

    OSError where a folder that is not empty has that name.
    """
    for name in sorted(pathlib.Path(temporary).rglob("*")):
        _sync(name)
    _sync(temporary)
    os.rename(temporary, target)
    _sync(os.path.dirname(target) or ".")


def write_bytes(path: str | os.PathLike, data: bytes):
    """Replaces a file, on this machine or in a bucket."""
    if "://" in os.fspath(path):
        epath.Path(path).write_bytes(data)
        return
    with replaced(path) as temporary, open(temporary, "wb") as file:
        file.write(data)


def write_text(path: str | os.PathLike, text: str, errors: str = "strict"):
    """Replaces a text file in UTF-8, line ends as they are; `errors` as for `str.encode`."""
    write_bytes(path, text.encode("utf-8", errors))


def _sync(path: str | os.PathLike):
    """Forces a file, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
