"""Attention behind one place: the only file that knows which kernel computes it.

Axes: B rows, L query positions, T key positions, H heads, K kv heads (K divides H), C head width. Queries are
[B, L, H, C], keys and values [B, T, K, C], results [B, L, H, C]; scores are scaled by 1 / sqrt(C) and the softmax runs in
float32, whatever the inputs' dtype.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def causal_attention(q: Array, k: Array, v: Array, segments: Array | None = None) -> Array:
    """Each position attends to itself and to earlier positions, of its own segment where [B, L] `segments` are given."""
    mask = None if segments is None else (segments[:, None, :, None] == segments[:, None, None, :])
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True)


def cached_attention(q: Array, k: Array, v: Array, positions: Array) -> Array:
    """Queries at [B, L] `positions` attend to the cache slots at or before their own; slot number is position."""
    slots = jnp.arange(k.shape[1])
    return jax.nn.dot_product_attention(q, k, v, mask=slots <= positions[:, None, :, None])


def full_attention(q: Array, k: Array, v: Array) -> Array:
    """Each position attends to every position."""
    return jax.nn.dot_product_attention(q, k, v)
