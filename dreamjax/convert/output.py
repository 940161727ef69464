"""The output folder of an import or an export: complete under its name, or absent.

On a local disk the folder is written as OUT.tmp/ beside OUT, synced, then renamed. The next run removes the OUT.tmp of
a killed one; a lock keeps others away from a live one. A bucket cannot rename: there config.json is written last, and a
folder without it is written anew.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator

from etils import epath

from dreamjax.errors import ConfigError
from dreamjax.filesystem import atomic, lock

WRITTEN = (
    "params",
    "tokenizer",
    "origins.json",
    "checksums.json",
)  # entries that a writer killed in a bucket may leave behind


@contextlib.contextmanager
def written(out: epath.Path) -> Iterator[epath.Path]:
    """The folder to write in place of `out`.

    ConfigError where `out` is not empty, or another process is writing it.
    """
    with in_bucket(out) if "://" in os.fspath(out) else _beside(out) as folder:
        yield folder


@contextlib.contextmanager
def _beside(out: epath.Path) -> Iterator[epath.Path]:
    _require_free(out)
    home = epath.Path(f"{out}{atomic.SUFFIX}")
    try:
        with lock.held(home, "--out"):
            _clear(home, [entry.name for entry in home.iterdir() if entry.name != lock.FILE])
            try:
                yield home / out.name
                _require_free(out)
                atomic.name_folder(home / out.name, out)
            finally:
                shutil.rmtree(home / out.name, ignore_errors=True)
    finally:
        with contextlib.suppress(OSError):  # not empty: another writer holds it
            os.rmdir(home)


@contextlib.contextmanager
def in_bucket(out: epath.Path) -> Iterator[epath.Path]:
    _require_free(out, besides=(*WRITTEN, lock.FILE))
    with lock.held(out, "--out"):
        _clear(out, WRITTEN)
        try:
            yield out
        except BaseException:
            _clear(out, WRITTEN)
            raise


def _clear(folder: epath.Path, names: Iterable[str]):
    for path in (folder / name for name in names):
        if path.is_dir():
            path.rmtree()
        else:
            path.unlink(missing_ok=True)


def _require_free(out: epath.Path, besides: tuple[str, ...] = ()):
    if out.exists() and (not out.is_dir() or any(entry.name not in besides for entry in out.iterdir())):
        raise ConfigError(f"--out: {out} holds something already; name another folder, or remove it")
