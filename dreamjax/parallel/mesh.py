"""The mesh of devices, and constraints that hold arrays to it.

Axes of the mesh: data (replicas, across slices), fsdp (parameters and rows are split), tensor (heads and hidden units
are split). Rows of a batch are spread over data x fsdp.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P

from dreamjax.config import MeshConfig, RunConfig
from dreamjax.errors import ConfigError
from dreamjax.parallel import device_layout

AXES = ("data", "fsdp", "tensor")
ROWS = P(("data", "fsdp"))

# Options of the TPU compiler for sharded programs. The trainer passes these itself; `python -m dreamjax.compile
# --print_flags` prints them as LIBTPU_INIT_ARGS for other programs.
TPU_OPTIONS = {
    # By default a product with a gathered weight becomes a loop over its parts; for a decoder layer that more than
    # halves the speed.
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    # Weights of the next product are gathered while this one is computed.
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices; raises ConfigError where the axes do not multiply to their number.

    TPU slices are joined by the data axis: over the network between them only gradients travel, once a step.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    if -1 in sizes:
        known = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices) or 0 in sizes:
        raise ConfigError(
            f"config.mesh: data x fsdp x tensor = {config.data} x {config.fsdp} x {config.tensor} does "
            f"not fit {len(devices)} devices"
        )
    slices: dict[int, list] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0) if device.platform == "tpu" else 0, []).append(device)
    if sizes[0] % len(slices):
        raise ConfigError(
            f"config.mesh.data: {sizes[0]} is not a multiple of the {len(slices)} slices, which only the "
            "data axis joins"
        )
    within = (sizes[0] // len(slices), *sizes[1:])
    placed = np.concatenate([_placed(slices[number], within) for number in sorted(slices)])
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 3)


def _placed(devices: list, sizes: tuple[int, ...]) -> np.ndarray:
    """Devices within one fast network in the shape `sizes`: by torus coordinates on a TPU, else by number."""
    chips = device_layout.slice_of(devices) if devices[0].platform == "tpu" else None
    return mesh_utils.create_device_mesh(sizes, devices) if chips is None else device_layout.lay_out(chips, sizes)


def planned_mesh(config: MeshConfig) -> Mesh | AbstractMesh:
    """The mesh of a dry run: over the present devices where they fit, else an AbstractMesh."""
    sizes = (config.data, config.fsdp, config.tensor)
    if -1 in sizes or math.prod(sizes) == len(jax.devices()):
        return make_mesh(config)
    return AbstractMesh(sizes, AXES)


def check_divides(config: RunConfig, mesh: Mesh) -> None:
    """ConfigError where the groups of a batch do not spread evenly over microbatches and devices."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.groups % (config.accumulate * shards):
        raise ConfigError(
            f"config.batch_size: {config.batch_size} rows are {config.groups} groups, not a multiple of "
            f"accumulate x data x fsdp = {config.accumulate} x {shards}"
        )
    chunks = config.accumulate * config.loss.image_chunks * shards
    if config.groups * config.data.target_slots % chunks:
        raise ConfigError(
            f"config.loss.image_chunks: {config.groups * config.data.target_slots} target image slots "
            "are not a multiple of "
            f"accumulate x image_chunks x data x fsdp = {chunks}"
        )


def constrain_rows(x: jax.Array) -> jax.Array:
    """Holds the leading axis to (data, fsdp), or replicates the array where that does not divide it.

    Needed on the residual stream after splicing, after every layer and before every readout: without it XLA computes
    wrong gradients through the dream-query readout on some meshes. Outside a mesh it does nothing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    return jax.lax.with_sharding_constraint(x, ROWS if x.shape[0] % shards == 0 else P())


def constrain_replicated(x: jax.Array) -> jax.Array:
    """Replicates an array: it is gathered here, once, and not at each use. Outside a mesh it does nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, P())
