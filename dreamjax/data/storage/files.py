"""Files by name, on disk or in a bucket: which ones a path means, whether one has changed, bytes out of the middle of
one, and writing whole ones.

Names with `://` go through fsspec (gs:// needs the package gcsfs), since only it reads a range without what surrounds
it.
"""

import contextlib
import functools
import glob
import hashlib
import itertools
import os
import re
import stat
import tempfile
import typing
from collections.abc import Iterator, Sequence

from dreamjax.errors import Unreadable
from dreamjax.filesystem import atomic

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_remote(path: str) -> bool:
    """True if the path is a URL rather than a name on this machine."""
    return "://" in path


@functools.cache
def _remote(protocol: str):
    import fsspec  # only needed for buckets

    return fsspec.filesystem(protocol)


def _filesystem(path: str):
    """The fsspec filesystem of a URL; OSError where what it takes is not installed."""
    try:
        return _remote(path.partition("://")[0])
    except (ImportError, ValueError) as error:
        raise OSError(f"{path}: {error}") from None


def expand_braces(path: str) -> list[str]:
    """a-{00..02}.tar and {a,b}.tar as the shell reads them.

    Every combination, in order; numbers keep their leading zeros.
    """
    braces = _BRACES.search(path)
    if not braces:
        return [path]
    inside = braces[1]
    if bounds := _RANGE.fullmatch(inside):
        first, last = int(bounds[1]), int(bounds[2])
        width = max(len(bounds[1]), len(bounds[2])) if bounds[1].startswith("0") or bounds[2].startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(first, last + 1)]
    else:
        choices = inside.split(",")
    return list(
        itertools.chain.from_iterable(
            expand_braces(path[: braces.start()] + choice + path[braces.end() :]) for choice in choices
        )
    )


def expand(path: str, suffixes: Sequence[str]) -> list[str]:
    """The files that a path means, in a fixed order: itself, what its braces and stars match, or a folder's files with
    one of the suffixes.

    Files that are named, not matched, need not exist; one that is there with braces or stars in its name is meant by
    them. Raises OSError where nothing matches.
    """
    path = os.fspath(path)
    choices = [path] if not is_remote(path) and os.path.exists(path) else expand_braces(path)
    files = list(itertools.chain.from_iterable(_matches(choice, tuple(suffixes)) for choice in choices))
    if not files:
        raise OSError(f"{path}: there is no such file, and no folder with files that end in {' or '.join(suffixes)}")
    return files


def _matches(path: str, suffixes: tuple[str, ...]) -> list[str]:
    if not is_remote(path):
        path = path if os.path.exists(path) else os.path.expanduser(path)
        if glob.has_magic(path) and not os.path.exists(path):
            return sorted(glob.glob(path, recursive=True))
        if os.path.isdir(path):
            return sorted(entry.path for entry in os.scandir(path) if entry.name.endswith(suffixes) and entry.is_file())
        return [path]
    system = _filesystem(path)
    if glob.has_magic(path):
        return sorted(system.unstrip_protocol(name) for name in system.glob(path))
    if path.endswith(suffixes):
        return [path]
    listed = system.ls(path, detail=False) if system.isdir(path) else []
    return sorted(system.unstrip_protocol(name) for name in listed if name.endswith(suffixes))


def file_version(path: str) -> str:
    """A version that changes when the file does: its size and time on disk, its size and version in a bucket.

    Raises Unreadable where it is missing, or is a folder, a pipe or a device, which would be read for ever.
    """
    try:
        if not is_remote(path):
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable(f"{path}: is a folder, a pipe or a device", "no regular file")
            return _local_version(status)
        info = _filesystem(path).info(path)
    except FileNotFoundError:
        raise Unreadable(f"{path}: no such file", "file missing") from None
    versions = [
        str(info[key]) for key in ("generation", "etag", "ETag", "md5Hash", "mtime", "created") if info.get(key)
    ]
    return "-".join([str(info["size"]), *versions[:1]])


def exists(path: str) -> bool:
    """True if there is such a file; in a bucket that is a request."""
    return _filesystem(path).exists(path) if is_remote(path) else os.path.exists(path)


def is_file(path: str) -> bool:
    """True if there is such a file, no folder, pipe or device; in a bucket that is a request."""
    return _filesystem(path).isfile(path) if is_remote(path) else os.path.isfile(path)


def _local_version(facts: os.stat_result) -> str:
    return f"{facts.st_size}-{facts.st_mtime_ns}"


@contextlib.contextmanager
def opened(path: str) -> Iterator[typing.BinaryIO]:
    """The file, to be read from its beginning onwards."""
    with open(path, "rb") if not is_remote(path) else _filesystem(path).open(path, "rb") as file:
        yield file


def read_range(path: str, offset: int, size: int, expected: str = "") -> bytes:
    """`size` bytes from `offset` on. Raises Unreadable where the file is missing, ends before, or no longer has the
    version `expected`.

    In a bucket the version is not asked for again, since that would cost a request for each range.
    """
    if size == 0:
        return b""
    try:
        if is_remote(path):
            data = _filesystem(path).cat_file(path, start=offset, end=offset + size)
        else:
            file = os.open(path, os.O_RDONLY)
            try:
                if expected and _local_version(os.fstat(file)) != expected:
                    raise Unreadable(f"{path}: has changed since it was indexed", "file changed")
                data = os.pread(file, size, offset)
            finally:
                os.close(file)
    except FileNotFoundError:
        raise Unreadable(f"{path}: no such file", "file missing") from None
    if len(data) != size:
        raise Unreadable(
            f"{path}: ends at byte {offset + len(data):,d}, needed up to {offset + size:,d}", "file truncated"
        )
    return data


# ----------------------------------------------------------------------------------------------------------------------
# Whole files and folders


def join(folder: str | os.PathLike, name: str) -> str:
    """The name of a file in a folder."""
    return os.path.join(os.fspath(folder), name)


def read_bytes(path: str) -> bytes:
    """The bytes of a file. Raises OSError, Unreadable where it is missing."""
    try:
        with opened(path) as file:
            return file.read()
    except FileNotFoundError:
        raise Unreadable(f"{path}: no such file", "file missing") from None


def is_folder(path: str) -> bool:
    """True if there is such a folder; in a bucket, if names begin with it."""
    return _filesystem(path).isdir(path) if is_remote(path) else os.path.isdir(path)


def names_in(folder: str) -> list[str]:
    """The names of what lies in a folder, none where there is no such folder."""
    if not is_folder(folder):
        return []
    if not is_remote(folder):
        return sorted(os.listdir(folder))
    return sorted(
        os.path.basename(name.rstrip("/")) for name in _filesystem(folder).ls(folder, detail=False, refresh=True)
    )


def make_folder(path: str):
    """Makes a folder and those above it; a bucket has none."""
    if not is_remote(path):
        os.makedirs(path, exist_ok=True)


def remove(path: str):
    """Removes a file, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        _filesystem(path).rm_file(path) if is_remote(path) else os.unlink(path)


def fetched(path: str, cache: str) -> str:
    """The name on this machine of a file, for libraries that know no other.

    Its own or, of one in a bucket, that of a copy in the cache folder.
    """
    if not is_remote(path):
        return path
    target = os.path.join(cache, f"fetched-{hashlib.sha256(f'{path} {file_version(path)}'.encode()).hexdigest()[:32]}")
    if not os.path.exists(target):
        with atomic_path(target) as temporary:
            _filesystem(path).get_file(path, temporary)
    return target


# ----------------------------------------------------------------------------------------------------------------------
# Writing: a name stands for something whole, or for nothing


@contextlib.contextmanager
def atomic_path(path: str) -> Iterator[str]:
    """The name of a file on this machine to write to.

    What it holds gets the name `path` when the block ends without an error.
    """
    if not is_remote(path):
        with atomic.replaced(path) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory() as folder:
        temporary = os.path.join(folder, os.path.basename(path))
        yield temporary
        _filesystem(path).put_file(temporary, path)  # which a bucket shows when it is whole


@contextlib.contextmanager
def atomic_file(path: str) -> Iterator[typing.BinaryIO]:
    """A file to write bytes to; it gets its name when the block ends without an error."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        yield file
