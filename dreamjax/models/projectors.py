"""Projectors around the LLM: CLIP patches to LLM embeddings, dream-query states to U-Net conditions
(DreamLLM, Sec. 3).

Axes: P patches, Q dream queries, D LLM width, E U-Net context width. Parameters are float32 and start as torch's
`Linear` does, uniform in +-1 / sqrt(inputs), like those of the official code.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class VisualProjector(nn.Module):
    """CLIP's patches [..., P, inputs] to one LLM embedding each, [..., P, D].

    "linear", or "mlp" with one hidden layer of width D and exact GELU.
    """

    kind: str
    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, patches: Array) -> Array:
        if self.kind == "linear":
            return _linear(patches, self.width, self.dtype, "linear")
        if self.kind == "mlp":
            hidden = nn.gelu(_linear(patches, self.width, self.dtype, "fc1"), approximate=False)
            return _linear(hidden, self.width, self.dtype, "fc2")
        raise ValueError(f"VisualProjector: kind {self.kind!r} is neither linear nor mlp")


class ConditionProjector(nn.Module):
    """The LLM's states at the dream queries [..., Q, D] to the U-Net's context [..., Q, E] (eq. 3); no bias."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, states: Array) -> Array:
        return _linear(states, self.width, self.dtype, "linear", use_bias=False)


def _linear(x: Array, features: int, dtype: jnp.dtype, name: str, use_bias: bool = True) -> Array:
    """A dense layer made in the calling module, with torch's initial distribution."""
    bound = x.shape[-1] ** -0.5

    def uniform(key, shape, param_dtype):
        return jax.random.uniform(key, shape, param_dtype, -bound, bound)

    return nn.Dense(features, use_bias=use_bias, dtype=dtype, kernel_init=uniform, bias_init=uniform, name=name)(x)
