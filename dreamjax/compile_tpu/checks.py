"""What a compiled step must not do: each finding is one line that fails `python -m dreamjax.compile`."""

import math

import jax

from dreamjax.compile_tpu import hlo
from dreamjax.compile_tpu.hlo import Module
from dreamjax.parallel.param_sharding import path_of

SMALL = 2**16  # elements below which a tensor is no matter

# How the modules of a part call themselves in the names of their operations.
MODULES = {"unet": "UNet", "vae": "AutoencoderKL", "clip": "ClipVision"}


def windowed_products(module: Module) -> list[str]:
    """Loops that XLA has made of a product with a gathered weight."""
    loops = [name for name in module.computations if "windowed_dot_general" in name and "body" in name]
    return (
        [f"{len(loops)} windowed-einsum loops, as {loops[0]}: is xla_jf_spmd_threshold_for_windowed_einsum_mib set?"]
        if loops
        else []
    )


def _loops(module: Module) -> list[hlo.Instruction]:
    return [one for instructions in module.computations.values() for one in instructions if one.opcode == "while"]


def _bodies(module: Module, loops: list[hlo.Instruction]) -> set[str]:
    """Computations that run inside the loops."""
    pending = [loop.attribute("body") for loop in loops]
    found: set[str] = set()
    while pending:
        name = pending.pop()
        if name is None or name in found:
            continue
        found.add(name)
        for one in module.computations.get(name, ()):
            if one.opcode in ("while", "call", "conditional"):
                pending += [one.attribute("body"), one.attribute("to_apply")]
    return found


def _collectives(module: Module, names, devices: int):
    """Each collective of the named computations once."""
    for name in names:
        seen = set()
        for one in module.computations[name]:
            found = hlo.collective_of(module, name, one, devices)
            if found and found.channel not in seen:
                seen.add(found.channel)
                yield found


def gradients_reduced_whole(module: Module, trainable: dict, devices: int, tensor: int) -> list[str]:
    """All-reduces, inside a loop, of as many elements as one layer's gradient of a stacked weight has on its tensor
    shard.
    """
    sizes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(trainable):
        name = path_of(path)
        if "/layers/" in name and leaf.ndim >= 3:
            sizes[math.prod(leaf.shape[1:]) // tensor] = name
            sizes[math.prod(leaf.shape[1:])] = name
    found = [
        (sizes[size], shape)
        for one in _collectives(module, _bodies(module, _loops(module)), devices)
        for shape in one.shapes
        if one.kind == "all-reduce"
        and (size := math.prod(shape[1])) in sizes
        and size >= SMALL
        and "transpose(" in one.op_name
    ]
    if not found:
        return []
    name, shape = found[0]
    mib = hlo.bytes_of((shape,)) / 2**20
    advice = "is config.mesh.fsdp a whole slice, or more than the LLM's heads?"
    return [
        f"{len(found)} full-size all-reduces of gradients inside the layer scan, as that of {name} "
        f"({mib:.0f} MiB): {advice}"
    ]


def gathers_of_whole(module: Module, frozen: dict, whole: set[str], devices: int) -> list[str]:
    """Gathers of U-Net, VAE or CLIP weights, of the parts in `whole`, which every device is to hold."""
    findings = []
    for part in sorted(whole & set(MODULES) & set(frozen)):
        weights = {
            shape for leaf in jax.tree.leaves(frozen[part]) for shape in (leaf.shape, leaf.shape[1:])
        }  # whole, or one layer of a stack
        sizes = {size for size in map(math.prod, weights) if size >= SMALL}
        found = [
            one
            for one in _collectives(module, module.computations, devices)
            if one.kind == "all-gather"
            and MODULES[part] in one.op_name
            and any(math.prod(shape) in sizes for _, shape in one.shapes)
        ]
        if found:
            findings.append(f"{len(found)} gathers of {part} weights, as in {found[0].op_name}")
    return findings


def gathers_of_activations(module: Module, trees: tuple[dict, ...], devices: int) -> list[str]:
    """Gathers larger than any layer's weight.

    What each device computed comes together on all, and grows with their number.
    """

    def layer(path, leaf):
        return leaf.shape[1:] if "/layers/" in path_of(path) else leaf.shape

    weight = max(
        4 * math.prod(layer(path, leaf)) for tree in trees for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    )
    found = [
        one
        for one in _collectives(module, module.computations, devices)
        if one.kind == "all-gather" and one.bytes > weight
    ]
    return (
        [f"{len(found)} gathers of activations, as of {found[0].bytes / 2**30:.2f} GiB in {found[0].op_name}"]
        if found
        else []
    )


def gathers_in_layer_scans(module: Module, trees: tuple[dict, ...], devices: int, tensor: int) -> list[str]:
    """Gathers of weights that belong to no layer, in each turn of a loop over layers.

    XLA may move a gather to its use, and that into a loop.
    """
    leaves = [(path_of(path), leaf.shape) for tree in trees for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    stacked = [shape for name, shape in leaves if "/layers/" in name]

    def shards(shapes):
        return {math.prod(shape) // parts for shape in shapes for parts in (1, tensor)}

    sizes = {
        size
        for size in shards(shape for name, shape in leaves if "/layers/" not in name)
        - shards(shape[1:] for shape in stacked)
        if size >= SMALL
    }
    scans = [loop for loop in _loops(module) if hlo.trip_count(module, loop) in {shape[0] for shape in stacked}]
    found = [
        one for one in _collectives(module, _bodies(module, scans), devices)
        if one.kind == "all-gather" and any(math.prod(shape) in sizes for _, shape in one.shapes)
    ]  # fmt: skip
    return (
        [
            f"{len(found)} gathers, in each turn of a scan over layers, of weights that are in no layer, "
            f"as in {found[0].op_name}"
        ]
        if found
        else []
    )


def run(
    module: Module, trainable: dict, frozen: dict, whole: set[str], devices: int, tensor: int
) -> dict[str, list[str]]:
    """The findings of each check, empty where all is well."""
    return {
        "windowed_einsum_loops": windowed_products(module),
        "full_size_gradient_all_reduces": gradients_reduced_whole(module, trainable, devices, tensor),
        "gathers_of_frozen_weights": gathers_of_whole(module, frozen, whole, devices),
        "gathers_of_activations": gathers_of_activations(module, (trainable, frozen), devices),
        "gathers_in_layer_scans": gathers_in_layer_scans(module, (trainable, frozen), devices, tensor),
    }
