"""The two losses of DreamLLM, as sums: cross-entropy over supervised tokens and denoising error over dreamed pictures.

Sums are divided by counts of the GLOBAL batch, taken before any microbatch runs, so a step does not depend on the mesh
or on how the batch is cut.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamjax.config import DiffusionConfig, LossConfig, ModelConfig
from dreamjax.diffusion import schedules
from dreamjax.document.batch import Batch
from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Model

Array = jax.Array


class Counts(NamedTuple):
    """What the sums are divided by; at least 1, so that a batch without pictures has image loss 0."""

    tokens: Array
    images: Array


def count(batch: Batch) -> Counts:
    """Supervised tokens and valid dreamed pictures of a batch, as float32 scalars."""
    tokens = jnp.sum(batch.loss_mask[..., 1:], dtype=jnp.float32)
    images = jnp.sum(batch.target_valid, dtype=jnp.float32)
    return Counts(jnp.maximum(tokens, 1), jnp.maximum(images, 1))


# ----------------------------------------------------------------------------------------------------------------------
# Tokens (paper eq. 1)


def cross_entropy_sum(model: Model, hidden: Array, tokens: Array, loss_mask: Array, chunk: int) -> Array:
    """Sum over learned tokens of -log p(token | what is before), float32.

    hidden [B, L, D], tokens and learned [B, L]; hidden state i predicts token i + 1. Logits exist for `chunk` positions
    of each row at a time and are recomputed in the backward pass, so [B, L, V] is never held.
    """
    targets = jnp.roll(tokens, -1, axis=1)
    weights = jnp.roll(loss_mask, -1, axis=1).at[:, -1].set(False)
    batch, length, width = hidden.shape
    pad = -length % chunk
    if pad:
        hidden = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0)))
        targets, weights = jnp.pad(targets, ((0, 0), (0, pad))), jnp.pad(weights, ((0, 0), (0, pad)))

    def to_chunks(x):
        return jnp.moveaxis(x.reshape(batch, -1, chunk, *x.shape[2:]), 1, 0)

    model = dreamllm.with_replicated_head(model)

    @jax.checkpoint
    def add_chunk(total, inputs):
        hidden, targets, weights = inputs
        logits = model.apply("llm", hidden, method="logits")
        picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        losses = jax.nn.logsumexp(logits, axis=-1) - picked
        return total + jnp.sum(jnp.where(weights, losses, 0.0)), None

    return jax.lax.scan(add_chunk, jnp.float32(0), (to_chunks(hidden), to_chunks(targets), to_chunks(weights)))[0]


# ----------------------------------------------------------------------------------------------------------------------
# Pictures (paper eq. 4)


class Draws(NamedTuple):
    """The random draws of B pictures; an option that is off has None."""

    timesteps: Array  # [B] int32
    noise: Array  # [B, S, S, channels]
    posterior: Array | None = None  # [B, S, S, channels], for the VAE
    offset: Array | None = None  # [B, 1, 1, channels]
    perturbation: Array | None = None  # [B, S, S, channels]
    drop: Array | None = None  # [B] bool: train on the unconditional condition


def draw(config: ModelConfig, loss: LossConfig, key: Array, numbers: Array) -> Draws:
    """Draws for the pictures with the given [B] uint32 numbers; each depends on the key and its own number alone."""
    unet, diffusion = config.unet, config.diffusion
    shape = (unet.sample_size, unet.sample_size, unet.in_channels)

    def one(number):
        t, noise, posterior, offset, perturbation, drop = jax.random.split(jax.random.fold_in(key, number), 6)
        return Draws(
            timesteps=_draw_timestep(loss, diffusion.timesteps, t),
            noise=jax.random.normal(noise, shape),
            posterior=jax.random.normal(posterior, shape) if config.vae else None,
            offset=jax.random.normal(offset, (1, 1, shape[-1])) if loss.noise_offset else None,
            perturbation=jax.random.normal(perturbation, shape) if loss.input_perturbation else None,
            drop=jax.random.bernoulli(drop, loss.condition_dropout) if loss.condition_dropout else None,
        )

    return jax.vmap(one)(numbers)


def _draw_timestep(loss: LossConfig, count: int, key: Array) -> Array:
    """Evenly in [0, count), but for the share that `late_timesteps` takes from the noisiest eighth."""
    even = jax.random.randint(key, (), 0, count)
    if not loss.late_timesteps:
        return even
    chosen, late = jax.random.split(jax.random.fold_in(key, 1))
    return jnp.where(
        jax.random.bernoulli(chosen, loss.late_timesteps), jax.random.randint(late, (), count - count // 8, count), even
    )


def image_errors(
    model: Model,
    loss: LossConfig,
    images: Array,
    hidden: Array,
    unconditional: Array | None,
    draws: Draws,
    frozen: bool = False,
) -> Array:
    """Denoising error of each picture, mean over its elements: [B] float32.

    images [B, H, W, 3] uint8; hidden [B, Q, D] at the queries; unconditional [Q, D] takes its place where draws.drop
    says so. The gradient reaches the condition through the U-Net. `frozen` says that nothing asks for gradients of
    U-Net and VAE.
    """
    context = dreamllm.condition(model, dropped(hidden, unconditional, draws))
    if loss.image_chunks > 1:
        return _errors_in_chunks(model, loss, images, context, draws, frozen)
    return _errors(model, loss, images, context, draws)


def _errors(model: Model, loss: LossConfig, images: Array, context: Array, draws: Draws) -> Array:
    """`picture_errors` given the U-Net's context [B, Q, E]."""
    latents = dreamllm.encode_latents(model, images, draws.posterior)
    noisy, target = corrupt(model.config.diffusion, loss, latents, draws)
    prediction = dreamllm.denoise(model, noisy, draws.timesteps, context)
    return weighted_errors(model.config.diffusion, loss, prediction, target, draws)


def to_strided_chunks(x: Array, hands: int) -> Array:
    """[B, ...] -> [hands, B / hands, ...], dealt out in turn, so that each hand is spread over the mesh as the whole
    is.
    """
    return jnp.moveaxis(x.reshape(-1, hands, *x.shape[1:]), 1, 0)


def _errors_in_chunks(
    model: Model, loss: LossConfig, images: Array, context: Array, draws: Draws, frozen: bool
) -> Array:
    """`_errors` of `loss.image_chunks` chunks one after the other, so that the U-Net's and the VAE's activations
    exist for one at a time.

    A picture's error depends on its own context alone. So where U-Net and VAE are frozen, a chunk's gradient is taken
    right behind its error, and the backward pass only scales it: nothing is computed twice. Otherwise it is recomputed.
    """
    decoder = dataclasses.replace(
        model, params={name: model.params[name] for name in ("unet", "vae") if name in model.params}
    )

    def dealt(tree):
        return jax.tree.map(lambda x: to_strided_chunks(x, loss.image_chunks), tree)

    def together(x):
        return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])

    def spread(tree):
        return jax.tree.map(dreamllm.constrain_rows, tree)

    def one(decoder, images, context, draws):
        return _errors(decoder, loss, images, context, draws)

    if not frozen:
        step = jax.checkpoint(lambda chunk: one(decoder, *spread(chunk)))
        return together(jax.lax.map(step, dealt((images, context, draws))))

    @jax.custom_vjp
    def errors(context: Array, decoder: Model, images: Array, draws: Draws) -> Array:
        return together(jax.lax.map(lambda chunk: one(decoder, *spread(chunk)), dealt((images, context, draws))))

    def forward(context: Array, decoder: Model, images: Array, draws: Draws) -> tuple[Array, Array]:
        def step(chunk):
            images, context, draws = spread(chunk)
            error, pull = jax.vjp(lambda context: one(decoder, images, context, draws), context)
            return error, pull(jnp.ones_like(error))[0]

        return jax.tree.map(together, jax.lax.map(step, dealt((images, context, draws))))

    def backward(slope: Array, outer: Array) -> tuple:
        return (slope * outer[:, None, None]).astype(slope.dtype), None, None, None

    errors.defvjp(forward, backward)
    return errors(context, decoder, images, draws)


def corrupt(diffusion: DiffusionConfig, loss: LossConfig, latents: Array, draws: Draws) -> tuple[Array, Array]:
    """(the U-Net's noisy input, its target), both [B, S, S, channels].

    The offset is part of the target, the perturbation is not.
    """
    noise = draws.noise if draws.offset is None else draws.noise + loss.noise_offset * draws.offset
    input_noise = noise if draws.perturbation is None else noise + loss.input_perturbation * draws.perturbation
    return schedules.add_noise(diffusion, latents, input_noise, draws.timesteps), schedules.target(
        diffusion, latents, noise, draws.timesteps
    )


def dropped(hidden: Array, unconditional: Array | None, draws: Draws) -> Array:
    """Hidden states [B, Q, D] with the unconditional ones [Q, D] where draws.drop says so."""
    return hidden if draws.drop is None else jnp.where(draws.drop[:, None, None], unconditional, hidden)


def weighted_errors(
    diffusion: DiffusionConfig, loss: LossConfig, prediction: Array, target: Array, draws: Draws
) -> Array:
    """Mean squared error of each picture, [B], with its min-SNR weight where the loss has a gamma."""
    errors = jnp.mean((prediction - target) ** 2, axis=(1, 2, 3))
    if loss.snr_gamma is not None:
        errors = errors * schedules.min_snr_weight(diffusion, draws.timesteps, loss.snr_gamma)
    return errors


# ----------------------------------------------------------------------------------------------------------------------
# Both


class SpecialIds(NamedTuple):
    """The token ids that the loss needs to know."""

    bos: int
    dream_start: int
    im_patch: int


def loss_sums(
    model: Model,
    loss: LossConfig,
    ids: SpecialIds,
    batch: Batch,
    key: Array | Draws,
    frozen: bool = False,
) -> tuple[Array, Array]:
    """(sum of the token losses, sum of the picture errors) of a batch; `key` is the step's, or the draws for the
    batch's slots themselves.

    `frozen` says that U-Net and VAE are.
    """
    hidden = dreamllm.hidden_states(model, batch)

    def flat(x):
        return x.reshape(hidden.shape[:2])

    tokens = jnp.float32(0)
    if loss.lm_weight:
        tokens = cross_entropy_sum(
            model, hidden, flat(batch.tokens), flat(batch.loss_mask), min(loss.ce_chunk, hidden.shape[1])
        )
    images = jnp.float32(0)
    if loss.image_weight and batch.target_start.shape[1]:
        draws = key if isinstance(key, Draws) else draw(model.config, loss, key, batch.target_draw.reshape(-1))
        errors = batch_image_errors(model, loss, ids, batch, hidden, draws, frozen)
        images = jnp.sum(jnp.where(batch.target_valid.reshape(-1), errors, 0.0))
    return tokens, images


def batch_image_errors(
    model: Model,
    loss: LossConfig,
    ids: SpecialIds,
    batch: Batch,
    hidden: Array,
    draws: Draws,
    frozen: bool = False,
) -> Array:
    """The error of each dreamed slot of a batch, [G M], given the LLM's hidden states [G R, L, D]."""
    images = constrain_slots(batch.target_images)
    empty = None
    if draws.drop is not None:
        instead = ids.im_patch if loss.unconditional == "official" else None
        empty = dreamllm.unconditional(model, ids.bos, ids.dream_start, instead)
    return image_errors(model, loss, images, dreamllm.read_out(model, hidden, batch), empty, draws, frozen)


def constrain_slots(images: Array) -> Array:
    """[G, M, ...] -> [G M, ...], spread over the mesh as rows are."""
    return dreamllm.constrain_rows(images.reshape(-1, *images.shape[2:]))
