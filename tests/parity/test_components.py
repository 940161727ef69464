"""CLIP, U-Net, VAE and the noise schedule, each by itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.bundles import channels_first, channels_last, open_bundle

from dreamjax.diffusion import samplers, schedules
from dreamjax.models import dreamllm


@pytest.fixture(scope="module")
def ours(bundle) -> dict[str, np.ndarray]:
    """All component outputs of a bundle by their recorded names."""
    opened = open_bundle(bundle)
    model, given = opened.model, opened.arrays("components")
    apply = model.apply

    @jax.jit
    def run(pixels, sample, timesteps, context, images, z):
        states = jnp.stack([apply("clip", pixels, index) for index in range(model.config.clip.layers + 1)])
        embeds = apply("visual_projector", apply("clip", pixels)[:, 1:])
        out = dreamllm.denoise(model, sample, timesteps, context)
        return states, embeds, out, *apply("vae", images, method="encode"), apply("vae", z, method="decode")

    names = ("clip_pixel_values", "unet_sample", "unet_timesteps", "unet_context", "vae_images", "vae_z")
    inputs = {name: channels_last(given[name]) if given[name].ndim == 4 else given[name] for name in names}
    states, embeds, out, mean, logvar, decoded = run(*inputs.values())
    diffusion = model.config.diffusion
    x0, noise, t = channels_last(given["add_noise_x0"]), channels_last(given["add_noise_noise"]), given["add_noise_t"]
    velocity = dataclasses.replace(diffusion, prediction="v_prediction")
    steps = {
        name: samplers.spaced_timesteps(diffusion, int(name.rsplit("_", 1)[1]), opened.spacing)
        for name in given
        if name.startswith("ddpm_timesteps_")
    }
    return {
        "clip_hidden_states": states,
        "clip_embeds": embeds,
        "unet_out": channels_first(out),
        "vae_mean": channels_first(mean),
        "vae_logvar": channels_first(logvar),
        "vae_decoded": channels_first(decoded),
        "alphas_cumprod": schedules.alphas_cumprod(diffusion),
        "add_noise_out": channels_first(schedules.add_noise(diffusion, x0, noise, t)),
        "velocity_out": channels_first(schedules.target(velocity, x0, noise, t)),
        "snr_out": schedules.snr(diffusion, t),
        **steps,
    }


def test_component_outputs(bundle, ours):
    open_bundle(bundle).compare("components", "test_components", ours)
