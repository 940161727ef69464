"""Stable Diffusion's U-Net, the score function of the paper's eq. 4 and 5 (diffusers' UNet2DConditionModel).

Axes: B pictures, S latent side (halved from level to level), D channels of a level, Q dream queries, E U-Net context
width, L = S S positions. Feature maps are channels-last, [B, S, S, D]. A *level* is one entry of
`UNetConfig.block_channels`; level 0 has the full side. Submodule names are diffusers', with list indices joined by an
underscore.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamjax.config import UNetConfig
from dreamjax.models.blocks import Conv3x3, Downsample, Resnet, Upsample, group_norm, multi_head_attention
from dreamjax.parallel.mesh import constrain_rows

Array = jax.Array

RESNET_EPSILON = 1e-5
TRANSFORMER_EPSILON = 1e-6  # of the transformers' GroupNorm; their LayerNorms use 1e-5
LAYER_NORM_EPSILON = 1e-5
MAX_PERIOD = 10000.0  # of the timestep's sinusoids


def timestep_embedding(timesteps: Array, width: int) -> Array:
    """[B] timesteps -> [B, width] float32.

    Cosines, then sines, of width / 2 geometric frequencies from 1 towards 1 / 10000.
    """
    half = width // 2
    frequencies = jnp.exp(-jnp.log(MAX_PERIOD) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeMlp(nn.Module):
    """The timestep's two-layer MLP (diffusers' TimestepEmbedding)."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, D] -> [B, width]."""
        x = nn.silu(nn.Dense(self.width, dtype=self.dtype, name="linear_1")(x))
        return nn.Dense(self.width, dtype=self.dtype, name="linear_2")(x)


class Attention(nn.Module):
    """Multi-head attention without biases on queries, keys and values."""

    heads: int
    dtype: jnp.dtype
    attention: str

    @nn.compact
    def __call__(self, x: Array, context: Array) -> Array:
        """[B, L, D] attends to [B, T, E] -> [B, L, D]."""
        return multi_head_attention(x, context, self.heads, use_bias=False, dtype=self.dtype, attention=self.attention)


class GatedLinear(nn.Module):
    """Half of a projection, gated by the exact GELU of its other half (diffusers' GEGLU; Shazeer 2020)."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, L, D] -> [B, L, width]."""
        hidden, gate = jnp.split(nn.Dense(2 * self.width, dtype=self.dtype, name="proj")(x), 2, axis=-1)
        # By erf: the erfc of nn.gelu has two branches, and with them a TPU takes twice as long.
        return hidden * (gate * (0.5 * (1 + jax.lax.erf(gate * 2**-0.5))))


class FeedForward(nn.Module):
    """The gated feed-forward layer, four times as wide inside (diffusers' FeedForward)."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, L, D] -> [B, L, D]."""
        hidden = GatedLinear(4 * x.shape[-1], self.dtype, name="net_0")(x)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="net_2")(hidden)


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward, each normalised before and added (diffusers'
    BasicTransformerBlock).
    """

    heads: int
    dtype: jnp.dtype
    attention: str

    @nn.compact
    def __call__(self, x: Array, context: Array) -> Array:
        """[B, L, D] with [B, Q, E] context -> [B, L, D]."""

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, use_fast_variance=False, dtype=self.dtype, name=name)

        normed = norm("norm1")(x)
        x = constrain_rows(x + Attention(self.heads, self.dtype, self.attention, name="attn1")(normed, normed))
        x = constrain_rows(
            x + Attention(self.heads, self.dtype, self.attention, name="attn2")(norm("norm2")(x), context)
        )
        return constrain_rows(x + FeedForward(self.dtype, name="ff")(norm("norm3")(x)))


class Transformer(nn.Module):
    """One transformer layer over a feature map's positions, with a residual path around it (diffusers'
    Transformer2DModel).
    """

    config: UNetConfig
    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, context: Array) -> Array:
        """[B, S, S, D] with [B, Q, E] context -> [B, S, S, D]."""
        batch, height, width, channels = x.shape

        def projection(name: str) -> nn.Module:
            if self.config.linear_projection:
                return nn.Dense(channels, dtype=self.dtype, name=name)
            return nn.Conv(channels, kernel_size=(1, 1), dtype=self.dtype, name=name)

        normed = group_norm(self.config.norm_groups, TRANSFORMER_EPSILON, self.dtype, "norm")(x)
        hidden = constrain_rows(projection("proj_in")(normed)).reshape(batch, height * width, channels)
        hidden = TransformerLayer(self.heads, self.dtype, self.config.attention, name="transformer_blocks_0")(
            hidden, context
        )
        return constrain_rows(x + projection("proj_out")(hidden.reshape(x.shape)))


class _Block(nn.Module):
    """Base of down, mid and up blocks: the sizes of one level and constructors for its layers."""

    config: UNetConfig
    level: int
    dtype: jnp.dtype

    def resnet(self, index: int) -> Resnet:
        """The block's resnet number `index`."""
        channels = self.config.block_channels[self.level]
        return Resnet(channels, self.config.norm_groups, RESNET_EPSILON, self.dtype, name=f"resnets_{index}")

    def transformer(self, index: int) -> Transformer:
        """The block's transformer number `index`."""
        return Transformer(self.config, self.config.heads[self.level], self.dtype, name=f"attentions_{index}")


class DownBlock(_Block):
    """Resnets, with a transformer after each where the level has cross-attention, then a downsampling except on the
    last level.
    """

    @nn.compact
    def __call__(self, x: Array, time: Array, context: Array) -> tuple[Array, ...]:
        """[B, S, S, D], [B, 4D] time and [B, Q, E] context -> the maps that the up blocks read.

        The last is the block's output.
        """
        maps = []
        for index in range(self.config.layers_per_block):
            x = self.resnet(index)(x, time)
            if self.config.cross_attention[self.level]:
                x = self.transformer(index)(x, context)
            maps.append(x)
        if self.level < len(self.config.block_channels) - 1:
            maps.append(Downsample(padding=(1, 1), dtype=self.dtype, name="downsamplers_0")(x))
        return tuple(maps)


class MidBlock(_Block):
    """A transformer between two resnets, on the last level; it attends to the context whatever that level does."""

    @nn.compact
    def __call__(self, x: Array, time: Array, context: Array) -> Array:
        """[B, S, S, D], [B, 4D] time and [B, Q, E] context -> [B, S, S, D]."""
        x = self.transformer(0)(self.resnet(0)(x, time), context)
        return self.resnet(1)(x, time)


class UpBlock(_Block):
    """The down block's mirror: each resnet also reads one of its maps; then an upsampling except on level 0."""

    @nn.compact
    def __call__(
        self, x: Array, skips: tuple[Array, ...], time: Array, context: Array, sides: tuple[int, int]
    ) -> Array:
        """[B, S, S, D] and maps of the same side, the last one read first -> [B, *sides, D] for the next level, on
        level 0 [B, S, S, D].
        """
        for index, skip in enumerate(reversed(skips)):
            x = self.resnet(index)(jnp.concatenate([x, skip], axis=-1), time)
            if self.config.cross_attention[self.level]:
                x = self.transformer(index)(x, context)
        return Upsample(self.dtype, name="upsamplers_0")(x, sides) if self.level else x


class UNet(nn.Module):
    """Predicts the noise, or the velocity, of noisy latents from their timesteps and the dream queries' conditions."""

    config: UNetConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, latents: Array, timesteps: Array, context: Array) -> Array:
        """[B, S, S, in_channels] latents, [B] int32 timesteps, [B, Q, E] context -> [B, S, S, out_channels] float32.

        Raises ValueError where a shape does not fit the config.
        """
        config, dtype = self.config, self.dtype
        _check_shapes(config, latents, timesteps, context)
        channels, levels = config.block_channels[0], len(config.block_channels)
        time = TimeMlp(4 * channels, dtype, name="time_embedding")(timestep_embedding(timesteps, channels))
        time = nn.silu(time)  # every resnet reads the embedding through this SiLU

        skips: tuple[Array, ...] = (Conv3x3(channels, dtype=dtype, name="conv_in")(latents),)
        for level in range(levels):
            skips += DownBlock(config, level, dtype, name=f"down_blocks_{level}")(skips[-1], time, context)
        x = MidBlock(config, levels - 1, dtype, name="mid_block")(skips[-1], time, context)
        read = config.layers_per_block + 1
        for index in range(levels):
            up_block = UpBlock(config, levels - 1 - index, dtype, name=f"up_blocks_{index}")
            remaining = skips[:-read]
            height, width = (remaining or skips)[-1].shape[1:3]
            x = up_block(x, skips[-read:], time, context, (height, width))
            skips = remaining
        x = nn.silu(group_norm(config.norm_groups, RESNET_EPSILON, dtype, "conv_norm_out")(x))
        return Conv3x3(config.out_channels, dtype=dtype, name="conv_out")(x).astype(jnp.float32)


def _check_shapes(config: UNetConfig, latents: Array, timesteps: Array, context: Array):
    batch, *_, channels = latents.shape
    if channels != config.in_channels:
        raise ValueError(f"UNet: latents {latents.shape} need {config.in_channels} channels")
    if timesteps.shape != (batch,):
        raise ValueError(f"UNet: timesteps {timesteps.shape} need one entry for each of the {batch} latents")
    if context.ndim != 3 or context.shape[0] != batch or context.shape[2] != config.context_width:
        raise ValueError(f"UNet: context {context.shape} needs the shape ({batch}, queries, {config.context_width})")
