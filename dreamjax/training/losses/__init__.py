"""The two losses of DreamLLM, as sums: cross-entropy over supervised tokens and denoising error over target images.

Sums are divided by counts of the GLOBAL batch, taken before any microbatch runs, so a step depends neither on the mesh
nor on the number of microbatches.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamjax.config import LossConfig
from dreamjax.document.batch import Batch
from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Model
from dreamjax.training.losses.denoising import (
    Samples,
    SpecialIds,
    condition_states,
    denoising_loss,
    flatten_slots,
    sample,
)
from dreamjax.training.losses.language import cross_entropy_sum

__all__ = [
    "Counts",
    "Samples",
    "SpecialIds",
    "batch_cross_entropy",
    "condition_states",
    "count",
    "cross_entropy_sum",
    "denoising_loss",
    "flatten_slots",
    "loss_sums",
    "sample",
]

Array = jax.Array


class Counts(NamedTuple):
    """Divisors of the sums; at least 1, so that a batch without images has image loss 0."""

    tokens: Array
    images: Array


def count(batch: Batch) -> Counts:
    """Supervised tokens and valid target images of a batch, as float32 scalars."""
    tokens = jnp.sum(batch.loss_mask[..., 1:], dtype=jnp.float32)
    images = jnp.sum(batch.target_valid, dtype=jnp.float32)
    return Counts(jnp.maximum(tokens, 1), jnp.maximum(images, 1))


def loss_sums(
    model: Model,
    loss: LossConfig,
    ids: SpecialIds,
    batch: Batch,
    key: Array | Samples,
    *,
    stop_decoder_grad: bool = False,
) -> tuple[Array, Array]:
    """(sum of the token losses, sum of the image errors) of a batch.

    `key` is the step's, or the samples for the batch's slots. `stop_decoder_grad`: see `denoising_loss`.
    """
    hidden = dreamllm.hidden_states(model, batch)
    tokens = batch_cross_entropy(model, loss, batch, hidden) if loss.lm_weight else jnp.float32(0)
    images = jnp.float32(0)
    if loss.image_weight and batch.target_start.shape[1]:
        samples = key if isinstance(key, Samples) else sample(model.config, loss, key, batch.target_draw.reshape(-1))
        targets = flatten_slots(batch.target_images)
        states = condition_states(model, loss, ids, batch, hidden, samples)
        errors = denoising_loss(model, loss, targets, states, samples, stop_decoder_grad=stop_decoder_grad)
        images = jnp.sum(jnp.where(batch.target_valid.reshape(-1), errors, 0.0))
    return tokens, images


def batch_cross_entropy(model: Model, loss: LossConfig, batch: Batch, hidden: Array) -> Array:
    """`cross_entropy_sum` over a batch, given the LLM's hidden states [G R, L, D]."""
    rows = hidden.shape[:2]
    chunk = min(loss.ce_chunk, hidden.shape[1])
    return cross_entropy_sum(model, hidden, batch.tokens.reshape(rows), batch.loss_mask.reshape(rows), chunk)
