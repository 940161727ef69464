"""Functions over strided chunks of the leading axis, one chunk at a time to save memory.

A strided chunk takes every n-th entry, so that each chunk keeps the (data, fsdp) sharding of the full axis.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def to_strided_chunks(x: Array, n: int) -> Array:
    """[B, ...] -> [n, B / n, ...]."""
    return jnp.moveaxis(x.reshape(-1, n, *x.shape[1:]), 1, 0)


def from_strided_chunks(x: Array) -> Array:
    """[n, B / n, ...] -> [B, ...]: the inverse of `to_strided_chunks`."""
    return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])


def chunked(fn: Callable[..., Any], n: int) -> Callable[..., Any]:
    """`fn` over n strided chunks of the leading axis of its arguments, with its results in the original order."""

    def run(*args: Any) -> Any:
        chunks = jax.tree.map(lambda x: to_strided_chunks(x, n), args)
        results = jax.lax.map(lambda chunk: fn(*chunk), chunks)
        return jax.tree.map(from_strided_chunks, results)

    return run
