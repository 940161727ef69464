"""Arrays on disk are read as they were written, or not at all: a checksum for each, and one line for whatever reading
damaged files raises.

A disk, a network or a memory that turns a bit gives other weights, which no format notices: what is stored compressed
mostly still unpacks. A checksum is over the bits of an array and their places, so it is the same however the array was
sharded; each host reads the parts on its own devices, and one small sum over the hosts follows.
"""

import concurrent.futures
import contextlib
import inspect
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from dreamjax.errors import ConfigError, gist
from dreamjax.parallel.param_sharding import path_of

BLOCK = 2**16  # words that are hashed at once: they stay in the processor's cache


@contextlib.contextmanager
def reading(location: str | os.PathLike) -> Iterator[None]:
    """Turns what reading a stored file or folder raises into a ConfigError of one line that names it.

    Damage comes out of the libraries as errors of any type. Those of the devices and of other hosts are none of it and
    pass.
    """
    with _drop_echoes() as echoes:
        try:
            yield
        except (ConfigError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:
            echoes.pop_all()  # those that are still to come, too
            raise ConfigError(f"{location}: cannot be read ({type(error).__name__}: {gist(error)})") from error


def _drop_echoes() -> contextlib.ExitStack:
    """Keeps quiet, until it is closed, of reads that fail after the first one has, when nobody waits for them any more.

    Orbax reads many arrays at once and leaves at the first error; each of the others would print a stack dump beside
    the line that says it all.
    """

    def hook(unraisable):
        if not (inspect.iscoroutine(unraisable.object) or "Event loop is closed" in str(unraisable.exc_value)):
            before(unraisable)

    def no_echo(record: logging.LogRecord) -> bool:
        return "exception was never retrieved" not in record.getMessage()

    before, sys.unraisablehook = sys.unraisablehook, hook
    logging.getLogger("asyncio").addFilter(no_echo)
    closing = contextlib.ExitStack()
    closing.callback(setattr, sys, "unraisablehook", before)
    closing.callback(logging.getLogger("asyncio").removeFilter, no_echo)
    return closing


def checksums(params) -> dict[str, str]:
    """{path.

    Dtype and checksum, as in "float32 5bd1e995"} of a tree's arrays; every host that holds parts of them calls it.
    """
    flat = {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy works outside Python's lock
        own = np.array(list(pool.map(_own_words, flat.values())), np.uint32)
    if jax.process_count() > 1:
        own = multihost_utils.process_allgather(own).sum(axis=0, dtype=np.uint32)
    return {path: f"{leaf.dtype} {word:08x}" for (path, leaf), word in zip(flat.items(), own.tolist(), strict=True)}


def check(params, expected: Mapping[str, str], location: str | os.PathLike):
    """ConfigError, naming the first array that is not as it was written.

    `expected` may be of more arrays, and of none where none were kept.
    """
    if not expected:
        return
    damaged = [path for path, checksum in checksums(params).items() if expected.get(path) != checksum]
    if damaged:
        more = (
            f" and {len(damaged) - 1} more arrays are damaged (their checksums differ"
            if len(damaged) > 1
            else " is damaged (its checksum differs"
        )
        raise ConfigError(f"{location}: array {damaged[0]}{more} from what was written)")


def dtype_of(checksum: str) -> np.dtype:
    """The dtype in which an array was written."""
    return jnp.dtype(checksum.split()[0])


def as_checksums(values: Mapping) -> dict[str, str]:
    """What a file says of arrays; an error of some type where it cannot be."""
    for checksum in values.values():
        dtype_of(checksum)
    return dict(values)


def fold(arrays: Mapping[str, str]) -> str:
    """16 hex digits over the paths and checksums of a tree's arrays."""
    total = 0
    for path, checksum in arrays.items():
        total = (total * 1000003 + sum(path.encode()) + int(checksum.split()[1], 16)) % 2**64
    return f"{total:016x}"


def _own_words(leaf: jax.Array | np.ndarray) -> int:
    """The sum of an array's hashed words over the parts of it that this host answers for.

    Of what several devices hold, the first's.
    """
    if not isinstance(leaf, jax.Array):
        return _words(np.asarray(leaf), (0,) * np.ndim(leaf), np.shape(leaf))
    parts = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
    starts = [tuple(axis.indices(size)[0] for axis, size in zip(part.index, leaf.shape, strict=True)) for part in parts]
    return (
        sum(_words(_on_host(part.data), start, leaf.shape) for part, start in zip(parts, starts, strict=True)) % 2**32
    )


def _on_host(part: jax.Array) -> np.ndarray:
    """A device's array in host memory, by an array of its own, which goes again.

    An array keeps what was once copied of it as long as it lives.
    """
    return np.asarray(jax.make_array_from_single_device_arrays(part.shape, part.sharding, [part]))


def _words(part: np.ndarray, start: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """The sum of the hashed words of the part of an array of `shape` that begins at `start`."""
    bits = np.ascontiguousarray(part).view(f"uint{part.dtype.itemsize * 8}")
    if bits.dtype.itemsize == 8:
        bits = bits ^ bits >> np.uint64(32)
    # Runs that lie together in the whole array too: the last axis, and those before it as long as the part has all of
    # the ones behind.
    first, run = len(shape), 1
    while first and run < BLOCK and part.shape[first:] == shape[first:]:
        first -= 1
        run *= part.shape[first]
    places = np.array(
        [sum(at * math.prod(shape[axis + 1 :]) for axis, at in enumerate(start)) % 2**32], np.uint32
    )  # of each run's begin
    for axis in range(first):
        stride = np.uint32(math.prod(shape[axis + 1 :]) % 2**32)
        places = np.add.outer(places, np.arange(part.shape[axis], dtype=np.uint32) * stride).reshape(-1)
    rows, total = bits.reshape(len(places), run), 0
    for top in range(0, len(places), max(1, BLOCK // max(run, 1))):
        some = slice(top, top + max(1, BLOCK // max(run, 1)))
        for left in range(0, run, BLOCK):
            word = rows[some, left : left + BLOCK].astype(np.uint32)
            total += _hash(word, places[some, None] + np.arange(left, left + word.shape[1], dtype=np.uint32))
    return total % 2**32


def _hash(word: np.ndarray, places: np.ndarray) -> int:
    """The sum of words mixed with their places by Murmur3's finaliser.

    A plain weighted sum would miss changes that cancel, such as an even number of signs.
    """
    word ^= places * np.uint32(2654435761)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        word ^= word >> np.uint32(shift)
        word *= np.uint32(factor)
    return int(word.sum(dtype=np.uint64))
