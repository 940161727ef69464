"""Stable Diffusion by itself: its own text encoder in the place of the LLM, as the baseline of DreamLLM's images."""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jax.sharding import Mesh

from dreamjax.convert import assemble, importer
from dreamjax.diffusion import samplers
from dreamjax.document import clip_tokenizer
from dreamjax.errors import ConfigError
from dreamjax.models.dreamllm import Model
from dreamjax.parallel.param_sharding import parameter_shardings
from dreamjax.sampling import denoise, finite, text_to_image
from dreamjax.sampling.options import Options
from dreamjax.training import checkpoint

PARTS = ("unet", "vae", "text_encoder")


@dataclasses.dataclass(frozen=True, eq=False)
class StableDiffusion:
    """U-Net, VAE and text encoder with its tokenizer."""

    model: Model
    tokenizer: object

    @classmethod
    def load(cls, folder: str, mesh: Mesh | None = None) -> "StableDiffusion":
        """A folder in the layout of diffusers: unet, vae, scheduler, text_encoder, tokenizer. Raises ConfigError."""
        if not pathlib.Path(folder).is_dir():
            raise ConfigError(f"--baseline: {folder}: no such folder")
        plan = importer.make_plan([folder], parts=PARTS)
        location = plan.sources[0].clip_tokenizers.get("text_encoder")
        if plan.model.unet is None or plan.model.text_encoder is None or location is None:
            raise ConfigError(
                f"--baseline: {folder} needs unet/, vae/, scheduler/, text_encoder/ and tokenizer/, as "
                "diffusers writes them"
            )
        shardings = None
        if mesh is not None:
            shardings = parameter_shardings(checkpoint.parameter_shapes(plan.model), mesh)
        return cls(Model(plan.model, assemble.materialise(plan.leaves, shardings)), clip_tokenizer.load(location))

    def draw(self, texts: Sequence[str], seeds: Sequence[int], options: Options) -> list[PIL.Image.Image]:
        """An image for each text. The unconditional context is that of the empty text."""
        config = self.model.config

        def read(words):
            return _read(self.model, clip_tokenizer.encode(self.tokenizer, words, config.text_encoder.positions))

        context = read(texts)[None]
        if options.guidance_scale > 1:
            context = jnp.concatenate([jnp.broadcast_to(read([""]), context.shape), context])
        keys = text_to_image.image_keys(seeds)
        progress = samplers.begin(denoise.first_noise(keys, denoise.latent_shape(config, options)))
        steps = np.int32(0), np.int32(options.num_steps)
        progress = denoise.denoise(
            self.model, context, progress, denoise.denoising_plan(config, options), denoise.Noise(keys), steps
        )
        drawn = denoise.decode(self.model, progress.x)
        finite.require_flags(np.asarray(drawn.finite).tolist(), "picture", self.model)
        return [PIL.Image.fromarray(image) for image in np.asarray(drawn.images)]


@jax.jit
def _read(model: Model, tokens: jax.Array) -> jax.Array:
    """Tokens [B, L] -> the U-Net's context [B, L, E]."""
    return model.apply("text_encoder", tokens)
