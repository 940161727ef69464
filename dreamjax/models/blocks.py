"""Layers that the Stable Diffusion U-Net and VAE share. Submodule names follow diffusers.

Axes: B pictures, S side of a feature map, D channels, L query positions, T key positions, E width of what keys are made
of. Feature maps are channels-last, [B, S, S, D]. Parameters are float32; `dtype` is the type that is computed in, while
normalisation statistics are always float32.

The result of every 3x3 convolution, every residual sum and what enters a transformer are held to rows over (data,
fsdp). With constraints between blocks alone XLA computes the right loss and wrong gradients on some meshes, through two
convolutions whose kernels are split over (fsdp, tensor) and through a projection before attention.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamjax.models.attention import full_attention
from dreamjax.parallel.mesh import constrain_rows

Array = jax.Array


class Conv3x3(nn.Conv):
    """A 3x3 convolution, padded with one zero on each side, whose result stays split by rows only."""

    kernel_size: tuple[int, int] = (3, 3)
    # Not "SAME": with stride 2 that pads the right side alone, which is the VAE encoder's rule but not the U-Net's.
    padding: int | tuple[tuple[int, int], ...] = 1

    def __call__(self, inputs: Array) -> Array:
        """[B, S, S, D] -> [B, S / strides, S / strides, features]."""
        return constrain_rows(super().__call__(inputs))


def group_norm(groups: int, epsilon: float, dtype: jnp.dtype, name: str) -> nn.GroupNorm:
    """A GroupNorm whose variance is E[(x - mean)^2], since E[x^2] - mean^2 loses digits where |mean| is large, as it is
    in the VAE.

    In 16 bits such digits are rounded away before, so there it is E[x^2] - mean^2, which reads the map once and not
    twice.
    """
    return nn.GroupNorm(
        num_groups=groups, epsilon=epsilon, use_fast_variance=jnp.dtype(dtype).itemsize == 2, dtype=dtype, name=name
    )


def multi_head_attention(
    x: Array, context: Array, heads: int, use_bias: bool, dtype: jnp.dtype, attention: str = "auto"
) -> Array:
    """Attention from [B, L, D] `x` to [B, T, E] `context` (diffusers' Attention); call it in a compact method.

    The submodules to_q, to_k, to_v (with a bias where `use_bias`) and to_out_0 (always with one) become the caller's.
    """
    width = x.shape[-1]

    def project(source: Array, name: str) -> Array:
        projected = nn.Dense(width, use_bias=use_bias, dtype=dtype, name=name)(source)
        return projected.reshape(*source.shape[:2], heads, width // heads)

    attended = full_attention(project(x, "to_q"), project(context, "to_k"), project(context, "to_v"), attention)
    return nn.Dense(width, dtype=dtype, name="to_out_0")(attended.reshape(x.shape))


class Resnet(nn.Module):
    """Two 3x3 convolutions with a residual path (diffusers' ResnetBlock2D)."""

    channels: int
    groups: int
    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, time: Array | None = None) -> Array:
        """[B, S, S, D] -> [B, S, S, channels].

        `time`, [B, 4D], is the embedded timestep after its SiLU, None in a VAE.
        """
        norm = functools.partial(group_norm, self.groups, self.epsilon, self.dtype)
        hidden = Conv3x3(self.channels, dtype=self.dtype, name="conv1")(nn.silu(norm("norm1")(x)))
        if time is not None:
            hidden += nn.Dense(self.channels, dtype=self.dtype, name="time_emb_proj")(time)[:, None, None, :]
        hidden = Conv3x3(self.channels, dtype=self.dtype, name="conv2")(nn.silu(norm("norm2")(hidden)))
        if x.shape[-1] != self.channels:
            x = nn.Conv(self.channels, kernel_size=(1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return constrain_rows(x + hidden)


class Downsample(nn.Module):
    """Halves the side with a 3x3 convolution of stride 2 (diffusers' Downsample2D)."""

    padding: tuple[int, int]  # zeros before and after each side
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, S, S, D] -> [B, S/2, S/2, D]."""
        return Conv3x3(x.shape[-1], strides=2, padding=(self.padding, self.padding), dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Doubles the side by repeating the nearest position, then a 3x3 convolution (diffusers' Upsample2D)."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, sides: tuple[int, int] | None = None) -> Array:
        """[B, S, S, D] -> [B, 2S, 2S, D], or the `sides` given where one is 2S - 1, which Downsample makes S of."""
        batch, height, width, channels = x.shape
        repeated = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
        x = repeated.reshape(batch, 2 * height, 2 * width, channels)
        x = x if sides is None else x[:, : sides[0], : sides[1]]
        return Conv3x3(channels, dtype=self.dtype, name="conv")(x)
