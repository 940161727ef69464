"""The U-Net's part of a step, by itself, compiled for a TPU that is not at hand: python -m benchmarks.pod_unet
[--topology=v4:2x2x1]

Stable Diffusion 2.1's U-Net at 512 pixels on the pictures of one chip, forward and backward to its condition, in
bfloat16 and without recomputation: once with the attention that the package takes there, once with plain attention,
which writes 4,096 x 4,096 scores of each head. Each row takes some minutes and 10 GiB; what is compiled is kept. Times
are estimates from the compiler's schedule. The last line of stdout is JSON.
"""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
from absl import app, flags
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dreamjax import config as c
from dreamjax.compile_tpu import program, report, topology
from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Model
from dreamjax.parallel.mesh import ROWS, TPU_OPTIONS, make_mesh
from dreamjax.training import checkpoint

TOPOLOGY = flags.DEFINE_string("topology", "v4:2x2x1", "Chip and sides of a slice.")
CACHE = flags.DEFINE_string("cache", "~/.cache/dreamjax/compiled", "Folder that keeps what was compiled.")
PICTURES = 16  # a chip


def lowered(attention: str, mesh) -> jax.stages.Lowered:
    """The mean squared prediction and its gradient by the condition, of PICTURES a chip; the U-Net whole on each."""
    config = c.dreamllm_7b()
    config = dataclasses.replace(config, unet=dataclasses.replace(config.unet, attention=attention))
    count, side = PICTURES * mesh.size, config.unet.sample_size

    def run(model, latents, timesteps, context):
        def error(context):
            return jnp.mean(jnp.square(dreamllm.denoise(model, latents, timesteps, context)))

        return jax.value_and_grad(error)(context)

    def by_rows(dtype, *shape):
        return jax.ShapeDtypeStruct((count, *shape), dtype, sharding=NamedSharding(mesh, ROWS))

    def whole(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=NamedSharding(mesh, P()))

    model = Model(config, {"unet": jax.tree.map(whole, checkpoint.parameter_shapes(config)["unet"])})
    latents, context = (
        by_rows(jnp.float32, side, side, config.unet.in_channels),
        by_rows(jnp.bfloat16, config.dream_queries, config.unet.context_width),
    )
    with jax.set_mesh(mesh):
        return jax.jit(run, compiler_options=TPU_OPTIONS).lower(model, latents, by_rows(jnp.int32), context)


def measured(attention: str, slice_: topology.Topology, mesh, cache: epath.Path) -> dict:
    """Memory and time of one row; where the compiler gives up, the memory that it would have needed."""
    try:
        compiled = program.compile_cached(lowered(attention, mesh), cache)
    except jax.errors.JaxRuntimeError as error:
        return {
            "attention": attention,
            "pictures": PICTURES,
            "hbm_gib": program.too_large(error),
            "fits": False,
            "ms_per_picture": None,
        }
    _, facts = report.measured(compiled, report.Target(slice_, mesh))
    return {
        "attention": attention,
        "pictures": PICTURES,
        "hbm_gib": compiled.peak / report.GIB,
        "fits": compiled.peak / report.GIB <= slice_.chip.hbm_gib,
        "ms_per_picture": 1e3 * facts["step_seconds_estimate"] / PICTURES,
    }


def main(_):
    slice_ = topology.parse(TOPOLOGY.value)
    jax.config.update("jax_platforms", "cpu")
    mesh = make_mesh(c.MeshConfig(slice_.chips, 1, 1), topology.devices_of(slice_))
    cache = epath.Path(os.path.expanduser(CACHE.value))
    print("| attention | pictures a chip | HBM, GiB | fits | ms a picture (estimate) |\n|---|---|---|---|---|")
    rows = []
    for attention in ("auto", "xla"):
        rows.append(measured(attention, slice_, mesh, cache))
        time = f"{rows[-1]['ms_per_picture']:.1f}" if rows[-1]["ms_per_picture"] else ""
        print(
            f"| {attention} | {PICTURES} | {rows[-1]['hbm_gib']:.1f} | "
            f"{'yes' if rows[-1]['fits'] else 'no'} | {time} |",
            flush=True,
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    app.run(main)
