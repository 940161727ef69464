"""Reading a compiled and scheduled module (`compiled.as_text()`): instructions, loops, collectives.

Most fusions of a TPU module carry `estimated_cycles`. Collectives come as instructions of their own, inside fusions,
and spread over several fusions between async-collective-start and async-collective-done.
"""

import dataclasses
import functools
import math
import re

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {
    "pred": 1,
    "s4": 0.5,
    "u4": 0.5,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "f64": 8,
    "s64": 8,
    "u64": 8,
}

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][a-z\-]*)\(")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction; `rest` is its text behind the opening bracket: operands and attributes."""

    name: str
    type: str
    opcode: str
    rest: str
    root: bool

    @functools.cached_property
    def shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(element type, sizes) of the result, of each of its parts where it is a tuple."""
        return shapes_of(self.type)

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the operands."""
        depth, end = 1, len(self.rest)
        for position, character in enumerate(self.rest):
            depth += (character == "(") - (character == ")")
            if depth == 0:
                end = position
                break
        return tuple(re.findall(r"%([\w.\-]+)", self.rest[:end]))

    def attribute(self, name: str) -> str | None:
        """A computation that an attribute names: calls, body, condition, to_apply."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return found[1] if found else None

    @property
    def op_name(self) -> str:
        """Where in the program it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def cycles(self) -> int:
        """The compiler's estimate, 0 where it gives none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(found[1]) if found else 0


@dataclasses.dataclass(frozen=True)
class Module:
    """Computations by name, each a list of instructions in the order in which they run."""

    computations: dict[str, tuple[Instruction, ...]]
    entry: str


def shapes_of(text: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """All array types in a text, as (element type, sizes)."""
    return tuple(
        (kind, tuple(int(n) for n in sizes.split(",") if n)) for kind, sizes in _SHAPE.findall(text) if kind in BYTES
    )


def bytes_of(shapes) -> float:
    """Bytes of arrays."""
    return sum(BYTES[kind] * math.prod(sizes) for kind, sizes in shapes)


def parse(text: str) -> Module:
    """A module from its text.

    An instruction may take several lines, since kernels put line breaks into their attributes.
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, name, lines = "", None, []

    def close():
        if name is not None:
            computations[name] = tuple(
                Instruction(m[2], m[3], m[4], line[m.end() :], bool(m[1]))
                for line in lines
                if (m := _INSTRUCTION.match(line))
            )

    for line in text.splitlines():
        if (header := _HEADER.match(line)) and " = " not in line.split("(", 1)[0]:
            close()
            name, lines = header[2], []
            entry = name if header[1] else entry
        elif line.rstrip() == "}":
            close()
            name, lines = None, []
        elif name is not None:
            if _INSTRUCTION.match(line):
                lines.append(line)
            elif lines:
                lines[-1] += " " + line.strip()
    close()
    return Module(computations, entry)


def trip_count(module: Module, loop: Instruction) -> int:
    """How often a loop's body runs.

    What the compiler says, else the constant that the condition compares its counter with.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    pending, numbers = [loop.attribute("condition")], []
    while pending:
        for instruction in module.computations.get(pending.pop(), ()):
            if instruction.opcode == "constant" and instruction.type.startswith(("s32[]", "u32[]", "s64[]")):
                numbers += [int(n) for n in re.findall(r"^(\d+)\)", instruction.rest)]
            if called := instruction.attribute("calls"):
                pending.append(called)
    return max(numbers, default=1)


# ----------------------------------------------------------------------------------------------------------------------
# Collectives


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of one run of its computation."""

    kind: str
    shapes: tuple[
        tuple[str, tuple[int, ...]], ...
    ]  # whole arrays, several where they were combined: gathers' results, what reduce-scatters read
    group: tuple[int, ...]  # devices of the first group, as partition numbers
    channel: str  # the same in all pieces of one collective
    op_name: str

    @property
    def bytes(self) -> float:
        return bytes_of(self.shapes)


def first_group(rest: str, devices: int) -> tuple[int, ...]:
    """The first of an instruction's replica groups, in any of the notations: listed, iota, or by axes of a mesh."""
    if found := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\s*\{([^}]*)\}", rest
    ):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
        axes = re.findall(r"'([^']+)'", found[4])
        grid = _iota(found[2] or str(math.prod(sizes.values())), found[3]).reshape(tuple(sizes.values()))
        return tuple(int(n) for n in grid[tuple(slice(None) if name in axes else 0 for name in sizes)].reshape(-1))
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        return tuple(int(n) for n in _iota(found[3], found[4]).reshape(int(found[1]), int(found[2]))[0])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return tuple(int(n) for n in found[1].split(","))
    if found := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest):
        return int(found[1]), int(found[2])
    if re.search(r"replica_groups=(?!\{\})", rest):
        raise ValueError(
            f"replica groups in a notation that is not known: {rest[rest.index('replica_groups=') :][:120]}"
        )
    return tuple(range(devices))


def _iota(sizes: str, axes: str | None) -> np.ndarray:
    """Device numbers in the notation of XLA: `4,32` with `1,0` counts them in 4 rows of 32 and turns that over."""
    grid = np.arange(math.prod(map(int, sizes.split(",")))).reshape([int(n) for n in sizes.split(",")])
    return grid.transpose([int(n) for n in axes.split(",")]) if axes else grid


def collective_of(module: Module, computation: str, instruction: Instruction, devices: int) -> Collective | None:
    """The collective that an instruction is, starts or (a fusion) holds.

    None for the rest and for what only ends one.
    """
    if instruction.opcode == "fusion":
        inside = instruction.attribute("calls")
        held = [c for one in module.computations.get(inside, ()) if (c := collective_of(module, inside, one, devices))]
        if held and held[0].kind == "all-reduce" and "scatter" in f"{inside} {instruction.name} {instruction.rest}":
            return dataclasses.replace(held[0], kind="reduce-scatter")
        return held[0] if held else None
    kind, shapes = instruction.opcode.removesuffix("-start"), instruction.shapes
    channel = found[1] if (found := re.search(r"channel_id=(\d+)", instruction.rest)) else instruction.name
    if kind == "recv" and (found := re.search(r'megascale_transfer_type="(\w+)"', instruction.rest)):
        # Between slices hosts send and receive; this is one device's part, which was reduced within its slice.
        return Collective(
            found[1].lower().replace("_", "-"), shapes[:1], tuple(range(devices)), channel, instruction.op_name
        )
    if kind not in COLLECTIVES:
        return None
    if kind == "reduce-scatter":
        types = {one.name: one.shapes for one in module.computations[computation]}
        shapes = tuple(shape for name in instruction.operands for shape in types.get(name, ())) or shapes
    if not shapes:
        return None
    if instruction.opcode.endswith("-start"):
        shapes = (max(shapes, key=lambda shape: bytes_of((shape,))),)  # its type holds operands, results and a context
    return Collective(kind, shapes, first_group(instruction.rest, devices), channel, instruction.op_name)


# ----------------------------------------------------------------------------------------------------------------------
# FLOPs


def matmul_flops(instruction: Instruction, types: dict[str, tuple]) -> float:
    """2 x multiply-adds of a dot or a convolution, only where its window meets the input.

    XLA also writes products as convolutions with padding.
    """
    (_, out), (_, left), (_, right) = (
        instruction.shapes[0],
        types[instruction.operands[0]][0],
        types[instruction.operands[1]][0],
    )
    if instruction.opcode == "dot":
        found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
        return 2 * math.prod(out) * math.prod(left[int(n)] for n in found[1].split(",") if n)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    window = re.search(r"window=\{([^}]*)\}", instruction.rest)
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    spatial = sorted(letter for letter in labels[2] if letter.isdigit())
    meets = 1.0
    for axis, letter in enumerate(spatial):

        def pick(name, default, axis=axis):
            return fields.get(name, "x".join([default] * len(spatial))).split("x")[axis]

        low, high = map(int, pick("pad", "0_0").split("_"))
        meets *= _meets(
            left[labels[1].index(letter)], right[labels[2].index(letter)], out[labels[3].index(letter)],
            int(pick("stride", "1")), low, int(pick("lhs_dilate", "1")), int(pick("rhs_dilate", "1")),
        )  # fmt: skip
    others = math.prod(out[labels[3].index(letter)] for letter in "bf")
    return 2 * meets * others * right[labels[2].index("i")]


@functools.cache
def _meets(size: int, kernel: int, out: int, stride: int, low: int, dilate: int, kernel_dilate: int) -> int:
    """Pairs of an output position and a kernel position of one axis that meet an entry of the input, not padding or
    a hole.
    """
    at = np.arange(out)[:, None] * stride + np.arange(kernel)[None] * kernel_dilate - low
    return int(np.sum((at >= 0) & (at % dilate == 0) & (at // dilate < size)))
