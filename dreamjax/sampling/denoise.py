"""From hidden states at the dream queries to images, with classifier-free guidance."""

import functools
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.config import ModelConfig
from dreamjax.config.validation import require_present
from dreamjax.diffusion import samplers
from dreamjax.diffusion.samplers import Plan, Progress
from dreamjax.errors import ConfigError
from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Model
from dreamjax.sampling import memory
from dreamjax.sampling.options import Options

Array = jax.Array

FAR = 2  # times the training size, or its half, up to which sides pass without a warning


class DenoisingPlan(NamedTuple):
    """The sampler's weights and the guidance; arrays, so that only another size compiles anew."""

    sampler: Plan
    guidance: Array | np.ndarray  # [] float32
    rescale: Array | np.ndarray  # [] float32


class Conditions(NamedTuple):
    """Hidden states at the dream queries, and those that guidance leads away from."""

    hidden: Array  # [B, Q, D]
    unconditional: Array | None  # [B, Q, D] or [Q, D]; None without guidance


class Noise(NamedTuple):
    """The source of the noise of B images: each one's own key, unless arrays are given."""

    keys: Array  # [B] keys
    initial: Array | None = None  # [B, h, w, C]
    steps: Array | None = None  # [steps, B, h, w, C]: of each step


class DenoisingStep(NamedTuple):
    """[B, h, w, C] latents in denoising and their estimated outcome, after `step` of `steps`."""

    step: int
    steps: int
    progress: Progress


def denoising_plan(config: ModelConfig, options: Options) -> DenoisingPlan:
    """The plan and the guidance that the options ask for; ConfigError where the schedule cannot have them."""
    plan = samplers.plan(
        config.diffusion, options.sampler, options.num_steps, options.spacing, options.eta, pixels=config.vae is None
    )
    return DenoisingPlan(
        samplers.padded(plan, config.diffusion.timesteps),
        np.asarray(options.guidance_scale, np.float32),
        np.asarray(options.guidance_rescale, np.float32),
    )


def latent_shape(config: ModelConfig, options: Options) -> tuple[int, int, int]:
    """[h, w, C] of the latents (of the pixels without a VAE); ConfigError where the VAE does not divide a side."""
    factor = config.vae.downsampling if config.vae else 1
    sides = {name: getattr(options, name) or config.decoder_size for name in ("height", "width")}
    for name, side in sides.items():
        if side % factor:
            raise ConfigError(
                f"{name}: {side} pixels is not a multiple of {factor}, the side that the VAE makes one latent of"
            )
    return sides["height"] // factor, sides["width"] // factor, require_present(config.unet, "model.unet").in_channels


def check(config: ModelConfig, options: Options, rows: int):
    """Raises ConfigError where `rows` images at once cannot be generated as the options ask, and warns of sizes far
    from the training size.
    """
    denoising_plan(config, options)
    shape = latent_shape(config, options)
    memory.require_room_for_images(config, shape, rows, 1 if options.guidance_scale == 1 else 2)
    trained, (height, width) = require_present(config.unet, "model.unet").sample_size, shape[:2]
    if max(height, width) > FAR * trained or FAR * min(height, width) < trained:
        size = f"{width * config.decoder_size // trained} x {height * config.decoder_size // trained} pixels"
        warnings.warn(
            f"height, width: {size}, and the model was trained on {config.decoder_size} x "
            f"{config.decoder_size}: things may come twice or fall apart",
            stacklevel=2,
        )


def image_keys(keys: Array, numbers: Array) -> Array:
    """The keys of images number 1, 2, ... of documents with [B] keys.

    Negative numbers, because tokens fold in lengths, which are positive.
    """
    return jax.vmap(jax.random.fold_in)(keys, -numbers)


@functools.partial(jax.jit, static_argnames="shape")
def first_noise(keys: Array, shape: tuple[int, int, int]) -> Array:
    """Initial noise [B, h, w, C], each image's from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


@jax.jit
def contexts(model: Model, conditions: Conditions) -> Array:
    """Contexts of the U-Net: [1, B, Q, E], or with guidance [2, B, Q, E], the unconditional ones first."""
    hidden, unconditional = conditions
    both = hidden[None] if unconditional is None else jnp.stack([jnp.broadcast_to(unconditional, hidden.shape), hidden])
    context = dreamllm.condition(model, both.reshape(-1, *hidden.shape[1:]))
    return context.reshape(*both.shape[:3], -1)


@jax.jit
def denoise(
    model: Model,
    context: Array,
    progress: Progress,
    plan: DenoisingPlan,
    noise: Noise,
    steps: tuple[Array | int, Array | int],
) -> Progress:
    """Run the steps steps[0] .. steps[1] - 1; both contexts [2, B, Q, E] are predicted in one batch."""
    copies = len(context)
    flat = context.reshape(-1, *context.shape[2:])

    def predict(x: Array, timesteps: Array) -> Array:
        def repeat(y):
            return jnp.concatenate([y] * copies)

        predictions = jnp.split(dreamllm.denoise(model, repeat(x), repeat(timesteps), flat), copies)
        return (
            predictions[0]
            if copies == 1
            else samplers.guided(predictions[0], predictions[1], jnp.asarray(plan.guidance), jnp.asarray(plan.rescale))
        )

    def noise_of(step: Array) -> Array:
        if noise.steps is not None:
            return noise.steps[step]
        return first_noise(jax.vmap(jax.random.fold_in, (0, None))(noise.keys, step), progress.x.shape[1:])

    denoiser = samplers.Denoiser(
        config=model.config.diffusion, predict=predict, noise=noise_of, clip=model.config.vae is None
    )
    return samplers.advance(denoiser, plan.sampler, progress, *steps)


class Decoded(NamedTuple):
    """uint8 images [B, H, W, 3], and a flag [B] bool for finite pixels: NaN would become black."""

    images: Array
    finite: Array


@jax.jit
def decode(model: Model, latents: Array) -> Decoded:
    """Decode latents [B, h, w, C] to uint8 images."""
    pixels = dreamllm.decode_pixels(model, latents)
    return Decoded(dreamllm.to_uint8(pixels), jnp.all(jnp.isfinite(pixels), axis=(1, 2, 3)))


def denoising_steps(
    model: Model, conditions: Conditions, noise: Noise, options: Options, every: int = 0
) -> Iterator[DenoisingStep]:
    """Denoise images: yield the state after every `every` steps (0: none in between) and after the last one."""
    plan, shape = denoising_plan(model.config, options), latent_shape(model.config, options)
    count, steps = len(conditions.hidden), options.num_steps
    if noise.initial is not None and noise.initial.shape != (count, *shape):
        raise ConfigError(f"latents: have the shape {tuple(noise.initial.shape)}, must have {(count, *shape)}")
    if noise.steps is not None and noise.steps.shape != (steps, count, *shape):
        raise ConfigError(f"step_noise: has the shape {tuple(noise.steps.shape)}, must have {(steps, count, *shape)}")
    initial = first_noise(noise.keys, shape) if noise.initial is None else jnp.asarray(noise.initial, jnp.float32)
    progress = samplers.begin(initial)
    context = contexts(model, conditions if options.guidance_scale > 1 else Conditions(conditions.hidden, None))
    noise = noise._replace(initial=None)
    for start in range(0, steps, every or steps):
        stop = min(start + (every or steps), steps)
        progress = denoise(model, context, progress, plan, noise, (jnp.int32(start), jnp.int32(stop)))
        yield DenoisingStep(stop, steps, progress)
