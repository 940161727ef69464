"""DreamLLM: the parts put together. Images are spliced into the LLM's input, conditions are taken from its hidden
states.

    uint8 image -> CLIP -> visual projector ----.                                    .--> LM head -> next token
    text -> token embedding --------------------+-> LLaMA -> hidden states, normed --+
    dream queries (parameters) -----------------'                                    '--> (at the queries) condition
        projector -> U-Net

A `Model` is a pytree: the configuration is static, the parameters are its leaves. Parameters are one nested dict with
an entry per part: llm, clip, unet, vae, visual_projector, condition_projector, dream_queries, text_encoder, clip_text.
Everything here is a pure function of a Model and arrays.

Axes: G groups, R packed rows, L tokens, D width of the LLM, N input and M target image slots, P patches, Q dream
queries, S latent side, E context width of the U-Net.
"""

import dataclasses
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.config import ModelConfig
from dreamjax.document.batch import Batch
from dreamjax.errors import ConfigError
from dreamjax.models.clip import ClipVision, normalise
from dreamjax.models.clip_text import ClipText
from dreamjax.models.llama import Llama
from dreamjax.models.projectors import ConditionProjector, VisualProjector
from dreamjax.models.unet import UNet
from dreamjax.models.vae import AutoencoderKL
from dreamjax.parallel.mesh import constrain_replicated, constrain_rows

Array = jax.Array
BatchArray = jax.Array | np.ndarray  # of a Batch, which holds NumPy arrays outside jit
PartConfig = TypeVar("PartConfig")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A configuration and its parameters; the Linen modules follow from the configuration.

    As a pytree its structure is the configuration, so that functions jitted over it compile once for all models of one
    configuration, and `jax.grad` returns a Model. Asking for the module of a part that the configuration lacks raises
    ConfigError with the part's name; `model.config.vae is None` asks whether there is one.
    """

    config: ModelConfig = dataclasses.field(metadata={"static": True})
    params: dict

    def __repr__(self) -> str:
        count = sum(getattr(leaf, "size", 0) for leaf in jax.tree.leaves(self.params))
        return f"Model({', '.join(self.params)}; {count:,} parameters, {self.config.dtype})"

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the computation."""
        return jnp.dtype(self.config.dtype)

    @property
    def llm(self) -> Llama:
        return Llama(_require(self.config.llm, "llm"), self.dtype)

    @property
    def clip(self) -> ClipVision:
        return ClipVision(_require(self.config.clip, "clip"), self.dtype)

    @property
    def visual_projector(self) -> VisualProjector:
        _require(self.config.clip, "clip")
        return VisualProjector(self.config.visual_projector, self.llm.config.width, self.dtype)

    @property
    def unet(self) -> UNet:
        return UNet(_require(self.config.unet, "unet"), self.dtype)

    @property
    def vae(self) -> AutoencoderKL:
        return AutoencoderKL(_require(self.config.vae, "vae"), self.dtype)

    @property
    def condition_projector(self) -> ConditionProjector:
        _require(self.config.llm, "llm")
        return ConditionProjector(self.unet.config.context_width, self.dtype)

    @property
    def text_encoder(self) -> ClipText:
        return ClipText(_require(self.config.text_encoder, "text_encoder"), self.dtype)

    @property
    def clip_text(self) -> ClipText:
        return ClipText(_require(self.config.clip_text, "clip_text"), self.dtype)

    def apply(self, part: str, *args: Any, **kwargs: Any) -> Any:
        """Linen's `apply` of a part, by its name, with its own parameters."""
        return getattr(self, part).apply({"params": self.params[part]}, *args, **kwargs)


def _require(config: PartConfig | None, part: str) -> PartConfig:
    if config is None:
        raise ConfigError(f"model: has no {part}")
    return config


def init(config: ModelConfig, key: Array) -> dict:
    """Fresh float32 parameters of every part; `jax.eval_shape` of this counts sizes without memory."""
    names = ("llm", "clip", "visual_projector", "unet", "vae", "condition_projector", "dream_queries")
    keys = dict(zip(names, jax.random.split(key, 7), strict=True))
    keys |= dict(zip(("text_encoder", "clip_text"), jax.random.split(jax.random.fold_in(key, 7), 2), strict=True))
    model, params = Model(config, {}), {}
    for name in ("llm", "clip", "text_encoder", "clip_text"):
        if getattr(config, name) is not None:
            params[name] = getattr(model, name).init(keys[name], method="init_all")["params"]
    if config.clip is not None and config.llm is not None:
        patches = jnp.zeros((1, config.clip.patches, config.clip.width))
        params["visual_projector"] = model.visual_projector.init(keys["visual_projector"], patches)["params"]
    if config.unet is not None:
        size = config.unet.sample_size
        latents = jnp.zeros((1, size, size, config.unet.in_channels))
        context = jnp.zeros((1, config.dream_queries, config.unet.context_width))
        params["unet"] = model.unet.init(keys["unet"], latents, jnp.zeros(1, jnp.int32), context)["params"]
    if config.unet is not None and config.llm is not None:
        width = config.llm.width
        projector, queries = model.condition_projector, nn.initializers.normal(0.02)
        params["condition_projector"] = projector.init(keys["condition_projector"], jnp.zeros((1, 1, width)))["params"]
        params["dream_queries"] = queries(keys["dream_queries"], (config.dream_queries, width))
    if config.vae is not None:
        size = config.decoder_size
        params["vae"] = model.vae.init(keys["vae"], jnp.zeros((1, size, size, 3)))["params"]
    return params


# ----------------------------------------------------------------------------------------------------------------------
# Into the LLM


def embed_images(model: Model, images: Array) -> Array:
    """uint8 images [B, h, w, 3], or their patches' features, -> one embedding per patch [B, P, D] (paper Sec. 3.1)."""
    patches = patch_features(model, images) if images.dtype == jnp.uint8 else images
    return constrain_rows(model.apply("visual_projector", constrain_rows(patches)))


def patch_features(model: Model, images: Array) -> Array:
    """uint8 pictures [B, h, w, 3] -> CLIP's selected hidden state without its class token, [B, P, CLIP width]."""
    return model.apply("clip", normalise(images, model.clip.config, model.dtype))[:, 1:]


def embed(model: Model, tokens: BatchArray) -> Array:
    """Token ids [..., L] -> embeddings [..., L, D]."""
    return model.apply("llm", tokens, method="embed")


def queries(model: Model, batch: int) -> Array:
    """The dream queries for each of `batch` images, [batch, Q, D]; every image gets the same ones."""
    embedding = model.params["dream_queries"].astype(model.dtype)
    return jnp.broadcast_to(embedding, (batch, *embedding.shape))


def splice(embeds: Array, features: Array, start: BatchArray, valid: BatchArray) -> Array:
    """Writes features [G, N, P, D] over embeds [G, T, D] at start [G, N] .. start + P; slots that are not valid write
    nothing.

    Both are held to their groups' devices: left alone, XLA gathers the features of all groups on every device.
    """
    embeds, features = constrain_rows(embeds), constrain_rows(features)
    index = start[..., None] + jnp.arange(features.shape[2])
    index = jnp.where(valid[..., None], index, embeds.shape[1])

    def write(row, at, patch):
        return row.at[at.reshape(-1)].set(patch.reshape(-1, patch.shape[-1]).astype(row.dtype), mode="drop")

    return jax.vmap(write)(embeds, index, features)


def embed_batch(model: Model, batch: Batch) -> Array:
    """Input embeddings [G R, L, D] of a batch: its tokens' with images and dream queries spliced in."""
    groups, rows, length = batch.tokens.shape
    embeds = embed(model, batch.tokens).reshape(groups, rows * length, -1)
    if (slots := batch.input_start.shape[1]) > 0:
        images = constrain_rows(jnp.reshape(batch.input_images, (groups * slots, *batch.input_images.shape[2:])))
        # The pictures behind the tokens: where it may choose, the TPU compiler gathers the embeddings anew in each
        # layer of CLIP.
        embeds, images = jax.lax.optimization_barrier((constrain_rows(embeds), images))
        features = embed_images(model, images)
        embeds = splice(
            embeds, features.reshape(groups, slots, *features.shape[1:]), batch.input_start, batch.input_valid
        )
    if (slots := batch.target_start.shape[1]) > 0:
        features = queries(model, groups * slots)
        embeds = splice(
            embeds, features.reshape(groups, slots, *features.shape[1:]), batch.target_start, batch.target_valid
        )
    return constrain_rows(embeds.reshape(groups * rows, length, -1))


def hidden_states(model: Model, batch: Batch) -> Array:
    """The LLM's final hidden states, after the last norm, of a batch: [G R, L, D]."""

    def flat(x):
        return x.reshape(-1, x.shape[-1])

    embeds = embed_batch(model, batch)
    hidden, _ = model.apply("llm", embeds, flat(batch.positions), flat(batch.segments))
    return hidden


# ----------------------------------------------------------------------------------------------------------------------
# Out of the LLM


def read_out(model: Model, hidden: Array, batch: Batch) -> Array:
    """The hidden states at the dream queries of each target slot: hidden [G R, L, D] -> [G M, Q, D]."""
    groups, slots = batch.target_start.shape
    count = model.config.dream_queries
    hidden = constrain_rows(hidden.reshape(groups, -1, hidden.shape[-1]))
    index = (batch.target_start[..., None] + jnp.arange(count)).reshape(groups, slots * count)
    read = jnp.take_along_axis(hidden, index[..., None], axis=1, mode="clip")
    return constrain_rows(read.reshape(groups * slots, count, -1))


def unconditional(model: Model, bos: int, dream_start: int, placeholder: int | None = None) -> Array:
    """The hidden states [Q, D] at the queries of `<s> <dream_start> queries`, which stand for no context.

    The same form in training (condition dropout) and in guidance. The official training code does not splice the
    queries in here, so that it trains on Q embeddings of <im_patch>, which its inference never sees: with
    `placeholder`, a token's id, that token stands in the queries' places.
    """
    embeds = embed_unconditional(model, bos, dream_start, placeholder)
    hidden, _ = model.apply("llm", embeds, jnp.arange(embeds.shape[1])[None])
    return hidden[0, 2:]


def embed_unconditional(model: Model, bos: int, dream_start: int, placeholder: int | None = None) -> Array:
    """Input embeddings [1, Q + 2, D] of `unconditional`; tokens after the queries would change nothing before."""
    opening = embed(model, jnp.array([[bos, dream_start]]))
    embedding = queries(model, 1)
    inputs = embedding if placeholder is None else embed(model, jnp.full(embedding.shape[:2], placeholder))
    return jnp.concatenate([opening, inputs], axis=1)


def with_replicated_head(model: Model) -> Model:
    """The model with the kernel of its LM head replicated, so that chunked cross-entropy does not gather it per chunk.

    Gathered in the compute dtype, held in float32: so the gradients of all chunks add up in float32 on each device, and
    cross the network once.
    """
    llm = model.params["llm"]
    part, name = ("embed", "embedding") if model.llm.config.tie_embeddings else ("head", "kernel")
    matrix = constrain_replicated(llm[part][name].astype(model.dtype)).astype(llm[part][name].dtype)
    return dataclasses.replace(model, params=model.params | {"llm": llm | {part: {name: matrix}}})


def condition(model: Model, hidden: Array) -> Array:
    """Hidden states at the queries [B, Q, D] -> the U-Net's context [B, Q, E] (paper eq. 3)."""
    return constrain_rows(model.apply("condition_projector", hidden))


def denoise(model: Model, noisy: Array, timesteps: Array, context: Array) -> Array:
    """The U-Net's prediction [B, S, S, channels] float32 for noisy latents of the same shape, timesteps [B], context
    [B, Q, E].
    """
    return model.apply("unet", noisy, timesteps, context)


# ----------------------------------------------------------------------------------------------------------------------
# Images and latents


def to_unit(images: Array) -> Array:
    """uint8 -> float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def encode_latents(model: Model, images: Array, posterior_noise: Array | None) -> Array:
    """uint8 pictures [B, H, W, 3], or their moments, -> what diffusion works on, [B, S, S, channels] float32.

    A draw of the VAE's posterior (its mean where there is no noise), scaled; without a VAE the pixels in [-1, 1].
    """
    if model.config.vae is None:
        return to_unit(images)
    mean, logvar = jnp.split(latent_moments(model, images) if images.dtype == jnp.uint8 else images, 2, axis=-1)
    sample = mean if posterior_noise is None else mean + jnp.exp(0.5 * logvar) * posterior_noise
    return sample * model.config.vae.scaling_factor


def latent_moments(model: Model, images: Array) -> Array:
    """uint8 pictures [B, H, W, 3] -> mean and log-variance of the VAE's posterior side by side, [B, S, S, 2
    channels] float32.
    """
    moments = model.apply("vae", to_unit(images), method="encode")
    return jnp.concatenate(moments, axis=-1).astype(jnp.float32)


def decode_latents(model: Model, latents: Array) -> Array:
    """The inverse: [B, S, S, channels] -> uint8 pictures [B, H, W, 3]."""
    return to_uint8(decode_pixels(model, latents))


def decode_pixels(model: Model, latents: Array) -> Array:
    """Latents [B, S, S, channels] -> pixels [B, H, W, 3] around [-1, 1]."""
    if model.config.vae is None:
        return latents
    return model.apply("vae", latents / model.config.vae.scaling_factor, method="decode")


def to_uint8(pixels: Array) -> Array:
    """Pixels in [-1, 1] as levels; what is beyond is black or white."""
    return jnp.round(jnp.clip(pixels / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8)
