"""Where the axes of a mesh lie on a TPU slice: blocks of the torus that as many links as possible join.

A collective is as fast as the links between its chips: of eight chips of 4 x 4 x 8 that exchange weights in every
layer, those of a cube have three links each, those of a line two. So each axis, the one with the most traffic first,
takes of each side of the slice a factor such that its groups are blocks without gaps; what is left is the next axis'.

    a side of 8 chips with factors 2 for fsdp and 4 for data:    data  0 0 1 1 2 2 3 3
                                                                 fsdp  0 1 0 1 0 1 0 1
"""

import itertools
import math

import numpy as np


def factors(size: int, left: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All ways to write `size` as a product of one divisor of each number in `left`."""
    divisors = [[n for n in range(1, side + 1) if side % n == 0] for side in left]
    return [choice for choice in itertools.product(*divisors) if math.prod(choice) == size]


def closes(sides: tuple[int, ...]) -> tuple[bool, ...]:
    """Whether the last chip of each side is linked with the first.

    In three dimensions if all sides are multiples of four, in two those of 16.
    """
    if len(sides) > 2 and sides[2] > 1:
        return (all(side % 4 == 0 for side in sides[:3]),) * 3 + (False,) * (len(sides) - 3)
    return tuple(side == 16 for side in sides)


def links(factor: int, gap: int, side: int, closed: bool) -> float:
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
    left, gaps, found = sides, (1,) * len(sides), []
    for size in reversed(sizes):
        best = max(
            factors(size, left),
            key=lambda choice, gaps=gaps: (sum(map(links, choice, gaps, sides, closes(sides))), choice),
        )
        left, gaps = (
            tuple(a // b for a, b in zip(left, best, strict=True)),
            tuple(a * b for a, b in zip(gaps, best, strict=False)),
        )
        found.insert(0, best)
    return found


def lay_out(chips: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """The devices of a slice, an array with an axis for each side of its torus, in the shape `sizes`, which multiply
    to their number.
    """
    by_axis = split(chips.shape, sizes)
    axes, sides = len(sizes), chips.ndim
    # Each side becomes an axis for each mesh axis; then those of a mesh axis come together.
    apart = chips.reshape([factor for side in zip(*by_axis, strict=True) for factor in side])
    return apart.transpose([side * axes + axis for axis in range(axes) for side in range(sides)]).reshape(sizes)


def slice_of(devices) -> np.ndarray | None:
    """The devices of one TPU slice at their places, an axis for each side of the torus and one for a chip's cores.

    None where they are not a box.
    """
    places = {(*device.coords, device.core_on_chip): device for device in devices}
    lows = [min(values) for values in zip(*places, strict=True)]
    sides = [max(values) - low + 1 for values, low in zip(zip(*places, strict=True), lows, strict=False)]
    if len(places) != len(devices) or math.prod(sides) != len(devices):
        return None
    chips = np.empty(sides, object)
    for place, device in places.items():
        chips[tuple(a - low for a, low in zip(place, lows, strict=True))] = device
    return chips
