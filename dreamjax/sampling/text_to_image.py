"""Text to image: one image right after each prompt."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.config.validation import require_seed
from dreamjax.document import Document
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import ConfigError
from dreamjax.models.dreamllm import Model
from dreamjax.sampling import denoise
from dreamjax.sampling.denoise import Conditions, DenoisingStep, Noise
from dreamjax.sampling.options import Options
from dreamjax.sampling.prefill import condition_after, condition_after_padding, unconditional
from dreamjax.sampling.prompts import bucket


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """One image right after each prompt, whatever the model would have written there."""

    prompts: Sequence[Document]
    seeds: Sequence[int]
    options: Options
    negatives: Sequence[Document] = ()  # negative prompts, one for each prompt or none
    latents: np.ndarray | None = None  # [B, h, w, C]: initial noise in place of the seeds'
    step_noise: np.ndarray | None = None  # [steps, B, h, w, C]

    def __post_init__(self):
        seeds = [require_seed(f"seeds[{i}]", seed) for i, seed in enumerate(self.seeds)]
        object.__setattr__(self, "seeds", seeds)
        if self.negatives and len(self.negatives) != len(self.prompts):
            raise ConfigError(f"negative: {len(self.negatives)} negative prompts for {len(self.prompts)} prompts")


def conditions(model: Model, tokenizer: Tokenizer, request: ImageRequest) -> Conditions:
    """Hidden states [B, Q, D] at the dream queries after each prompt and negative prompt, B a power of two."""
    if model.config.unet is None:
        raise ConfigError("this model has no picture decoder")
    options, size = request.options, bucket(len(request.prompts), 1)
    after = condition_after_padding if options.padding == "right" else condition_after

    def read(documents: Sequence[Document]) -> jax.Array:
        return _padded(after(model, tokenizer, documents, options.template)[: len(documents)], size)

    hidden = read(request.prompts)
    if options.guidance_scale == 1:
        return Conditions(hidden, None)
    if request.negatives:
        return Conditions(hidden, read(request.negatives))
    without = unconditional(model, tokenizer.bos, tokenizer.dream_start)
    return Conditions(hidden, jnp.broadcast_to(without, hidden.shape))


def image_steps(model: Model, tokenizer: Tokenizer, request: ImageRequest, every: int = 0) -> Iterator[DenoisingStep]:
    """Generate the latents of a request, [B, h, w, C] float32, not divided by the VAE's scaling factor.

    Yields them after every `every` steps (0: none in between) and after the last one.
    """
    count = len(request.prompts)
    if model.config.unet is not None:
        denoise.check(model.config, request.options, bucket(count, 1))
    conditioned = conditions(model, tokenizer, request)
    size = len(conditioned.hidden)
    noise = Noise(image_keys([*request.seeds, *[0] * (size - count)]))
    if request.latents is not None:
        noise = noise._replace(initial=_padded(np.asarray(request.latents, np.float32), size))
    if request.step_noise is not None:
        steps = [_padded(step, size) for step in np.asarray(request.step_noise, np.float32)]
        noise = noise._replace(steps=jnp.stack(steps))
    for step in denoise.denoising_steps(model, conditioned, noise, request.options, every):
        yield step._replace(progress=jax.tree.map(lambda x: x[:count], step.progress))


def image_latents(model: Model, tokenizer: Tokenizer, request: ImageRequest) -> jax.Array:
    """The latents [B, h, w, C] of `image_steps` after the last step."""
    *_, last = image_steps(model, tokenizer, request)
    return last.progress.x


def image_keys(seeds: Sequence[int]) -> jax.Array:
    """The keys of the first image of documents with these seeds."""
    return _image_keys(np.array(seeds, np.uint32))


@jax.jit
def _image_keys(seeds: jax.Array) -> jax.Array:
    return denoise.image_keys(jax.vmap(jax.random.key)(seeds), jnp.ones(len(seeds), jnp.int32))


def _padded(rows: jax.Array | np.ndarray, size: int) -> jax.Array:
    """The first axis padded to `size` with copies of its last row."""
    return (
        jnp.concatenate([rows, jnp.broadcast_to(rows[-1], (size - len(rows), *rows.shape[1:]))])
        if len(rows) < size
        else jnp.asarray(rows)
    )
