"""Noise schedules and training targets of the U-Net (paper eq. 4; diffusers' DDPMScheduler gives the same
numbers).

Images or latents are [B, S, S, channels] float32, timesteps [B] int32 in [0, config.timesteps).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.config import DiffusionConfig


@functools.lru_cache
def alphas_cumprod(config: DiffusionConfig) -> np.ndarray:
    """The share of signal variance after each timestep, [timesteps] float32, falling.

    Each step's own share is rounded to float32 before they are multiplied, as in diffusers: where hardly any noise is
    added yet, that moves the signal-to-noise ratio by 1e-4.
    """
    steps = config.timesteps
    match config.beta_schedule:
        case "linear":
            betas = np.linspace(config.beta_start, config.beta_end, steps)
        case "scaled_linear":
            betas = np.linspace(config.beta_start**0.5, config.beta_end**0.5, steps) ** 2
        case "squaredcos_cap_v2":  # Nichol & Dhariwal 2021, eq. 17
            signal = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
            betas = np.minimum(1 - signal[1:] / signal[:-1], 0.999)
    shares = np.float32(1) - betas.astype(np.float32)
    return np.cumprod(shares, dtype=np.float64).astype(np.float32)


def _signal_and_noise(config: DiffusionConfig, timesteps: jax.Array) -> tuple[jax.Array, jax.Array]:
    alpha = jnp.asarray(alphas_cumprod(config))[timesteps][:, None, None, None]
    return jnp.sqrt(alpha), jnp.sqrt(1 - alpha)


def add_noise(config: DiffusionConfig, x0: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
    """A sample of q(x_t | x_0), with given noise."""
    signal, sigma = _signal_and_noise(config, timesteps)
    return signal * x0 + sigma * noise


def target(config: DiffusionConfig, x0: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
    """The training target: the noise, or the velocity (Salimans & Ho 2022)."""
    if config.prediction == "epsilon":
        return noise
    signal, sigma = _signal_and_noise(config, timesteps)
    return signal * noise - sigma * x0


def to_x0_and_noise(
    config: DiffusionConfig, prediction: jax.Array, xt: jax.Array, timesteps: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(x_0, noise) that a prediction at x_t implies."""
    signal, sigma = _signal_and_noise(config, timesteps)
    if config.prediction == "epsilon":
        return (xt - sigma * prediction) / signal, prediction
    return signal * xt - sigma * prediction, signal * prediction + sigma * xt


def snr(config: DiffusionConfig, timesteps: jax.Array) -> jax.Array:
    """Signal variance over noise variance at each timestep, [B]."""
    alpha = jnp.asarray(alphas_cumprod(config))[timesteps]
    return alpha / (1 - alpha)


def min_snr_weight(config: DiffusionConfig, timesteps: jax.Array, gamma: float) -> jax.Array:
    """Loss weights [B] of Hang et al. 2023: min(SNR, gamma) / SNR.

    For velocity over SNR + 1, as in the official code: min(SNR + 1, gamma) / (SNR + 1).
    """
    ratio = snr(config, timesteps)
    if config.prediction == "v_prediction":
        ratio = ratio + 1
    return jnp.minimum(ratio, gamma) / ratio
