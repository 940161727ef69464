"""DreamLLM: the parts put together. Pictures are spliced into the LLM's input, conditions are read out of its hidden
states.

    uint8 picture -> CLIP -> visual projector --.                                    .--> LM head -> next token
    text -> token embedding --------------------+-> LLaMA -> hidden states, normed --+
    dream queries (learned) --------------------'                                    '--> (at the queries) condition
        projector -> U-Net

Parameters are one nested dict with an entry per part: llm, clip, unet, vae, visual_projector, condition_projector,
dream_queries, text_encoder, clip_text. Everything here is a pure function of (parts, params, arrays). Axes as in
DESIGN's legend: G groups, R rows, L tokens, D width, N seen and M dreamed slots, P patches, Q dream queries, S latent
side, E context width.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamjax.config import ModelConfig
from dreamjax.document.batch import Batch
from dreamjax.models.clip import ClipVision, normalise
from dreamjax.models.clip_text import ClipText
from dreamjax.models.llama import Llama
from dreamjax.models.projectors import ConditionProjector, VisualProjector
from dreamjax.models.unet import UNet
from dreamjax.models.vae import AutoencoderKL
from dreamjax.parallel.mesh import constrain_rows, constrain_whole

Array = jax.Array


class Parts(NamedTuple):
    """The modules of a model; a part that it lacks is None."""

    config: ModelConfig
    llm: Llama | None
    clip: ClipVision | None
    visual_projector: VisualProjector | None
    unet: UNet | None
    vae: AutoencoderKL | None
    condition_projector: ConditionProjector | None
    text_encoder: ClipText | None = None
    clip_text: ClipText | None = None


def build(config: ModelConfig) -> Parts:
    """The modules that a configuration asks for; no parameters yet."""
    dtype = jnp.dtype(config.dtype)
    return Parts(
        config=config,
        llm=Llama(config.llm, dtype) if config.llm else None,
        clip=ClipVision(config.clip, dtype) if config.clip else None,
        visual_projector=VisualProjector(config.visual_projector, config.llm.width, dtype)
        if config.clip and config.llm
        else None,
        unet=UNet(config.unet, dtype) if config.unet else None,
        vae=AutoencoderKL(config.vae, dtype) if config.vae else None,
        condition_projector=ConditionProjector(config.unet.context_width, dtype)
        if config.unet and config.llm
        else None,
        text_encoder=ClipText(config.text_encoder, dtype) if config.text_encoder else None,
        clip_text=ClipText(config.clip_text, dtype) if config.clip_text else None,
    )


def init(parts: Parts, key: Array) -> dict:
    """Fresh float32 parameters of every part; `jax.eval_shape` of this is how sizes are counted without memory."""
    config = parts.config
    keys = dict(
        zip(
            ("llm", "clip", "visual_projector", "unet", "vae", "condition_projector", "dream_queries"),
            jax.random.split(key, 7),
            strict=True,
        )
    )
    keys |= dict(zip(("text_encoder", "clip_text"), jax.random.split(jax.random.fold_in(key, 7), 2), strict=True))
    params = {}
    for name in ("llm", "clip", "text_encoder", "clip_text"):
        if module := getattr(parts, name):
            params[name] = module.init(keys[name], method="init_all")["params"]
    if parts.visual_projector:
        patches = jnp.zeros((1, config.clip.patches, config.clip.width))
        params["visual_projector"] = parts.visual_projector.init(keys["visual_projector"], patches)["params"]
    if parts.unet:
        size = config.unet.sample_size
        latents, context = (
            jnp.zeros((1, size, size, config.unet.in_channels)),
            jnp.zeros((1, config.dream_queries, config.unet.context_width)),
        )
        params["unet"] = parts.unet.init(keys["unet"], latents, jnp.zeros(1, jnp.int32), context)["params"]
    if parts.condition_projector:
        params["condition_projector"] = parts.condition_projector.init(
            keys["condition_projector"], jnp.zeros((1, 1, config.llm.width))
        )["params"]
        params["dream_queries"] = nn.initializers.normal(0.02)(
            keys["dream_queries"], (config.dream_queries, config.llm.width)
        )
    if parts.vae:
        size = config.decoder_size
        params["vae"] = parts.vae.init(keys["vae"], jnp.zeros((1, size, size, 3)))["params"]
    return params


# ----------------------------------------------------------------------------------------------------------------------
# Into the LLM


def see(parts: Parts, params: dict, images: Array) -> Array:
    """uint8 pictures [B, h, w, 3], or their patches' features, -> one embedding per patch [B, P, D] (paper Sec.

    3.1).
    """
    patches = patch_features(parts, params, images) if images.dtype == jnp.uint8 else images
    return constrain_rows(parts.visual_projector.apply({"params": params["visual_projector"]}, constrain_rows(patches)))


def patch_features(parts: Parts, params: dict, images: Array) -> Array:
    """uint8 pictures [B, h, w, 3] -> CLIP's selected hidden state without its class token, [B, P, CLIP width]."""
    return parts.clip.apply({"params": params["clip"]}, normalise(images, parts.config.clip, parts.clip.dtype))[:, 1:]


def embed(parts: Parts, params: dict, tokens: Array) -> Array:
    """Token ids [..., L] -> embeddings [..., L, D]."""
    return parts.llm.apply({"params": params["llm"]}, tokens, method="embed")


def queries(parts: Parts, params: dict, batch: int) -> Array:
    """The dream queries for each of `batch` pictures, [batch, Q, D]; every picture gets the same ones."""
    embedding = params["dream_queries"].astype(parts.llm.dtype)
    return jnp.broadcast_to(embedding, (batch, *embedding.shape))


def splice(embeds: Array, features: Array, start: Array, valid: Array) -> Array:
    """Writes features [G, N, P, D] over embeds [G, T, D] at start [G, N] .. start + P; slots that are not valid write
    nothing.

    Both are held to their groups' devices: left alone, XLA gathers the features of all groups on every device.
    """
    embeds, features = constrain_rows(embeds), constrain_rows(features)
    index = start[..., None] + jnp.arange(features.shape[2])
    index = jnp.where(valid[..., None], index, embeds.shape[1])

    def write(row, at, what):
        return row.at[at.reshape(-1)].set(what.reshape(-1, what.shape[-1]).astype(row.dtype), mode="drop")

    return jax.vmap(write)(embeds, index, features)


def embed_batch(parts: Parts, params: dict, batch: Batch) -> Array:
    """What the LLM reads of a batch: its tokens' embeddings with the pictures and queries spliced in, [G R, L, D]."""
    groups, rows, length = batch.tokens.shape
    embeds = embed(parts, params, batch.tokens).reshape(groups, rows * length, -1)
    if (slots := batch.input_start.shape[1]) > 0:
        images = constrain_rows(batch.input_images.reshape(groups * slots, *batch.input_images.shape[2:]))
        # The pictures behind the tokens: where it may choose, the TPU compiler gathers the embeddings anew in each
        # layer of CLIP.
        embeds, images = jax.lax.optimization_barrier((constrain_rows(embeds), images))
        features = see(parts, params, images)
        embeds = splice(
            embeds, features.reshape(groups, slots, *features.shape[1:]), batch.input_start, batch.input_valid
        )
    if (slots := batch.target_start.shape[1]) > 0:
        features = queries(parts, params, groups * slots)
        embeds = splice(
            embeds, features.reshape(groups, slots, *features.shape[1:]), batch.target_start, batch.target_valid
        )
    return constrain_rows(embeds.reshape(groups * rows, length, -1))


def hidden_states(parts: Parts, params: dict, batch: Batch) -> Array:
    """The LLM's final hidden states, after the last norm, of a batch: [G R, L, D]."""

    def flat(x):
        return x.reshape(-1, x.shape[-1])

    embeds = embed_batch(parts, params, batch)
    hidden, _ = parts.llm.apply({"params": params["llm"]}, embeds, flat(batch.positions), flat(batch.segments))
    return hidden


# ----------------------------------------------------------------------------------------------------------------------
# Out of the LLM


def read_out(parts: Parts, hidden: Array, batch: Batch) -> Array:
    """The hidden states at the dream queries of each dreamed slot: hidden [G R, L, D] -> [G M, Q, D]."""
    groups, slots = batch.target_start.shape
    count = parts.config.dream_queries
    hidden = constrain_rows(hidden.reshape(groups, -1, hidden.shape[-1]))
    index = (batch.target_start[..., None] + jnp.arange(count)).reshape(groups, slots * count)
    read = jnp.take_along_axis(hidden, index[..., None], axis=1, mode="clip")
    return constrain_rows(read.reshape(groups * slots, count, -1))


def unconditional(parts: Parts, params: dict, bos: int, dream_start: int, instead: int | None = None) -> Array:
    """The hidden states [Q, D] at the queries of `<s> <dream_start> queries`, which stand for no context.

    The same form in training (condition dropout) and in guidance. The official training code does not splice the
    queries in here, so that it trains on Q embeddings of <im_patch>, which its inference never sees: with `instead`, a
    token's id, that token stands in the queries' places.
    """
    embeds = embed_unconditional(parts, params, bos, dream_start, instead)
    hidden, _ = parts.llm.apply({"params": params["llm"]}, embeds, jnp.arange(embeds.shape[1])[None])
    return hidden[0, 2:]


def embed_unconditional(parts: Parts, params: dict, bos: int, dream_start: int, instead: int | None = None) -> Array:
    """What the LLM reads for `unconditional`, [1, Q + 2, D].

    What would follow the queries changes nothing before it.
    """
    opening = embed(parts, params, jnp.array([[bos, dream_start]]))
    embedding = queries(parts, params, 1)
    stand_in = embedding if instead is None else embed(parts, params, jnp.full(embedding.shape[:2], instead))
    return jnp.concatenate([opening, stand_in], axis=1)


def with_replicated_head(parts: Parts, params: dict) -> dict:
    """The LLM's parameters with the matrix of the logits whole on every device, for who reads out in many small steps.

    Gathered in the compute dtype, held in float32: so the gradients of all steps add up in float32 on each device, and
    cross the network once.
    """
    llm = params["llm"]
    part, name = ("embed", "embedding") if parts.config.llm.tie_embeddings else ("head", "kernel")
    matrix = constrain_whole(llm[part][name].astype(parts.llm.dtype)).astype(llm[part][name].dtype)
    return llm | {part: {name: matrix}}


def condition(parts: Parts, params: dict, hidden: Array) -> Array:
    """Hidden states at the queries [B, Q, D] -> the U-Net's context [B, Q, E] (paper eq. 3)."""
    return constrain_rows(parts.condition_projector.apply({"params": params["condition_projector"]}, hidden))


def denoise(parts: Parts, params: dict, noisy: Array, timesteps: Array, context: Array) -> Array:
    """The U-Net's prediction [B, S, S, channels] float32 for noisy latents of the same shape, timesteps [B], context
    [B, Q, E].
    """
    return parts.unet.apply({"params": params["unet"]}, noisy, timesteps, context)


# ----------------------------------------------------------------------------------------------------------------------
# Pictures and latents


def to_unit(images: Array) -> Array:
    """uint8 -> float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def encode_latents(parts: Parts, params: dict, images: Array, posterior_noise: Array | None) -> Array:
    """uint8 pictures [B, H, W, 3], or their moments, -> what diffusion works on, [B, S, S, channels] float32.

    A draw of the VAE's posterior (its mean where there is no noise), scaled; without a VAE the pixels in [-1, 1].
    """
    if parts.vae is None:
        return to_unit(images)
    mean, logvar = jnp.split(latent_moments(parts, params, images) if images.dtype == jnp.uint8 else images, 2, axis=-1)
    drawn = mean if posterior_noise is None else mean + jnp.exp(0.5 * logvar) * posterior_noise
    return drawn * parts.config.vae.scaling_factor


def latent_moments(parts: Parts, params: dict, images: Array) -> Array:
    """uint8 pictures [B, H, W, 3] -> mean and log-variance of the VAE's posterior side by side, [B, S, S, 2
    channels] float32.
    """
    moments = parts.vae.apply({"params": params["vae"]}, to_unit(images), method="encode")
    return jnp.concatenate(moments, axis=-1).astype(jnp.float32)


def decode_latents(parts: Parts, params: dict, latents: Array) -> Array:
    """The inverse: [B, S, S, channels] -> uint8 pictures [B, H, W, 3]."""
    return to_uint8(decode_pixels(parts, params, latents))


def decode_pixels(parts: Parts, params: dict, latents: Array) -> Array:
    """Latents [B, S, S, channels] -> pixels [B, H, W, 3] around [-1, 1]."""
    if parts.vae is None:
        return latents
    return parts.vae.apply({"params": params["vae"]}, latents / parts.config.vae.scaling_factor, method="decode")


def to_uint8(pixels: Array) -> Array:
    """Pixels in [-1, 1] as levels; what is beyond is black or white."""
    return jnp.round(jnp.clip(pixels / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8)
