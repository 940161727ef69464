"""TPU slices by name, `v4:4x4x8`: their devices for the compiler, and the figures of their chips.

The compiler for TPUs runs on any machine with libtpu (`pip install "jax[tpu]"`). Names count chips along each side of
the torus; cloud names such as v4-128 count cores.
"""

import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from dreamjax.errors import ConfigError
from dreamjax.parallel import device_layout


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU chip, as its maker describes it. Speeds per second, a link's in one direction."""

    tflops: float  # bfloat16 peak
    hbm_gib: float  # of which programs can use about all
    hbm_gbytes: float
    link_gbytes: float  # one link between neighbours
    sides: int  # dimensions of the torus: 2 or 3
    clock_ghz: float  # of the matrix units: the compiler counts their cycles
    megacore: bool = False  # two cores that have to be asked to act as one device


CHIPS = {
    "v4": Chip(275, 32, 1200, 45, 3, 1.05, megacore=True),
    "v5p": Chip(459, 95, 2765, 90, 3, 1.75),
    "v5e": Chip(197, 16, 819, 45, 2, 1.5),
    "v6e": Chip(918, 32, 1640, 90, 2, 1.75),
}
DCN_GBYTES = 6.25  # per chip, between slices
# Feature maps are tiled over so many images: convolutions of nine images take as long as of sixteen.
IMAGE_TILE = 8


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice, or several of the same shape."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    wraps: tuple[bool, ...]  # True where the last chip of a side is linked with the first
    slices: int

    @property
    def chips(self) -> int:
        """The number of chips in all slices."""
        return math.prod(self.shape) * self.slices


def parse(name: str, slices: int = 1) -> Topology:
    """The topology of `v4:4x4x8`; ConfigError where there is no such chip or shape."""
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not match or match[1] not in CHIPS:
        raise ConfigError(
            f"--topology: {name!r} is no topology; write a chip ({', '.join(CHIPS)}) and its sides, as "
            "v4:4x4x8 or v5e:16x16"
        )
    chip, shape = CHIPS[match[1]], tuple(map(int, match[2].split("x")))
    if len(shape) != chip.sides or not all(shape):
        raise ConfigError(f"--topology: {name!r} needs {chip.sides} sides, each at least 1")
    if slices < 1:
        raise ConfigError(f"--slices: must be at least 1, is {slices}")
    return Topology(name, chip, shape, device_layout.closes(shape), slices)


def devices_of(topology: Topology) -> list[jax.Device]:
    """The slice's devices, one per chip, to compile for; ConfigError without libtpu or for an unknown slice."""
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            '--topology: the compiler for TPUs is missing; pip install "jax[tpu]" brings it (libtpu), no TPU is needed'
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not ask a cloud what machine this is
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no device is opened
    options = {"chip_config_name": "megacore"} if topology.chip.megacore else {}
    wrap = (*topology.wraps, False, False)[:3]
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, wrap=wrap, num_slices=topology.slices, **options
        )
    except Exception as error:  # raised by the plugin, of whatever type
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"--topology: the compiler knows no {topology.name!r}: {reason}") from None
    if len(description.devices) != topology.chips:
        raise ConfigError(
            f"--topology: {topology.name!r} has {len(description.devices)} devices for {topology.chips} chips"
        )
    return list(description.devices)
