"""Placement of mesh axes on a TPU slice: blocks of the torus that are joined by as many links as possible.

A collective is as fast as the links between its chips: of eight chips of 4 x 4 x 8 that exchange weights in every
layer, those of a cube have three links each, those of a line two. So each axis, the one with the most traffic first,
takes of each side of the slice a factor such that its groups are blocks without gaps; the rest is for the next axis.

    a side of 8 chips with factors 2 for fsdp and 4 for data:    data  0 0 1 1 2 2 3 3
                                                                 fsdp  0 1 0 1 0 1 0 1
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def factors(size: int, sides: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All ways to write `size` as a product of one divisor of each number in `left`."""
    divisors = [[n for n in range(1, side + 1) if side % n == 0] for side in sides]
    return [choice for choice in itertools.product(*divisors) if math.prod(choice) == size]


def closes(sides: tuple[int, ...]) -> tuple[bool, ...]:
    """True for each side whose last chip is linked with the first: in three dimensions all or none, if all sides are
    multiples of four; in two dimensions sides of 16.
    """
    if len(sides) > 2 and sides[2] > 1:
        return (all(side % 4 == 0 for side in sides[:3]),) * 3 + (False,) * (len(sides) - 3)
    return tuple(side == 16 for side in sides)


def links(factor: int, gap: float, side: int, closed: bool) -> float:
    """Links, each in one direction, that each of `factor` chips `gap` apart on a side has for its group: `gap` groups
    share them.

    A group that goes all the way round has them in both directions.
    """
    if factor == 1:
        return 0.0
    return (2 if closed and factor * gap == side else 1) / gap


def split(sides: tuple[int, ...], sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """For each axis, in the order of `sizes`, its factor of each side; the last axis chooses first, and its blocks lie
    innermost.

    The sizes must multiply to the number of chips.
    """
    remaining, gaps = sides, (1,) * len(sides)
    closed = closes(sides)
    by_axis: list[tuple[int, ...]] = []

    def score(choice: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
        return sum(map(links, choice, gaps, sides, closed)), choice

    for size in reversed(sizes):
        best = max(factors(size, remaining), key=score)
        remaining = tuple(a // b for a, b in zip(remaining, best, strict=True))
        gaps = tuple(a * b for a, b in zip(gaps, best, strict=True))
        by_axis.insert(0, best)
    return by_axis


def lay_out(chips: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """The devices of a slice, an array with an axis for each side of its torus, in the shape `sizes`, which multiply
    to their number.
    """
    by_axis = split(chips.shape, sizes)
    axes, sides = len(sizes), chips.ndim
    # Each side becomes an axis for each mesh axis; then those of a mesh axis come together.
    split_sides = chips.reshape([factor for side in zip(*by_axis, strict=True) for factor in side])
    return split_sides.transpose([side * axes + axis for axis in range(axes) for side in range(sides)]).reshape(sizes)


def slice_of(devices: Sequence[Any]) -> np.ndarray | None:
    """The devices of one TPU slice by coordinates, [*sides of the torus, cores of a chip]; None if they form no box."""
    places = {(*device.coords, device.core_on_chip): device for device in devices}
    lows = [min(values) for values in zip(*places, strict=True)]
    sides = [max(values) - low + 1 for values, low in zip(zip(*places, strict=True), lows, strict=False)]
    if len(places) != len(devices) or math.prod(sides) != len(devices):
        return None
    chips = np.empty(sides, object)
    for place, device in places.items():
        chips[tuple(a - low for a, low in zip(place, lows, strict=True))] = device
    return chips
