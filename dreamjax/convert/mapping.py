"""Foreign names and layouts to ours and back; the tables themselves stand in one file per foreign format.

Our parameters are named by path (`llm/layers/mlp/up/kernel`), those of layers are stacked on axis 0, kernels are
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
    """Names of one part in one format."""

    names: Mapping[str, str]  # our path within the part -> their name, with {i} for the number of the layer
    layers: int = 0  # that {i} counts
    old: tuple[tuple[str, str], ...] = ()  # (pattern, replacement): names that older files use
    left: tuple[str, ...] = ()  # patterns of what no parameter needs: buffers that are computed


class Leaf(NamedTuple):
    """One of our parameters, read from foreign tensors (or made) when it is asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[tuple[slice, ...]], np.ndarray]  # one slice per axis
    origin: str  # where from, in words
    tensors: tuple[str, ...] = ()  # the foreign tensors that it is read from, by their names
    stacked: bool = False  # one of them for each entry of axis 0


def match(
    part: str, table: Table, shapes: Mapping[str, tuple[int, ...]], tensors: Tensors, where: str
) -> dict[str, Leaf]:
    """Our leaves {part/path: Leaf} of the wanted `shapes` {path: shape}, out of `tensors`.

    Each tensor is used once or named in `table.left`. ConfigError says which is missing, is not known or has another
    shape, with both names and both shapes.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        today = renamed(table, name)
        if today in found:
            raise ConfigError(f"{where}: {name} and {found[today].name} are both {today}")
        found[today] = tensor
    leaves, used = {}, set()
    for path, shape in shapes.items():
        path_in_model = f"{part}/{path}".removesuffix("/")
        if path not in table.names:
            raise ConfigError(f"{where}: no name is known for {path_in_model} {shape}")
        names = names_of(table, path)
        for name in names:
            if name not in found:
                raise ConfigError(f"{where}: has no {name}, needed for {path_in_model} {shape}")
        stacked = "{i}" in table.names[path]
        one = shape[1:] if stacked else shape
        for name in names:
            if _fit(path, one, found[name].shape) is None:
                theirs, wanted = found[name].shape, their_shape(path, one)
                raise ConfigError(f"{where}: {name} is {theirs}, must be {wanted} for {path_in_model} {shape}")
        used.update(names)
        leaves[path_in_model] = leaf_of(path, shape, stacked, tuple(found[name] for name in names))
    unknown = [
        name for name in found if name not in used and not any(re.search(pattern, name) for pattern in table.left)
    ]
    if unknown:
        raise ConfigError(
            f"{where}: {len(unknown)} tensors fit nowhere, the first is {unknown[0]} {found[unknown[0]].shape}"
        )
    return leaves


def renamed(table: Table, name: str) -> str:
    """Their name of today for one that an older file may use."""
    return functools.reduce(lambda text, rule: re.sub(rule[0], rule[1], text), table.old, name)


def names_of(table: Table, path: str) -> list[str]:
    """Their names for one of our leaves: one, or one per layer."""
    name = table.names[path]
    return [name.replace("{i}", str(i)) for i in range(table.layers)] if "{i}" in name else [name]


def leaf_of(path: str, shape: tuple[int, ...], stacked: bool, tensors: tuple[Tensor, ...]) -> Leaf:
    """The leaf that one tensor makes, or one per layer."""

    def read(index: tuple[slice, ...]) -> np.ndarray:
        if not stacked:
            return _read_one(path, shape, tensors[0], index)
        chosen = tensors[index[0]]
        sizes = [len(range(*s.indices(n))) for s, n in zip(index[1:], shape[1:], strict=True)]
        out = aligned((len(chosen), *sizes), tensors[0].dtype)
        for i, tensor in enumerate(chosen):
            out[i] = _read_one(path, shape[1:], tensor, index[1:])
        return out

    return Leaf(shape, tensors[0].dtype, read, str(tensors[0].file), tuple(tensor.name for tensor in tensors), stacked)


def to_theirs(table: Table, path: str, value: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(their name, their array) of one of our parameters.

    Several where it is stacked. The inverse of `match`'s reading.
    """
    stacked = "{i}" in table.names[path]
    for i, name in enumerate(names_of(table, path)):
        one = value[i] if stacked else value
        axes = _axes(path, one.ndim)
        yield name, np.array(one.transpose(np.argsort(axes)), order="C")


def their_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that torch has for one of our parameters (one layer of it)."""
    axes = _axes(path, len(shape))
    return tuple(shape[k] for k in np.argsort(axes))


def _axes(path: str, ndim: int) -> tuple[int, ...]:
    """For each of our axes, theirs."""
    if path.endswith("kernel"):
        return {2: (1, 0), 4: (2, 3, 1, 0)}[ndim]
    return tuple(range(ndim))


def _fit(path: str, shape: tuple[int, ...], theirs: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape to read their tensor in.

    Its own, or with the 1 x 1 of a convolution dropped or added; None if it does not fit.
    """
    wanted = their_shape(path, shape)
    if theirs == wanted:
        return wanted
    if path.endswith("kernel") and (theirs == (*wanted, 1, 1) or (*theirs, 1, 1) == wanted):
        return wanted
    return None


def _read_one(path: str, shape: tuple[int, ...], tensor: Tensor, index: tuple[slice, ...]) -> np.ndarray:
    """A slice, by our axes, of one tensor."""
    axes = _axes(path, len(shape))
    theirs = [index[k] for k in np.argsort(axes)]
    asked = theirs[: len(tensor.shape)] + [slice(None)] * (len(tensor.shape) - len(theirs))
    read = tensor.read(tuple(asked))
    if read.ndim != len(shape):  # a 1 x 1 convolution against a linear layer
        read = read.reshape(read.shape[:2] + (1, 1) * (len(shape) == 4))
    return read.transpose(axes)
