"""A model folder: a model without the run that trained it.

    DIR/
      config.json     the ModelCard: the model, its chat template, the origins of its weights
      tokenizer/      tokenizer.model, special_tokens.json; CLIP's own tokenizers in text_encoder/ and clip_text/ below
                      it
      params/         the parameters (Orbax), in their source's dtype
      checksums.json  the dtype and the checksum of each parameter (checksums.py)
      origins.json    of an exported model: its run and that run's origins; of an imported one, those of its sources
                      (weight_transfer.py)

Parameters are written group by group, so that a model may be larger than the host's memory.
"""

import contextlib
import ctypes
import dataclasses
import functools
import gc
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.experimental import v1

from dreamjax.config import ModelConfig, RunConfig
from dreamjax.config.validation import from_dict, to_dict
from dreamjax.errors import ConfigError
from dreamjax.filesystem import atomic
from dreamjax.training import checksums
from dreamjax.training.checksums import reading

CHECKSUMS = "checksums.json"
CHECKPOINT_METADATA = "_CHECKPOINT_METADATA"  # Orbax's description of a checkpoint
# of a parameter on disk: entire chunks are read, so at real sizes a host reads little more than its devices' shards
CHUNK_BYTES = 2**22
GROUP_BYTES = 2**28  # leaves are written together up to this size: many are small, and each write costs a moment


@dataclasses.dataclass(frozen=True)
class LoadedFile:
    """A file that weights were read from."""

    name: str
    size: int  # bytes
    sha256: str


@dataclasses.dataclass(frozen=True)
class Origin:
    """A source of some of a model's weights."""

    source: str  # folder, file or hub name, as it was given
    format: str
    parts: tuple[str, ...]
    files: tuple[LoadedFile, ...] = ()


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """The content of a model folder's config.json."""

    model: ModelConfig
    template: str = "plain"
    origins: tuple[Origin, ...] = ()
    fresh: tuple[str, ...] = ()  # parameters that no source brought


def write_card(folder: epath.Path, card: ModelCard) -> None:
    """Writes config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / "config.json", json.dumps(to_dict(card), indent=1) + "\n")


def is_ours(folder: epath.Path) -> bool:
    """True for a model folder, a training workdir or a folder of no known kind; it may still be unreadable."""
    path = folder / "config.json"
    if not path.exists():
        return not any((folder / name).exists() for name in ("unet", "vae"))
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return True  # `read_card` says so
    return isinstance(values, dict) and "model" in values


def read_card(folder: epath.Path) -> ModelCard:
    """The card of a model folder, or of a training workdir by its RunConfig; ConfigError where it is neither."""
    values, location = read_settings(folder)
    if "optim" in values:
        config = from_dict(RunConfig, values, location)
        return ModelCard(config.model, config.data.template)
    return from_dict(ModelCard, values, location)


def read_settings(folder: epath.Path) -> tuple[dict, str]:
    """(content of config.json, its path); ConfigError where there is none."""
    path = folder / "config.json"
    if not path.exists():
        raise ConfigError(f"{folder}: is neither a training workdir nor a model folder (it has no config.json)")
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no settings")
    return values, str(path)


# ----------------------------------------------------------------------------------------------------------------------
# Parameters


def save_leaves(
    path: epath.Path, sizes: Mapping[str, int], make: Callable[[str], jax.Array], progress: Callable = iter
) -> None:
    """Writes the parameters {path: bytes} that `make` puts on devices, a few at a time; each is freed when it is
    written.

    `progress` wraps the list of groups, as tqdm does. An interrupted write leaves nothing at `path`. Their checksums go
    beside it.
    """
    written: dict[str, str] = {}
    context = v1.Context()
    context.array.saving.storage_options.chunk_byte_size = CHUNK_BYTES
    with context:
        for group in progress(groups(sizes)):
            leaves = {name: make(name) for name in group}
            written |= checksums.checksums(leaves)
            _save_group(path, leaves)
            del leaves
            _release_memory()
        if jax.process_index() == 0:  # before the parameters get their name: where they are, the checksums are
            atomic.write_text(path.parent / CHECKSUMS, json.dumps(written, indent=1) + "\n")
        v1.partial.finalize(path)
    described = path / CHECKPOINT_METADATA
    if jax.process_index() == 0 and described.exists():  # without it beside the arrays every later reading warns
        described.copy(path / "state" / CHECKPOINT_METADATA, overwrite=True)


def _save_group(path: epath.Path, leaves: dict[str, jax.Array]) -> None:
    tree: dict = {}
    for name, leaf in leaves.items():
        put(tree, name, leaf)
    v1.partial.save(path, tree)
    for leaf in leaves.values():
        leaf.delete()


def _release_memory() -> None:
    """Returns freed memory to the system before the next parameter is read.

    Orbax leaves reference cycles with the arrays, and the allocators of its threads keep their buffers.
    """
    gc.collect()
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def groups(sizes: Mapping[str, int]) -> list[list[str]]:
    """Groups of neighbouring leaves of up to GROUP_BYTES; a larger leaf is a group of its own."""
    result: list[list[str]] = [[]]
    total = 0
    for name, size in sizes.items():
        if result[-1] and total + size > GROUP_BYTES:
            result.append([])
            total = 0
        result[-1].append(name)
        total += size
    return result


def params_path(folder: epath.Path) -> epath.Path:
    """The Orbax folder with the parameters of a model folder."""
    path = folder / "params"
    return path / "state" if (path / "state").exists() else path


def read_checksums(folder: epath.Path) -> dict[str, str]:
    """{path: dtype and checksum} of a model folder's parameters; empty for one from before checksums."""
    file = folder / CHECKSUMS
    with reading(file):
        return checksums.as_checksums(json.loads(file.read_text())) if file.exists() else {}


def stored(folder: epath.Path) -> dict[str, jax.ShapeDtypeStruct]:
    """{path: shape and dtype} of the parameters that a model folder holds."""
    with reading(folder / "params"), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(params_path(folder)).item_metadata.tree
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: not isinstance(node, dict))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype)
        for path, leaf in leaves
    }


def reader(folder: epath.Path, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Callable[[str], np.ndarray]:
    """A function from the path of a parameter to its array.

    It caches the last group that it read, so read in the order of `shapes`.
    """
    expected = read_checksums(folder)
    grouped = groups({path: leaf.size * leaf.dtype.itemsize for path, leaf in shapes.items()})
    group_of = {path: number for number, group in enumerate(grouped) for path in group}

    @functools.lru_cache(maxsize=1)
    def read(number: int) -> dict:
        tree: dict = {}
        for path in grouped[number]:
            put(tree, path, shapes[path])
        as_numpy = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype), tree)
        with reading(folder / "params"), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.restore(
                params_path(folder), args=ocp.args.PyTreeRestore(tree, restore_args=as_numpy, partial_restore=True)
            )
        checksums.check(tree, expected, folder / "params")
        return tree

    return lambda path: get(read(group_of[path]), path)


def put(tree: dict, path: str, value: Any) -> None:
    """Sets the leaf at a path of nested dicts."""
    *names, last = path.split("/")
    for name in names:
        tree = tree.setdefault(name, {})
    tree[last] = value


def get(tree: dict, path: str) -> Any:
    """The leaf at a path of nested dicts."""
    for name in path.split("/"):
        tree = tree[name]
    return tree
