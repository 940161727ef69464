"""Names and layouts of parameters, foreign to Flax and back; formats/ has one file with tables per foreign format.

Flax parameters are named by path (`llm/layers/mlp/up/kernel`), those of layers are stacked on axis 0, kernels are
[in, out] and [height, width, in, out]; torch has one tensor per layer, [out, in] and [out, in, height, width].
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from dreamjax.convert.tensors import Tensor, Tensors, aligned
from dreamjax.errors import ConfigError


class Table(NamedTuple):
    """The tensor names of one part in one format."""

    names: Mapping[str, str]  # path within the part -> foreign name, with {i} for the number of the layer
    layers: int = 0  # the range of {i}
    old_names: tuple[tuple[str, str], ...] = ()  # (pattern, replacement) for names in older files
    ignored: tuple[str, ...] = ()  # patterns of tensors that no parameter needs, such as buffers


class Leaf(NamedTuple):
    """One Flax parameter, read lazily from foreign tensors."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[tuple[slice, ...]], np.ndarray]  # one slice per axis
    origin: str  # for messages: a file, or "fresh"
    tensors: tuple[str, ...] = ()  # names of the foreign tensors that it is read from
    stacked: bool = False  # one tensor for each entry of axis 0


def match(
    part: str, table: Table, shapes: Mapping[str, tuple[int, ...]], tensors: Tensors, location: str
) -> dict[str, Leaf]:
    """Leaves {part/path: Leaf} for the parameters `shapes` {path: shape}, read from `tensors`.

    Each tensor is used once or matched by `table.ignored`. ConfigError names one that is missing, unknown or of another
    shape, with both names and both shapes.
    """
    by_name: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name_in_table = current_name(table, name)
        if name_in_table in by_name:
            raise ConfigError(f"{location}: {name} and {by_name[name_in_table].name} are both {name_in_table}")
        by_name[name_in_table] = tensor
    leaves, used_names = {}, set()
    for path, shape in shapes.items():
        path_in_model = f"{part}/{path}".removesuffix("/")
        if path not in table.names:
            raise ConfigError(f"{location}: no name is known for {path_in_model} {shape}")
        names = foreign_names(table, path)
        for name in names:
            if name not in by_name:
                raise ConfigError(f"{location}: has no {name}, needed for {path_in_model} {shape}")
        stacked = "{i}" in table.names[path]
        tensor_shape = shape[1:] if stacked else shape
        for name in names:
            if _fit(path, tensor_shape, by_name[name].shape) is None:
                actual, expected = by_name[name].shape, torch_shape(path, tensor_shape)
                raise ConfigError(f"{location}: {name} is {actual}, must be {expected} for {path_in_model} {shape}")
        used_names.update(names)
        leaves[path_in_model] = leaf_of(path, shape, stacked, tuple(by_name[name] for name in names))
    unknown = [
        name
        for name in by_name
        if name not in used_names and not any(re.search(pattern, name) for pattern in table.ignored)
    ]
    if unknown:
        raise ConfigError(
            f"{location}: {len(unknown)} tensors fit nowhere, the first is {unknown[0]} {by_name[unknown[0]].shape}"
        )
    return leaves


def current_name(table: Table, name: str) -> str:
    """The name in the table for a tensor name that an older file may use."""
    return functools.reduce(lambda text, rule: re.sub(rule[0], rule[1], text), table.old_names, name)


def foreign_names(table: Table, path: str) -> list[str]:
    """The foreign names for the parameter at `path`: one, or one per layer."""
    name = table.names[path]
    return [name.replace("{i}", str(i)) for i in range(table.layers)] if "{i}" in name else [name]


def leaf_of(path: str, shape: tuple[int, ...], stacked: bool, tensors: tuple[Tensor, ...]) -> Leaf:
    """The leaf read from one tensor, or from one per layer."""

    def read(index: tuple[slice, ...]) -> np.ndarray:
        if not stacked:
            return _read_tensor(path, shape, tensors[0], index)
        chosen = tensors[index[0]]
        sizes = [len(range(*s.indices(n))) for s, n in zip(index[1:], shape[1:], strict=True)]
        out = aligned((len(chosen), *sizes), tensors[0].dtype)
        for i, tensor in enumerate(chosen):
            out[i] = _read_tensor(path, shape[1:], tensor, index[1:])
        return out

    return Leaf(shape, tensors[0].dtype, read, str(tensors[0].file), tuple(tensor.name for tensor in tensors), stacked)


def to_foreign(table: Table, path: str, value: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(foreign name, foreign array) of the parameter at `path`, several where it is stacked: the inverse of `match`."""
    stacked = "{i}" in table.names[path]
    for i, name in enumerate(foreign_names(table, path)):
        tensor = value[i] if stacked else value
        axes = _axes(path, tensor.ndim)
        yield name, np.array(tensor.transpose(np.argsort(axes)), order="C")


def torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The torch shape of a parameter, or of one layer of a stacked one."""
    axes = _axes(path, len(shape))
    return tuple(shape[k] for k in np.argsort(axes))


def _axes(path: str, ndim: int) -> tuple[int, ...]:
    """For each Flax axis, the torch axis."""
    if path.endswith("kernel"):
        return {2: (1, 0), 4: (2, 3, 1, 0)}[ndim]
    return tuple(range(ndim))


def _fit(path: str, shape: tuple[int, ...], actual: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape to read a torch tensor in, with or without the 1 x 1 of a convolution; None if it does not fit."""
    expected = torch_shape(path, shape)
    if actual == expected:
        return expected
    if path.endswith("kernel") and (actual == (*expected, 1, 1) or (*actual, 1, 1) == expected):
        return expected
    return None


def _read_tensor(path: str, shape: tuple[int, ...], tensor: Tensor, index: tuple[slice, ...]) -> np.ndarray:
    """A slice of one tensor, indexed and returned in Flax axes."""
    axes = _axes(path, len(shape))
    by_foreign_axes = [index[k] for k in np.argsort(axes)]
    foreign_index = by_foreign_axes[: len(tensor.shape)] + [slice(None)] * (len(tensor.shape) - len(by_foreign_axes))
    array = tensor.read(tuple(foreign_index))
    if array.ndim != len(shape):  # a 1 x 1 convolution against a linear layer
        array = array.reshape(array.shape[:2] + (1, 1) * (len(shape) == 4))
    return array.transpose(axes)
