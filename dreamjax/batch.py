"""Batch: what one training step eats. Every field is static in shape and leads with the group axis G.

A group is R rows of L tokens that share N slots for seen pictures and M slots for dreamed ones:

    tokens    row 0  <s> a red cat . <dream_start> q q q q <dream_end> <im_start> p p p p <im_end> the end . </s> <s>
              ...
    segments         1   1 1   1   1      1        1 1 1 1      1          1      1 1 1 1     1     1   1  1  1    2
    positions        0   1 2   3   4      5        6 7 8 9     10         11     12 ..                             0
    dreamed_start                                  ^ 6 (row * L + 6)             ^ 12 is a seen_start

Padding has segment 0 and is never learned; an empty slot is not valid, and its picture is black.
"""

from collections.abc import Sequence
from typing import NamedTuple

import ml_dtypes  # noqa: F401  names bfloat16 to numpy
import numpy as np

from dreamjax.config import ModelConfig, RunConfig
from dreamjax.rows import Row


class Encoded(NamedTuple):
    """What stands in a batch in a picture's place where frozen encoders have been run before
    (dreamjax/precompute.py).
    """

    features: tuple[int, ...]  # (P, CLIP width) of a seen one: the hidden states of its patches; () without CLIP
    moments: tuple[
        int, ...
    ]  # (S, S, 2 channels) of a dreamed one: mean and log-variance of its latents; () without a VAE
    dtype: str  # of features; moments are float32


class Shape(NamedTuple):
    """The static sizes of a batch.

    G groups of R rows of L tokens with N seen and M dreamed slots; picture sides in pixels.
    """

    groups: int
    rows: int
    length: int
    seen: int
    dreamed: int
    encoder_size: int
    decoder_size: int
    encoded: Encoded | None = None


class Batch(NamedTuple):
    """A pytree of arrays; G groups, R rows, L tokens, N seen and M dreamed slots, pictures as uint8 RGB."""

    tokens: np.ndarray  # [G, R, L] int32
    learned: np.ndarray  # [G, R, L] bool: the token is a target of the cross-entropy, predicted from the one before
    positions: np.ndarray  # [G, R, L] int32, restart with each document
    segments: np.ndarray  # [G, R, L] int32, the documents of a row from 1; 0 is padding
    seen_images: np.ndarray  # [G, N, h, w, 3] uint8, or what Encoded.features says
    seen_start: np.ndarray  # [G, N] int32: row * L + position of the first patch
    seen_valid: np.ndarray  # [G, N] bool
    dreamed_images: np.ndarray  # [G, M, H, W, 3] uint8, or what Encoded.moments says
    dreamed_start: np.ndarray  # [G, M] int32: row * L + position of the first dream query
    dreamed_valid: np.ndarray  # [G, M] bool
    dreamed_draw: np.ndarray  # [G, M] uint32: the picture's number in its epoch, by which its random draws are keyed


def shape_of(config: RunConfig, encoded: bool = False) -> Shape:
    """The global batch of a run, with pictures or what encoders made of them.

    Picture sides are 1 where the model lacks the part.
    """
    data, model = config.data, config.model
    return Shape(
        config.groups,
        data.rows_per_group,
        data.length,
        data.seen_slots,
        data.dreamed_slots,
        model.clip.image_size if model.clip else 1,
        model.decoder_size if model.unet else 1,
        encoded_of(model) if encoded else None,
    )


def encoded_of(model: ModelConfig) -> Encoded:
    """What a model's encoders make of one picture."""
    features = (model.clip.patches, model.clip.width) if model.clip else ()
    moments = (model.unet.sample_size,) * 2 + (2 * model.vae.latent_channels,) if model.vae else ()
    return Encoded(features, moments, model.dtype)


def empty_batch(shape: Shape) -> Batch:
    """A batch of padding, to be filled."""
    rows, seen, dreamed = (
        (shape.groups, shape.rows, shape.length),
        (shape.groups, shape.seen),
        (shape.groups, shape.dreamed),
    )

    def pictures(slots, size):
        return np.zeros((*slots, size, size, 3), np.uint8)

    encoded = shape.encoded or Encoded((), (), "float32")
    return Batch(
        tokens=np.zeros(rows, np.int32),
        learned=np.zeros(rows, np.bool_),
        positions=np.zeros(rows, np.int32),
        segments=np.zeros(rows, np.int32),
        seen_images=np.zeros((*seen, *encoded.features), encoded.dtype)
        if encoded.features
        else pictures(seen, shape.encoder_size),
        seen_start=np.zeros(seen, np.int32),
        seen_valid=np.zeros(seen, np.bool_),
        dreamed_images=np.zeros((*dreamed, *encoded.moments), np.float32)
        if encoded.moments
        else pictures(dreamed, shape.decoder_size),
        dreamed_start=np.zeros(dreamed, np.int32),
        dreamed_valid=np.zeros(dreamed, np.bool_),
        dreamed_draw=np.zeros(dreamed, np.uint32),
    )


def place(
    batch: Batch,
    group: int,
    row_number: int,
    row: Row,
    seen: Sequence[np.ndarray],
    dreamed: Sequence[np.ndarray | None],
    draw: int = 0,
):
    """Writes a document behind what its row already holds and its pictures into the group's next free slots.

    seen and dreamed are pictures (or what was made of them) in the order of row.seen and row.dreamed; a dreamed one may
    be None where only its queries matter (a prompt). The draws of its pictures are numbered from `draw`. The caller has
    made sure that it fits.
    """
    segments = batch.segments[group, row_number]
    start, n = int(np.count_nonzero(segments)), len(row.tokens)
    span = slice(start, start + n)
    batch.tokens[group, row_number, span] = row.tokens
    batch.learned[group, row_number, span] = row.learned
    batch.positions[group, row_number, span] = np.arange(n)
    segments[span] = segments.max() + 1
    offset = row_number * batch.tokens.shape[2] + start
    first = int(batch.seen_valid[group].sum())
    for slot, ((at, _), picture) in enumerate(zip(row.seen, seen, strict=True), first):
        batch.seen_images[group, slot], batch.seen_start[group, slot], batch.seen_valid[group, slot] = (
            picture,
            offset + at,
            True,
        )
    first = int(batch.dreamed_valid[group].sum())
    for slot, ((at, _), picture) in enumerate(zip(row.dreamed, dreamed, strict=True), first):
        if picture is not None:
            batch.dreamed_images[group, slot] = picture
        batch.dreamed_start[group, slot], batch.dreamed_valid[group, slot] = offset + at, True
        batch.dreamed_draw[group, slot] = (draw + slot - first) % 2**32


def fake_batch(config: RunConfig, seed: int = 0) -> Batch:
    """A batch of the run's shapes with random content: one document a row, pictures spread evenly, some slots empty."""
    rng = np.random.default_rng(seed)
    batch = empty_batch(shape_of(config))
    g, r, length = batch.tokens.shape
    batch.tokens[...] = rng.integers(3, config.model.llm.vocab_size, batch.tokens.shape)
    batch.positions[...] = np.arange(length)
    batch.segments[...] = 1
    batch.learned[...] = rng.random(batch.tokens.shape) < 0.5
    batch.learned[..., 0] = False
    queries = config.model.dream_queries
    patches = config.model.clip.patches if config.model.clip else 0
    block = queries + patches + 4
    per_row = length // block
    if max(config.data.seen_slots, config.data.dreamed_slots) > r * per_row:
        raise ValueError(
            f"rows of {r} x {length} tokens cannot hold the {config.data.dreamed_slots} dreamed and "
            f"{config.data.seen_slots} seen pictures of a group"
        )
    for start, valid, offset in (
        (batch.dreamed_start, batch.dreamed_valid, 1),
        (batch.seen_start, batch.seen_valid, queries + 3),
    ):
        index = np.arange(start.shape[1])
        start[...] = index // per_row * length + index % per_row * block + offset
        valid[...] = rng.random(valid.shape) < 0.8
        valid[:, :1] = True
    batch.seen_images[...] = rng.integers(0, 256, batch.seen_images.shape)
    batch.dreamed_images[...] = rng.integers(0, 256, batch.dreamed_images.shape)
    batch.dreamed_draw[...] = np.arange(batch.dreamed_draw.size).reshape(batch.dreamed_draw.shape)
    return batch
