"""Stable Diffusion's variational autoencoder between pixels and latents (diffusers' AutoencoderKL; Rombach et al.
2022).

Axes: B pictures, S side of a feature map, D channels of a level; a picture's height and width are
`VaeConfig.downsampling` times its latents' h and w. Feature maps are channels-last. Latents here are the autoencoder's
own: who feeds a U-Net multiplies them by `VaeConfig.scaling_factor`, who decodes divides. Submodule names are
diffusers', with list indices joined by an underscore.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamjax.config import VaeConfig
from dreamjax.models.blocks import Conv3x3, Downsample, Resnet, Upsample, group_norm, multi_head_attention
from dreamjax.parallel.mesh import constrain_rows

Array = jax.Array

EPSILON = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)


def _resnet(config: VaeConfig, channels: int, dtype: jnp.dtype, index: int) -> Resnet:
    return Resnet(channels, config.norm_groups, EPSILON, dtype, name=f"resnets_{index}")


class MapAttention(nn.Module):
    """Single-head self-attention over a feature map's positions, normalised before and added (diffusers' Attention)."""

    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, S, S, D] -> [B, S, S, D]."""
        hidden = group_norm(self.groups, EPSILON, self.dtype, "group_norm")(x)
        hidden = hidden.reshape(x.shape[0], -1, x.shape[-1])
        attended = multi_head_attention(hidden, hidden, heads=1, use_bias=True, dtype=self.dtype)
        return constrain_rows(x + attended.reshape(x.shape))


class MidBlock(nn.Module):
    """Self-attention between two resnets (diffusers' UNetMidBlock2D)."""

    config: VaeConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, S, S, D] -> [B, S, S, D]."""
        x = _resnet(self.config, x.shape[-1], self.dtype, 0)(x)
        x = MapAttention(self.config.norm_groups, self.dtype, name="attentions_0")(x)
        return _resnet(self.config, x.shape[-1], self.dtype, 1)(x)


class DownBlock(nn.Module):
    """The encoder's resnets on one level, then a downsampling except on the last level (diffusers'
    DownEncoderBlock2D).
    """

    config: VaeConfig
    level: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, S, S, D of the level before] -> [B, S/2, S/2, D], on the last level [B, S, S, D]."""
        for index in range(self.config.layers_per_block):
            x = _resnet(self.config, self.config.block_channels[self.level], self.dtype, index)(x)
        if self.level < len(self.config.block_channels) - 1:
            x = Downsample(padding=(0, 1), dtype=self.dtype, name="downsamplers_0")(x)
        return x


class UpBlock(nn.Module):
    """The decoder's resnets on one level, one more than the encoder's, then an upsampling except on level 0
    (diffusers' UpDecoderBlock2D).
    """

    config: VaeConfig
    level: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, S, S, D of the level after] -> [B, 2S, 2S, D], on level 0 [B, S, S, D]."""
        for index in range(self.config.layers_per_block + 1):
            x = _resnet(self.config, self.config.block_channels[self.level], self.dtype, index)(x)
        return Upsample(self.dtype, name="upsamplers_0")(x) if self.level else x


class Encoder(nn.Module):
    """Pixels to the latents' moments, before the last 1x1 convolution (diffusers' Encoder)."""

    config: VaeConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """[B, height, width, image_channels] -> [B, h, w, 2 latent_channels]."""
        config, dtype = self.config, self.dtype
        x = Conv3x3(config.block_channels[0], dtype=dtype, name="conv_in")(images)
        for level in range(len(config.block_channels)):
            x = DownBlock(config, level, dtype, name=f"down_blocks_{level}")(x)
        x = MidBlock(config, dtype, name="mid_block")(x)
        x = nn.silu(group_norm(config.norm_groups, EPSILON, dtype, "conv_norm_out")(x))
        return Conv3x3(2 * config.latent_channels, dtype=dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """Latents, after the first 1x1 convolution, to pixels (diffusers' Decoder)."""

    config: VaeConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, latents: Array) -> Array:
        """[B, h, w, latent_channels] -> [B, height, width, image_channels]."""
        config, dtype, levels = self.config, self.dtype, len(self.config.block_channels)
        x = Conv3x3(config.block_channels[-1], dtype=dtype, name="conv_in")(latents)
        x = MidBlock(config, dtype, name="mid_block")(x)
        for index in range(levels):
            x = UpBlock(config, levels - 1 - index, dtype, name=f"up_blocks_{index}")(x)
        x = nn.silu(group_norm(config.norm_groups, EPSILON, dtype, "conv_norm_out")(x))
        return Conv3x3(config.image_channels, dtype=dtype, name="conv_out")(x)


class AutoencoderKL(nn.Module):
    """The encoder and the decoder with the 1x1 convolutions on the latent side of each."""

    config: VaeConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)
        self.quant_conv = nn.Conv(2 * self.config.latent_channels, kernel_size=(1, 1), dtype=self.dtype)
        self.post_quant_conv = nn.Conv(self.config.latent_channels, kernel_size=(1, 1), dtype=self.dtype)

    def encode(self, images: Array) -> tuple[Array, Array]:
        """[B, height, width, image_channels] in [-1, 1] -> mean and log-variance, both [B, h, w, latent_channels]
        float32, not scaled.

        Raises ValueError where the pictures' shape does not fit the config.
        """
        factor = self.config.downsampling
        if images.shape[3] != self.config.image_channels or images.shape[1] % factor or images.shape[2] % factor:
            raise ValueError(
                f"AutoencoderKL: images {images.shape} need {self.config.image_channels} channels and "
                f"sides that are multiples of {factor}"
            )
        moments = self.quant_conv(self.encoder(images)).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    def decode(self, latents: Array) -> Array:
        """[B, h, w, latent_channels], not scaled -> [B, height, width, image_channels] float32, about [-1, 1] and not
        clipped.

        Raises ValueError where the latents' channels do not fit the config.
        """
        if latents.shape[3] != self.config.latent_channels:
            raise ValueError(f"AutoencoderKL: latents {latents.shape} need {self.config.latent_channels} channels")
        return self.decoder(self.post_quant_conv(latents)).astype(jnp.float32)

    def __call__(self, images: Array) -> tuple[Array, Array, Array]:
        """(mean, log-variance, the decoded mean); `init` through it makes every parameter."""
        mean, logvar = self.encode(images)
        return mean, logvar, self.decode(mean)
