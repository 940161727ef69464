"""Estimated duration of a compiled step: a walk through the compiler's schedule with its cycle counts, and a model of
the network.

An estimate for comparing designs, never checked on hardware. ASSUMPTIONS are printed with it.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

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
    """The cost of one run of a computation; nested loops count once per iteration."""

    seconds: float = 0.0  # of the schedule, waiting included
    waiting: float = 0.0  # for collectives, part of `seconds`
    kernels: float = 0.0  # in Pallas kernels, part of `seconds`
    flops: float = 0.0
    hbm_bytes: float = 0.0
    network: float = 0.0  # seconds that the links are busy
    collectives: dict[tuple[str, bool], list] = dataclasses.field(
        default_factory=dict
    )  # (kind, asynchronous) -> [count, bytes]

    def add(self, other: "Cost", times: int = 1) -> None:
        """Adds `times` runs of another computation."""
        for name in ("seconds", "waiting", "kernels", "flops", "hbm_bytes", "network"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for key, (count, size) in other.collectives.items():
            sums = self.collectives.setdefault(key, [0, 0.0])
            sums[0] += times * count
            sums[1] += times * size


@dataclasses.dataclass
class _Schedule:
    """The state of a walk through one computation's schedule."""

    types: dict[str, hlo.Shapes]  # of the results, by instruction
    cost: Cost = dataclasses.field(default_factory=Cost)
    clock: float = 0.0  # when the core is free
    # when the links of a slice, and those between slices, are free
    links: dict[str, float] = dataclasses.field(default_factory=lambda: {"within": 0.0, "between": 0.0})
    ends: dict[str, float] = dataclasses.field(default_factory=dict)  # of started collectives, by channel
    # channels already counted: a collective may be spread over several fusions
    channels: set[str] = dataclasses.field(default_factory=set)

    def run_nested(self, cost: Cost) -> None:
        """Runs a loop, branch or call, during which the links are idle at the end."""
        self.cost.add(cost)
        self.clock += cost.seconds
        self.links = {links: max(end, self.clock) for links, end in self.links.items()}

    def start(self, collective: hlo.Collective, asynchronous: bool, links: str, seconds: float) -> None:
        """Starts a collective on the named links, and waits for it unless it is asynchronous."""
        self.channels.add(collective.channel)
        count = self.cost.collectives.setdefault((collective.kind, asynchronous), [0, 0.0])
        count[0] += 1
        count[1] += collective.bytes
        self.cost.network += seconds
        self.ends[collective.channel] = self.links[links] = max(self.clock, self.links[links]) + seconds
        if not asynchronous:
            self.cost.waiting += self.links[links] - self.clock
            self.clock = self.links[links]

    def wait_for(self, channel: str) -> None:
        """Waits until the collective of a channel ends."""
        end = self.ends.get(channel, self.clock)
        self.cost.waiting += max(end - self.clock, 0.0)
        self.clock = max(end, self.clock)


class Walk:
    """Costs of a module's computations on a topology, whose devices lie at `coordinates` (slice, then torus) by
    partition number.
    """

    def __init__(self, module: Module, topology: Topology, coordinates: list[tuple[int, ...]]):
        self.module, self.topology, self.coordinates = module, topology, coordinates
        self.costs: dict[str, Cost] = {}
        self.largest: hlo.Collective | None = None

    def cost(self, computation: str) -> Cost:
        """The cost of one run of a computation, cached."""
        if computation not in self.costs:
            self.costs[computation] = self._run(computation)
        return self.costs[computation]

    def _run(self, computation: str) -> Cost:
        """Walks the schedule of a computation in order."""
        instructions = self.module.computations[computation]
        schedule = _Schedule({instruction.name: instruction.shapes for instruction in instructions})
        for instruction in instructions:
            if instruction.opcode in FREE:
                continue
            if instruction.opcode in ("while", "conditional", "call"):
                schedule.run_nested(self._nested(instruction))
                continue
            collective = hlo.collective_of(self.module, computation, instruction, len(self.coordinates))
            self._advance(schedule, instruction, collective)
            if instruction.name.startswith("async-collective-done") or instruction.opcode.endswith("-done"):
                schedule.wait_for(
                    collective.channel if collective else self._started_channel(instruction, instructions)
                )
        schedule.cost.seconds = schedule.clock
        return schedule.cost

    def _advance(self, schedule: "_Schedule", instruction: Instruction, collective: hlo.Collective | None) -> None:
        """Adds one instruction, which may be or hold a collective, to the schedule."""
        if collective is None:
            if not instruction.opcode.endswith("-done"):
                schedule.clock += self._compute(instruction, schedule.types, schedule.cost)
            return
        if collective.channel not in schedule.channels:
            if self.largest is None or collective.bytes > self.largest.bytes:
                self.largest = collective
            asynchronous = (
                instruction.opcode == "recv"
                or instruction.opcode.endswith("-start")
                or instruction.name.startswith("async-collective-start")
            )
            links = "between" if self._slices(collective) > 1 else "within"
            schedule.start(collective, asynchronous, links, self._network_seconds(collective))
        elif instruction.opcode == "fusion" and not instruction.name.startswith("async-collective"):
            # A step of computation with a piece of a collective in it.
            schedule.clock += self._compute(instruction, schedule.types, schedule.cost)

    def _nested(self, instruction: Instruction) -> Cost:
        cost = Cost()
        if instruction.opcode == "while":
            cost.add(self.cost(instruction.attribute("body") or ""), hlo.trip_count(self.module, instruction))
        elif instruction.opcode == "call":
            cost.add(self.cost(instruction.attribute("to_apply") or ""))
        else:
            listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
            names = ("true_computation", "false_computation")
            branches = (
                re.findall(r"%([\w.\-]+)", listed[1])
                if listed
                else [instruction.attribute(name) or "" for name in names]
            )
            cost.add(max((self.cost(branch) for branch in branches), key=lambda branch: branch.seconds))
        return cost

    def _started_channel(self, instruction: Instruction, instructions: Sequence[Instruction]) -> str:
        """The channel of the start instruction that a done instruction waits for."""
        by_name = {start.name: start for start in instructions}
        start = by_name.get(instruction.operands[0]) if instruction.operands else None
        match = re.search(r"channel_id=(\d+)", start.rest) if start else None
        return match[1] if match else instruction.operands[0] if instruction.operands else ""

    def _compute(self, instruction: Instruction, types: dict[str, hlo.Shapes], cost: Cost) -> float:
        """Seconds of an instruction that computes; its FLOPs and bytes go to `cost`."""
        chip = self.topology.chip
        size = hlo.bytes_of(instruction.shapes) + sum(
            hlo.bytes_of(types.get(name, ())) for name in instruction.operands
        )
        if instruction.opcode == "custom-call":
            if "tpu_custom_call" not in instruction.rest:
                return 0.0
            flops = kernel_flops(instruction, types)
            seconds = max(flops / (KERNEL_SHARE * chip.tflops * 1e12), size / (chip.hbm_gbytes * 1e9))
            cost.kernels += seconds
        else:
            flops = self._matmuls(instruction, types)
            seconds = instruction.cycles / (chip.clock_ghz * 1e9) or size / (chip.hbm_gbytes * 1e9)
        cost.flops += flops
        cost.hbm_bytes += size
        return seconds

    def _matmuls(self, instruction: Instruction, types: dict[str, hlo.Shapes]) -> float:
        if instruction.opcode in ("convolution", "dot"):
            return hlo.matmul_flops(instruction, types)
        if instruction.opcode != "fusion":
            return 0.0
        inside = self.module.computations.get(instruction.attribute("calls") or "", ())
        inner = {nested.name: nested.shapes for nested in inside}
        return sum(self._matmuls(nested, inner) for nested in inside)

    def _slices(self, collective: hlo.Collective) -> int:
        """The number of slices that a collective joins."""
        return len({self.coordinates[n][0] for n in collective.group})

    def _network_seconds(self, collective: hlo.Collective) -> float:
        """Time on the links: a ring over every torus axis that the group spans, or the network between slices."""
        members, slices = [self.coordinates[n] for n in collective.group], self._slices(collective)
        n = slices if slices > 1 else len(members)
        if n < 2:
            return 0.0
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0, "one-to-one": 1.0}.get(
            collective.kind, (n - 1) / n
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
            share * collective.bytes / (speed * 1e9) if speed else 0.0
        )  # 0: the first pair of a permutation may be a chip with itself


def kernel_flops(instruction: Instruction, types: dict[str, hlo.Shapes]) -> float:
    """FLOPs of a splash attention kernel from its operands' shapes, whole blocks behind a causal diagonal left out; 0
    for other kernels.

    Of the package's kernels those that know segments are causal, and the others are not (models/attention.py).
    """
    name = re.match(r"splash_m[hq]a_(fwd|dq|dkv)(_segmented)?", instruction.name)
    if not name:
        return 0.0
    heads = [
        shape
        for operand in instruction.operands
        for kind, shape in types.get(operand, ())
        if len(shape) in (3, 4) and kind in ("bf16", "f32", "f16")
    ]
    *batch, length, width = heads[0]
    keys = heads[1][-2]
    block = re.search(r'block_q(?:_dkv|_dq)?\\?": (\d+)', instruction.rest)
    blocks = length // int(block[1]) if block else 1
    visible = (blocks + 1) / (2 * blocks) if name[2] else 1.0
    return KERNEL_PRODUCTS[name[1]] * 2.0 * math.prod(batch) * length * keys * width * visible
