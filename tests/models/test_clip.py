"""CLIP's vision transformer: parity with transformers, normalisation, errors, sizes."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from dreamjax.config import ClipConfig, MeshConfig
from dreamjax.models.clip import ClipVision, normalise
from dreamjax.parallel.mesh import make_mesh

CONFIG = ClipConfig(
    image_size=12, patch_size=4, width=32, layers=3, heads=4, ffn_width=48, layer_norm_eps=1e-3, select_layer=-2
)


def relative_error(ours, theirs) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def random_pixels(batch: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(batch, 12, 12, 3)).astype(np.float32)


@functools.cache
def initial():
    module = ClipVision(CONFIG)
    return module, jax.jit(lambda key: module.init(key, method="init_all"))(jax.random.key(0))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_parity_with_transformers_in_every_state(activation):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from torch_weights_text import clip_params, randomise

    torch.set_num_threads(1)
    config = dataclasses.replace(CONFIG, activation=activation)
    theirs = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.ffn_width,
            layer_norm_eps=config.layer_norm_eps,
            hidden_act=activation,
        )
    ).eval()
    randomise(theirs, seed=1)
    module = ClipVision(config)
    params = clip_params(theirs, module)
    pixels = random_pixels()
    with torch.no_grad():
        expected = theirs(pixel_values=torch.tensor(pixels).permute(0, 3, 1, 2), output_hidden_states=True)
    assert len(expected.hidden_states) == config.layers + 1
    state = jax.jit(module.apply, static_argnums=2)
    for index in range(-config.layers - 1, config.layers + 1):
        assert relative_error(state(params, pixels, index), expected.hidden_states[index]) < 5e-6, index
    assert relative_error(state(params, pixels), expected.hidden_states[config.select_layer]) < 5e-6
    assert relative_error(module.apply(params, pixels, method="pooled"), expected.pooler_output) < 5e-6


def test_normalise_is_what_the_image_processor_does():
    transformers = pytest.importorskip("transformers")
    images = np.random.default_rng(0).integers(256, size=(2, 8, 8, 3), dtype=np.uint8)
    processor = transformers.CLIPImageProcessorPil(do_resize=False, do_center_crop=False)
    expected = np.stack(processor(list(images), return_tensors="np")["pixel_values"]).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(normalise(images, CONFIG), expected, atol=2e-6)


def test_normalise_maps_the_mean_to_0_and_one_deviation_to_1():
    config = dataclasses.replace(CONFIG, image_mean=(0.2, 0.4, 0.6), image_std=(0.1, 0.2, 0.3))
    for encoder in (CONFIG, config):
        mean, std = np.array([encoder.image_mean]), np.array([encoder.image_std])
        np.testing.assert_allclose(normalise(np.round(255 * mean).astype(np.uint8), encoder), 0, atol=0.02)
        np.testing.assert_allclose(normalise(np.round(255 * (mean + std)).astype(np.uint8), encoder), 1, atol=0.02)
    assert normalise(np.zeros((1, 2, 2, 3), np.uint8), CONFIG, jnp.bfloat16).dtype == jnp.bfloat16


def test_images_do_not_see_each_other():
    module, params = initial()
    pixels = random_pixels()
    assert relative_error(module.apply(params, pixels)[:1], module.apply(params, pixels[:1])) < 5e-6


def test_layer_norm_keeps_its_precision_under_a_large_offset():
    module, params = initial()
    shifted = {"params": params["params"] | {"position_embedding": params["params"]["position_embedding"] + 300.0}}
    assert relative_error(module.apply(shifted, random_pixels()), module.apply(params, random_pixels())) < 1e-3


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    module, params = initial()
    half = ClipVision(CONFIG, jnp.bfloat16)
    shapes = jax.eval_shape(lambda key: half.init(key, method="init_all"), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    states = half.apply(params, random_pixels())
    assert states.dtype == jnp.bfloat16
    assert relative_error(states, module.apply(params, random_pixels())) < 3e-2


@pytest.mark.parametrize("index", [-5, 4])
def test_a_state_that_does_not_exist_is_an_error(index):
    module, params = initial()
    with pytest.raises(ValueError, match=f"no hidden state {index}; 3 layers have 4 states"):
        module.apply(params, random_pixels(), index)


@pytest.mark.parametrize("shape", [(1, 16, 16, 3), (1, 3, 12, 12), (1, 13, 13, 3)])
def test_a_wrong_image_size_is_an_error(shape):
    module, params = initial()
    with pytest.raises(ValueError, match=r"must be \[B, 12, 12, 3\]"):
        module.apply(params, jnp.zeros(shape))


def test_residual_stream_is_constrained_at_entry_and_after_each_sum():
    module, params = initial()
    pixels = random_pixels(len(jax.devices()))
    with jax.set_mesh(make_mesh(MeshConfig())):
        text = str(jax.make_jaxpr(lambda params: module.apply(params, pixels))(params))
    assert text.count("sharding_constraint[") == 3  # the scanned layer stands once in the program


def test_layers_are_stacked_and_differ():
    _, params = initial()
    layers = params["params"]["layers"]
    for path, leaf in flatten_dict(layers, sep="/").items():
        assert leaf.shape[0] == CONFIG.layers, path
    kernel = layers["mlp"]["fc1"]["kernel"]
    assert not np.array_equal(kernel[0], kernel[1])


def test_count_at_the_real_size():
    shapes = jax.eval_shape(lambda key: ClipVision(ClipConfig()).init(key, method="init_all"), jax.random.key(0))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 303_179_776
