"""Samplers as tables: every one of them is a weighted sum per step, so one loop runs them all.

    x_(t-1) = keep x_t + estimate x0(x_t) + before x0(x_(t+1)) + noise z

x0 is the image that the U-Net's prediction implies. A plan holds the four weights and the timestep of each step;
it is an array argument of the loop, so no choice of sampler, spacing, eta or number of steps compiles anything anew.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.config import DiffusionConfig
from dreamjax.diffusion.schedules import alphas_cumprod, to_x0_and_noise
from dreamjax.errors import ConfigError

Array = jax.Array

SAMPLERS = ("ddpm", "ddim", "dpm_solver")
SPACINGS = ("leading", "trailing", "linspace")
TINY = 1e-12  # for a constant prediction
MIN_VARIANCE = 1e-20  # of DDPM's last step, as in diffusers


class Plan(NamedTuple):
    """The weights of each step: [steps] arrays, padded by `padded` to the schedule's length."""

    timestep: np.ndarray  # int32, falling
    keep: np.ndarray  # float32, weight of x_t
    estimate: np.ndarray  # float32, weight of the image estimated at x_t
    before: np.ndarray  # float32, weight of the image estimated one step earlier
    noise: np.ndarray  # float32, weight of fresh noise


class Progress(NamedTuple):
    """Images in denoising, [B, h, w, C] float32 each: x_t and the last estimate of x_0."""

    x: Array
    estimate: Array


def spaced_timesteps(config: DiffusionConfig, steps: int, spacing: str) -> np.ndarray:
    """[steps] int32, falling: `leading` counts up from 0 plus the schedule's offset, `trailing` down from the last
    timestep, `linspace` spreads from the last to 0.

    Lin et al. 2024 (Common Diffusion Noise Schedules, table 2); diffusers' timestep_spacing of the same names.
    """
    if not 0 < steps <= config.timesteps:
        raise ConfigError(f"num_steps: {steps} is not between 1 and the schedule's {config.timesteps}")
    match spacing:
        case "leading":
            timesteps = (np.arange(steps)[::-1] * (config.timesteps // steps) + config.steps_offset).astype(np.int32)
            if timesteps[0] >= config.timesteps:  # indexing under jit would not complain
                offset = f"steps_offset = {config.steps_offset}"
                raise ConfigError(
                    f"num_steps: {steps} leading steps with {offset} begin after the last of "
                    f"{config.timesteps} timesteps"
                )
            return timesteps
        case "trailing":
            return np.round(np.arange(config.timesteps, 0, -config.timesteps / steps)).astype(np.int32)[:steps] - 1
        case "linspace":
            return np.round(np.linspace(0, config.timesteps - 1, steps)).astype(np.int32)[::-1].copy()
    raise ConfigError(f"spacing: {spacing!r} is none of {', '.join(SPACINGS)}")


def plan(
    config: DiffusionConfig, sampler: str, steps: int, spacing: str, eta: float = 0.0, pixels: bool = False
) -> Plan:
    """The plan of a sampler by its name.

    `eta` is DDIM's; `pixels` is True for diffusion on images instead of latents.
    """
    match sampler:
        case "ddpm":
            return ddpm(config, steps, spacing)
        case "ddim":
            return ddim(config, steps, spacing, eta, pixels)
        case "dpm_solver":
            return dpm_solver(config, steps, spacing)
    raise ConfigError(f"sampler: {sampler!r} is none of {', '.join(SAMPLERS)}")


def ddpm(config: DiffusionConfig, steps: int, spacing: str) -> Plan:
    """Ancestral sampling (Ho et al. 2020, eq. 7) with the posterior's variance (diffusers' fixed_small); the last step
    adds no noise.
    """
    timesteps = spaced_timesteps(config, steps, spacing)
    alpha, next_alpha = _alphas(config, timesteps, np.append(timesteps[1:], -1), last=1.0)
    beta = 1 - alpha / next_alpha
    variance = np.maximum((1 - next_alpha) / (1 - alpha) * beta, MIN_VARIANCE)
    keep = np.sqrt(alpha / next_alpha) * (1 - next_alpha) / (1 - alpha)
    return _make_plan(timesteps, keep=keep, estimate=np.sqrt(next_alpha) * beta / (1 - alpha), noise=np.sqrt(variance))


def ddim(config: DiffusionConfig, steps: int, spacing: str, eta: float = 0.0, pixels: bool = False) -> Plan:
    """Song et al. 2021, eq. 12: `eta` 0 is deterministic, 1 has DDPM's variance.

    The last step leads to the schedule's first entry, as Stable Diffusion's configuration has it, or with the
    schedule's `set_alpha_to_one`, and in pixels, to the clean image.
    """
    timesteps = spaced_timesteps(config, steps, spacing)
    # The official leading sequence continues by its own gap past its last entry.
    following = timesteps - config.timesteps // steps if spacing == "leading" else np.append(timesteps[1:], -1)
    alpha, next_alpha = _alphas(
        config,
        timesteps,
        following,
        last=1.0 if pixels or config.set_alpha_to_one else float(alphas_cumprod(config)[0]),
    )
    sigma = eta * np.sqrt((1 - next_alpha) / (1 - alpha) * (1 - alpha / next_alpha))
    direction = np.sqrt(np.maximum(1 - next_alpha - sigma**2, 0)) / np.sqrt(
        1 - alpha
    )  # the noise at x_t is (x_t - sqrt(now) x0) / sqrt(1 - now)
    return _make_plan(timesteps, keep=direction, estimate=np.sqrt(next_alpha) - direction * np.sqrt(alpha), noise=sigma)


def dpm_solver(config: DiffusionConfig, steps: int, spacing: str) -> Plan:
    """DPM-Solver++ of order 2, multistep (Lu et al. 2022, algorithm 2; diffusers' midpoint form). The last step
    is clean.

    As in diffusers, the timesteps are spaced for one step more and the last is dropped, unless they trail.
    """
    extra = 0 if spacing == "trailing" else 1
    if not 0 < steps <= config.timesteps - extra:
        raise ConfigError(
            f"num_steps: {steps} is not between 1 and {config.timesteps - extra}, the most of dpm_solver "
            f"with {spacing} spacing"
        )
    timesteps = spaced_timesteps(config, steps + extra, spacing)[:steps]
    alpha, next_alpha = _alphas(config, timesteps, np.append(timesteps[1:], -1), last=1.0)
    with np.errstate(divide="ignore"):

        def half_log_snr(alphas):
            return 0.5 * (np.log(alphas) - np.log1p(-alphas))

        width = half_log_snr(next_alpha) - half_log_snr(alpha)  # infinite for the last step, which is then of order 1
    keep = np.sqrt((1 - next_alpha) / (1 - alpha))
    total = -np.sqrt(next_alpha) * np.expm1(-width)
    ratio = np.zeros(steps)
    ratio[1:-1] = width[1:-1] / width[:-2]
    return _make_plan(timesteps, keep=keep, estimate=total * (1 + ratio / 2), before=-total * ratio / 2)


def _alphas(
    config: DiffusionConfig, timesteps: np.ndarray, following: np.ndarray, last: float
) -> tuple[np.ndarray, np.ndarray]:
    """Float64 [steps] shares of signal variance at the timesteps and at those that follow, where a negative one has
    `last`.
    """
    alphas = alphas_cumprod(config).astype(np.float64)
    return alphas[timesteps], np.where(following >= 0, alphas[np.maximum(following, 0)], last)


def _make_plan(timesteps: np.ndarray, **weights: np.ndarray) -> Plan:
    zeros = np.zeros(len(timesteps))
    columns = (weights.get(name, zeros).astype(np.float32) for name in Plan._fields[1:])
    return Plan(timesteps.astype(np.int32), *columns)


def padded(plan: Plan, length: int) -> Plan:
    """The plan padded with steps that never run, so that its shape does not depend on the number of steps."""
    return Plan(*(np.pad(column, (0, length - len(column))) for column in plan))


def begin(noise: Array) -> Progress:
    """Progress before the first step; `noise` [B, h, w, C]."""
    return Progress(noise, jnp.zeros_like(noise))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoiser:
    """The functions that a plan's steps call."""

    config: DiffusionConfig
    predict: Callable[[Array, Array], Array]  # the guided U-Net, of x_t [B, h, w, C] and timesteps [B]
    noise: Callable[[Array], Array]  # a step's fresh noise [B, h, w, C], of the step's number
    clip: bool = False  # clip each estimate of x_0 to [-1, 1]: right for diffusion in pixels, wrong for latents


def advance(denoiser: Denoiser, plan: Plan, progress: Progress, start: Array | int, stop: Array | int) -> Progress:
    """Runs the steps start .. stop - 1 of a plan."""
    columns = jax.tree.map(jnp.asarray, plan)

    def step(i: Array, progress: Progress) -> Progress:
        weights = jax.tree.map(lambda column: column[i], columns)
        timesteps = jnp.full(progress.x.shape[:1], weights.timestep)
        prediction = denoiser.predict(progress.x, timesteps)
        estimate, _ = to_x0_and_noise(denoiser.config, prediction, progress.x, timesteps)
        estimate = jnp.clip(estimate, -1, 1) if denoiser.clip else estimate
        x = (
            weights.keep * progress.x
            + weights.estimate * estimate
            + weights.before * progress.estimate
            + weights.noise * denoiser.noise(i)
        )
        return Progress(x, estimate)

    return jax.lax.fori_loop(start, stop, step, progress)


def guided(empty: Array, conditional: Array, scale: Array, rescale: Array) -> Array:
    """Classifier-free guidance of predictions [B, h, w, C]: empty + scale (conditional - empty) (Ho & Salimans 2022).

    `rescale` in [0, 1] mixes in the same with the standard deviation of the conditional one, against overexposure
    (Lin et al. 2024, sec. 3.4).
    """
    combined = empty + scale * (conditional - empty)

    def spread(x):
        return jnp.std(x, axis=(1, 2, 3), keepdims=True)

    return rescale * (combined * (spread(conditional) / jnp.maximum(spread(combined), TINY))) + (1 - rescale) * combined
