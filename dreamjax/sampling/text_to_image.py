"""Pictures on demand: one right after each prompt, whatever the model would have written there."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.config.validation import require_seed
from dreamjax.document import Document
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import ConfigError
from dreamjax.models.dreamllm import Model
from dreamjax.sampling import denoise
from dreamjax.sampling.denoise import Moment
from dreamjax.sampling.options import Options
from dreamjax.sampling.prefill import condition_after, condition_after_padding, unconditional
from dreamjax.sampling.prompts import bucket


def conditions(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[Document],
    negatives: Sequence[Document],
    options: Options,
) -> tuple[jax.Array, jax.Array | None]:
    """(hidden states at the queries, what guidance leads away from), [B, Q, D] each, B a power of two.

    `negatives` are one per prompt, or none; the second is None without guidance.
    """
    if model.config.unet is None:
        raise ConfigError("this model has no picture decoder")
    if negatives and len(negatives) != len(prompts):
        raise ConfigError(f"negative: {len(negatives)} negative prompts for {len(prompts)} prompts")
    size = bucket(len(prompts), 1)
    after = condition_after_padding if options.padding == "right" else condition_after

    def read(documents):
        return _filled(after(model, tokenizer, documents, options.template)[: len(documents)], size)

    if options.guidance_scale == 1:
        return read(prompts), None
    if negatives:
        return read(prompts), read(negatives)
    hidden = read(prompts)
    return hidden, jnp.broadcast_to(unconditional(model, tokenizer.bos, tokenizer.dream_start), hidden.shape)


def draw_after(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[Document],
    seeds: Sequence[int],
    options: Options,
    negatives: Sequence[Document] = (),
    latents: np.ndarray | None = None,
    step_noise: np.ndarray | None = None,
    watch: Callable[[Moment], None] | None = None,
    every: int = 0,
) -> jax.Array:
    """The latents of one picture right after each prompt, [B, h, w, C] float32, not divided by the VAE's scaling
    factor.

    Noise comes from the seeds, or from `latents` [B, h, w, C] and, for each step, `step_noise` [steps, B, h, w, C].
    `watch` is called after every `every` steps with a Moment.
    """
    seeds = [require_seed(f"seeds[{i}]", seed) for i, seed in enumerate(seeds)]
    if model.config.unet is not None:
        denoise.check(model.config, options, bucket(len(prompts), 1))
    hidden, empty = conditions(model, tokenizer, prompts, negatives, options)
    size = len(hidden)
    keys = image_keys([*seeds, *[0] * (size - len(prompts))])
    noise = None if latents is None else _filled(np.asarray(latents, np.float32), size)
    fresh = (
        None if step_noise is None else jnp.stack([_filled(step, size) for step in np.asarray(step_noise, np.float32)])
    )
    for moment in denoise.moments(model, hidden, empty, keys, options, noise, fresh, every if watch else 0):
        if watch and moment.step < moment.steps:
            watch(moment._replace(progress=jax.tree.map(lambda x: x[: len(prompts)], moment.progress)))
    return moment.progress.x[: len(prompts)]


def image_keys(seeds: Sequence[int]) -> jax.Array:
    """The keys by which documents with these seeds draw their first picture."""
    return _image_keys(np.array(seeds, np.uint32))


@jax.jit
def _image_keys(seeds) -> jax.Array:
    return denoise.image_keys(jax.vmap(jax.random.key)(seeds), jnp.ones(len(seeds), jnp.int32))


def _filled(rows, size: int) -> jax.Array:
    """The first axis filled up to `size` with copies of its last row."""
    return (
        jnp.concatenate([rows, jnp.broadcast_to(rows[-1], (size - len(rows), *rows.shape[1:]))])
        if len(rows) < size
        else jnp.asarray(rows)
    )
