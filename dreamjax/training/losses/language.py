"""The language loss (paper eq. 1): next-token cross-entropy over supervised tokens."""

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Model

Array = jax.Array


def cross_entropy_sum(
    model: Model, hidden: Array, tokens: Array | np.ndarray, loss_mask: Array | np.ndarray, chunk: int
) -> Array:
    """Sum over supervised tokens of -log p(token | earlier tokens), float32.

    hidden [B, L, D], tokens and loss_mask [B, L]; hidden state i predicts token i + 1. Logits exist for `chunk`
    positions of each row at a time and are recomputed in the backward pass, so [B, L, V] is never in memory.
    """
    targets = jnp.roll(tokens, -1, axis=1)
    weights = jnp.roll(loss_mask, -1, axis=1).at[:, -1].set(False)
    batch, length, _ = hidden.shape
    pad = -length % chunk
    if pad:
        hidden = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0)))
        targets, weights = jnp.pad(targets, ((0, 0), (0, pad))), jnp.pad(weights, ((0, 0), (0, pad)))

    def to_chunks(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(batch, -1, chunk, *x.shape[2:]), 1, 0)

    model = dreamllm.with_replicated_head(model)

    @jax.checkpoint
    def add_chunk(total: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, None]:
        hidden, targets, weights = inputs
        logits = model.apply("llm", hidden, method="logits")
        picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        losses = jax.nn.logsumexp(logits, axis=-1) - picked
        return total + jnp.sum(jnp.where(weights, losses, 0.0)), None

    return jax.lax.scan(add_chunk, jnp.float32(0), (to_chunks(hidden), to_chunks(targets), to_chunks(weights)))[0]
