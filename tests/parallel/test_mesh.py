"""The mesh, the table that says where each parameter lies, and the constraint that keeps gradients right."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dreamjax.config import ClipTextConfig, MeshConfig, ModelConfig, dreamllm_7b, tiny
from dreamjax.errors import ConfigError
from dreamjax.models import dreamllm
from dreamjax.parallel.mesh import ROWS, constrain_rows, make_mesh
from dreamjax.parallel.param_sharding import (
    PARAMETER_RULES,
    parameter_shardings,
    parameter_spec,
    path_of,
    unsharded_share,
)


def with_text_towers() -> ModelConfig:
    """The parts that only Stable Diffusion as a baseline and ranking need, besides the others."""
    return dataclasses.replace(
        tiny(), text_encoder=ClipTextConfig(), clip_text=ClipTextConfig(projection_width=768, vision_width=32)
    )


MODELS = {"tiny": tiny, "dreamllm_7b": dreamllm_7b, "with_text_towers": with_text_towers}
MESHES = [MeshConfig(1, 8, 1), MeshConfig(2, 2, 2)]
ON_MESHES = pytest.mark.parametrize("config", MESHES, ids=lambda config: f"{config.data}x{config.fsdp}x{config.tensor}")


@functools.cache
def parameters(model: str) -> dict:
    """Shapes of all parameters, as nested dicts."""
    return jax.eval_shape(lambda: dreamllm.init(MODELS[model](), jax.random.key(0)))


def by_path(model: str) -> dict:
    return {path_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(parameters(model))}


# ----------------------------------------------------------------------------------------------------------------------
# The mesh


@pytest.mark.parametrize(
    "sizes, shape",
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((1, -1, 1), (1, 8, 1)),
        ((2, 2, -1), (2, 2, 2)),
        ((-1, 2, 4), (1, 2, 4)),
        ((4, 1, 2), (4, 1, 2)),
    ],
)
def test_what_is_left_goes_to_the_open_axis(sizes, shape):
    mesh = make_mesh(MeshConfig(*sizes))
    assert dict(mesh.shape) == dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert {device.id for device in mesh.devices.flat} == {device.id for device in jax.devices()}


@pytest.mark.parametrize("sizes", [(3, 1, 1), (4, 1, 1), (16, 1, 1), (-1, 3, 1), (-1, 16, 1), (2, 2, 4)])
def test_sizes_that_do_not_fit(sizes):
    with pytest.raises(ConfigError, match=r"^config\.mesh: .* = {} x {} x {} does not fit 8 devices$".format(*sizes)):
        make_mesh(MeshConfig(*sizes))


def test_a_mesh_of_some_devices():
    assert dict(make_mesh(MeshConfig(1, 2, -1), jax.devices()[:4]).shape) == {"data": 1, "fsdp": 2, "tensor": 2}


FACTS = ("id", "process_index", "platform", "device_kind", "coords", "core_on_chip")  # of a TPU


def test_a_side_of_the_torus_is_split_where_no_sides_multiply_to_an_axis():
    Chip = dataclasses.make_dataclass("Chip", FACTS, frozen=True)
    chips = [Chip(n, n // 4, "tpu", "TPU v4", (n % 4, n // 4 % 4, n // 16), 0) for n in range(64)]
    mesh = make_mesh(MeshConfig(8, 8, 1), chips)

    def box(group):
        return math.prod(len(set(side)) for side in zip(*(chip.coords for chip in group), strict=True))

    assert (
        mesh.devices.shape == (8, 8, 1) and [box(group) for group in mesh.devices[:, :, 0]] == [8] * 8
    )  # an fsdp group is a block
    assert {chip.id for chip in mesh.devices.flat} == set(range(64))


def test_slices_are_joined_by_the_data_axis():
    """A step's gradients may cross the network between slices, a layer's weights may not."""
    Chip = dataclasses.make_dataclass("Chip", (*FACTS, "slice_index"), frozen=True)

    def chip(x, slice_):
        return (4 * slice_ + x, 2 * slice_ + x // 2, "tpu", "TPU v4", (x % 2, x // 2, 0), 0)

    chips = [Chip(*chip(x, slice_), slice_) for slice_ in range(2) for x in range(4)]
    mesh = make_mesh(MeshConfig(4, 2, 1), chips)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert [[chip.slice_index for chip in row] for row in mesh.devices[:, :, 0]] == [[0, 0], [0, 0], [1, 1], [1, 1]]
    Alone = dataclasses.make_dataclass("Alone", FACTS, frozen=True)  # a slice by itself does not say which
    assert make_mesh(MeshConfig(2, 2, 1), [Alone(*chip(x, 0)) for x in range(4)]).size == 4
    with pytest.raises(ConfigError, match="config.mesh.data: 1 is not a multiple of the 2 slices"):
        make_mesh(MeshConfig(1, 8, 1), chips)


# ----------------------------------------------------------------------------------------------------------------------
# Parameters


@pytest.mark.parametrize("model", MODELS)
def test_each_parameter_matches_one_rule(model):
    for path, shape in by_path(model).items():
        rules = [pattern for pattern, _ in PARAMETER_RULES if re.search(pattern, path)]
        assert len(rules) == 1, (path, shape, rules)


def test_each_rule_is_of_use():
    paths = [path for model in MODELS for path in by_path(model)]
    assert not [pattern for pattern, _ in PARAMETER_RULES if not any(re.search(pattern, path) for path in paths)]


@ON_MESHES
@pytest.mark.parametrize("model", MODELS)
def test_specs_divide(model, config):
    mesh = make_mesh(config)
    for path, shape in by_path(model).items():
        spec = parameter_spec(path, shape, mesh)
        axes = [axis for entry in spec if entry for axis in ((entry,) if isinstance(entry, str) else entry)]
        assert len(spec) in (0, len(shape)) and len(axes) == len(set(axes)), path
        held = NamedSharding(mesh, spec).shard_shape(shape)  # raises where an axis does not divide
        assert math.prod(held) * math.prod(mesh.shape[axis] for axis in axes) == math.prod(shape), path


@ON_MESHES
def test_the_large_parameters_of_the_paper_are_split(config):
    mesh, shapes = make_mesh(config), by_path("dreamllm_7b")
    for path, shape in shapes.items():
        split = math.prod(shape) / math.prod(NamedSharding(mesh, parameter_spec(path, shape, mesh)).shard_shape(shape))
        if path.startswith("llm/") and path.endswith("kernel") and "head" not in path:
            assert split == mesh.shape["fsdp"] * mesh.shape["tensor"], path
        assert split >= mesh.shape["fsdp"] or math.prod(shape) < 2**20, (path, shape)
    assert unsharded_share(parameters("dreamllm_7b"), mesh) < 0.01


def test_specs_are_aligned_with_the_last_axes_and_drop_what_does_not_divide():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    assert parameter_spec("llm/layers/mlp/up/kernel", (3, 8, 12), mesh) == P(None, "fsdp", "tensor")
    assert parameter_spec("llm/layers/mlp/down/kernel", (3, 12, 8), mesh) == P(None, ("tensor", "fsdp"), None)
    assert parameter_spec("llm/layers/mlp/down/kernel", (3, 6, 8), mesh) == P(None, "tensor", None)
    assert parameter_spec("unet/conv_in/kernel", (3, 3, 3, 8), mesh) == P(None, None, None, "tensor")
    assert parameter_spec("unet/conv_out/kernel", (3, 3, 8, 3), mesh) == P(None, None, "fsdp", None)
    assert parameter_spec("llm/embed/embedding", (7, 8), mesh) == P(None, "fsdp")
    assert not any(parameter_spec("dream_queries", (64, 8), mesh))


def test_a_parameter_without_a_rule_is_named():
    mesh = make_mesh(MeshConfig())
    for path in ("llm/layers/attention/r/kernel", "dream_query", "vision/layers/mlp/fc1/kernel"):
        with pytest.raises(ValueError, match=rf"no sharding rule matches the parameter {path} \(8, 8\)"):
            parameter_spec(path, (8, 8), mesh)
    with pytest.raises(ValueError, match="has more axes than the parameter llm/head/kernel"):
        parameter_spec("llm/head/kernel", (8,), mesh)


def test_shardings_of_a_tree():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    tree = {"llm": {"head": {"kernel": jnp.ones((8, 4))}}, "dream_queries": jnp.ones((4, 8))}
    placed = jax.device_put(tree, parameter_shardings(tree, mesh))
    assert placed["llm"]["head"]["kernel"].addressable_shards[0].data.shape == (4, 4)
    assert placed["dream_queries"].is_fully_replicated


def test_unsharded_share():
    mesh = make_mesh(MeshConfig(1, 4, 2))

    def leaf(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    assert unsharded_share({"dream_queries": leaf(4, 8), "llm": {"head": {"kernel": leaf(8, 4)}}}, mesh) == 0.5
    assert unsharded_share({"unet": {"conv_in": {"kernel": leaf(3, 3, 3, 5)}}}, mesh) == 1.0
    assert unsharded_share({}, mesh) == 0.0


def test_an_axis_of_one_device_splits_nothing():
    """A kernel that fsdp does not divide lies whole on every device where tensor is 1."""
    kernel = {"unet": {"conv_in": {"kernel": jax.ShapeDtypeStruct((3, 3, 4, 320), jnp.float32)}}}
    assert unsharded_share(kernel, make_mesh(MeshConfig(1, 8, 1))) == 1.0


# ----------------------------------------------------------------------------------------------------------------------
# Rows


def test_outside_a_mesh_nothing_is_constrained():
    x = jnp.ones((8, 2))
    assert constrain_rows(x) is x


def test_rows_lie_over_data_and_fsdp():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    with jax.set_mesh(mesh):
        for rows, spec in (
            (8, ROWS),
            (4, ROWS),
            (6, P()),
            (1, P()),
        ):  # four shards; what they do not divide is whole everywhere
            x = jnp.arange(rows * 3.0).reshape(rows, 3)
            held = jax.jit(constrain_rows)(x)
            assert held.sharding.is_equivalent_to(NamedSharding(mesh, spec), 2), rows
            np.testing.assert_array_equal(held, np.arange(rows * 3.0).reshape(rows, 3))
