"""Parameter shardings: a table from parameter paths to partition specs.

Axes of the mesh: data (replicas, across slices), fsdp (parameters and rows are split), tensor (heads and hidden units
are split).
"""

import math
import re

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# First match decides; a path that none matches is an error. Specs are aligned with the last axes, so the same rule
# serves [in, out], [layers, in, out] and [height, width, in, out]; an axis that does not divide is not split.
PARAMETER_RULES = (
    # The vocabulary (32,008 = 8 x 4001) divides by no large axis: embedding and head are split over D.
    (r"^llm/embed/embedding$", P(None, "fsdp")),
    (r"^llm/head/kernel$", P("fsdp", None)),
    (r"^llm/layers/(attention/[qkv]|mlp/(gate|up))/kernel$", P("fsdp", "tensor")),
    # Split over the axis that is summed over, unlike below: a gradient split over its last axis would be reduced in
    # full on every chip of a TPU.
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


def path_of(key_path: tuple) -> str:
    """`llm/layers/mlp/up/kernel` for the key path of a leaf in nested dicts."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
    """The partition of one parameter by PARAMETER_RULES; axes that do not divide are dropped."""
    pattern, spec = next((rule for rule in PARAMETER_RULES if re.search(rule[0], path)), ("", None))
    if spec is None:
        raise ValueError(f"no sharding rule matches the parameter {path} {shape}")
    if len(spec) > len(shape):
        raise ValueError(f"the sharding rule {pattern} has more axes than the parameter {path} {shape}")
    entries = [None] * (len(shape) - len(spec)) + list(spec)
    return P(*(_dividing(axes, shape[i], mesh) for i, axes in enumerate(entries)))


def _dividing(axes: str | tuple[str, ...] | None, size: int, mesh: Mesh | AbstractMesh) -> str | tuple[str, ...] | None:
    """An entry of a spec with as many of its axes, from the first on, as divide a size."""
    axes = (axes,) if isinstance(axes, str) else axes or ()
    while size % math.prod(mesh.shape[axis] for axis in axes):
        axes = axes[:-1]
    return axes if len(axes) > 1 else axes[0] if axes else None


def parameter_shardings(params: dict, mesh: Mesh | AbstractMesh, replicated: tuple[str, ...] = ()) -> dict:
    """The tree of NamedShardings for a tree of parameters (arrays or shapes) whose paths begin at the part's name.

    Those whose path matches one of the patterns `replicated` are replicated.
    """

    def sharding(key_path: tuple, leaf: jax.ShapeDtypeStruct | jax.Array) -> NamedSharding:
        path = path_of(key_path)
        spec = parameter_spec(path, leaf.shape, mesh)
        return NamedSharding(mesh, P() if any(re.search(pattern, path) for pattern in replicated) else spec)

    return jax.tree_util.tree_map_with_path(sharding, params)


def unsharded_share(params: dict, mesh: Mesh | AbstractMesh) -> float:
    """Share of the parameters' elements that are replicated over the fsdp and tensor axes."""
    unsharded = total = 0
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(params):
        size = math.prod(leaf.shape)
        total += size
        local_shape = NamedSharding(mesh, parameter_spec(path_of(key_path), leaf.shape, mesh)).shard_shape(leaf.shape)
        unsharded += size if local_shape == leaf.shape else 0
    return unsharded / total if total else 0.0
