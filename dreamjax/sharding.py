"""The mesh, and which part of it holds what: tables from parameter paths to partition specs, constraints, a report.

Axes of the mesh: data (replicas, across slices), fsdp (parameters and rows are split), tensor (heads and hidden units
are split). Rows of a batch are spread over data x fsdp.
"""

import math
import re

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dreamjax import torus
from dreamjax.config import MeshConfig, RunConfig
from dreamjax.schema import ConfigError

AXES = ("data", "fsdp", "tensor")
ROWS = P(("data", "fsdp"))

# How the TPU compiler is to treat a sharded program. The trainer passes these itself; `python -m dreamjax.compile
# --print_flags` gives them as LIBTPU_INIT_ARGS for whatever else is compiled.
TPU_OPTIONS = {
    # By default a product with a gathered weight becomes a loop over its parts; for a decoder layer that more than
    # halves the speed.
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    # Weights of the next product travel while this one is computed.
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
}


def make_mesh(config: MeshConfig, devices=None) -> Mesh:
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
    """Devices that no slow network parts, in the shape `sizes`.

    On a TPU by their places on the torus, else as they are numbered.
    """
    chips = torus.slice_of(devices) if devices[0].platform == "tpu" else None
    return mesh_utils.create_device_mesh(sizes, devices) if chips is None else torus.lay_out(chips, sizes)


def planned_mesh(config: MeshConfig) -> Mesh | AbstractMesh:
    """The mesh of a run that is only described.

    Over the devices at hand where they fit, else one of the sizes alone.
    """
    sizes = (config.data, config.fsdp, config.tensor)
    if -1 in sizes or math.prod(sizes) == len(jax.devices()):
        return make_mesh(config)
    return AbstractMesh(sizes, AXES)


def check_divides(config: RunConfig, mesh: Mesh):
    """ConfigError where the groups of a batch do not spread evenly over microbatches and devices."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.groups % (config.accumulate * shards):
        raise ConfigError(
            f"config.batch_size: {config.batch_size} rows are {config.groups} groups, not a multiple of "
            f"accumulate x data x fsdp = {config.accumulate} x {shards}"
        )
    chunks = config.accumulate * config.loss.picture_chunks * shards
    if config.groups * config.data.dreamed_slots % chunks:
        raise ConfigError(
            f"config.loss.picture_chunks: {config.groups * config.data.dreamed_slots} dreamed slots are "
            "not a multiple of "
            f"accumulate x picture_chunks x data x fsdp = {chunks}"
        )


def constrain_rows(x: jax.Array) -> jax.Array:
    """Holds the leading axis to (data, fsdp), or the array whole on every device where that does not divide it.

    Needed on the residual stream after splicing, after every layer and before every readout: without it XLA computes
    wrong gradients through the dream-query readout on some meshes. Outside a mesh it does nothing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    return jax.lax.with_sharding_constraint(x, ROWS if x.shape[0] % shards == 0 else P())


def constrain_whole(x: jax.Array) -> jax.Array:
    """Holds an array whole on every device.

    Its parts are gathered here, once, and not wherever it is used. Outside a mesh it does nothing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, P())


# First match decides; a path that none matches is an error. Specs are aligned with the last axes, so the same rule
# serves [in, out], [layers, in, out] and [height, width, in, out]; an axis that does not divide stays whole.
PARAMETER_RULES = (
    # The vocabulary (32,008 = 8 x 4001) divides by no large axis: embedding and head are split over D.
    (r"^llm/embed/embedding$", P(None, "fsdp")),
    (r"^llm/head/kernel$", P("fsdp", None)),
    (r"^llm/layers/(attention/[qkv]|mlp/(gate|up))/kernel$", P("fsdp", "tensor")),
    # Split over the axis that is summed over, unlike below: a gradient split over its last axis would be reduced whole
    # on every chip of a TPU.
    (r"^llm/layers/(attention/o|mlp/down)/kernel$", P(("tensor", "fsdp"), None)),
    (r"^llm/.*norm/scale$", P()),
    (r"^clip/layers/(attention/[qkv]|mlp/fc1)/kernel$", P("fsdp", "tensor")),
    (r"^clip/layers/(attention/o|mlp/fc2)/kernel$", P("tensor", "fsdp")),
    (r"^clip/layers/.*/(bias|scale)$", P()),
    (r"^clip/(class_embedding|position_embedding|patch_embedding/kernel|(pre|post)_layernorm/(scale|bias))$", P()),
    (r"^(text_encoder|clip_text)/layers/(attention/[qkv]|mlp/fc1)/kernel$", P("fsdp", "tensor")),
    (r"^(text_encoder|clip_text)/layers/(attention/o|mlp/fc2)/kernel$", P("tensor", "fsdp")),
    (r"^(text_encoder|clip_text)/token_embedding/embedding$", P(None, "fsdp")),
    (r"^(text_encoder|clip_text)/(text|visual)_projection/kernel$", P("fsdp", "tensor")),
    (r"^(text_encoder|clip_text)/.*(bias|scale|position_embedding)$", P()),
    (r"^(unet|vae)/.*kernel$", P("fsdp", "tensor")),
    (r"^(unet|vae)/.*(bias|scale)$", P()),
    (r"^(visual|condition)_projector/.*kernel$", P("fsdp", "tensor")),
    (r"^(visual|condition)_projector/.*bias$", P()),
    (r"^dream_queries$", P()),
)


def path_of(key_path) -> str:
    """`llm/layers/mlp/up/kernel` for the key path of a leaf in nested dicts."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The partition of one parameter by PARAMETER_RULES; axes that do not divide are dropped."""
    pattern, spec = next((rule for rule in PARAMETER_RULES if re.search(rule[0], path)), ("", None))
    if spec is None:
        raise ValueError(f"no sharding rule matches the parameter {path} {shape}")
    if len(spec) > len(shape):
        raise ValueError(f"the sharding rule {pattern} has more axes than the parameter {path} {shape}")
    entries = [None] * (len(shape) - len(spec)) + list(spec)
    return P(*(_dividing(axes, shape[i], mesh) for i, axes in enumerate(entries)))


def _dividing(axes: str | tuple[str, ...] | None, size: int, mesh: Mesh) -> str | tuple[str, ...] | None:
    """An entry of a spec with as many of its axes, from the first on, as divide a size."""
    axes = (axes,) if isinstance(axes, str) else axes or ()
    while size % math.prod(mesh.shape[axis] for axis in axes):
        axes = axes[:-1]
    return axes if len(axes) > 1 else axes[0] if axes else None


def parameter_shardings(params, mesh: Mesh, whole: tuple[str, ...] = ()):
    """The tree of NamedShardings for a tree of parameters (arrays or shapes) whose paths begin at the part's name.

    Those whose path one of the patterns `whole` finds lie on every device.
    """

    def sharding(key_path, leaf) -> NamedSharding:
        path = path_of(key_path)
        spec = parameter_spec(path, leaf.shape, mesh)
        return NamedSharding(mesh, P() if any(re.search(pattern, path) for pattern in whole) else spec)

    return jax.tree_util.tree_map_with_path(sharding, params)


def unsharded_share(params, mesh: Mesh) -> float:
    """Share of the parameters' elements that every device of the fsdp and tensor axes holds whole."""
    whole = total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        size = math.prod(leaf.shape)
        total += size
        held = NamedSharding(mesh, parameter_spec(path_of(path), leaf.shape, mesh)).shard_shape(leaf.shape)
        whole += size if held == leaf.shape else 0
    return whole / total if total else 0.0
