"""How long a compiled step may take: the compiler's schedule with its own cycle counts, walked in order, and a model of
the network.

An estimate, never checked on hardware: for comparing designs. What is assumed stands in ASSUMPTIONS and is printed with
it.
"""

import dataclasses
import math
import re

from dreamjax.compile_tpu import hlo
from dreamjax.compile_tpu.hlo import Instruction, Module
from dreamjax.compile_tpu.topology import DCN_GBYTES, Topology
from dreamjax.parallel import device_layout

KERNEL_SHARE = 0.5  # of the peak that Pallas kernels reach; the compiler gives no cycles for them
ASSUMPTIONS = (
    "fusions take the cycles that the compiler estimates, which count matrix units and HBM",
    f"Pallas kernels run at {KERNEL_SHARE:.0%} of the peak",
    "instructions without an estimate take the time of their bytes in HBM",
    "a collective moves its bytes over all links of the torus axes that its group spans, in both "
    "directions where one closes; groups that lie apart share them",
    "collectives run one after the other, between slices beside those within; asynchronous ones run "
    "beside computation, the others not",
)
# Matrix products in each splash attention kernel, by the end of its name; queries x keys x width each.
KERNEL_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
FREE = {
    "parameter",
    "constant",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "copy-start",
    "copy-done",
    "slice-start",
    "slice-done",
    "partition-id",
    "after-all",
    "opt-barrier",
    "send",
    "send-done",
}


@dataclasses.dataclass
class Cost:
    """What one run of a computation costs; loops inside count as often as they turn."""

    seconds: float = 0.0  # of the schedule, waiting included
    waiting: float = 0.0  # for collectives, part of `seconds`
    kernels: float = 0.0  # in Pallas kernels, part of `seconds`
    flops: float = 0.0
    hbm_bytes: float = 0.0
    network: float = 0.0  # seconds that the links are busy
    collectives: dict = dataclasses.field(default_factory=dict)  # (kind, asynchronous) -> [count, bytes]

    def add(self, other: "Cost", times: int = 1):
        for name in ("seconds", "waiting", "kernels", "flops", "hbm_bytes", "network"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for key, (count, size) in other.collectives.items():
            mine = self.collectives.setdefault(key, [0, 0.0])
            mine[0] += times * count
            mine[1] += times * size


class Walk:
    """Costs of a module's computations on a topology, whose devices lie at `coordinates` (slice, then torus) by
    partition number.
    """

    def __init__(self, module: Module, topology: Topology, coordinates: list[tuple[int, ...]]):
        self.module, self.topology, self.coordinates = module, topology, coordinates
        self.known: dict[str, Cost] = {}
        self.largest: hlo.Collective | None = None

    def cost(self, computation: str) -> Cost:
        if computation not in self.known:
            self.known[computation] = self._run(computation)
        return self.known[computation]

    def _run(self, computation: str) -> Cost:
        """The schedule from top to bottom.

        `clock` is when the core is free, `free` when the links of a slice and those between slices are.
        """
        cost, clock, free = Cost(), 0.0, {"within": 0.0, "between": 0.0}
        ends: dict[str, float] = {}  # when a started collective is through
        seen: set[str] = set()  # channels already counted: a collective may be spread over several fusions
        instructions = self.module.computations[computation]
        types = {one.name: one.shapes for one in instructions}
        for one in instructions:
            if one.opcode in FREE:
                continue
            if one.opcode in ("while", "conditional", "call"):
                inner = self._nested(one)
                cost.add(inner)
                clock += inner.seconds
                free = {links: max(end, clock) for links, end in free.items()}
                continue
            found = hlo.collective_of(self.module, computation, one, len(self.coordinates))
            if found is None and not one.opcode.endswith("-done"):
                clock += self._compute(one, types, cost)
                continue
            if found is not None and found.channel not in seen:
                seen.add(found.channel)
                took = self._network_seconds(found)
                if self.largest is None or found.bytes > self.largest.bytes:
                    self.largest = found
                asynchronous = (
                    one.opcode == "recv"
                    or one.opcode.endswith("-start")
                    or one.name.startswith("async-collective-start")
                )
                key = (found.kind, asynchronous)
                count = cost.collectives.setdefault(key, [0, 0.0])
                count[0] += 1
                count[1] += found.bytes
                cost.network += took
                links = "between" if self._slices(found) > 1 else "within"
                ends[found.channel] = free[links] = max(clock, free[links]) + took
                if not asynchronous:
                    cost.waiting += free[links] - clock
                    clock = free[links]
            elif found is not None and one.opcode == "fusion" and not one.name.startswith("async-collective"):
                clock += self._compute(one, types, cost)  # a step of computation with a piece of a collective in it
            if one.name.startswith("async-collective-done") or one.opcode.endswith("-done"):
                channel = found.channel if found else self._channel_behind(one, instructions)
                end = ends.get(channel, clock)
                cost.waiting += max(end - clock, 0.0)
                clock = max(end, clock)
        cost.seconds = clock
        return cost

    def _nested(self, one: Instruction) -> Cost:
        cost = Cost()
        if one.opcode == "while":
            cost.add(self.cost(one.attribute("body")), hlo.trip_count(self.module, one))
        elif one.opcode == "call":
            cost.add(self.cost(one.attribute("to_apply")))
        else:
            branches = (
                re.findall(r"%([\w.\-]+)", re.search(r"branch_computations=\{([^}]*)\}", one.rest)[1])
                if "branch_computations" in one.rest
                else [one.attribute("true_computation"), one.attribute("false_computation")]
            )
            cost.add(max((self.cost(branch) for branch in branches), key=lambda one: one.seconds))
        return cost

    def _channel_behind(self, one: Instruction, instructions) -> str:
        """The channel of the start that a done ends."""
        by_name = {start.name: start for start in instructions}
        start = by_name.get(one.operands[0]) if one.operands else None
        found = re.search(r"channel_id=(\d+)", start.rest) if start else None
        return found[1] if found else one.operands[0] if one.operands else ""

    def _compute(self, one: Instruction, types: dict, cost: Cost) -> float:
        """Seconds of an instruction that computes; its FLOPs and bytes go to `cost`."""
        chip = self.topology.chip
        size = hlo.bytes_of(one.shapes) + sum(hlo.bytes_of(types.get(name, ())) for name in one.operands)
        if one.opcode == "custom-call":
            if "tpu_custom_call" not in one.rest:
                return 0.0
            flops = kernel_flops(one, types)
            seconds = max(flops / (KERNEL_SHARE * chip.tflops * 1e12), size / (chip.hbm_gbytes * 1e9))
            cost.kernels += seconds
        else:
            flops = self._matmuls(one, types)
            seconds = one.cycles / (chip.clock_ghz * 1e9) or size / (chip.hbm_gbytes * 1e9)
        cost.flops += flops
        cost.hbm_bytes += size
        return seconds

    def _matmuls(self, one: Instruction, types: dict) -> float:
        if one.opcode in ("convolution", "dot"):
            return hlo.matmul_flops(one, types)
        if one.opcode != "fusion":
            return 0.0
        inside = self.module.computations.get(one.attribute("calls"), ())
        inner = {each.name: each.shapes for each in inside}
        return sum(self._matmuls(each, inner) for each in inside)

    def _slices(self, found: hlo.Collective) -> int:
        """How many slices a collective joins."""
        return len({self.coordinates[n][0] for n in found.group})

    def _network_seconds(self, found: hlo.Collective) -> float:
        """Time on the links: a ring over every torus axis that the group spans, or the network between slices."""
        members, slices = [self.coordinates[n] for n in found.group], self._slices(found)
        n = slices if slices > 1 else len(members)
        if n < 2:
            return 0.0
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0, "one-to-one": 1.0}.get(
            found.kind, (n - 1) / n
        )
        chip, speed = self.topology.chip, DCN_GBYTES if slices > 1 else 0.0
        if slices == 1:
            for axis, (side, wraps) in enumerate(zip(self.topology.shape, self.topology.wraps, strict=True), 1):
                places = sorted({place[axis] for place in members})
                gap = (places[-1] - places[0]) / (len(places) - 1) if len(places) > 1 else 1
                if len(places) == 2 and wraps:
                    gap = min(gap, side - gap)
                speed += chip.link_gbytes * device_layout.links(len(places), gap, side, wraps)
        return (
            share * found.bytes / (speed * 1e9) if speed else 0.0
        )  # 0: the first pair of a permutation may be a chip with itself


def kernel_flops(one: Instruction, types: dict) -> float:
    """FLOPs of a splash attention kernel from its operands' shapes, whole blocks behind a causal diagonal left out; 0
    for other kernels.

    Of the package's kernels those that know segments are causal, and the others are not (models/attention.py).
    """
    name = re.match(r"splash_m[hq]a_(fwd|dq|dkv)(_segmented)?", one.name)
    if not name:
        return 0.0
    heads = [
        shape
        for operand in one.operands
        for kind, shape in types.get(operand, ())
        if len(shape) in (3, 4) and kind in ("bf16", "f32", "f16")
    ]
    *batch, length, width = heads[0]
    keys = heads[1][-2]
    block = re.search(r'block_q(?:_dkv|_dq)?\\?": (\d+)', one.rest)
    blocks = length // int(block[1]) if block else 1
    visible = (blocks + 1) / (2 * blocks) if name[2] else 1.0
    return KERNEL_PRODUCTS[name[1]] * 2.0 * math.prod(batch) * length * keys * width * visible
