"""Drawing: from the hidden states at the dream queries to pictures, with classifier-free guidance."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamjax.diffusion import samplers
from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Parts

Array = jax.Array


class Drawing(NamedTuple):
    """How pictures are denoised; static, so each choice compiles once."""

    steps: int
    spacing: str  # leading | trailing


def draw(parts: Parts, params: dict, hidden: Array, unconditional: Array, keys: Array, guidance: Array, drawing: Drawing) -> Array:
    """hidden [B, Q, D] at the queries, unconditional [Q, D], keys [B] -> uint8 pictures [B, H, W, 3].

    Each picture's noise comes from its own key. The guided prediction is u + guidance (c - u) (Ho & Salimans 2022); at
    guidance 1 it is the conditional one.
    """
    unet = parts.config.unet
    shape = (unet.sample_size, unet.sample_size, unet.in_channels)
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    both = jnp.concatenate([jnp.broadcast_to(unconditional, hidden.shape), hidden])
    context = dreamllm.condition(parts, params, both)

    def predict(x, timesteps):
        twice = lambda y: jnp.concatenate([y, y])
        empty, conditional = jnp.split(dreamllm.denoise(parts, params, twice(x), twice(timesteps), context), 2)
        return empty + guidance * (conditional - empty)

    latents = samplers.ddim(parts.config.diffusion, predict, noise, drawing.steps, drawing.spacing, clip=parts.vae is None)
    return dreamllm.decode_latents(parts, params, latents)
