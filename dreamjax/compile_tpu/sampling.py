"""The steps of sampling on a slice.

A token written for one document on each shard of the rows, a denoising step with guidance.
"""

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dreamjax.compile_tpu import program, report
from dreamjax.compile_tpu.topology import Topology
from dreamjax.config import RunConfig
from dreamjax.models import dreamllm
from dreamjax.models.llama import init_cache
from dreamjax.parallel.mesh import ROWS, TPU_OPTIONS
from dreamjax.parallel.param_sharding import parameter_shardings
from dreamjax.sampling import decode, denoise
from dreamjax.sampling.options import Options
from dreamjax.training.state import cast


def reports(config: RunConfig, topology: Topology, mesh, cache: epath.Path | None) -> dict[str, dict]:
    """Memory and estimated time of each step, by name.

    `write` is of one token for every document, `denoise` of all steps of a picture.
    """
    parts = dreamllm.build(config.model)
    params = jax.eval_shape(lambda: cast(dreamllm.init(parts, jax.random.key(0)), config.model.dtype))
    where = parameter_shardings(params, mesh, config.whole)
    params = program.placed(params, where)
    documents = mesh.shape["data"] * mesh.shape["fsdp"]

    def rows(tree, axis=0):
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape,
                leaf.dtype,
                sharding=NamedSharding(mesh, P(*[None] * axis, *ROWS) if leaf.ndim > axis else P()),
            ),
            tree,
        )

    lowered = {}
    with jax.set_mesh(mesh):
        state = jax.eval_shape(lambda: _state(config, documents))
        state = rows(state)._replace(cache=rows(state.cache, 1))
        settings = jax.eval_shape(lambda: _settings(config, documents))
        special = decode.Special(2, program.IDS.dream_start, config.model.dream_queries + 4)

        def write(params, state, settings):
            return decode.write(parts, params, state, settings, special, 1)

        lowered["write"] = jax.jit(write, donate_argnums=1, compiler_options=TPU_OPTIONS).lower(params, state, settings)
        if parts.unet:
            options = Options()
            noise = jax.ShapeDtypeStruct((documents, *denoise.latent_shape(config.model, options)), jnp.float32)
            context = jax.ShapeDtypeStruct(
                (2, documents, config.model.dream_queries, config.model.unet.context_width),
                jnp.dtype(config.model.dtype),
            )

            def denoise_step(params, context, progress, keys, drawing):
                return denoise.denoise(parts, params, context, progress, drawing, keys, None, 0, options.num_steps)

            progress, keys = denoise.Progress(noise, noise), jax.eval_shape(lambda: _keys(documents))
            drawing = denoise.drawing(config.model, options)
            used = {name: params[name] for name in params if name == "unet"}
            jitted = jax.jit(denoise_step, donate_argnums=2, compiler_options=TPU_OPTIONS)
            lowered["denoise"] = jitted.lower(used, rows(context, 1), rows(progress), rows(keys), drawing)
    found = {}
    for name, program_ in lowered.items():
        compiled = program.compile_cached(program_, cache)
        _, facts = report.measured(compiled, topology, report.coordinates(mesh))
        found[name] = {
            "documents": documents,
            "hbm_peak_gib": compiled.peak / report.GIB,
            "fits": compiled.peak / report.GIB <= topology.chip.hbm_gib,
            "seconds_estimate": facts["step_seconds_estimate"],
            "compile_seconds": compiled.seconds,
        }
    return found


def _keys(documents: int) -> jax.Array:
    return jax.vmap(jax.random.key)(jnp.zeros(documents, jnp.uint32))


def _state(config: RunConfig, documents: int) -> decode.State:
    llm, zeros = config.model.llm, jnp.zeros(documents, jnp.int32)
    cache = init_cache(llm, documents, llm.max_positions, jnp.dtype(config.model.dtype))
    words = jnp.zeros((documents, llm.vocab_size))
    return decode.State(
        cache,
        zeros,
        words,
        words > 0,
        jnp.zeros((documents, 256), jnp.int32),
        zeros,
        zeros,
        zeros,
        _keys(documents),
        zeros == 0,
    )


def _settings(config: RunConfig, documents: int) -> decode.Settings:
    def limit():
        return np.zeros(documents, np.int32)

    number, count = np.float32, np.int32
    return decode.Settings(
        number(0),
        count(0),
        number(1),
        number(1),
        limit(),
        limit(),
        limit(),
        np.zeros(config.model.llm.vocab_size, bool),
        count(config.model.llm.max_positions),
    )
