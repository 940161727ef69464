"""The folder that an import or an export writes: whole under its name, or not there at all.

On this machine it is written in OUT.tmp/ beside OUT, is forced to the disk and then gets its name. What a killed writer
left in OUT.tmp the next one removes, so the same command begins anew; while a writer is alive, its lock keeps others
away. A bucket has no renaming: there config.json is written last, and what has none is begun anew.
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
)  # what a writer that was killed in a bucket may have left


@contextlib.contextmanager
def written(out: epath.Path) -> Iterator[epath.Path]:
    """Where to write what is to stand in `out`.

    ConfigError where that holds something, or another process is writing it.
    """
    with in_bucket(out) if "://" in os.fspath(out) else _beside(out) as folder:
        yield folder


@contextlib.contextmanager
def _beside(out: epath.Path) -> Iterator[epath.Path]:
    _require_free(out)
    home = epath.Path(f"{out}{atomic.SUFFIX}")
    try:
        with lock.held(home, "--out"):
            _clear(home, [left.name for left in home.iterdir() if left.name != lock.FILE])
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
    for left in (folder / name for name in names):
        if left.is_dir():
            left.rmtree()
        else:
            left.unlink(missing_ok=True)


def _require_free(out: epath.Path, besides: tuple[str, ...] = ()):
    if out.exists() and (not out.is_dir() or any(left.name not in besides for left in out.iterdir())):
        raise ConfigError(f"--out: {out} holds something already; name another folder, or remove it")
