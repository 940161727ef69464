"""CLIP's text transformer (Radford et al. 2021), as `CLIPTextModel` and `CLIPModel` of transformers compute it.

It encodes prompts for Stable Diffusion by itself (1.x: CLIP-L; 2.x: OpenCLIP-H without its last layer), and ranks
pictures by a text together with the picture encoder. Axes: B texts, L tokens. Parameters are float32; those of the
layers are stacked as in clip.py:

    token_embedding/embedding [V, width]    position_embedding [positions, width]    layers/...
                                            final_layernorm/{scale,bias}
    text_projection/kernel [width, projection], visual_projection/kernel [vision width, projection], logit_scale []
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamjax.config import ClipTextConfig
from dreamjax.models.attention import causal_attention
from dreamjax.models.clip import layer_norm, transformer_layer
from dreamjax.parallel.mesh import constrain_rows

Array = jax.Array


class ClipText(nn.Module):
    """The text tower. All parameters: `ClipText(config).init(key, method="init_all")`."""

    config: ClipTextConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        config, dtype = self.config, self.dtype
        self.token_embedding = nn.Embed(
            config.vocab_size,
            config.width,
            dtype=dtype,
            embedding_init=nn.initializers.normal(0.02),
            name="token_embedding",
        )
        self.position_embedding = self.param(
            "position_embedding", nn.initializers.normal(0.01), (config.positions, config.width)
        )
        scanned = nn.scan(_Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=config.layers)
        self.layers = scanned(config, dtype, name="layers")
        self.final_layernorm = layer_norm(config, dtype, "final_layernorm")
        if config.projection_width:
            self.text_projection = nn.Dense(
                config.projection_width, use_bias=False, dtype=dtype, name="text_projection"
            )
            self.visual_projection = nn.Dense(
                config.projection_width, use_bias=False, dtype=dtype, name="visual_projection"
            )
            self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.6592), ())

    def __call__(self, tokens: Array) -> Array:
        """[B, L] int32 tokens, L at most `positions` -> the last hidden states after the last norm, [B, L, width].

        Stable Diffusion's context.
        """
        if tokens.shape[1] > self.config.positions:
            raise ValueError(
                f"ClipText: {tokens.shape[1]} tokens are more than the model's {self.config.positions} positions"
            )
        x = self.token_embedding(tokens) + self.position_embedding[: tokens.shape[1]].astype(self.dtype)
        x, _ = self.layers(constrain_rows(x), None)
        return self.final_layernorm(x)

    def pooled(self, tokens: Array) -> Array:
        """The last hidden state at the end of the text, [B, width] (`pooler_output` of transformers)."""
        end = self.config.end_token
        at = jnp.argmax(tokens if end is None else tokens == end, axis=-1)  # the first of several
        return jnp.take_along_axis(self(tokens), at[:, None, None], axis=1)[:, 0]

    def embed_text(self, tokens: Array) -> Array:
        """Texts as unit vectors in the shared space, [B, projection_width] float32."""
        return _unit(self.text_projection(self.pooled(tokens)))

    def embed_image(self, pooled: Array) -> Array:
        """Project the output of `ClipVision.pooled` [B, vision_width] to unit vectors in the shared space."""
        return _unit(self.visual_projection(pooled))

    def scores(self, tokens: Array, pooled: Array) -> Array:
        """Score every image against every text.

        Cosines times the learned scale, [B pictures, B texts] (`logits_per_image`).
        """
        return jnp.exp(self.logit_scale) * self.embed_image(pooled) @ self.embed_text(tokens).T

    def init_all(self) -> Array:
        """Touches every parameter once; for `init` alone."""
        tokens = jnp.zeros((1, 1), jnp.int32)
        return (
            self.scores(tokens, jnp.zeros((1, self.config.vision_width)))
            if self.config.projection_width
            else self(tokens)
        )


class _Layer(nn.Module):
    """One layer, in the form of a scan over [B, L, width]."""

    config: ClipTextConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, _):
        return transformer_layer(self.config, self.dtype, x, causal_attention), None


def _unit(x: Array) -> Array:
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
