"""Batch: the input of one training step. Every field is static in shape and leads with the group axis G.

A group is R rows of L tokens that share N slots for input images and M slots for target images:

    tokens    row 0  <s> a red cat . <dream_start> q q q q <dream_end> <im_start> p p p p <im_end> the end . </s> <s>
              ...
    segments         1   1 1   1   1      1        1 1 1 1      1          1      1 1 1 1     1     1   1  1  1    2
    positions        0   1 2   3   4      5        6 7 8 9     10         11     12 ..                             0
    target_start                                  ^ 6 (row * L + 6)             ^ 12 is an input_start

Padding has segment 0 and is never in the loss; an empty slot is not valid, and its image is black.
"""

from collections.abc import Sequence
from typing import NamedTuple

import ml_dtypes  # noqa: F401  names bfloat16 to numpy
import numpy as np

from dreamjax.config import ModelConfig, RunConfig
from dreamjax.document.tokenize import TokenSequence


class Encoded(NamedTuple):
    """The shapes of what stands in a batch in an image's place where frozen encoders have been run before
    (dreamjax/precompute.py).
    """

    features: tuple[int, ...]  # (P, CLIP width) of an input: the hidden states of its patches; () without CLIP
    moments: tuple[int, ...]  # (S, S, 2 channels) of a target: mean, log-variance of its latents; () without a VAE
    dtype: str  # of features; moments are float32


class Shape(NamedTuple):
    """The static sizes of a batch.

    G groups of R rows of L tokens with N input and M target slots; sides of images in pixels.
    """

    groups: int
    rows: int
    length: int
    inputs: int
    targets: int
    encoder_size: int
    decoder_size: int
    encoded: Encoded | None = None


class Batch(NamedTuple):
    """A pytree of arrays; G groups, R rows, L tokens, N input and M target slots, images as uint8 RGB."""

    tokens: np.ndarray  # [G, R, L] int32
    loss_mask: np.ndarray  # [G, R, L] bool: the token is a target of the cross-entropy, predicted from the one before
    positions: np.ndarray  # [G, R, L] int32, restart with each document
    segments: np.ndarray  # [G, R, L] int32, the documents of a row from 1; 0 is padding
    input_images: np.ndarray  # [G, N, h, w, 3] uint8, or what Encoded.features says
    input_start: np.ndarray  # [G, N] int32: row * L + position of the first patch
    input_valid: np.ndarray  # [G, N] bool
    target_images: np.ndarray  # [G, M, H, W, 3] uint8, or what Encoded.moments says
    target_start: np.ndarray  # [G, M] int32: row * L + position of the first dream query
    target_valid: np.ndarray  # [G, M] bool
    target_draw: np.ndarray  # [G, M] uint32: the image's number in its epoch, by which its random draws are keyed


def shape_of(config: RunConfig, encoded: bool = False) -> Shape:
    """The global batch of a run, with images or what encoders made of them.

    Sides of images are 1 where the model lacks the part.
    """
    data, model = config.data, config.model
    return Shape(
        config.groups,
        data.rows_per_group,
        data.length,
        data.input_slots,
        data.target_slots,
        model.clip.image_size if model.clip else 1,
        model.decoder_size if model.unet else 1,
        encoded_of(model) if encoded else None,
    )


def encoded_of(model: ModelConfig) -> Encoded:
    """The shapes of what a model's encoders make of one image."""
    features: tuple[int, ...] = (model.clip.patches, model.clip.width) if model.clip else ()
    moments: tuple[int, ...] = ()
    if model.unet and model.vae:
        moments = (model.unet.sample_size, model.unet.sample_size, 2 * model.vae.latent_channels)
    return Encoded(features, moments, model.dtype)


def empty_batch(shape: Shape) -> Batch:
    """A batch of padding, to be filled."""
    rows, inputs, targets = (
        (shape.groups, shape.rows, shape.length),
        (shape.groups, shape.inputs),
        (shape.groups, shape.targets),
    )

    def images(slots, size):
        return np.zeros((*slots, size, size, 3), np.uint8)

    encoded = shape.encoded or Encoded((), (), "float32")
    return Batch(
        tokens=np.zeros(rows, np.int32),
        loss_mask=np.zeros(rows, np.bool_),
        positions=np.zeros(rows, np.int32),
        segments=np.zeros(rows, np.int32),
        input_images=np.zeros((*inputs, *encoded.features), encoded.dtype)
        if encoded.features
        else images(inputs, shape.encoder_size),
        input_start=np.zeros(inputs, np.int32),
        input_valid=np.zeros(inputs, np.bool_),
        target_images=np.zeros((*targets, *encoded.moments), np.float32)
        if encoded.moments
        else images(targets, shape.decoder_size),
        target_start=np.zeros(targets, np.int32),
        target_valid=np.zeros(targets, np.bool_),
        target_draw=np.zeros(targets, np.uint32),
    )


def place(
    batch: Batch,
    location: tuple[int, int],
    sequence: TokenSequence,
    inputs: Sequence[np.ndarray],
    targets: Sequence[np.ndarray | None],
    draw: int = 0,
):
    """Writes a document behind what the row at `location` (group, row) holds, and its images into the group's next
    free slots.

    `inputs` and `targets` are images, or what encoders made of them, in the order of those of the sequence; a target
    may be None where only its queries matter (a prompt). The random draws of its target images are numbered from
    `draw`. The caller has made sure that it fits.
    """
    group, row = location
    segments = batch.segments[group, row]
    start, n = int(np.count_nonzero(segments)), len(sequence.tokens)
    span = slice(start, start + n)
    batch.tokens[group, row, span] = sequence.tokens
    batch.loss_mask[group, row, span] = sequence.loss_mask
    batch.positions[group, row, span] = np.arange(n)
    segments[span] = segments.max() + 1
    offset = row * batch.tokens.shape[2] + start
    first = int(batch.input_valid[group].sum())
    for slot, ((at, _), pixels) in enumerate(zip(sequence.inputs, inputs, strict=True), first):
        batch.input_images[group, slot] = pixels
        batch.input_start[group, slot], batch.input_valid[group, slot] = offset + at, True
    first = int(batch.target_valid[group].sum())
    for slot, ((at, _), image) in enumerate(zip(sequence.targets, targets, strict=True), first):
        if image is not None:
            batch.target_images[group, slot] = image
        batch.target_start[group, slot], batch.target_valid[group, slot] = offset + at, True
        batch.target_draw[group, slot] = (draw + slot - first) % 2**32


def fake_batch(config: RunConfig, seed: int = 0) -> Batch:
    """A batch of the run's shapes with random content: one document a row, images spread evenly, some slots empty."""
    assert config.model.llm is not None  # as RunConfig requires
    rng = np.random.default_rng(seed)
    batch = empty_batch(shape_of(config))
    g, r, length = batch.tokens.shape
    batch.tokens[...] = rng.integers(3, config.model.llm.vocab_size, batch.tokens.shape)
    batch.positions[...] = np.arange(length)
    batch.segments[...] = 1
    batch.loss_mask[...] = rng.random(batch.tokens.shape) < 0.5
    batch.loss_mask[..., 0] = False
    queries = config.model.dream_queries
    patches = config.model.clip.patches if config.model.clip else 0
    block = queries + patches + 4
    per_row = length // block
    if max(config.data.input_slots, config.data.target_slots) > r * per_row:
        raise ValueError(
            f"rows of {r} x {length} tokens cannot hold the {config.data.target_slots} target and "
            f"{config.data.input_slots} input images of a group"
        )
    for start, valid, offset in (
        (batch.target_start, batch.target_valid, 1),
        (batch.input_start, batch.input_valid, queries + 3),
    ):
        index = np.arange(start.shape[1])
        start[...] = index // per_row * length + index % per_row * block + offset
        valid[...] = rng.random(valid.shape) < 0.8
        valid[:, :1] = True
    batch.input_images[...] = rng.integers(0, 256, batch.input_images.shape)
    batch.target_images[...] = rng.integers(0, 256, batch.target_images.shape)
    batch.target_draw[...] = np.arange(batch.target_draw.size).reshape(batch.target_draw.shape)
    return batch
