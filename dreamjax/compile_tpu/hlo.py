"""A parser of compiled and scheduled HLO modules (`compiled.as_text()`): instructions, loops, collectives.

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

Shapes = tuple[tuple[str, tuple[int, ...]], ...]  # (element type, sizes) of arrays

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][a-z\-]*)\(")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction; `rest` is its text after the opening bracket: operands and attributes."""

    name: str
    type: str
    opcode: str
    rest: str
    root: bool

    @functools.cached_property
    def shapes(self) -> Shapes:
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
        match = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return match[1] if match else None

    @property
    def op_name(self) -> str:
        """The name stack of the JAX operation that it comes from."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match[1] if match else ""

    @property
    def cycles(self) -> int:
        """The compiler's estimate, 0 where it gives none."""
        match = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(match[1]) if match else 0


@dataclasses.dataclass(frozen=True)
class Module:
    """Computations by name, each a list of instructions in the order in which they run."""

    computations: dict[str, tuple[Instruction, ...]]
    entry: str


def shapes_of(text: str) -> Shapes:
    """All array types in a text, as (element type, sizes)."""
    return tuple(
        (kind, tuple(int(n) for n in sizes.split(",") if n)) for kind, sizes in _SHAPE.findall(text) if kind in BYTES
    )


def bytes_of(shapes: Shapes) -> float:
    """Bytes of arrays."""
    return sum(BYTES[kind] * math.prod(sizes) for kind, sizes in shapes)


def parse(text: str) -> Module:
    """Parses a module; an instruction may take several lines, since kernels have line breaks in their attributes."""
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry = ""
    name: str | None = None
    lines: list[str] = []

    def close_computation() -> None:
        if name is not None:
            computations[name] = tuple(
                Instruction(m[2], m[3], m[4], line[m.end() :], bool(m[1]))
                for line in lines
                if (m := _INSTRUCTION.match(line))
            )

    for line in text.splitlines():
        if (header := _HEADER.match(line)) and " = " not in line.split("(", 1)[0]:
            close_computation()
            name, lines = header[2], []
            entry = name if header[1] else entry
        elif line.rstrip() == "}":
            close_computation()
            name, lines = None, []
        elif name is not None:
            if _INSTRUCTION.match(line):
                lines.append(line)
            elif lines:
                lines[-1] += " " + line.strip()
    close_computation()
    return Module(computations, entry)


def trip_count(module: Module, loop: Instruction) -> int:
    """The iterations of a loop: the compiler's number, else the constant that the condition compares with."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    pending = [loop.attribute("condition") or ""]
    numbers: list[int] = []
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
    shapes: Shapes  # full arrays, several where they were combined: results of gathers, operands of reduce-scatters
    group: tuple[int, ...]  # devices of the first group, as partition numbers
    channel: str  # the same in all pieces of one collective
    op_name: str

    @property
    def bytes(self) -> float:
        return bytes_of(self.shapes)


def first_group(rest: str, devices: int) -> tuple[int, ...]:
    """The first of an instruction's replica groups, in any of the notations: listed, iota, or by axes of a mesh."""
    if match := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\s*\{([^}]*)\}", rest
    ):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
        axes = re.findall(r"'([^']+)'", match[4])
        grid = _iota(match[2] or str(math.prod(sizes.values())), match[3]).reshape(tuple(sizes.values()))
        return tuple(int(n) for n in grid[tuple(slice(None) if name in axes else 0 for name in sizes)].reshape(-1))
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        return tuple(int(n) for n in _iota(match[3], match[4]).reshape(int(match[1]), int(match[2]))[0])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return tuple(int(n) for n in match[1].split(","))
    if match := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest):
        return int(match[1]), int(match[2])
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
    """The collective that an instruction is, starts or (as a fusion) contains; None for others and for done ones."""
    if instruction.opcode == "fusion":
        inside = instruction.attribute("calls") or ""
        collectives = [
            c for nested in module.computations.get(inside, ()) if (c := collective_of(module, inside, nested, devices))
        ]
        if (
            collectives
            and collectives[0].kind == "all-reduce"
            and "scatter" in f"{inside} {instruction.name} {instruction.rest}"
        ):
            return dataclasses.replace(collectives[0], kind="reduce-scatter")
        return collectives[0] if collectives else None
    kind, shapes = instruction.opcode.removesuffix("-start"), instruction.shapes
    channel = match[1] if (match := re.search(r"channel_id=(\d+)", instruction.rest)) else instruction.name
    if kind == "recv" and (match := re.search(r'megascale_transfer_type="(\w+)"', instruction.rest)):
        # Between slices hosts send and receive; this is one device's part, which was reduced within its slice.
        return Collective(
            match[1].lower().replace("_", "-"), shapes[:1], tuple(range(devices)), channel, instruction.op_name
        )
    if kind not in COLLECTIVES:
        return None
    if kind == "reduce-scatter":
        types = {nested.name: nested.shapes for nested in module.computations[computation]}
        shapes = tuple(shape for name in instruction.operands for shape in types.get(name, ())) or shapes
    if not shapes:
        return None
    if instruction.opcode.endswith("-start"):
        shapes = (max(shapes, key=lambda shape: bytes_of((shape,))),)  # its type holds operands, results and a context
    return Collective(kind, shapes, first_group(instruction.rest, devices), channel, instruction.op_name)


# ----------------------------------------------------------------------------------------------------------------------
# FLOPs


def matmul_flops(instruction: Instruction, types: dict[str, tuple]) -> float:
    """2 x multiply-adds of a dot or a convolution, without those on padding, since XLA writes products as padded
    convolutions.
    """
    (_, out), (_, lhs), (_, rhs) = (
        instruction.shapes[0],
        types[instruction.operands[0]][0],
        types[instruction.operands[1]][0],
    )
    if instruction.opcode == "dot":
        dimensions = _search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)[1]
        return 2 * math.prod(out) * math.prod(lhs[int(n)] for n in dimensions.split(",") if n)
    labels = _search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    window = re.search(r"window=\{([^}]*)\}", instruction.rest)
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    spatial = sorted(letter for letter in labels[2] if letter.isdigit())
    products = 1.0
    for axis, letter in enumerate(spatial):

        def field(name: str, default: str, axis: int = axis) -> str:
            return fields.get(name, "x".join([default] * len(spatial))).split("x")[axis]

        products *= _products(
            _Window(
                size=lhs[labels[1].index(letter)],
                kernel=rhs[labels[2].index(letter)],
                out=out[labels[3].index(letter)],
                stride=int(field("stride", "1")),
                low=int(field("pad", "0_0").split("_")[0]),
                dilation=int(field("lhs_dilate", "1")),
                kernel_dilation=int(field("rhs_dilate", "1")),
            )
        )
    others = math.prod(out[labels[3].index(letter)] for letter in "bf")
    return 2 * products * others * rhs[labels[2].index("i")]


def _search(pattern: str, text: str) -> re.Match[str]:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"an instruction without {pattern}: {text:.120}")
    return match


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Window:
    """One spatial axis of a convolution."""

    size: int
    kernel: int
    out: int
    stride: int
    low: int  # padding
    dilation: int
    kernel_dilation: int


@functools.cache
def _products(window: _Window) -> int:
    """Pairs of an output and a kernel position of one axis that read an entry of the input, not padding or a hole."""
    position = np.arange(window.out)[:, None] * window.stride - window.low
    position = position + np.arange(window.kernel)[None] * window.kernel_dilation
    inside = (position >= 0) & (position % window.dilation == 0) & (position // window.dilation < window.size)
    return int(np.sum(inside))
