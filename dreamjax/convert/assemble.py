"""One model out of what foreign folders hold: the parts they bring, and what has to be made afresh."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.config import ModelConfig
from dreamjax.convert.names import Leaf, Table, match
from dreamjax.convert.tensors import Tensors
from dreamjax.models import dreamllm
from dreamjax.schema import ConfigError
from dreamjax.sharding import path_of
from dreamjax.tokenizer import Tokenizer

# What joins the parts and belongs to no foreign model: made afresh where nothing brings it.
JOINTS = ("visual_projector", "condition_projector", "dream_queries")


@dataclasses.dataclass(frozen=True)
class Found:
    """What one foreign folder or file holds."""

    format: str
    where: str
    settings: dict  # fields of ModelConfig
    leaves: dict[str, Leaf]
    files: tuple[pathlib.Path, ...]  # that the leaves are read from
    tokenizer: Tokenizer | None = None
    template: str | None = None
    notes: tuple[str, ...] = ()  # what was left aside


@dataclasses.dataclass(frozen=True)
class Plan:
    """A whole model that has not been read yet."""

    model: ModelConfig
    leaves: dict[str, Leaf]
    tokenizer: Tokenizer | None
    template: str
    fresh: tuple[str, ...]  # paths of what no source brings
    found: tuple[Found, ...]


def shapes_of(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """{path: shape} of every parameter of a model."""
    tree = jax.eval_shape(lambda: dreamllm.init(dreamllm.build(model), jax.random.key(0)))
    return {path_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def part_shapes(shapes: Mapping[str, tuple[int, ...]], part: str) -> dict[str, tuple[int, ...]]:
    """The shapes of one part, by path within it (\"\" where the part is one parameter)."""
    return {path.removeprefix(part).removeprefix("/"): shape for path, shape in shapes.items() if path.split("/")[0] == part}


def read_part(part: str, table: Table, shapes: Mapping[str, tuple[int, ...]], tensors: Tensors, where: str) -> dict[str, Leaf]:
    """The leaves of one part of the model that has these `shapes`."""
    return match(part, table, part_shapes(shapes, part), tensors, where)


def compose(found: Iterable[Found], seed: int = 0) -> Plan:
    """The model that the sources make together; ConfigError where two bring the same part or one is missing."""
    found = tuple(found)
    settings, leaves = {}, {}
    for source in found:
        for name, value in source.settings.items():
            if name in settings and settings[name] != value:
                raise ConfigError(f"{source.where}: brings {name}, and so does another source")
            settings[name] = value
        twice = sorted(set(leaves) & set(source.leaves))
        if twice:
            raise ConfigError(f"{source.where}: brings {twice[0]}, and so does {leaves[twice[0]].origin}")
        leaves |= source.leaves
    model = ModelConfig(**settings)
    shapes = shapes_of(model)
    missing = [path for path in shapes if path not in leaves]
    lost = [path for path in missing if path.split("/")[0] not in JOINTS]
    if lost:
        raise ConfigError(f"{', '.join(source.where for source in found)}: {lost[0]} {shapes[lost[0]]} is in none of the sources")
    leaves |= _fresh_leaves(model, missing, seed)
    tokenizers = [source.tokenizer for source in found if source.tokenizer]
    templates = [source.template for source in found if source.template]
    ordered = {path: leaves[path] for path in shapes}
    return Plan(model, ordered, tokenizers[0] if tokenizers else None, templates[0] if templates else "plain", tuple(missing), found)


def _fresh_leaves(model: ModelConfig, paths: list[str], seed: int) -> dict[str, Leaf]:
    """The parameters at these paths as a new model would begin with them."""
    if not paths:
        return {}

    def drawn() -> dict:
        tree = dreamllm.init(dreamllm.build(model), jax.random.key(seed))
        return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if path_of(path) in paths}

    made = jax.device_get(jax.jit(drawn)())  # what is not returned is not computed
    return {path: Leaf(value.shape, value.dtype, value.__getitem__, "fresh") for path, value in made.items()}


def materialise(leaves: Mapping[str, Leaf], shardings: Mapping | None = None, dtype=jnp.float32) -> dict:
    """Nested parameters on devices, one after the other; each device reads what it holds and no more.

    `shardings` is a tree like the parameters; without it they go whole to the default device. `dtype` None keeps the files'.
    """
    placed: dict = {}
    where = {} if shardings is None else {path_of(path): s for path, s in jax.tree_util.tree_leaves_with_path(shardings)}
    for path, leaf in leaves.items():
        put(placed, path, place(leaf, where.get(path), dtype))
    return placed


def place(leaf: Leaf, sharding=None, dtype=None) -> jax.Array:
    """One parameter on its devices."""
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    dtype = leaf.dtype if dtype is None else dtype
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: np.asarray(leaf.read(whole(index, leaf.shape)), dtype))


def whole(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """An index with a slice of definite ends for every axis."""
    return tuple(slice(*s.indices(n)) for s, n in zip(index, shape, strict=True))


def put(tree: dict, path: str, value):
    """Sets the leaf at a path of nested dicts."""
    *names, last = path.split("/")
    for name in names:
        tree = tree.setdefault(name, {})
    tree[last] = value
