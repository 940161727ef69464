"""DDIM against diffusers' DDIMScheduler step by step, and against the closed form for a predictor that knows the picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.config import DiffusionConfig
from dreamjax.diffusion.samplers import ddim, spaced_timesteps
from dreamjax.diffusion.schedules import add_noise, alphas_cumprod, target

STABLE_DIFFUSION = DiffusionConfig()
STABLE_DIFFUSION_V = DiffusionConfig(prediction="v_prediction")
PIXELS = DiffusionConfig(beta_schedule="squaredcos_cap_v2", prediction="v_prediction")


def oracle(config, spacing, clip):
    diffusers = pytest.importorskip("diffusers")
    return diffusers.DDIMScheduler(
        config.timesteps, config.beta_start, config.beta_end, config.beta_schedule, clip_sample=clip, set_alpha_to_one=clip,
        steps_offset=config.steps_offset, prediction_type=config.prediction, timestep_spacing=spacing,
    )


def noise_of(seed, size=4):
    return np.random.default_rng(seed).standard_normal((3, size, size, 2)).astype(np.float32)


def toy(x, t, tanh, cos):
    """A smooth stand-in for a U-Net, which depends on the picture and on the timestep."""
    return 0.9 * tanh(x) + 0.2 * cos(0.01 * t + x)


# ----------------------------------------------------------------------------------------------------------------------
# Against diffusers


@pytest.mark.parametrize("steps", [1, 7, 10, 25, 50, 999])
def test_timesteps(steps):
    for spacing in ("leading", "trailing"):
        scheduler = oracle(STABLE_DIFFUSION, spacing, clip=False)
        scheduler.set_timesteps(steps)
        ours = spaced_timesteps(STABLE_DIFFUSION, steps, spacing)
        assert ours.dtype == np.int32 and ours.tolist() == scheduler.timesteps.tolist()


# Only numbers of steps that divide the timesteps: diffusers goes back by timesteps // steps, past the next timestep of others.
@pytest.mark.parametrize("steps", [1, 10, 50])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("config", [STABLE_DIFFUSION, STABLE_DIFFUSION_V, PIXELS], ids=["epsilon", "v", "pixels"])
def test_every_step_is_that_of_diffusers(config, spacing, clip, steps):
    torch = pytest.importorskip("torch")
    scheduler = oracle(config, spacing, clip)
    scheduler.set_timesteps(steps)
    theirs = torch.from_numpy(noise_of(0))
    for t in scheduler.timesteps:
        # Where the picture is clipped, the noise must be what then remains, or the two no longer add up to x_t.
        theirs = scheduler.step(toy(theirs, t, torch.tanh, torch.cos), t, theirs, use_clipped_model_output=clip).prev_sample
    predict = lambda x, t: toy(x, t[:, None, None, None], jnp.tanh, jnp.cos)
    ours = ddim(config, predict, noise_of(0), steps, spacing, clip)
    scale = max(1.0, float(theirs.abs().max()))
    np.testing.assert_allclose(ours / scale, theirs.numpy() / scale, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------------------
# Against the closed form


def knowing(config, x0):
    """Predicts what the U-Net should say at x_t, were x0 the picture."""
    alphas = jnp.asarray(alphas_cumprod(config))

    def predict(x, t):
        alpha = alphas[t][:, None, None, None]
        return target(config, x0, (x - jnp.sqrt(alpha) * x0) / jnp.sqrt(1 - alpha), t)

    return predict


@pytest.mark.parametrize("steps", [1, 7, 30])  # also such as do not divide the timesteps
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("config", [STABLE_DIFFUSION, STABLE_DIFFUSION_V, PIXELS], ids=["epsilon", "v", "pixels"])
def test_the_known_picture_comes_back(config, spacing, steps):
    x0, noise = np.clip(noise_of(1), -1, 1), noise_of(2)
    start = jnp.full(3, spaced_timesteps(config, steps, spacing)[0])
    xt = add_noise(config, x0, noise, start)
    np.testing.assert_allclose(ddim(config, knowing(config, x0), xt, steps, spacing, clip=True), x0, atol=1e-5)
    # Without clipping the last step goes to the schedule's first entry, as Stable Diffusion's does.
    almost = add_noise(config, x0, noise, jnp.zeros(3, int))
    np.testing.assert_allclose(ddim(config, knowing(config, x0), xt, steps, spacing, clip=False), almost, atol=1e-5)


def test_estimates_are_clipped_only_where_asked():
    x0 = 3 * np.ones((1, 2, 2, 1), np.float32)
    predict, noise = knowing(STABLE_DIFFUSION_V, x0), noise_of(0, 2)[:1, :, :, :1]
    assert np.abs(ddim(STABLE_DIFFUSION_V, predict, noise, 10, "trailing", clip=True)).max() <= 1
    assert np.abs(ddim(STABLE_DIFFUSION_V, predict, noise, 10, "trailing", clip=False)).min() > 2


def test_a_picture_does_not_depend_on_its_batch_and_jit_changes_nothing():
    predict = lambda x, t: toy(x, t[:, None, None, None], jnp.tanh, jnp.cos)
    sample = lambda noise: ddim(PIXELS, predict, noise, 5, "trailing", clip=True)
    whole = sample(noise_of(3))
    assert whole.shape == noise_of(3).shape and whole.dtype == jnp.float32
    np.testing.assert_allclose(sample(noise_of(3)[1:2])[0], whole[1], atol=1e-6)
    np.testing.assert_allclose(jax.jit(sample)(noise_of(3)), whole, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------------------
# Errors


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_numbers_of_steps_that_cannot_be(steps, spacing):
    with pytest.raises(ValueError, match=f"num_steps: {steps} is not between 1 and the schedule's 1000"):
        ddim(STABLE_DIFFUSION, lambda x, t: x, noise_of(0), steps, spacing)


def test_a_leading_sequence_must_not_begin_behind_the_last_timestep():
    with pytest.raises(ValueError, match="num_steps: 1000 leading steps with steps_offset = 1"):
        spaced_timesteps(STABLE_DIFFUSION, 1000, "leading")
    assert spaced_timesteps(STABLE_DIFFUSION, 1000, "trailing").tolist() == list(range(999, -1, -1))
    assert spaced_timesteps(DiffusionConfig(steps_offset=0), 1000, "leading").tolist() == list(range(999, -1, -1))


def test_an_unknown_spacing():
    with pytest.raises(ValueError, match="spacing: 'linspace' is neither leading nor trailing"):
        spaced_timesteps(STABLE_DIFFUSION, 10, "linspace")
