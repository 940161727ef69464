"""Attention behind one place: the only file that knows which kernel computes it.

Axes: B rows, L query positions, T key positions, H heads, K kv heads (K divides H), C head width. Queries are
[B, L, H, C], keys and values [B, T, K, C], results [B, L, H, C]; scores are scaled by 1 / sqrt(C) and the softmax runs in
float32, whatever the inputs' dtype.
"""

import jax
import jax.numpy as jnp

Array = jax.Array

BLOCK = 128  # cache slots that are read at a time
HIDDEN = -1e30  # score of a slot that a query does not see; finite, so that a difference of two is no NaN


def causal_attention(q: Array, k: Array, v: Array, segments: Array | None = None) -> Array:
    """Each position attends to itself and to earlier positions, of its own segment where [B, L] `segments` are given."""
    mask = None if segments is None else (segments[:, None, :, None] == segments[:, None, None, :])
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True)


def cached_attention(q: Array, keys: Array, values: Array, layer: Array, positions: Array) -> Array:
    """Queries at [B, L] `positions` attend to the cache slots of a layer at or before their own; slot number is position.

    `keys` and `values` [layers, B, T, K, C] are read in blocks, up to the last one that a query sees, with a running
    softmax (Milakov & Gimelshein 2018). So the time depends on what is filled, not on T, and blocks that only other rows
    need change no bit of a row's result. Positions outside 0 .. T - 1 have no meaning here.
    """
    batch, length, heads, width = q.shape
    slots, kv_heads = keys.shape[2:4]
    block = BLOCK if slots % BLOCK == 0 else slots
    grouped = (q * width**-0.5).reshape(batch, length, kv_heads, heads // kv_heads, width)
    shape = (batch, kv_heads, heads // kv_heads, length)

    def attend(number: Array, running: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        highest, total, attended = running
        read = lambda x: jax.lax.dynamic_slice(x, (layer, 0, number * block, 0, 0), (1, batch, block, kv_heads, width))[0]
        scores = jnp.einsum("blkgc,btkc->bkglt", grouped, read(keys), preferred_element_type=jnp.float32)
        visible = number * block + jnp.arange(block) <= positions[:, None, None, :, None]
        scores = jnp.where(visible, scores, HIDDEN)
        higher = jnp.maximum(highest, scores.max(axis=-1))
        weights, faded = jnp.exp(scores - higher[..., None]), jnp.exp(highest - higher)
        seen = jnp.einsum("bkglt,btkc->bkglc", weights.astype(values.dtype), read(values), preferred_element_type=jnp.float32)
        return higher, total * faded + weights.sum(axis=-1), attended * faded[..., None] + seen

    last = jnp.max(jnp.where((positions >= 0) & (positions < slots), positions, 0))
    start = jnp.full(shape, HIDDEN), jnp.zeros(shape), jnp.zeros((*shape, width))
    _, total, attended = jax.lax.fori_loop(0, last // block + 1, attend, start)
    attended = (attended / total[..., None]).astype(q.dtype)
    return attended.transpose(0, 3, 1, 2, 4).reshape(q.shape)


def full_attention(q: Array, k: Array, v: Array) -> Array:
    """Each position attends to every position."""
    return jax.nn.dot_product_attention(q, k, v)
