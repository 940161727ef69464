"""One model out of foreign sources: the parts that they bring, and new parameters for what joins the parts."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike

from dreamjax.config import ModelConfig
from dreamjax.config.validation import require_present
from dreamjax.convert.mapping import Leaf, Table, match
from dreamjax.convert.tensors import Tensors
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import ConfigError
from dreamjax.models import dreamllm
from dreamjax.training import checkpoint
from dreamjax.training.model_folder import put

# Parameters that join the parts and belong to no foreign model: initialised where no source brings them.
JOINTS = ("visual_projector", "condition_projector", "dream_queries")


class RawPart(NamedTuple):
    """One part in its source's own form: configuration and tensors."""

    config: dict
    tensors: Tensors


@dataclasses.dataclass(frozen=True)
class ForeignSource:
    """The parts that one foreign folder or file holds."""

    format: str
    location: str
    fields: dict[str, Any]  # of ModelConfig
    leaves: dict[str, Leaf]
    files: tuple[pathlib.Path, ...]  # that the leaves are read from
    raw_parts: dict[str, RawPart] = dataclasses.field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    tokenizer_folder: pathlib.Path | None = None  # where one may be, of an LLM that does not come with its added tokens
    clip_tokenizers: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)  # by the text tower's part
    template: str | None = None
    notes: tuple[str, ...] = ()  # for the report, such as parts that are not read


@dataclasses.dataclass(frozen=True)
class ImportPlan:
    """A model composed of foreign sources, before any weight is read."""

    model: ModelConfig
    leaves: dict[str, Leaf]
    template: str
    fresh: tuple[str, ...]  # paths of the parameters that no source brings
    sources: tuple[ForeignSource, ...]
    tokenizer: Tokenizer | None = None
    notes: tuple[str, ...] = ()  # for the report of the import


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
    part: str, table: Table, shapes: Mapping[str, tuple[int, ...]], tensors: Tensors, location: str
) -> dict[str, Leaf]:
    """The leaves of one part of the model that has these `shapes`."""
    return match(part, table, part_shapes(shapes, part), tensors, location)


def compose(sources: Sequence[ForeignSource], changes: Mapping[str, Any] | None = None, seed: int = 0) -> ImportPlan:
    """The model that the sources make together; ConfigError where two bring the same part or one is missing.

    `changes` are fields of ModelConfig that override the sources'. The tokenizer is that of a source that brings a
    complete DreamLLM; `with_tokenizer` gives it to other plans.
    """
    fields: dict[str, Any] = {}
    leaves: dict[str, Leaf] = {}
    for source in sources:
        for name, value in source.fields.items():
            if name in fields and fields[name] != value:
                raise ConfigError(f"{source.location}: brings {name}, and so does another source")
            fields[name] = value
        twice = sorted(set(leaves) & set(source.leaves))
        if twice:
            raise ConfigError(f"{source.location}: brings {twice[0]}, and so does {leaves[twice[0]].origin}")
        leaves |= source.leaves
    model = ModelConfig(**{"dtype": _compute_dtype(leaves), **fields, **(changes or {})})
    shapes = shapes_of(model)
    for path, leaf in leaves.items():
        if leaf.shape != shapes.get(path):
            raise ConfigError(
                f"{leaf.origin}: {path} is {leaf.shape}, and the composed model has "
                f"{shapes.get(path, 'no such parameter')}"
            )
    missing = [path for path in shapes if path not in leaves]
    unmatched = [path for path in missing if path.split("/")[0] not in JOINTS]
    if unmatched:
        locations = ", ".join(source.location for source in sources)
        raise ConfigError(f"{locations}: {unmatched[0]} {shapes[unmatched[0]]} is in none of the sources")
    leaves |= _initial_leaves(model, missing, seed)
    tokenizers = [source.tokenizer for source in sources if source.tokenizer]
    templates = [source.template for source in sources if source.template]
    ordered = {path: leaves[path] for path in shapes}
    return ImportPlan(
        model,
        ordered,
        templates[0] if templates else "plain",
        tuple(missing),
        tuple(sources),
        tokenizers[0] if tokenizers else None,
    )


def _compute_dtype(leaves: Mapping[str, Leaf]) -> str:
    """float32 where the LLM (or, without one, any part) is stored in it, else bfloat16."""
    of_llm = {str(leaf.dtype) for path, leaf in leaves.items() if path.startswith("llm/")} or {
        str(leaf.dtype) for leaf in leaves.values()
    }
    return "float32" if "float32" in of_llm else "bfloat16"


def with_tokenizer(plan: ImportPlan, tokenizer: Tokenizer, new_rows: str = "official", seed: int = 0) -> ImportPlan:
    """The plan with a tokenizer and, where it has more ids than the LLM has rows, with rows for them.

    new_rows: "official", as the official code makes them, N(0, 0.02) (transformers' resize_token_embeddings with
    LLaMA's initializer_range), or "mean", the mean of the old rows.
    """
    if new_rows not in ("official", "mean"):
        raise ConfigError(f"--new_rows: {new_rows!r} is neither official nor mean")
    llm = require_present(plan.model.llm, "llm")
    old, new = llm.vocab_size, tokenizer.size
    if new <= old:
        return dataclasses.replace(plan, tokenizer=tokenizer)
    leaves, fresh = dict(plan.leaves), list(plan.fresh)
    rng = np.random.default_rng(seed)
    for path, axis in (("llm/embed/embedding", 0), ("llm/head/kernel", 1)):
        if path in leaves:
            leaves[path] = _with_rows(leaves[path], axis, new, new_rows, rng)
            fresh.append(f"{path} rows {old} to {new - 1} ({new_rows})")
    model = dataclasses.replace(plan.model, llm=dataclasses.replace(llm, vocab_size=new))
    return dataclasses.replace(plan, model=model, leaves=leaves, fresh=tuple(fresh), tokenizer=tokenizer)


def _with_rows(leaf: Leaf, axis: int, size: int, kind: str, rng: np.random.Generator) -> Leaf:
    """A leaf of two axes grown to `size` along `axis`."""
    old, width = leaf.shape[axis], leaf.shape[1 - axis]
    if kind == "mean":
        total = np.zeros(width)
        for begin in range(0, old, 4096):
            index = tuple(slice(begin, min(begin + 4096, old)) if k == axis else slice(0, width) for k in range(2))
            total += leaf.read(index).astype(np.float64).sum(axis)
        rows: np.ndarray = np.broadcast_to(total / old, (size - old, width))
    else:
        rows = 0.02 * rng.standard_normal((size - old, width), np.float32)
    rows = rows.astype(leaf.dtype) if axis == 0 else rows.astype(leaf.dtype).T

    def read(index: tuple[slice, ...]) -> np.ndarray:
        begin, end, _ = index[axis].indices(size)

        def at(first: int, last: int) -> tuple[slice, ...]:
            return tuple(slice(first, last) if k == axis else index[k] for k in range(2))

        pieces = []
        if begin < old:
            pieces.append(leaf.read(at(begin, min(end, old))))
        if end > old:
            pieces.append(rows[at(max(begin - old, 0), end - old)])
        return np.concatenate(pieces, axis)

    return leaf._replace(shape=(size, width) if axis == 0 else (width, size), read=read)


def _initial_leaves(model: ModelConfig, paths: list[str], seed: int) -> dict[str, Leaf]:
    """The parameters at these paths as a new model initialises them."""
    if not paths:
        return {}

    def init_missing() -> dict:
        tree = dreamllm.init(model, jax.random.key(seed))
        return {path: leaf for path, leaf in checkpoint.flatten(tree).items() if path in paths}

    arrays = jax.device_get(jax.jit(init_missing)())  # what is not returned is not computed
    return {path: Leaf(value.shape, value.dtype, value.__getitem__, "fresh") for path, value in arrays.items()}


def materialise(
    leaves: Mapping[str, Leaf], shardings: dict | None = None, dtype: DTypeLike | None = jnp.float32
) -> dict:
    """Nested parameters on devices, placed one after the other; each device reads its own shards alone.

    `shardings` is a tree like the parameters; without it they go to the default device. `dtype` None keeps the files'.
    """
    placed: dict = {}
    sharding_of = {} if shardings is None else checkpoint.flatten(shardings)
    for path, leaf in leaves.items():
        put(placed, path, place(leaf, sharding_of.get(path), dtype))
    return placed


def place(leaf: Leaf, sharding: Sharding | None = None, dtype: DTypeLike | None = None) -> jax.Array:
    """One parameter on its devices; `dtype` None keeps the leaf's."""

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None  # which JAX's type allows and its code never passes
        return np.asarray(leaf.read(definite_index(index, leaf.shape)), leaf.dtype if dtype is None else dtype)

    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.make_array_from_callback(leaf.shape, sharding, read)


def definite_index(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """An index with a slice of definite ends for every axis."""
    return tuple(slice(*s.indices(n)) for s, n in zip(index, shape, strict=True))
