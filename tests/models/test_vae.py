"""The VAE against diffusers' AutoencoderKL, its size and its compute dtype."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.config import VaeConfig
from dreamjax.models.vae import AutoencoderKL

SMALL = VaeConfig(block_channels=(16, 32), layers_per_block=1, norm_groups=8)
CASES = {
    "two levels": SMALL,
    "three levels": dataclasses.replace(
        SMALL, latent_channels=3, block_channels=(16, 16, 32), layers_per_block=2, norm_groups=4
    ),
}


def shapes_of(config: VaeConfig):
    """The parameters' shapes."""
    images = jax.ShapeDtypeStruct((1, 32, 32, config.image_channels), jnp.float32)
    return jax.eval_shape(AutoencoderKL(config).init, jax.random.key(0), images)["params"]


def random_params(config: VaeConfig):
    """Random parameters in numpy; `init` would take most of a test's time to compile."""
    rng = np.random.default_rng(2)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape, np.float32) / math.prod(leaf.shape[:-1]) ** 0.5, shapes_of(config)
    )


def torch_vae(config: VaeConfig):
    """diffusers' autoencoder for our config."""
    pytest.importorskip("diffusers")
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL as TorchAutoencoderKL

    levels = len(config.block_channels)
    return TorchAutoencoderKL(
        in_channels=config.image_channels,
        out_channels=config.image_channels,
        latent_channels=config.latent_channels,
        block_out_channels=config.block_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_groups,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
    )


def make_images(config: VaeConfig, batch: int = 2):
    """Pictures in [-1, 1], wider than high so that swapped sides show."""
    return np.random.default_rng(0).uniform(-1, 1, (batch, 16, 24, config.image_channels)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def encode(config: VaeConfig, variables, images):
    """The mean and the log-variance of our autoencoder."""
    return AutoencoderKL(config).apply(variables, images, method="encode")


@functools.partial(jax.jit, static_argnums=0)
def decode(config: VaeConfig, variables, latents):
    """The pictures of our autoencoder."""
    return AutoencoderKL(config).apply(variables, latents, method="decode")


# The small scale brings activations down to where 1e-5 and 1e-6 in a norm differ by more than the tolerance.
@pytest.mark.parametrize("scale", [1.0, 0.03])
@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_encode_and_decode_match_diffusers(config, scale):
    torch = pytest.importorskip("torch")
    from torch_weights import randomize, relative_error, to_params

    torch.set_num_threads(1)
    theirs = randomize(torch_vae(config), scale=scale)
    variables = {"params": to_params(theirs.state_dict(), shapes_of(config))}
    images = make_images(config)
    mean, logvar = encode(config, variables, images)
    latents = np.random.default_rng(1).standard_normal(mean.shape, np.float32)
    decoded = decode(config, variables, latents)

    with torch.no_grad():
        posterior = theirs.encode(torch.tensor(images.transpose(0, 3, 1, 2))).latent_dist
        expected = theirs.decode(torch.tensor(latents.transpose(0, 3, 1, 2))).sample
    assert relative_error(mean, posterior.mean) < 1e-5
    assert relative_error(logvar, posterior.logvar) < 1e-5
    assert relative_error(decoded, expected) < 1e-5


def test_log_variance_is_clipped_and_the_mean_is_not():
    bias = jnp.array([100.0, -100, 0, 0, 100, -100, 0, 0])
    params = random_params(SMALL) | {"quant_conv": {"kernel": jnp.zeros((1, 1, 8, 8)), "bias": bias}}
    mean, logvar = encode(SMALL, {"params": params}, make_images(SMALL))
    np.testing.assert_array_equal(mean[0, 0, 0], [100, -100, 0, 0])
    np.testing.assert_array_equal(logvar[0, 0, 0], [20, -30, 0, 0])


def test_call_encodes_and_decodes_the_mean():
    variables = {"params": random_params(SMALL)}
    mean, logvar, decoded = jax.jit(AutoencoderKL(SMALL).apply)(variables, make_images(SMALL))
    assert mean.shape == logvar.shape == (2, 8, 12, 4)
    again = decode(SMALL, variables, mean)
    np.testing.assert_allclose(decoded, again, atol=1e-5 * float(jnp.abs(again).max()))


def test_size_of_sd_2_1_base():
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes_of(VaeConfig()))) == 83_653_863


def test_bfloat16_results_and_parameters_are_float32():
    model, images = AutoencoderKL(SMALL, dtype=jnp.bfloat16), make_images(SMALL)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = {"params": random_params(SMALL)}
    results = jax.jit(model.apply)(variables, images)
    assert {leaf.dtype for leaf in jax.tree.leaves((shapes, results))} == {jnp.dtype(jnp.float32)}
    exact = jax.jit(AutoencoderKL(SMALL).apply)(variables, images)
    for rounded, other in zip(results, exact, strict=True):
        assert 1e-5 < float(jnp.linalg.norm(rounded - other) / jnp.linalg.norm(other)) < 5e-2


@pytest.mark.parametrize(("method", "shape", "message"), [
    ("encode", (1, 16, 16, 4), "3 channels"),
    ("encode", (1, 16, 15, 3), "multiples of 2"),
    ("decode", (1, 8, 8, 3), "4 channels"),
])  # fmt: skip
def test_wrong_shapes_are_named(method, shape, message):
    variables = jax.eval_shape(AutoencoderKL(SMALL).init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    with pytest.raises(ValueError, match=message):
        AutoencoderKL(SMALL).apply(variables, jnp.zeros(shape), method=method)
