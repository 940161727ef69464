"""Foreign weight files as tensors that are read lazily, slice by slice.

safetensors files are memory-mapped, torch's pickles too where their format allows; so a slice that is not read costs no
memory, and one that was read returns to the page cache.
"""

import functools
import hashlib
import json
import math
import os
import pathlib
import re
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from dreamjax.errors import ConfigError, OutsideFolder
from dreamjax.filesystem import containment

DTYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F64": np.float64,
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
SHARD = re.compile(r"-\d+-of-\d+\.")  # in the name of a file that an index names

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
ALIGNMENT = 64  # bytes


class Tensor(NamedTuple):
    """One tensor of a foreign file."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    file: pathlib.Path
    read: Callable[[tuple[slice, ...]], np.ndarray]  # one slice per axis


Tensors = Mapping[str, Tensor]


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file; ConfigError where the file is missing or holds no object."""
    require_content(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: is missing") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: needs an object, not {values!r:.80}")
    return values


def require_content(path: pathlib.Path) -> None:
    """ConfigError where a file is a pointer of Git LFS."""
    if path.is_file():
        with open(path, "rb") as opened:
            if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                raise ConfigError(f"{path}: is a Git LFS pointer, not the file itself: run git lfs pull in its folder")


def open_weights(folder: pathlib.Path, stems: Iterable[str]) -> tuple[dict[str, Tensor], tuple[pathlib.Path, ...]]:
    """(tensors by name, files) of the first of `stems` that a folder holds, each as safetensors or as torch's .bin,
    in one file or in shards.

    Plain names come before variants (`model.fp16.safetensors`), safetensors before .bin, stems in their order and one
    file before shards. Of variants the first by name is taken, and those with weights of training beside their average
    (non_ema) last. ConfigError where there are none, or where shards are missing.
    """
    plain, variants = [], []
    for suffix in (".safetensors", ".bin"):
        for stem in stems:
            plain += [folder / f"{stem}{suffix}", folder / f"{stem}{suffix}.index.json"]
            matching = sorted([*folder.glob(f"{stem}.*{suffix}"), *folder.glob(f"{stem}{suffix}.index.*.json")])
            variants += [file for file in matching if not SHARD.search(file.name)]
    for file in [*plain, *sorted(variants, key=lambda file: "non_ema" in file.name)]:
        if file.exists():
            return _open_files(_shards(folder, file) if file.suffix == ".json" else [file])
    names = ", ".join(f"{stem}.safetensors or .bin" for stem in stems)
    raise ConfigError(f"{folder}: holds no weights ({names})")


def _shards(folder: pathlib.Path, index: pathlib.Path) -> list[pathlib.Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ConfigError(f"{index}: weight_map: needs the name of a file for each tensor")
    files = [_shard(folder, name, index) for name in sorted(set(names.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise ConfigError(f"{index}: names the shards {', '.join(missing) or 'of nothing'}, which the folder lacks")
    return files


def _shard(folder: pathlib.Path, name: str, index: pathlib.Path) -> pathlib.Path:
    """A shard in the folder, or a link there into the hub's cache."""
    try:
        return pathlib.Path(containment.inside(folder, name))
    except OutsideFolder as error:
        file = folder / name
        if pathlib.PurePath(name).name == name and file.is_symlink() and file.resolve().parent.name == "blobs":
            return file
        raise ConfigError(f"{index}: weight_map: {error}") from None


def _open_files(files: list[pathlib.Path]) -> tuple[dict[str, Tensor], tuple[pathlib.Path, ...]]:
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in open_file(file).items():
            if name in tensors:
                raise ConfigError(f"{name}: is in {tensors[name].file.name} and again in {file.name}")
            tensors[name] = tensor
    return tensors, tuple(files)


def open_file(file: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file or torch pickle."""
    require_content(file)
    return _open_safetensors(file) if file.suffix == ".safetensors" else _open_pickle(file)


def _open_safetensors(file: pathlib.Path) -> dict[str, Tensor]:
    import safetensors

    try:
        opened = safetensors.safe_open(file, framework="np")
        slices = {name: opened.get_slice(name) for name in opened.keys()}
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{file}: is no safetensors file: {error}") from None
    unknown = {name: s.get_dtype() for name, s in slices.items() if s.get_dtype() not in DTYPES}
    if unknown:
        name = next(iter(unknown))
        raise ConfigError(f"{file}: {name} has the type {unknown[name]}, which is none of {', '.join(DTYPES)}")
    return {
        name: Tensor(
            name, tuple(s.get_shape()), np.dtype(DTYPES[s.get_dtype()]), file, functools.partial(_read_slice, s)
        )
        for name, s in slices.items()
    }


def _read_slice(lazy, index: tuple[slice, ...]) -> np.ndarray:
    return lazy[index] if index else lazy[...]


def _open_pickle(file: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of a torch pickle, loaded with weights_only."""
    torch = require_torch(file)
    try:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before torch 1.6 cannot be mapped
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling fails in as many ways as there are files
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{file}: is not a file of weights alone: {type(error).__name__} {reason}") from error
    odd = (
        [name for name, value in state.items() if not isinstance(name, str) or not torch.is_tensor(value)]
        if isinstance(state, dict)
        else [type(state).__name__]
    )
    if odd:
        raise ConfigError(f"{file}: holds something else than tensors by name: {odd[0]!r:.80}")
    return {name: _torch_tensor(torch, name, value, file) for name, value in state.items()}


def _torch_tensor(torch, name: str, value, file: pathlib.Path) -> Tensor:
    value = value.detach()
    try:
        is_half = value.dtype == torch.bfloat16  # which torch cannot convert to numpy
        array = value.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16) if is_half else value.numpy()
    except (TypeError, RuntimeError):  # sparse, quantised, on no device
        array = None
    if array is None or array.dtype not in DTYPES.values():
        raise ConfigError(
            f"{file}: {name} is a {value.layout} tensor of {value.dtype} on {value.device}, which is none "
            f"of {', '.join(DTYPES)}"
        )
    return from_array(name, array, file)


def from_array(name: str, array: np.ndarray, file: pathlib.Path) -> Tensor:
    """A tensor of an array in memory or a memory map."""
    return Tensor(name, array.shape, array.dtype, file, lambda index: array[index])


def aligned(shape: tuple[int, ...], dtype) -> np.ndarray:
    """An empty array at an address that JAX's CPU devices use without a copy, which numpy's own seldom are."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    begin = -raw.ctypes.data % ALIGNMENT
    return raw[begin : begin + size].view(dtype).reshape(shape)


def require_torch(file: os.PathLike) -> types.ModuleType:
    """The module torch, which only pickles need; ConfigError with the command that installs it."""
    try:
        import torch
    except ImportError:
        raise ConfigError(
            f"{file}: is a torch pickle, and torch is not installed; pip install torch, or use safetensors"
        ) from None
    return torch


def sha256(file: pathlib.Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
