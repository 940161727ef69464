"""CLIP's vision transformer (Radford et al. 2021), as `CLIPVisionModel` of transformers computes it.

Axes: B pictures, P patches, h and w pixels, H heads, C head width; hidden states are [B, P + 1, width] with the class
token first. Parameters are float32; those of the layers are stacked on axis 0:

    class_embedding [width]    patch_embedding/kernel [p, p, 3, width]    position_embedding [P + 1, width]
    {pre,post}_layernorm/{scale,bias} [width]                layers/layer_norm{1,2}/{scale,bias} [layers, width]
    layers/attention/{q,k,v,o}/{kernel,bias}, layers/mlp/{fc1,fc2}/{kernel,bias}    [layers, in, out], [layers, out]
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamjax.config import ClipConfig, ClipTextConfig
from dreamjax.models.attention import full_attention
from dreamjax.parallel.mesh import constrain_rows

Array = jax.Array


def normalise(images: Array, config: ClipConfig, dtype: jnp.dtype = jnp.float32) -> Array:
    """uint8 RGB pictures [..., h, w, 3] (0 ..

    255) to the pixels that `ClipVision` takes; runs where the images lie, so that they travel as bytes.
    """
    pixels = images.astype(jnp.float32) / 255
    return ((pixels - jnp.array(config.image_mean)) / jnp.array(config.image_std)).astype(dtype)


class ClipVision(nn.Module):
    """The encoder. All parameters: `ClipVision(config).init(key, method="init_all")`."""

    config: ClipConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        config = self.config
        token_init = nn.initializers.normal(config.width**-0.5)
        patch = (config.patch_size, config.patch_size)
        self.patch_embedding = nn.Conv(
            config.width, patch, patch, padding="VALID", use_bias=False, dtype=self.dtype, name="patch_embedding"
        )
        self.class_embedding = self.param("class_embedding", token_init, (config.width,))
        self.position_embedding = self.param("position_embedding", token_init, (config.patches + 1, config.width))
        self.pre_layernorm = layer_norm(config, self.dtype, "pre_layernorm")
        scanned = nn.scan(_Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=config.layers)
        self.layers = scanned(config, self.dtype, name="layers")
        self.post_layernorm = layer_norm(config, self.dtype, "post_layernorm")

    def __call__(self, pixels: Array, index: int | None = None) -> Array:
        """Hidden state number `index` (config.select_layer if None), [B, P + 1, width], of normalised pixels [B, h, w,
        3].

        Numbered like `hidden_states` of transformers: 0 enters the first layer, i leaves layer i, negative ones count
        from the end; without the post layer norm. Raises ValueError for a number or a picture size that does not exist.
        """
        return self._states(pixels, self.config.select_layer if index is None else index)[1]

    def pooled(self, pixels: Array) -> Array:
        """The class token of the last hidden state after the post layer norm, [B, width] (`pooler_output` of
        transformers).
        """
        last, _ = self._states(pixels, self.config.layers)
        return self.post_layernorm(last[:, 0])

    def init_all(self) -> Array:
        """Touches every parameter once; for `init` alone."""
        return self.pooled(jnp.zeros((1, self.config.image_size, self.config.image_size, 3)))

    def _states(self, pixels: Array, index: int) -> tuple[Array, Array]:
        """The last hidden state and state number `index`, each [B, P + 1, width]."""
        config = self.config
        if not -config.layers - 1 <= index <= config.layers:
            raise ValueError(
                f"ClipVision: there is no hidden state {index}; {config.layers} layers have {config.layers + 1} states"
            )
        if pixels.shape[1:] != (config.image_size, config.image_size, 3):
            size = config.image_size
            raise ValueError(
                f"ClipVision: pixels are {pixels.shape}, must be [B, {size}, {size}, 3]; resize and crop them first"
            )
        patches = self.patch_embedding(pixels.astype(self.dtype)).reshape(len(pixels), config.patches, config.width)
        first = jnp.broadcast_to(self.class_embedding.astype(self.dtype), (len(pixels), 1, config.width))
        x = jnp.concatenate([first, patches], axis=1) + self.position_embedding.astype(self.dtype)
        x = constrain_rows(self.pre_layernorm(x))
        # A scan could return all states, or stop only at its end: to hold one state instead of layers + 1, it travels
        # along and is replaced once, after the layer that is wanted (never, if that is state 0).
        wanted = jnp.arange(1, config.layers + 1) == index % (config.layers + 1)
        (last, kept), _ = self.layers((x, x), wanted)
        return last, kept


def layer_norm(config: ClipConfig | ClipTextConfig, dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    """A LayerNorm of either tower."""
    # The fast variance, E[x^2] - E[x]^2, cancels where a token's mean is far larger than its spread; torch's does not.
    return nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=dtype, use_fast_variance=False, name=name)


class _Layer(nn.Module):
    """One layer, in the form of a scan.

    The carry is (x, kept), both [B, P + 1, width]; `wanted` (bool): keep what leaves this layer.
    """

    config: ClipConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, carry: tuple[Array, Array], wanted: Array):
        x, kept = carry
        x = transformer_layer(self.config, self.dtype, x, full_attention)
        return (x, jnp.where(wanted, x, kept)), None


def transformer_layer(config: ClipConfig | ClipTextConfig, dtype: jnp.dtype, x: Array, attend: Callable) -> Array:
    """One layer of either tower, [B, L, width]; call it in a compact method, whose module gets the submodules."""
    x = constrain_rows(
        x + _Attention(config, dtype, attend, name="attention")(layer_norm(config, dtype, "layer_norm1")(x))
    )
    return constrain_rows(x + _Mlp(config, dtype, name="mlp")(layer_norm(config, dtype, "layer_norm2")(x)))


class _Attention(nn.Module):
    """Multi-head attention, of what to what is `attend`'s matter."""

    config: ClipConfig | ClipTextConfig
    dtype: jnp.dtype
    attend: Callable

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dense = functools.partial(nn.Dense, self.config.width, dtype=self.dtype)
        q, k, v = (dense(name=name)(x).reshape(*x.shape[:2], self.config.heads, -1) for name in ("q", "k", "v"))
        return dense(name="o")(self.attend(q, k, v).reshape(x.shape))


class _Mlp(nn.Module):
    """Two layers with GELU, or with CLIP's approximation of it, x sigmoid(1.702 x)."""

    config: ClipConfig | ClipTextConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.Dense(self.config.ffn_width, dtype=self.dtype, name="fc1")(x)
        x = x * nn.sigmoid(1.702 * x) if self.config.activation == "quick_gelu" else nn.gelu(x, approximate=False)
        return nn.Dense(self.config.width, dtype=self.dtype, name="fc2")(x)
