"""Samplers as pure functions: noise in, picture or latent out, one `lax.scan` over the timesteps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.config import DiffusionConfig
from dreamjax.diffusion.schedules import alphas_cumprod, to_x0_and_noise


def spaced_timesteps(config: DiffusionConfig, steps: int, spacing: str) -> np.ndarray:
    """[steps] int32, falling: `leading` counts up from 0 plus the schedule's offset, `trailing` down from the last timestep.

    Lin et al. 2024 (Common Diffusion Noise Schedules, table 2); diffusers' timestep_spacing of the same names.
    """
    if not 0 < steps <= config.timesteps:
        raise ValueError(f"num_steps: {steps} is not between 1 and the schedule's {config.timesteps}")
    match spacing:
        case "leading":
            timesteps = (np.arange(steps)[::-1] * (config.timesteps // steps) + config.steps_offset).astype(np.int32)
            if timesteps[0] >= config.timesteps:  # indexing under jit would not complain
                offset = f"steps_offset = {config.steps_offset}"
                raise ValueError(f"num_steps: {steps} leading steps with {offset} begin after the last of {config.timesteps} timesteps")
            return timesteps
        case "trailing":
            return np.round(np.arange(config.timesteps, 0, -config.timesteps / steps)).astype(np.int32)[:steps] - 1
    raise ValueError(f"spacing: {spacing!r} is neither leading nor trailing")


def ddim(
    config: DiffusionConfig, predict: Callable[[jax.Array, jax.Array], jax.Array], noise: jax.Array, steps: int,
    spacing: str = "leading", clip: bool = False,
) -> jax.Array:
    """Denoises [B, S, S, C] noise in `steps` deterministic steps (Song et al. 2021, eq. 12 with eta 0).

    `predict(x_t, timesteps [B])` is the guided U-Net. `clip` holds each estimate of the picture to [-1, 1], right for
    diffusion in pixels and wrong for latents. The step before timestep 0 uses the schedule's first entry, as
    Stable Diffusion's configuration does (set_alpha_to_one false); in pixels the picture is taken clean.
    """
    timesteps = spaced_timesteps(config, steps, spacing)
    gap = config.timesteps // steps
    earlier = np.append(timesteps[1:], -1) if spacing == "trailing" else timesteps - gap
    alphas = alphas_cumprod(config)
    last = np.float32(1.0) if clip else alphas[0]
    alpha_earlier = np.where(earlier >= 0, alphas[np.maximum(earlier, 0)], last)

    def step(x, at):
        t, alpha = at
        t = jnp.full(x.shape[:1], t)
        x0, eps = to_x0_and_noise(config, predict(x, t), x, t)
        if clip:
            signal = jnp.sqrt(jnp.asarray(alphas)[t])[:, None, None, None]
            x0 = jnp.clip(x0, -1, 1)
            eps = (x - signal * x0) / jnp.sqrt(1 - signal**2)
        return jnp.sqrt(alpha) * x0 + jnp.sqrt(1 - alpha) * eps, None

    return jax.lax.scan(step, noise, (jnp.asarray(timesteps), jnp.asarray(alpha_earlier)))[0]
