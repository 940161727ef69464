"""Where mesh axes lie on a torus: every device once, in blocks with the most links."""

import itertools
import math

import numpy as np
import pytest

from dreamjax.parallel import device_layout


def slice_like(*sides):
    """A slice whose devices are their own coordinates."""
    chips = np.empty(sides, object)
    for place in itertools.product(*map(range, sides)):
        chips[place] = place
    return chips


@pytest.mark.parametrize(
    "sides, sizes, fsdp",
    [
        ((2, 2, 4), (2, 8, 1), (2, 2, 2)),  # a cube: three links a chip, a plane of 2 x 4 has two
        ((4, 4, 8), (16, 8, 1), (4, 2, 1)),  # a ring of four counts twice
        ((4, 4, 8), (4, 32, 1), (4, 4, 2)),
        ((4, 4, 8), (1, 128, 1), (4, 4, 8)),
        ((8, 16), (2, 64, 1), (4, 16)),  # in two dimensions only sides of 16 close
        ((4, 4, 12), (4, 48, 1), (4, 4, 3)),
    ],
)
def test_groups_are_blocks_with_the_most_links(sides, sizes, fsdp):
    placed = device_layout.lay_out(slice_like(*sides), sizes)
    assert placed.shape == sizes
    assert sorted(placed.ravel()) == sorted(itertools.product(*map(range, sides)))
    for group in placed[:, :, 0]:
        lows, highs = np.min(group.tolist(), axis=0), np.max(group.tolist(), axis=0)
        assert tuple(highs - lows + 1) == fsdp


@pytest.mark.parametrize("sides, sizes", [((4, 4, 4), (2, 8, 4)), ((2, 4, 6), (4, 3, 4)), ((8, 8, 1, 2), (2, 16, 4))])
def test_the_axis_with_the_most_traffic_chooses_first(sides, sizes):
    by_axis = device_layout.split(sides, sizes)
    assert tuple(map(math.prod, by_axis)) == sizes and tuple(map(math.prod, zip(*by_axis, strict=True))) == sides

    def joined(choice):
        return sum(map(device_layout.links, choice, (1,) * len(sides), sides, device_layout.closes(sides)))

    every = itertools.product(*(range(1, side + 1) for side in sides))
    brute = [choice for choice in every if math.prod(choice) == sizes[2] and not any(map(int.__mod__, sides, choice))]
    assert joined(by_axis[2]) == max(map(joined, brute))


def test_groups_that_lie_apart_share_links():
    assert (
        device_layout.links(4, 1, 4, True) == 2
        and device_layout.links(4, 1, 8, True) == 1
        and device_layout.links(1, 1, 4, True) == 0
    )
    assert device_layout.links(4, 2, 8, True) == 1 and device_layout.links(2, 2, 4, False) == 0.5
