"""The plan of a run from shapes alone, as text and JSON."""

import math

import jax
from jax.sharding import AbstractMesh, Mesh

from dreamjax.config import RunConfig
from dreamjax.parallel.param_sharding import unsharded_share
from dreamjax.training import optimizer
from dreamjax.training.state import State


def elements(tree) -> int:
    """Number of elements of all leaves (arrays or shapes)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def bytes_per_device(tree, shardings) -> int:
    """Bytes that the fullest device holds of a tree of shapes under a tree of shardings."""
    sizes = jax.tree.map(
        lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize, tree, shardings
    )
    return sum(jax.tree.leaves(sizes))


def summary(config: RunConfig, mesh: Mesh | AbstractMesh, state: State, frozen: dict, shardings) -> dict:
    """Counts and bytes of a run's parts: `parameters` of each part, trainable and frozen, bytes per device."""
    params = optimizer.merge(state.trainable, frozen)
    return {
        "mesh": dict(mesh.shape),
        "parameters": {name: elements(part) for name, part in params.items()},
        "trainable": elements(state.trainable),
        "frozen": elements(frozen),
        "bytes_per_device": {
            "trainable": bytes_per_device(state.trainable, shardings[0].trainable),
            "optimiser": bytes_per_device(state.optimiser, shardings[0].optimiser),
            "average": bytes_per_device(state.average, shardings[0].average) if state.average is not None else 0,
            "frozen": bytes_per_device(frozen, shardings[1]),
        },
        "unsharded_share": unsharded_share(params, mesh),
        "rows": config.batch_size,
        "length": config.data.length,
        "input_slots": config.groups * config.data.input_slots,
        "target_slots": config.groups * config.data.target_slots,
        "total_steps": config.total_steps,
    }


def format_summary(facts: dict) -> str:
    """The summary as text."""
    mesh = " x ".join(f"{name} {size}" for name, size in facts["mesh"].items())
    parts = "\n".join(f"  {name:20s} {count:15,d}" for name, count in facts["parameters"].items())
    memory = ", ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in facts["bytes_per_device"].items())
    shards = facts["mesh"]["fsdp"] * facts["mesh"]["tensor"]
    share = (
        f"{facts['unsharded_share']:.2%} of the parameters are replicated over the {shards} devices of fsdp x tensor"
    )
    unsharded = share if shards > 1 else "all, since fsdp x tensor is 1"
    return (
        f"mesh          {mesh}\n"
        f"parameters\n{parts}\n"
        f"trainable     {facts['trainable']:,d}; frozen {facts['frozen']:,d}\n"
        f"per device    {memory}\n"
        f"unsharded     {unsharded}\n"
        f"a step        {facts['rows']} rows of {facts['length']} tokens, {facts['input_slots']} input and "
        f"{facts['target_slots']} target image slots; {facts['total_steps']:,d} steps"
    )


def temporary_bytes(compiled) -> int:
    """Bytes of temporaries of a compiled step on one device; 0 where the backend does not report them."""
    analysis = compiled.memory_analysis()
    return analysis.temp_size_in_bytes if analysis else 0
