"""Samplers against diffusers' schedulers step by step, and against the closed form for a predictor that knows the
picture.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.config import DiffusionConfig
from dreamjax.diffusion import samplers
from dreamjax.diffusion.samplers import SAMPLERS, SPACINGS, spaced_timesteps
from dreamjax.diffusion.schedules import add_noise, alphas_cumprod, target
from dreamjax.errors import ConfigError

STABLE_DIFFUSION = DiffusionConfig()
STABLE_DIFFUSION_V = DiffusionConfig(prediction="v_prediction")
PIXELS = DiffusionConfig(beta_schedule="squaredcos_cap_v2", prediction="v_prediction")
CONFIGS = pytest.mark.parametrize(
    "config", [STABLE_DIFFUSION, STABLE_DIFFUSION_V, PIXELS], ids=["epsilon", "v", "pixels"]
)


def oracle(config, scheduler, spacing, **settings):
    diffusers = pytest.importorskip("diffusers")
    return getattr(diffusers, scheduler)(
        config.timesteps,
        config.beta_start,
        config.beta_end,
        config.beta_schedule,
        steps_offset=config.steps_offset,
        prediction_type=config.prediction,
        timestep_spacing=spacing,
        **settings,
    )


def noise_of(seed, size=4):
    return np.random.default_rng(seed).standard_normal((3, size, size, 2)).astype(np.float32)


def toy(x, t, tanh, cos):
    """A smooth stand-in for a U-Net, which depends on the picture and on the timestep."""
    return 0.9 * tanh(x) + 0.2 * cos(0.01 * t + x)


def predict_toy(x, t):
    return toy(x, t[:, None, None, None], jnp.tanh, jnp.cos)


def fresh_of(steps, seed=9):
    return np.stack([noise_of(seed + i) for i in range(steps)])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def one_step(config, predict, clip, progress, plan, fresh, i):
    denoiser = samplers.Denoiser(config=config, predict=predict, noise=lambda _: fresh, clip=clip)
    return samplers.advance(denoiser, plan, progress, i, i + 1)


def run(config, plan, predict, noise, fresh=None, clip=False):
    """Every x_t of a plan, [steps, B, h, w, C], as one jitted program whatever the plan's length."""
    steps = len(plan.timestep)
    whole = samplers.padded(plan, config.timesteps)
    fresh = jnp.asarray(np.zeros((steps, *noise.shape), np.float32) if fresh is None else fresh)
    progress, states = samplers.begin(jnp.asarray(noise)), []
    for i in range(steps):
        progress = one_step(config, predict, clip, progress, whole, fresh[i], i)
        states.append(progress.x)
    return np.stack(states)


def assert_same_path(ours, theirs):
    """Equal to 1e-5 of the largest value that occurs."""
    scale = max(1.0, float(np.abs(theirs).max()))
    np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------------------
# Against diffusers


@pytest.mark.parametrize("steps", [1, 7, 10, 25, 50, 999])
def test_timesteps(steps):
    for spacing in SPACINGS:
        scheduler = oracle(STABLE_DIFFUSION, "DDIMScheduler", spacing)
        scheduler.set_timesteps(steps)
        ours = spaced_timesteps(STABLE_DIFFUSION, steps, spacing)
        assert ours.dtype == np.int32 and ours.tolist() == scheduler.timesteps.tolist()


# Only numbers of steps that divide the timesteps: diffusers goes back by timesteps // steps, past the next timestep of
# others.
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@CONFIGS
def test_every_step_of_ddim(config, spacing, clip, eta):
    torch = pytest.importorskip("torch")
    scheduler = oracle(config, "DDIMScheduler", spacing, clip_sample=clip, set_alpha_to_one=clip)
    for steps in (1, 10):
        scheduler.set_timesteps(steps)
        # With float32 shares the direction, a difference of squares, has rounding of 3e-5 where hardly any signal is
        # left.
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
        fresh, x, theirs = fresh_of(steps), torch.from_numpy(noise_of(0)).double(), []
        for i, t in enumerate(scheduler.timesteps):
            # Where the picture is clipped, the noise must be what then remains, or the two no longer add up to x_t.
            options = {"use_clipped_model_output": clip, "eta": eta, "variance_noise": torch.from_numpy(fresh[i])}
            x = scheduler.step(toy(x, t, torch.tanh, torch.cos), t, x, **options).prev_sample
            theirs.append(x.numpy())
        to_one = dataclasses.replace(config, set_alpha_to_one=clip)
        assert (
            samplers.ddim(config, steps, spacing, eta, pixels=clip)[1][-1]
            == samplers.ddim(to_one, steps, spacing, eta)[1][-1]
        )
        assert_same_path(
            run(config, samplers.ddim(to_one, steps, spacing, eta), predict_toy, noise_of(0), fresh, clip),
            np.stack(theirs),
        )


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
@CONFIGS
def test_every_step_of_ddpm(config, spacing, clip, monkeypatch):
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
    scheduler = oracle(config, "DDPMScheduler", spacing, clip_sample=clip, variance_type="fixed_small")
    for steps in (1, 5, 30):
        scheduler.set_timesteps(steps)
        fresh, x, theirs = fresh_of(steps), torch.from_numpy(noise_of(0)), []
        for i, t in enumerate(scheduler.timesteps):
            monkeypatch.setattr(module, "randn_tensor", lambda *_, z=fresh[i], **__: torch.from_numpy(z))
            x = scheduler.step(toy(x, t, torch.tanh, torch.cos), t, x).prev_sample
            theirs.append(x.numpy())
        assert_same_path(
            run(config, samplers.ddpm(config, steps, spacing), predict_toy, noise_of(0), fresh, clip), np.stack(theirs)
        )


@pytest.mark.parametrize("spacing", SPACINGS)
@CONFIGS
def test_every_step_of_dpm_solver(config, spacing):
    torch = pytest.importorskip("torch")
    scheduler = oracle(config, "DPMSolverMultistepScheduler", spacing)  # 2M, midpoint, data prediction
    for steps in (1, 2, 3, 20):
        scheduler.set_timesteps(steps)
        x, theirs = torch.from_numpy(noise_of(0)), []
        for t in scheduler.timesteps:
            x = scheduler.step(toy(x, t, torch.tanh, torch.cos), t, x).prev_sample
            theirs.append(x.numpy())
        plan = samplers.dpm_solver(config, steps, spacing)
        assert plan.timestep.tolist() == scheduler.timesteps.tolist()
        assert_same_path(run(config, plan, predict_toy, noise_of(0)), np.stack(theirs))


def test_guidance_with_rescale():
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
    empty, conditional = noise_of(1), 3 * noise_of(2)
    whole = empty + 3.5 * (conditional - empty)
    for rescale in (0.0, 0.7, 1.0):
        theirs = (
            module.rescale_noise_cfg(torch.from_numpy(whole), torch.from_numpy(conditional), rescale)
            if rescale
            else whole
        )
        np.testing.assert_allclose(samplers.guided(empty, conditional, 3.5, rescale), theirs, rtol=2e-5, atol=1e-6)
    nothing = np.zeros_like(empty)
    np.testing.assert_array_equal(samplers.guided(nothing, nothing, 3.5, 0.7), nothing)


# ----------------------------------------------------------------------------------------------------------------------
# Against the closed form


def knowing(config, x0):
    """Predicts what the U-Net should say at x_t, were x0 the picture."""
    alphas = jnp.asarray(alphas_cumprod(config))

    def predict(x, t):
        alpha = alphas[t][:, None, None, None]
        return target(config, x0, (x - jnp.sqrt(alpha) * x0) / jnp.sqrt(1 - alpha), t)

    return predict


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@CONFIGS
def test_the_known_image_comes_back(config, sampler, spacing):
    x0, noise = np.clip(noise_of(1), -1, 1), noise_of(2)
    for steps in (1, 7, 30):  # also such as do not divide the timesteps
        plan = samplers.plan(config, sampler, steps, spacing, pixels=True)
        start = add_noise(config, x0, noise, jnp.full(3, plan.timestep[0]))
        if steps == 1 and spacing == "linspace" and sampler != "dpm_solver":
            continue  # one step from timestep 0: there the estimate of a noisy picture is rounding alone
        np.testing.assert_allclose(run(config, plan, knowing(config, x0), start, clip=True)[-1], x0, atol=1e-5)


def test_ddim_of_latents_ends_at_the_schedules_first_entry():
    """As Stable Diffusion's configuration wants it (set_alpha_to_one false)."""
    config, x0, noise = STABLE_DIFFUSION, np.clip(noise_of(1), -1, 1), noise_of(2)
    for steps, spacing in ((1, "leading"), (7, "trailing")):
        plan = samplers.ddim(config, steps, spacing)
        start = add_noise(config, x0, noise, jnp.full(3, plan.timestep[0]))
        almost = add_noise(config, x0, noise, jnp.zeros(3, int))
        np.testing.assert_allclose(run(config, plan, knowing(config, x0), start)[-1], almost, atol=1e-5)


def test_estimates_are_clipped_only_where_asked():
    x0 = 3 * np.ones((1, 2, 2, 1), np.float32)
    predict, noise = knowing(STABLE_DIFFUSION_V, x0), noise_of(0, 2)[:1, :, :, :1]
    plan = samplers.ddim(STABLE_DIFFUSION_V, 10, "trailing", pixels=True)
    assert np.abs(run(STABLE_DIFFUSION_V, plan, predict, noise, clip=True)[-1]).max() <= 1
    assert np.abs(run(STABLE_DIFFUSION_V, plan, predict, noise, clip=False)[-1]).min() > 2


def test_steps_at_once_are_the_steps_one_by_one_and_images_are_apart():
    plan = samplers.dpm_solver(PIXELS, 6, "trailing")

    def at_once(noise):
        denoiser = samplers.Denoiser(
            config=PIXELS, predict=predict_toy, noise=lambda _: jnp.zeros_like(noise), clip=True
        )
        return samplers.advance(denoiser, plan, samplers.begin(noise), 0, 6)

    whole = jax.jit(at_once)(noise_of(3))
    assert whole.x.shape == noise_of(3).shape and whole.x.dtype == jnp.float32
    np.testing.assert_allclose(run(PIXELS, plan, predict_toy, noise_of(3), clip=True)[-1], whole.x, atol=1e-6)
    np.testing.assert_array_equal(whole.x, whole.estimate)  # the last step is clean
    np.testing.assert_allclose(at_once(noise_of(3)[1:2]).x[0], whole.x[1], atol=1e-6)


# ----------------------------------------------------------------------------------------------------------------------
# Errors


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_numbers_of_steps_that_cannot_be(steps, sampler):
    for spacing in SPACINGS:
        with pytest.raises(ConfigError, match=f"num_steps: {steps} "):
            samplers.plan(STABLE_DIFFUSION, sampler, steps, spacing)


def test_a_leading_sequence_must_not_begin_behind_the_last_timestep():
    with pytest.raises(ConfigError, match="num_steps: 1000 leading steps with steps_offset = 1"):
        spaced_timesteps(STABLE_DIFFUSION, 1000, "leading")
    assert spaced_timesteps(STABLE_DIFFUSION, 1000, "trailing").tolist() == list(range(999, -1, -1))
    assert spaced_timesteps(DiffusionConfig(steps_offset=0), 1000, "leading").tolist() == list(range(999, -1, -1))


def test_unknown_names():
    with pytest.raises(ConfigError, match="spacing: 'karras' is none of leading, trailing, linspace"):
        spaced_timesteps(STABLE_DIFFUSION, 10, "karras")
    with pytest.raises(ConfigError, match="sampler: 'euler' is none of ddpm, ddim, dpm_solver"):
        samplers.plan(STABLE_DIFFUSION, "euler", 10, "leading")
