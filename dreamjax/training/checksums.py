"""Checksums of stored arrays, and one-line errors for damaged files.

A bit flipped by a disk, a network or memory changes weights, which no format notices: compressed data mostly still
decompress. A checksum covers the bits of an array and their positions, so it does not depend on the sharding; each host
reads the shards on its own devices, and one small sum over the hosts follows.
"""

import concurrent.futures
import contextlib
import inspect
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from dreamjax.errors import ConfigError, gist
from dreamjax.parallel.param_sharding import path_of

BLOCK = 2**16  # words that are hashed at once, so that they fit in the CPU's cache


@contextlib.contextmanager
def reading(location: str | os.PathLike) -> Iterator[None]:
    """Turns errors in reading a stored file or folder into a ConfigError of one line that names it.

    Libraries raise errors of any type on damage. Errors of devices and of other hosts pass unchanged.
    """
    with _drop_echoes() as echoes:
        try:
            yield
        except (ConfigError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:
            echoes.pop_all()  # suppress later ones too
            raise ConfigError(f"{location}: cannot be read ({type(error).__name__}: {gist(error)})") from error


def _drop_echoes() -> contextlib.ExitStack:
    """Suppresses, until it is closed, the errors of concurrent reads after the first error.

    Orbax reads many arrays at once and stops at the first error; each of the others would print a stack.
    """

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
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


def checksums(params: Any) -> dict[str, str]:
    """{path: dtype and checksum, as in "float32 5bd1e995"} of a tree's arrays; every host with shards calls it."""
    flat = {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy releases the GIL
        words = np.array(list(pool.map(_own_words, flat.values())), np.uint32)
    if jax.process_count() > 1:
        words = multihost_utils.process_allgather(words).sum(axis=0, dtype=np.uint32)
    return {path: f"{leaf.dtype} {word:08x}" for (path, leaf), word in zip(flat.items(), words.tolist(), strict=True)}


def check(params: Any, expected: Mapping[str, str], location: str | os.PathLike) -> None:
    """ConfigError with the first array that differs from its checksum.

    `expected` may have further arrays, and is empty for files from before checksums.
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
    """The checksums in a file; an error of any type where they are malformed."""
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
    """The sum of an array's hashed words over this host's shards, of replicas the first alone."""
    if not isinstance(leaf, jax.Array):
        return _words(np.asarray(leaf), (0,) * np.ndim(leaf), np.shape(leaf))
    parts = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
    starts = [tuple(axis.indices(size)[0] for axis, size in zip(part.index, leaf.shape, strict=True)) for part in parts]
    return (
        sum(_words(_on_host(part.data), start, leaf.shape) for part, start in zip(parts, starts, strict=True)) % 2**32
    )


def _on_host(part: jax.Array) -> np.ndarray:
    """A copy of a device's shard in host memory, by a temporary array: JAX arrays cache their host copies."""
    return np.asarray(jax.make_array_from_single_device_arrays(part.shape, part.sharding, [part]))


def _words(part: np.ndarray, start: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """The sum of the hashed words of a part, beginning at `start`, of an array of `shape`."""
    bits = np.ascontiguousarray(part).view(f"uint{part.dtype.itemsize * 8}")
    if bits.dtype.itemsize == 8:
        bits = bits ^ bits >> np.uint64(32)
    # Runs that are contiguous in the full array too: the last axis, and earlier ones while the part is complete in all
    # later axes.
    first, run = len(shape), 1
    while first and run < BLOCK and part.shape[first:] == shape[first:]:
        first -= 1
        run *= part.shape[first]
    positions = np.array(
        [sum(begin * math.prod(shape[axis + 1 :]) for axis, begin in enumerate(start)) % 2**32], np.uint32
    )  # of each run's begin
    for axis in range(first):
        stride = np.uint32(math.prod(shape[axis + 1 :]) % 2**32)
        positions = np.add.outer(positions, np.arange(part.shape[axis], dtype=np.uint32) * stride).reshape(-1)
    rows, total = bits.reshape(len(positions), run), 0
    for row in range(0, len(positions), max(1, BLOCK // max(run, 1))):
        span = slice(row, row + max(1, BLOCK // max(run, 1)))
        for column in range(0, run, BLOCK):
            word = rows[span, column : column + BLOCK].astype(np.uint32)
            total += _hash(word, positions[span, None] + np.arange(column, column + word.shape[1], dtype=np.uint32))
    return total % 2**32


def _hash(word: np.ndarray, positions: np.ndarray) -> int:
    """The sum of words mixed with their positions by Murmur3's finaliser.

    A plain weighted sum would miss changes that cancel, such as an even number of signs.
    """
    word ^= positions * np.uint32(2654435761)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        word ^= word >> np.uint32(shift)
        word *= np.uint32(factor)
    return int(word.sum(dtype=np.uint64))
