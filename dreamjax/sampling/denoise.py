"""Drawing: from the hidden states at the dream queries to pictures, with classifier-free guidance."""

import functools
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.config import ModelConfig
from dreamjax.diffusion import samplers
from dreamjax.diffusion.samplers import Plan, Progress
from dreamjax.errors import ConfigError
from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Model
from dreamjax.sampling import memory
from dreamjax.sampling.options import Options

Array = jax.Array

FAR = 2  # times the training size, or its half, up to which sides pass without a warning


class Drawing(NamedTuple):
    """How pictures are denoised; arrays, so that only another size compiles anew."""

    plan: Plan
    guidance: np.ndarray  # [] float32
    rescale: np.ndarray  # [] float32


class Moment(NamedTuple):
    """Pictures in the middle of their denoising.

    [B, h, w, C] latents and the estimate of where they go, after `step` of `steps`.
    """

    step: int
    steps: int
    progress: Progress


def drawing(config: ModelConfig, options: Options) -> Drawing:
    """The plan and the guidance that the options ask for; ConfigError where the schedule cannot have them."""
    plan = samplers.plan(
        config.diffusion, options.sampler, options.num_steps, options.spacing, options.eta, pixels=config.vae is None
    )
    return Drawing(
        samplers.padded(plan, config.diffusion.timesteps),
        np.float32(options.guidance_scale),
        np.float32(options.guidance_rescale),
    )


def latent_shape(config: ModelConfig, options: Options) -> tuple[int, int, int]:
    """[h, w, C] of what is denoised; ConfigError where the VAE does not divide a side."""
    factor = config.vae.downsampling if config.vae else 1
    sides = {name: getattr(options, name) or config.decoder_size for name in ("height", "width")}
    for name, side in sides.items():
        if side % factor:
            raise ConfigError(
                f"{name}: {side} pixels is not a multiple of {factor}, the side that the VAE makes one latent of"
            )
    return sides["height"] // factor, sides["width"] // factor, config.unet.in_channels


def check(config: ModelConfig, options: Options, rows: int):
    """Raises ConfigError where `rows` pictures at once cannot be drawn as the options ask, and warns of sizes far
    from the training size.
    """
    drawing(config, options)
    shape = latent_shape(config, options)
    memory.require_room_for_images(config, shape, rows, 1 if options.guidance_scale == 1 else 2)
    trained, (height, width) = config.unet.sample_size, shape[:2]
    if max(height, width) > FAR * trained or FAR * min(height, width) < trained:
        size = f"{width * config.decoder_size // trained} x {height * config.decoder_size // trained} pixels"
        warnings.warn(
            f"height, width: {size}, and the model was trained on {config.decoder_size} x "
            f"{config.decoder_size}: things may come twice or fall apart",
            stacklevel=2,
        )


def image_keys(keys: Array, numbers: Array) -> Array:
    """The keys by which documents with [B] keys draw their pictures number 1, 2, ...

    Writing folds in lengths, which are positive too.
    """
    return jax.vmap(jax.random.fold_in)(keys, -numbers)


@functools.partial(jax.jit, static_argnames="shape")
def first_noise(keys: Array, shape: tuple[int, int, int]) -> Array:
    """What pictures begin from, [B, h, w, C]: each from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


@jax.jit
def contexts(model: Model, hidden: Array, empty: Array | None) -> Array:
    """What the U-Net reads, [k, B, Q, E], of hidden states [B, Q, D].

    `empty` [B, Q, D] or [Q, D], where there is guidance, comes first.
    """
    both = hidden[None] if empty is None else jnp.stack([jnp.broadcast_to(empty, hidden.shape), hidden])
    context = dreamllm.condition(model, both.reshape(-1, *hidden.shape[1:]))
    return context.reshape(*both.shape[:3], -1)


@jax.jit
def denoise(
    model: Model,
    context: Array,
    progress: Progress,
    drawing: Drawing,
    keys: Array,
    fresh: Array | None,
    start: Array,
    stop: Array,
) -> Progress:
    """Runs the steps start .. stop - 1; the guided prediction takes both contexts in one batch.

    A step's fresh noise comes from each picture's key, or from `fresh` [steps, B, h, w, C] where that is given.
    """
    copies = len(context)
    flat = context.reshape(-1, *context.shape[2:])

    def predict(x: Array, timesteps: Array) -> Array:
        def repeat(y):
            return jnp.concatenate([y] * copies)

        predictions = jnp.split(dreamllm.denoise(model, repeat(x), repeat(timesteps), flat), copies)
        return predictions[0] if copies == 1 else samplers.guided(*predictions, drawing.guidance, drawing.rescale)

    def noise(step: Array) -> Array:
        if fresh is not None:
            return fresh[step]
        return first_noise(jax.vmap(jax.random.fold_in, (0, None))(keys, step), progress.x.shape[1:])

    denoiser = samplers.Denoiser(
        config=model.config.diffusion, predict=predict, noise=noise, clip=model.config.vae is None
    )
    return samplers.advance(denoiser, drawing.plan, progress, start, stop)


class Decoded(NamedTuple):
    """uint8 pictures [B, H, W, 3], and whether the numbers that they were made of were finite, [B] bool.

    As levels NaN is black.
    """

    images: Array
    finite: Array


@jax.jit
def decode(model: Model, latents: Array) -> Decoded:
    """The pictures that latents [B, h, w, C] stand for."""
    pixels = dreamllm.decode_pixels(model, latents)
    return Decoded(dreamllm.to_uint8(pixels), jnp.all(jnp.isfinite(pixels), axis=(1, 2, 3)))


def moments(
    model: Model,
    hidden: Array,
    empty: Array | None,
    keys: Array,
    options: Options,
    noise: Array | None = None,
    fresh: Array | None = None,
    every: int = 0,
) -> Iterator[Moment]:
    """Denoises pictures for hidden states [B, Q, D] at the queries: a Moment after every `every` steps (0: none) and
    one at the end.

    `empty` [Q, D] or [B, Q, D] is what guidance leads away from. Each picture's noise comes from its own key [B], or
    from `noise` [B, h, w, C] and, for each step, `fresh` [steps, B, h, w, C].
    """
    plan, shape, steps = drawing(model.config, options), latent_shape(model.config, options), options.num_steps
    if noise is not None and noise.shape != (len(hidden), *shape):
        raise ConfigError(f"latents: have the shape {tuple(noise.shape)}, must have {(len(hidden), *shape)}")
    if fresh is not None and fresh.shape != (steps, len(hidden), *shape):
        raise ConfigError(f"step_noise: has the shape {tuple(fresh.shape)}, must have {(steps, len(hidden), *shape)}")
    progress = samplers.begin(first_noise(keys, shape) if noise is None else jnp.asarray(noise, jnp.float32))
    context = contexts(model, hidden, empty if options.guidance_scale > 1 else None)
    for start in range(0, steps, every or steps):
        stop = min(start + (every or steps), steps)
        progress = denoise(model, context, progress, plan, keys, fresh, np.int32(start), np.int32(stop))
        yield Moment(stop, steps, progress)
