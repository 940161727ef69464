"""The U-Net against diffusers' UNet2DConditionModel, its size, its gradients on a mesh and its compute dtype."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.config import MeshConfig, UNetConfig
from dreamjax.models.unet import UNet, timestep_embedding
from dreamjax.parallel.mesh import make_mesh
from dreamjax.parallel.param_sharding import parameter_shardings

SMALL = UNetConfig(
    sample_size=8, in_channels=3, out_channels=3, block_channels=(32, 64), layers_per_block=1,
    cross_attention=(False, True), heads=(2, 4), context_width=24, norm_groups=8,
)  # fmt: skip
CASES = {
    "linear": SMALL,
    "convolution": dataclasses.replace(SMALL, linear_projection=False, cross_attention=(True, False), heads=(4, 2)),
    "three levels": dataclasses.replace(
        SMALL,
        in_channels=4,
        out_channels=4,
        block_channels=(16, 32, 64),
        layers_per_block=2,
        cross_attention=(True, True, False),
        heads=(1, 4, 2),
    ),
}


def shapes_of(config: UNetConfig):
    """The parameters' shapes, for pictures of the config's own size."""
    side = config.sample_size
    arguments = [
        jax.ShapeDtypeStruct((1, side, side, config.in_channels), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        jax.ShapeDtypeStruct((1, 5, config.context_width), jnp.float32),
    ]
    return jax.eval_shape(UNet(config).init, jax.random.key(0), *arguments)["params"]


def random_params(config: UNetConfig):
    """Random parameters in numpy; `init` would take most of a test's time to compile."""
    rng = np.random.default_rng(2)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape, np.float32) / math.prod(leaf.shape[:-1]) ** 0.5, shapes_of(config)
    )


def inputs(config: UNetConfig, batch: int = 2):
    """Latents (a wide picture, so that swapped sides show), timesteps and context."""
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((batch, config.sample_size, 2 * config.sample_size, config.in_channels), np.float32)
    timesteps = np.array([7, 993] * (batch // 2), np.int32)
    return latents, timesteps, rng.standard_normal((batch, 5, config.context_width), np.float32)


def torch_unet(config: UNetConfig):
    """diffusers' U-Net for our config."""
    pytest.importorskip("diffusers")
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    cross = config.cross_attention
    return UNet2DConditionModel(
        sample_size=config.sample_size, in_channels=config.in_channels, out_channels=config.out_channels,
        block_out_channels=config.block_channels, layers_per_block=config.layers_per_block,
        down_block_types=["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross],
        up_block_types=["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(cross)],
        attention_head_dim=config.heads, cross_attention_dim=config.context_width,
        norm_num_groups=config.norm_groups, use_linear_projection=config.linear_projection,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def gradient_and_prediction(config: UNetConfig, params, latents, timesteps, context, weights):
    """The gradient of sum(weights * prediction) with respect to the context, and the prediction."""

    def weighted(context):
        prediction = UNet(config).apply({"params": params}, latents, timesteps, context)
        return jnp.sum(prediction * weights), prediction

    return jax.grad(weighted, has_aux=True)(context)


# The small scale brings activations down to where 1e-5 and 1e-6 in a norm differ by more than the tolerance.
@pytest.mark.parametrize("scale", [1.0, 0.03])
@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_prediction_and_context_gradient_match_diffusers(config, scale):
    torch = pytest.importorskip("torch")
    from torch_weights import randomize, relative_error, to_params

    torch.set_num_threads(1)
    theirs = randomize(torch_unet(config), scale=scale)
    params = to_params(theirs.state_dict(), shapes_of(config))
    latents, timesteps, context = inputs(config)
    if len(config.block_channels) > 2:
        latents = latents[:, :-1, :-3]  # sides that cannot be halved
    weights = np.random.default_rng(1).standard_normal((*latents.shape[:3], config.out_channels), np.float32)

    torch_context = torch.tensor(context, requires_grad=True)
    expected = theirs(torch.tensor(latents.transpose(0, 3, 1, 2)), torch.tensor(timesteps), torch_context).sample
    (expected * torch.tensor(weights.transpose(0, 3, 1, 2))).sum().backward()

    gradient, prediction = gradient_and_prediction(config, params, latents, timesteps, context, weights)
    assert prediction.dtype == jnp.float32
    assert relative_error(prediction, expected) < 1e-5
    assert relative_error(gradient, torch_context.grad) < 1e-5


def test_timestep_embedding_puts_cosines_first():
    embedded = np.asarray(timestep_embedding(jnp.array([0, 3]), 4))
    slow = 3 / 10000**0.5
    expected = [[1, 1, 0, 0], [math.cos(3), math.cos(slow), math.sin(3), math.sin(slow)]]
    np.testing.assert_allclose(embedded, expected, atol=1e-6)


def test_size_of_sd_2_1_base():
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes_of(UNetConfig()))) == 865_910_724


def test_bfloat16_computes_in_bfloat16_from_float32_parameters():
    params, arguments = random_params(SMALL), inputs(SMALL)
    for shapes in (
        shapes_of(SMALL),
        jax.eval_shape(UNet(SMALL, dtype=jnp.bfloat16).init, jax.random.key(0), *arguments),
    ):
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}

    def run(params):
        return UNet(SMALL, dtype=jnp.bfloat16).apply({"params": params}, *arguments, capture_intermediates=True)

    prediction, state = jax.eval_shape(run, params)
    assert prediction.dtype == jnp.float32
    inner = state["intermediates"]
    inner.pop("__call__")
    assert {leaf.dtype for leaf in jax.tree.leaves(inner)} == {jnp.dtype(jnp.bfloat16)}
    rounded = jax.jit(lambda p: run(p)[0])(params)
    exact = jax.jit(UNet(SMALL).apply)({"params": params}, *arguments)
    assert 1e-5 < float(jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact)) < 5e-2


def test_gradients_do_not_depend_on_the_mesh():
    """Without constraints inside the blocks the loss is right on this mesh and most gradients are wrong, by up to 90
    %.
    """
    latents, timesteps, context = inputs(SMALL, batch=4)
    params = random_params(SMALL)

    def loss(params, context):
        return jnp.mean(UNet(SMALL).apply({"params": params}, latents, timesteps, context) ** 2)

    expected = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, context)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        params = jax.device_put(params, parameter_shardings({"unet": params}, mesh)["unet"])
        gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, context)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(expected)]
    for path, ours, alone in zip(paths, jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        assert float(np.linalg.norm(ours - alone) / np.linalg.norm(alone)) < 1e-4, path


@pytest.mark.parametrize(("position", "shape", "message"), [
    (0, (2, 8, 8, 4), "3 channels"),
    (1, (1,), "timesteps"),
    (2, (2, 5, 23), r"\(2, queries, 24\)"),
])  # fmt: skip
def test_wrong_shapes_are_named(position, shape, message):
    arguments = list(inputs(SMALL))
    arguments[position] = np.zeros(shape, arguments[position].dtype)
    with pytest.raises(ValueError, match=message):
        UNet(SMALL).init(jax.random.key(0), *arguments)
