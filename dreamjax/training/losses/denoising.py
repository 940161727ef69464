"""The image loss (paper eq. 4): denoising error of target images, conditioned on the LLM's dream queries."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.config import DiffusionConfig, LossConfig, ModelConfig
from dreamjax.config.validation import require_present
from dreamjax.diffusion import schedules
from dreamjax.document.batch import Batch
from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Model
from dreamjax.training.losses.chunks import chunked

Array = jax.Array


class SpecialIds(NamedTuple):
    """The token ids of the unconditional sequence."""

    bos: int
    dream_start: int
    im_patch: int


# ----------------------------------------------------------------------------------------------------------------------
# Random samples


class Samples(NamedTuple):
    """The random samples for B images; None for an option that is off."""

    timesteps: Array  # [B] int32
    noise: Array  # [B, S, S, channels]
    posterior: Array | None = None  # [B, S, S, channels], for the VAE
    offset: Array | None = None  # [B, 1, 1, channels]
    perturbation: Array | None = None  # [B, S, S, channels]
    drop: Array | None = None  # [B] bool: train on the unconditional condition


def sample(config: ModelConfig, loss: LossConfig, key: Array, numbers: Array | np.ndarray) -> Samples:
    """Samples for the images with [B] uint32 numbers; each depends on the key and its own number alone."""
    unet = require_present(config.unet, "config.model.unet")
    shape = (unet.sample_size, unet.sample_size, unet.in_channels)

    def sample_image(number: Array) -> Samples:
        t, noise, posterior, offset, perturbation, drop = jax.random.split(jax.random.fold_in(key, number), 6)
        return Samples(
            timesteps=_sample_timestep(loss, config.diffusion.timesteps, t),
            noise=jax.random.normal(noise, shape),
            posterior=jax.random.normal(posterior, shape) if config.vae else None,
            offset=jax.random.normal(offset, (1, 1, shape[-1])) if loss.noise_offset else None,
            perturbation=jax.random.normal(perturbation, shape) if loss.input_perturbation else None,
            drop=jax.random.bernoulli(drop, loss.condition_dropout) if loss.condition_dropout else None,
        )

    return jax.vmap(sample_image)(jnp.asarray(numbers))


def _sample_timestep(loss: LossConfig, count: int, key: Array) -> Array:
    """Uniform in [0, count), except that a share `late_timesteps` comes from the noisiest eighth."""
    uniform = jax.random.randint(key, (), 0, count)
    if not loss.late_timesteps:
        return uniform
    choice_key, late_key = jax.random.split(jax.random.fold_in(key, 1))
    late = jax.random.randint(late_key, (), count - count // 8, count)
    return jnp.where(jax.random.bernoulli(choice_key, loss.late_timesteps), late, uniform)


# ----------------------------------------------------------------------------------------------------------------------
# Conditions and targets of a batch


def condition_states(
    model: Model, loss: LossConfig, ids: SpecialIds, batch: Batch, hidden: Array, samples: Samples
) -> Array:
    """The LLM's hidden states at the dream queries of each target image, [G M, Q, D], from all of them [G R, L, D].

    Where samples.drop is true they are the unconditional ones.
    """
    if samples.drop is None:
        return dreamllm.read_out(model, hidden, batch)
    instead = ids.im_patch if loss.unconditional == "official" else None
    unconditional = dreamllm.unconditional(model, ids.bos, ids.dream_start, instead)
    return drop_condition(dreamllm.read_out(model, hidden, batch), unconditional, samples)


def drop_condition(states: Array, unconditional: Array, samples: Samples) -> Array:
    """Hidden states [B, Q, D], replaced by the unconditional ones [Q, D] where samples.drop is true."""
    return states if samples.drop is None else jnp.where(samples.drop[:, None, None], unconditional, states)


def flatten_slots(images: Array | np.ndarray) -> Array:
    """[G, M, ...] -> [G M, ...], sharded over the mesh as rows are."""
    return dreamllm.constrain_rows(jnp.asarray(images).reshape(-1, *images.shape[2:]))


# ----------------------------------------------------------------------------------------------------------------------
# The loss


def denoising_loss(
    model: Model,
    loss: LossConfig,
    images: Array,
    states: Array,
    samples: Samples,
    *,
    stop_decoder_grad: bool = False,
) -> Array:
    """Denoising error of each image, mean over its elements: [B] float32.

    images [B, H, W, 3] uint8, states [B, Q, D] at the dream queries. The gradient reaches the condition through the
    U-Net. With `loss.image_chunks` the activations of U-Net and VAE exist for one chunk at a time. An image's error
    depends on its own context alone, so with `stop_decoder_grad`, for a frozen U-Net and VAE, a chunk's gradient is
    taken together with its error and the backward pass only scales it; otherwise the chunk is computed again.
    """
    context = dreamllm.condition(model, states)
    decoder = dataclasses.replace(
        model, params={name: model.params[name] for name in ("unet", "vae") if name in model.params}
    )
    if loss.image_chunks == 1:
        return _errors(decoder, loss, images, context, samples)
    if stop_decoder_grad:
        return _errors_with_gradient(loss)(context, decoder, images, samples)

    @jax.checkpoint
    def errors(*chunk: Array) -> Array:
        return _errors(decoder, loss, *_constrain(chunk))

    return chunked(errors, loss.image_chunks)(images, context, samples)


def _errors(decoder: Model, loss: LossConfig, images: Array, context: Array, samples: Samples) -> Array:
    """Denoising error of each image, [B], given the U-Net's context [B, Q, E]."""
    latents = dreamllm.encode_latents(decoder, images, samples.posterior)
    noisy, target = corrupt(decoder.config.diffusion, loss, latents, samples)
    prediction = dreamllm.denoise(decoder, noisy, samples.timesteps, context)
    return weighted_errors(decoder.config.diffusion, loss, prediction, target, samples)


def _errors_with_gradient(loss: LossConfig) -> Callable[[Array, Model, Array, Samples], Array]:
    """`_errors` in chunks as a function of (context, decoder, images, samples) with a gradient for the context alone,
    which is computed in the forward pass.
    """

    @jax.custom_vjp
    def errors(context: Array, decoder: Model, images: Array, samples: Samples) -> Array:
        def chunk_errors(*chunk: Array) -> Array:
            return _errors(decoder, loss, *_constrain(chunk))

        return chunked(chunk_errors, loss.image_chunks)(images, context, samples)

    def forward(context: Array, decoder: Model, images: Array, samples: Samples) -> tuple[Array, Array]:
        def chunk_errors(*chunk: Array) -> tuple[Array, Array]:
            images, context, samples = _constrain(chunk)
            error, pull = jax.vjp(lambda context: _errors(decoder, loss, images, context, samples), context)
            return error, pull(jnp.ones_like(error))[0]

        return chunked(chunk_errors, loss.image_chunks)(images, context, samples)

    def backward(slope: Array, cotangent: Array) -> tuple:
        return (slope * cotangent[:, None, None]).astype(slope.dtype), None, None, None

    errors.defvjp(forward, backward)
    return errors


def _constrain(tree: Any) -> Any:
    return jax.tree.map(dreamllm.constrain_rows, tree)


def corrupt(diffusion: DiffusionConfig, loss: LossConfig, latents: Array, samples: Samples) -> tuple[Array, Array]:
    """(the U-Net's noisy input, its target), both [B, S, S, channels].

    The offset is part of the target, the perturbation is not.
    """
    noise = samples.noise if samples.offset is None else samples.noise + loss.noise_offset * samples.offset
    input_noise = noise if samples.perturbation is None else noise + loss.input_perturbation * samples.perturbation
    return schedules.add_noise(diffusion, latents, input_noise, samples.timesteps), schedules.target(
        diffusion, latents, noise, samples.timesteps
    )


def weighted_errors(
    diffusion: DiffusionConfig, loss: LossConfig, prediction: Array, target: Array, samples: Samples
) -> Array:
    """Mean squared error of each image, [B], with its min-SNR weight where the loss has a gamma."""
    errors = jnp.mean((prediction - target) ** 2, axis=(1, 2, 3))
    if loss.snr_gamma is not None:
        errors = errors * schedules.min_snr_weight(diffusion, samples.timesteps, loss.snr_gamma)
    return errors
