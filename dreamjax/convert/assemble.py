"""One model out of what foreign folders hold: the parts they bring, and what has to be made afresh."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.config import ModelConfig
from dreamjax.convert.mapping import Leaf, Table, match
from dreamjax.convert.tensors import Tensors
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import ConfigError
from dreamjax.models import dreamllm
from dreamjax.training import checkpoint
from dreamjax.training.model_folder import put

# What joins the parts and belongs to no foreign model: made afresh where nothing brings it.
JOINTS = ("visual_projector", "condition_projector", "dream_queries")


class Raw(NamedTuple):
    """One part as its source has it."""

    config: dict
    tensors: Tensors


@dataclasses.dataclass(frozen=True)
class Found:
    """What one foreign folder or file holds."""

    format: str
    where: str
    settings: dict  # fields of ModelConfig
    leaves: dict[str, Leaf]
    files: tuple[pathlib.Path, ...]  # that the leaves are read from
    raw: dict[str, Raw] = dataclasses.field(default_factory=dict)  # by part
    tokenizer: Tokenizer | None = None
    tokenizer_folder: pathlib.Path | None = None  # where one may be, of an LLM that does not come with its added tokens
    clip_tokenizers: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)  # by the text tower's part
    template: str | None = None
    notes: tuple[str, ...] = ()  # what was left aside


@dataclasses.dataclass(frozen=True)
class Plan:
    """A whole model that has not been read yet."""

    model: ModelConfig
    leaves: dict[str, Leaf]
    template: str
    fresh: tuple[str, ...]  # paths of what no source brings
    found: tuple[Found, ...]
    tokenizer: Tokenizer | None = None
    notes: tuple[str, ...] = ()  # what an import should say of the whole


@functools.lru_cache(maxsize=32)
def shapes_of(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """{path: shape} of every parameter of a model."""
    return {path: leaf.shape for path, leaf in checkpoint.flatten(checkpoint.parameter_shapes(model)).items()}


def part_shapes(shapes: Mapping[str, tuple[int, ...]], part: str) -> dict[str, tuple[int, ...]]:
    """The shapes of one part, by path within it (\"\" where the part is one parameter)."""
    return {
        path.removeprefix(part).removeprefix("/"): shape for path, shape in shapes.items() if path.split("/")[0] == part
    }


def read_part(
    part: str, table: Table, shapes: Mapping[str, tuple[int, ...]], tensors: Tensors, where: str
) -> dict[str, Leaf]:
    """The leaves of one part of the model that has these `shapes`."""
    return match(part, table, part_shapes(shapes, part), tensors, where)


def compose(found: Iterable[Found], changes: Mapping | None = None, seed: int = 0) -> Plan:
    """The model that the sources make together; ConfigError where two bring the same part or one is missing.

    `changes` are fields of ModelConfig that no source knows, or that are to be other than there. The tokenizer is that
    of a source that brings a whole DreamLLM; `with_tokenizer` gives it to other plans.
    """
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
    model = ModelConfig(**{"dtype": _compute_dtype(leaves), **settings, **(changes or {})})
    shapes = shapes_of(model)
    for path, leaf in leaves.items():
        if leaf.shape != shapes.get(path):
            raise ConfigError(
                f"{leaf.origin}: {path} is {leaf.shape}, and the whole model has "
                f"{shapes.get(path, 'no such parameter')}"
            )
    missing = [path for path in shapes if path not in leaves]
    lost = [path for path in missing if path.split("/")[0] not in JOINTS]
    if lost:
        raise ConfigError(
            f"{', '.join(source.where for source in found)}: {lost[0]} {shapes[lost[0]]} is in none of the sources"
        )
    leaves |= _fresh_leaves(model, missing, seed)
    tokenizers = [source.tokenizer for source in found if source.tokenizer]
    templates = [source.template for source in found if source.template]
    ordered = {path: leaves[path] for path in shapes}
    return Plan(
        model,
        ordered,
        templates[0] if templates else "plain",
        tuple(missing),
        found,
        tokenizers[0] if tokenizers else None,
    )


def _compute_dtype(leaves: Mapping[str, Leaf]) -> str:
    """float32 where the LLM (or, without one, any part) comes in it, else bfloat16."""
    of_llm = {str(leaf.dtype) for path, leaf in leaves.items() if path.startswith("llm/")} or {
        str(leaf.dtype) for leaf in leaves.values()
    }
    return "float32" if "float32" in of_llm else "bfloat16"


def with_tokenizer(plan: Plan, tokenizer: Tokenizer, new_rows: str = "official", seed: int = 0) -> Plan:
    """The plan with a tokenizer and, where it has more ids than the LLM has rows, with rows for them.

    new_rows: "official", as the official code makes them, N(0, 0.02) (transformers' resize_token_embeddings with
    LLaMA's initializer_range), or "mean", the mean of the old rows.
    """
    if new_rows not in ("official", "mean"):
        raise ConfigError(f"--new_rows: {new_rows!r} is neither official nor mean")
    old, new = plan.model.llm.vocab_size, tokenizer.size
    if new <= old:
        return dataclasses.replace(plan, tokenizer=tokenizer)
    leaves, fresh = dict(plan.leaves), list(plan.fresh)
    rng = np.random.default_rng(seed)
    for path, axis in (("llm/embed/embedding", 0), ("llm/head/kernel", 1)):
        if path in leaves:
            leaves[path] = _with_rows(leaves[path], axis, new, new_rows, rng)
            fresh.append(f"{path} rows {old} to {new - 1} ({new_rows})")
    model = dataclasses.replace(plan.model, llm=dataclasses.replace(plan.model.llm, vocab_size=new))
    return dataclasses.replace(plan, model=model, leaves=leaves, fresh=tuple(fresh), tokenizer=tokenizer)


def _with_rows(leaf: Leaf, axis: int, size: int, kind: str, rng: np.random.Generator) -> Leaf:
    """A leaf of two axes grown to `size` along `axis`."""
    old, width = leaf.shape[axis], leaf.shape[1 - axis]
    if kind == "mean":
        total = np.zeros(width)
        for begin in range(0, old, 4096):
            index = tuple(slice(begin, min(begin + 4096, old)) if k == axis else slice(0, width) for k in range(2))
            total += leaf.read(index).astype(np.float64).sum(axis)
        rows = np.broadcast_to(total / old, (size - old, width))
    else:
        rows = 0.02 * rng.standard_normal((size - old, width), np.float32)
    rows = rows.astype(leaf.dtype) if axis == 0 else rows.astype(leaf.dtype).T

    def read(index: tuple[slice, ...]) -> np.ndarray:
        begin, end, _ = index[axis].indices(size)

        def at(first, last):
            return tuple(slice(first, last) if k == axis else index[k] for k in range(2))

        pieces = []
        if begin < old:
            pieces.append(leaf.read(at(begin, min(end, old))))
        if end > old:
            pieces.append(rows[at(max(begin - old, 0), end - old)])
        return np.concatenate(pieces, axis)

    return leaf._replace(shape=(size, width) if axis == 0 else (width, size), read=read)


def _fresh_leaves(model: ModelConfig, paths: list[str], seed: int) -> dict[str, Leaf]:
    """The parameters at these paths as a new model would begin with them."""
    if not paths:
        return {}

    def drawn() -> dict:
        tree = dreamllm.init(dreamllm.build(model), jax.random.key(seed))
        return {path: leaf for path, leaf in checkpoint.flatten(tree).items() if path in paths}

    made = jax.device_get(jax.jit(drawn)())  # what is not returned is not computed
    return {path: Leaf(value.shape, value.dtype, value.__getitem__, "fresh") for path, value in made.items()}


def materialise(leaves: Mapping[str, Leaf], shardings: Mapping | None = None, dtype=jnp.float32) -> dict:
    """Nested parameters on devices, one after the other; each device reads what it holds and no more.

    `shardings` is a tree like the parameters; without it they go whole to the default device. `dtype` None keeps the
    files'.
    """
    placed: dict = {}
    where = {} if shardings is None else checkpoint.flatten(shardings)
    for path, leaf in leaves.items():
        put(placed, path, place(leaf, where.get(path), dtype))
    return placed


def place(leaf: Leaf, sharding=None, dtype=None) -> jax.Array:
    """One parameter on its devices."""
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    dtype = leaf.dtype if dtype is None else dtype
    return jax.make_array_from_callback(
        leaf.shape, sharding, lambda index: np.asarray(leaf.read(whole(index, leaf.shape)), dtype)
    )


def whole(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """An index with a slice of definite ends for every axis."""
    return tuple(slice(*s.indices(n)) for s, n in zip(index, shape, strict=True))
