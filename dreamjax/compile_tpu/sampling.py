"""The steps of sampling on a slice: one token for a document on each shard of the rows, denoising with guidance."""

from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dreamjax.compile_tpu import program, report
from dreamjax.config import RunConfig
from dreamjax.config.validation import require_present
from dreamjax.diffusion import samplers
from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Model
from dreamjax.models.llama import init_cache
from dreamjax.parallel.mesh import ROWS, TPU_OPTIONS
from dreamjax.parallel.param_sharding import parameter_shardings
from dreamjax.sampling import decode, denoise
from dreamjax.sampling.options import Options
from dreamjax.training.state import cast


def reports(config: RunConfig, target: report.Target, cache: epath.Path | None) -> dict[str, dict]:
    """Memory and estimated time of each step, by name.

    `write` samples one token for every document, `denoise` runs all steps of an image.
    """
    params = jax.eval_shape(lambda: cast(dreamllm.init(config.model, jax.random.key(0)), config.model.dtype))
    shardings = parameter_shardings(params, target.mesh, config.replicated)
    model = Model(config.model, program.with_shardings(params, shardings))
    with jax.set_mesh(target.mesh):
        lowered = {"write": _lower_write(config, model, target.mesh)}
        if config.model.unet:
            lowered["denoise"] = _lower_denoise(config, model, target.mesh)
    results = {}
    for name, step in lowered.items():
        compiled = program.compile_cached(step, cache)
        _, facts = report.measured(compiled, target)
        results[name] = {
            "documents": _documents(target.mesh),
            "hbm_peak_gib": compiled.peak / report.GIB,
            "fits": compiled.peak / report.GIB <= target.topology.chip.hbm_gib,
            "seconds_estimate": facts["step_seconds_estimate"],
            "compile_seconds": compiled.seconds,
        }
    return results


def _documents(mesh: Mesh) -> int:
    """The number of documents that are sampled together: one per shard of the rows."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def _shard_rows(tree: Any, mesh: Mesh, axis: int = 0) -> Any:
    """Shapes with the given axis sharded as rows are."""

    def shard(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = P(*[None] * axis, *ROWS) if leaf.ndim > axis else P()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(shard, tree)


def _lower_write(config: RunConfig, model: Model, mesh: Mesh) -> jax.stages.Lowered:
    """The step that samples a token for every document, lowered under the mesh."""
    documents = _documents(mesh)
    state = jax.eval_shape(lambda: _state(config, documents))
    state = _shard_rows(state, mesh)._replace(cache=_shard_rows(state.cache, mesh, 1))
    settings = jax.eval_shape(lambda: _settings(config, documents))
    special = decode.Special(2, program.IDS.dream_start, config.model.dream_queries + 4)

    def write(model: Model, state: decode.State, settings: decode.Settings) -> decode.State:
        return decode.write(model, state, settings, special, 1)

    return jax.jit(write, donate_argnums=1, compiler_options=TPU_OPTIONS).lower(model, state, settings)


def _lower_denoise(config: RunConfig, model: Model, mesh: Mesh) -> jax.stages.Lowered:
    """All denoising steps of an image per document, with guidance, lowered under the mesh."""
    options, documents = Options(), _documents(mesh)
    noise = jax.ShapeDtypeStruct((documents, *denoise.latent_shape(config.model, options)), jnp.float32)
    context = jax.ShapeDtypeStruct(
        (2, documents, config.model.dream_queries, model.unet.config.context_width), jnp.dtype(config.model.dtype)
    )

    def run(
        model: Model, context: jax.Array, progress: samplers.Progress, keys: jax.Array, plan: denoise.DenoisingPlan
    ) -> samplers.Progress:
        return denoise.denoise(model, context, progress, plan, denoise.Noise(keys), (0, options.num_steps))

    progress, keys = jax.eval_shape(samplers.begin, noise), jax.eval_shape(lambda: _keys(documents))
    unet_alone = Model(config.model, {"unet": model.params["unet"]})
    jitted = jax.jit(run, donate_argnums=2, compiler_options=TPU_OPTIONS)
    arguments = (_shard_rows(context, mesh, 1), _shard_rows(progress, mesh), _shard_rows(keys, mesh))
    return jitted.lower(unet_alone, *arguments, denoise.denoising_plan(config.model, options))


def _keys(documents: int) -> jax.Array:
    return jax.vmap(jax.random.key)(jnp.zeros(documents, jnp.uint32))


def _state(config: RunConfig, documents: int) -> decode.State:
    llm, zeros = require_present(config.model.llm, "config.model.llm"), jnp.zeros(documents, jnp.int32)
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
    llm = require_present(config.model.llm, "config.model.llm")
    number, count = jnp.float32, jnp.int32
    limits = jnp.zeros(documents, count)
    return decode.Settings(
        number(0),
        count(0),
        number(1),
        number(1),
        limits,
        limits,
        limits,
        jnp.zeros(llm.vocab_size, bool),
        count(llm.max_positions),
    )
