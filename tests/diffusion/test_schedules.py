"""Noise schedules and targets against diffusers' DDPMScheduler, and against the equations they stand for."""

import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.config import DiffusionConfig
from dreamjax.diffusion import schedules

# The first is SD 2.1-base's, the last the default of diffusers.
SCHEDULES = [
    DiffusionConfig(),
    DiffusionConfig(beta_schedule="squaredcos_cap_v2", prediction="v_prediction"),
    DiffusionConfig(beta_schedule="linear", beta_start=1e-4, beta_end=0.02),
    DiffusionConfig(timesteps=50, beta_schedule="scaled_linear", beta_end=0.05, prediction="v_prediction"),
]
EVERY = pytest.mark.parametrize("config", SCHEDULES, ids=lambda config: f"{config.beta_schedule}-{config.timesteps}")


def oracle(config):
    diffusers = pytest.importorskip("diffusers")
    return diffusers.DDPMScheduler(
        config.timesteps, config.beta_start, config.beta_end, config.beta_schedule, prediction_type=config.prediction
    )


def make_images(config, count=32, seed=0):
    """Clean pictures, noise [count, 4, 4, 3], and timesteps from the first to the last."""
    rng = np.random.default_rng(seed)
    x0, noise = (
        rng.uniform(-1, 1, (count, 4, 4, 3)).astype(np.float32),
        rng.standard_normal((count, 4, 4, 3)).astype(np.float32),
    )
    return x0, noise, np.linspace(0, config.timesteps - 1, count).astype(np.int32)


@EVERY
def test_alphas_cumprod(config):
    ours = schedules.alphas_cumprod(config)
    assert ours.shape == (config.timesteps,) and ours.dtype == np.float32
    assert np.all(np.diff(ours) < 0) and 0 < ours[-1] < ours[0] < 1
    np.testing.assert_allclose(ours, oracle(config).alphas_cumprod.numpy(), atol=1e-6, rtol=1e-4)


def test_alphas_of_stable_diffusion():
    """The two ends as they are known from SD's own sqrt(alphas_cumprod) and its signal-to-noise ratio of 0.0047 at
    the end.
    """
    alphas = schedules.alphas_cumprod(DiffusionConfig())
    assert alphas[0] == pytest.approx(1 - 0.00085, abs=1e-7) and alphas[-1] == pytest.approx(0.0047, abs=5e-5)


@EVERY
def test_noised_images_and_velocities(config):
    torch = pytest.importorskip("torch")
    x0, noise, timesteps = make_images(config)
    theirs = [torch.from_numpy(array) for array in (x0, noise, timesteps.astype(np.int64))]
    np.testing.assert_allclose(
        schedules.add_noise(config, x0, noise, timesteps), oracle(config).add_noise(*theirs).numpy(), atol=1e-5
    )
    wanted = oracle(config).get_velocity(*theirs).numpy() if config.prediction == "v_prediction" else noise
    np.testing.assert_allclose(schedules.target(config, x0, noise, timesteps), wanted, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_target_stands_for_its_image_and_noise(prediction):
    config = DiffusionConfig(prediction=prediction)
    x0, noise, timesteps = make_images(config)
    xt = schedules.add_noise(config, x0, noise, timesteps)
    found_x0, found_noise = schedules.to_x0_and_noise(
        config, schedules.target(config, x0, noise, timesteps), xt, timesteps
    )
    np.testing.assert_allclose(found_x0, x0, atol=1e-5)
    np.testing.assert_allclose(found_noise, noise, atol=1e-5)


@EVERY
def test_signal_to_noise_ratio_behind_the_weights(config):
    """With gamma so large that nothing is cut all weights are 1.

    With gamma so small that all is cut they are gamma / SNR.
    """
    training_utils = pytest.importorskip("diffusers.training_utils")
    torch = pytest.importorskip("torch")
    timesteps = np.arange(5, config.timesteps)
    snr = training_utils.compute_snr(oracle(config), torch.from_numpy(timesteps)).numpy() + (
        config.prediction == "v_prediction"
    )
    gamma = float(snr.min()) / 2
    np.testing.assert_allclose(gamma / schedules.min_snr_weight(config, timesteps, gamma), snr, rtol=2e-3)
    assert np.all(schedules.min_snr_weight(config, timesteps, 1e9) == 1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights(prediction):
    config = DiffusionConfig(prediction=prediction)
    alphas = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    snr = alphas / (1 - alphas) + (prediction == "v_prediction")
    weights = schedules.min_snr_weight(config, jnp.arange(1000), 5.0)
    np.testing.assert_allclose(weights, np.minimum(snr, 5) / snr, atol=1e-5)
    assert weights[0] < 0.01 and weights[-1] == 1
