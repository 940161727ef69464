"""Checks of a compiled step for costly collectives: each finding is a line that fails `python -m dreamjax.compile`."""

import math
from collections.abc import Iterable, Iterator

import jax

from dreamjax.compile_tpu import hlo
from dreamjax.compile_tpu.hlo import Module
from dreamjax.parallel.param_sharding import path_of

MIN_ELEMENTS = 2**16  # a smaller tensor is ignored

# Class names of modules as they appear in the names of their operations.
MODULES = {"unet": "UNet", "vae": "AutoencoderKL", "clip": "ClipVision"}


def windowed_products(module: Module) -> list[str]:
    """Windowed-einsum loops, which XLA makes of a product with a gathered weight."""
    loops = [name for name in module.computations if "windowed_dot_general" in name and "body" in name]
    return (
        [f"{len(loops)} windowed-einsum loops, as {loops[0]}: is xla_jf_spmd_threshold_for_windowed_einsum_mib set?"]
        if loops
        else []
    )


def _loops(module: Module) -> list[hlo.Instruction]:
    return [
        instruction
        for instructions in module.computations.values()
        for instruction in instructions
        if instruction.opcode == "while"
    ]


def _bodies(module: Module, loops: list[hlo.Instruction]) -> set[str]:
    """Names of the computations that run inside the loops."""
    pending = [loop.attribute("body") for loop in loops]
    bodies: set[str] = set()
    while pending:
        name = pending.pop()
        if name is None or name in bodies:
            continue
        bodies.add(name)
        for instruction in module.computations.get(name, ()):
            if instruction.opcode in ("while", "call", "conditional"):
                pending += [instruction.attribute("body"), instruction.attribute("to_apply")]
    return bodies


def _collectives(module: Module, names: Iterable[str], devices: int) -> Iterator[hlo.Collective]:
    """Each collective of the named computations, once."""
    for name in names:
        channels: set[str] = set()
        for instruction in module.computations[name]:
            collective = hlo.collective_of(module, name, instruction, devices)
            if collective and collective.channel not in channels:
                channels.add(collective.channel)
                yield collective


def full_gradient_all_reduces(module: Module, trainable: dict, devices: int, tensor: int) -> list[str]:
    """All-reduces inside a loop with the size of one layer's gradient of a stacked weight, or of its tensor shard."""
    sizes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(trainable):
        name = path_of(path)
        if "/layers/" in name and leaf.ndim >= 3:
            sizes[math.prod(leaf.shape[1:]) // tensor] = name
            sizes[math.prod(leaf.shape[1:])] = name
    matches = [
        (sizes[size], shape)
        for collective in _collectives(module, _bodies(module, _loops(module)), devices)
        for shape in collective.shapes
        if collective.kind == "all-reduce"
        and (size := math.prod(shape[1])) in sizes
        and size >= MIN_ELEMENTS
        and "transpose(" in collective.op_name
    ]
    if not matches:
        return []
    name, shape = matches[0]
    mib = hlo.bytes_of((shape,)) / 2**20
    advice = "is config.mesh.fsdp a whole slice, or more than the LLM's heads?"
    return [
        f"{len(matches)} full-size all-reduces of gradients inside the layer scan, as that of {name} "
        f"({mib:.0f} MiB): {advice}"
    ]


def gathers_of_replicated(module: Module, frozen: dict, replicated: set[str], devices: int) -> list[str]:
    """Gathers of weights of the U-Net, VAE or CLIP where that part is in `replicated`: they should not occur."""
    findings = []
    for part in sorted(replicated & set(MODULES) & set(frozen)):
        weights = {
            shape for leaf in jax.tree.leaves(frozen[part]) for shape in (leaf.shape, leaf.shape[1:])
        }  # all layers, or one of a stack
        sizes = {size for size in map(math.prod, weights) if size >= MIN_ELEMENTS}
        matches = [
            collective
            for collective in _collectives(module, module.computations, devices)
            if collective.kind == "all-gather"
            and MODULES[part] in collective.op_name
            and any(math.prod(shape) in sizes for _, shape in collective.shapes)
        ]
        if matches:
            findings.append(f"{len(matches)} gathers of {part} weights, as in {matches[0].op_name}")
    return findings


def gathers_of_activations(module: Module, trees: tuple[dict, ...], devices: int) -> list[str]:
    """Gathers larger than any layer's weight: of activations, and so growing with the number of devices."""

    def layer_shape(path: tuple, leaf: jax.ShapeDtypeStruct) -> tuple[int, ...]:
        return leaf.shape[1:] if "/layers/" in path_of(path) else leaf.shape

    weight = max(
        4 * math.prod(layer_shape(path, leaf))
        for tree in trees
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    )
    matches = [
        collective
        for collective in _collectives(module, module.computations, devices)
        if collective.kind == "all-gather" and collective.bytes > weight
    ]
    return (
        [f"{len(matches)} gathers of activations, as of {matches[0].bytes / 2**30:.2f} GiB in {matches[0].op_name}"]
        if matches
        else []
    )


def gathers_in_layer_scans(module: Module, trees: tuple[dict, ...], devices: int, tensor: int) -> list[str]:
    """Gathers, in each iteration of a scan over layers, of weights outside the layers.

    XLA may move a gather to its use, and the use into a loop.
    """
    leaves = [(path_of(path), leaf.shape) for tree in trees for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    stacked = [shape for name, shape in leaves if "/layers/" in name]

    def shard_sizes(shapes: Iterable[tuple[int, ...]]) -> set[int]:
        return {math.prod(shape) // parts for shape in shapes for parts in (1, tensor)}

    sizes = {
        size
        for size in shard_sizes(shape for name, shape in leaves if "/layers/" not in name)
        - shard_sizes(shape[1:] for shape in stacked)
        if size >= MIN_ELEMENTS
    }
    scans = [loop for loop in _loops(module) if hlo.trip_count(module, loop) in {shape[0] for shape in stacked}]
    matches = [
        collective for collective in _collectives(module, _bodies(module, scans), devices)
        if collective.kind == "all-gather" and any(math.prod(shape) in sizes for _, shape in collective.shapes)
    ]  # fmt: skip
    return (
        [
            f"{len(matches)} gathers, in each iteration of a scan over layers, of weights outside the layers, "
            f"as in {matches[0].op_name}"
        ]
        if matches
        else []
    )


def run(
    module: Module, trainable: dict, frozen: dict, replicated: set[str], devices: int, tensor: int
) -> dict[str, list[str]]:
    """The findings of each check by its name, empty lists where it passes."""
    return {
        "windowed_einsum_loops": windowed_products(module),
        "full_size_gradient_all_reduces": full_gradient_all_reduces(module, trainable, devices, tensor),
        "gathers_of_frozen_weights": gathers_of_replicated(module, frozen, replicated, devices),
        "gathers_of_activations": gathers_of_activations(module, (trainable, frozen), devices),
        "gathers_in_layer_scans": gathers_in_layer_scans(module, (trainable, frozen), devices, tensor),
    }
