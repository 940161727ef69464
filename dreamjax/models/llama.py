"""The LLaMA decoder (Touvron et al. 2023), as `LlamaForCausalLM` of transformers computes it.

RMSNorm, rotary positions, SwiGLU, grouped queries, no bias.

Axes: B rows, L tokens, D model width, H heads, K kv heads, C head width, V vocabulary, T cache slots. Parameters are
float32; those of the layers are stacked on axis 0:

    embed/embedding [V, D]    norm/scale [D]    head/kernel [D, V] (absent where config.tie_embeddings)
    layers/attention_norm/scale [layers, D]    layers/attention/{q,k,v,o}/kernel [layers, in, out]
    layers/mlp_norm/scale [layers, D]          layers/mlp/{gate,up,down}/kernel [layers, in, out]
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dreamjax.config import LlamaConfig
from dreamjax.models.attention import ATTENDED, TAKEN, cached_attention, causal_attention
from dreamjax.parallel.mesh import constrain_rows

Array = jax.Array

# Fan-in scaling: at D = 4096 close to the 0.02 of Hugging Face, and right for small widths, which 0.02 starves.
_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "normal")

# What config.remat = "attention" keeps of each layer, five times [B, L, D]: what goes into attention and comes out of
# it, in the kernels' own form, and the residual stream behind it. Norms and the MLP's products are computed again. Of
# all that could be kept it saves the most time for its memory.
_KEPT = (*TAKEN, ATTENDED, "attention_residual")


def init_cache(config: LlamaConfig, batch: int, length: int, dtype: jnp.dtype) -> dict[str, Array]:
    """Empty keys and values {"k", "v"}.

    [layers, B, T, K, C] for B = `batch` rows of T = `length` slots, in the model's compute dtype.
    """
    shape = (config.layers, batch, length, config.kv_heads, config.width // config.heads)
    return {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}


class Llama(nn.Module):
    """The decoder in three steps, `embed`, the call, `logits`, so that other embeddings can be spliced in between.

    All parameters: `Llama(config).init(key, method="init_all")`, of which `jax.eval_shape` gives the shapes of any
    size.
    """

    config: LlamaConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        config = self.config
        self.embedding = nn.Embed(
            config.vocab_size,
            config.width,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(config.width**-0.5),
            name="embed",
        )
        self.layers = _scan_layers(config)(config, self.dtype, name="layers")
        self.norm = RMSNorm(config.rms_norm_eps, self.dtype, name="norm")
        if not config.tie_embeddings:
            self.head = nn.Dense(
                config.vocab_size,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=_INIT,
                dot_general=_dot_float32,
                name="head",
            )

    def embed(self, tokens: Array) -> Array:
        """Token ids [..., L] int32 to embeddings [..., L, D] in the compute dtype."""
        return self.embedding(tokens)

    def __call__(
        self, embeds: Array, positions: Array, segments: Array | None = None, cache: dict[str, Array] | None = None
    ):
        """Runs the layers over [B, L, D] `embeds`; returns the hidden states [B, L, D] after the last norm, and the new
        cache or None.

        `positions` [B, L] int32 turn the queries and keys. `segments` [B, L] int32 keep packed documents apart. With a
        cache, a token's position is also its slot: its key and value are written there (nowhere, if the cache has no
        such slot) and it attends to all slots up to its own. So padding needs no mask if it is on the right: a slot
        that it wrote is written again before a query can reach it. Raises ValueError where both segments and a cache
        are given.
        """
        if segments is not None and cache is not None:
            raise ValueError("Llama: a cache holds one document per row; pass either segments or a cache")
        residual, cache = self.residual(embeds, positions, segments, cache)
        return constrain_rows(self.norm(residual)), cache

    def residual(
        self, embeds: Array, positions: Array, segments: Array | None = None, cache: dict[str, Array] | None = None
    ):
        """The call without the last norm: the residual stream [B, L, D] behind the last layer."""
        rotation = _rotation(positions, self.config)
        # The cache travels with the residual stream, so that a step writes a few slots in place instead of copying
        # every layer.
        carry = constrain_rows(embeds.astype(self.dtype)), cache
        return self.layers(carry, rotation, positions, segments, jnp.arange(self.config.layers))[0]

    def logits(self, hidden: Array) -> Array:
        """Scores of the next token, [..., V] float32, for the call's hidden states [..., D]."""
        if not self.config.tie_embeddings:
            return self.head(hidden)
        table = self.embedding.embedding.astype(self.dtype)
        return jnp.einsum("...d,vd->...v", hidden.astype(self.dtype), table, preferred_element_type=jnp.float32)

    def init_all(self) -> Array:
        """Touches every parameter once; for `init` alone."""
        tokens = jnp.zeros((1, 1), jnp.int32)
        hidden, _ = self(self.embed(tokens), tokens)
        return self.logits(hidden)


# Logits leave the matrix product as they were accumulated: rounding them to bfloat16 first would lose what tells close
# tokens apart.
_dot_float32 = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)


def _scan_layers(config: LlamaConfig):
    """The class of all layers as one.

    Scanned over the parameters, recomputed in the backward pass by `config.remat`.
    """
    layer = _Layer
    if config.remat != "none":
        policies = jax.checkpoint_policies
        policy = {
            "full": None,
            "attention": policies.save_only_these_names(*_KEPT),
            "dots": policies.dots_with_no_batch_dims_saveable,
        }[config.remat]
        # Inside a scan nothing can be shared with the forward pass, so the barriers against that would only cost.
        layer = nn.remat(layer, policy=policy, prevent_cse=False)
    return nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0),
        out_axes=0,
        length=config.layers,
    )


def _rotation(positions: Array, config: LlamaConfig) -> tuple[Array, Array]:
    """Cosine and sine [B, L, 1, C] float32 of the angle by which each entry of a head turns (RoPE, Su et al.

    2021), the same in both halves.
    """
    half = config.width // config.heads // 2
    frequencies = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[:, :, None, None].astype(jnp.float32) * jnp.tile(frequencies, 2)
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(x: Array, rotation: tuple[Array, Array]) -> Array:
    """Turns queries or keys [B, L, heads, C] in float32; entry i pairs with entry i + C / 2, as in the Hugging Face
    weights.

    The halves change places in a product with a matrix of 0, 1 and -1, which is exact: a matrix unit does that in
    passing, while cutting registers of 128 lanes in two costs a TPU as much as the projection of the queries.
    """
    cos, sin = rotation
    width = x.shape[-1]
    swap = jnp.eye(width, k=width // 2, dtype=x.dtype) - jnp.eye(width, k=-(width // 2), dtype=x.dtype)
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    swapped = jnp.einsum("blhc,cd->blhd", x, swap, precision=exact)
    return (x.astype(jnp.float32) * cos + swapped.astype(jnp.float32) * sin).astype(x.dtype)


def _dense(features: int, dtype: jnp.dtype, name: str) -> nn.Dense:
    return nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=_INIT, name=name)


class RMSNorm(nn.Module):
    """x / rms(x) in float32, rounded to the compute dtype before the scale, as in `LlamaRMSNorm`."""

    eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        return x.astype(self.dtype) * scale.astype(self.dtype)


class _Layer(nn.Module):
    """Decoder layer number `layer`, in the form of a scan.

    The carry is x [B, L, D] and the cache of all layers or None.
    """

    config: LlamaConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        carry: tuple[Array, dict | None],
        rotation: tuple[Array, Array],
        positions: Array,
        segments: Array | None,
        layer: Array,
    ):
        x, cache = carry
        norm = functools.partial(RMSNorm, self.config.rms_norm_eps, self.dtype)
        attention = _Attention(self.config, self.dtype, name="attention")
        attended, cache = attention(norm(name="attention_norm")(x), rotation, positions, segments, cache, layer)
        x = checkpoint_name(constrain_rows(x + attended), "attention_residual")
        return (constrain_rows(x + _Mlp(self.config, self.dtype, name="mlp")(norm(name="mlp_norm")(x))), cache), None


class _Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023); H = K is the usual multi-head attention."""

    config: LlamaConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Array,
        rotation: tuple[Array, Array],
        positions: Array,
        segments: Array | None,
        cache: dict[str, Array] | None,
        layer: Array,
    ):
        config = self.config

        def heads(name, count):
            head_width = config.width // config.heads
            return _dense(count * head_width, self.dtype, name)(x).reshape(*x.shape[:2], count, head_width)

        q = _rotate(heads("q", config.heads), rotation)
        k = _rotate(heads("k", config.kv_heads), rotation)
        v = heads("v", config.kv_heads)
        if cache is None:
            attended = causal_attention(q, k, v, segments, config.attention)
        else:
            cache = {"k": _write(cache["k"], k, layer, positions), "v": _write(cache["v"], v, layer, positions)}
            attended = cached_attention(q, cache["k"], cache["v"], layer, positions)
        return _FromHeads(config.width, self.dtype, name="o")(attended), cache


class _FromHeads(nn.Module):
    """A projection from heads: [B, L, H, C] to [B, L, D], with a kernel [H C, D].

    The product sums over both axes of the heads as they lie: behind a reshape a TPU would copy them to another order
    first.
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", _INIT, (x.shape[-2] * x.shape[-1], self.width)).astype(self.dtype)
        return jnp.einsum("blhc,hcd->bld", x, kernel.reshape(*x.shape[-2:], self.width))


def _write(slots: Array, values: Array, layer: Array, positions: Array) -> Array:
    """Puts [B, L, K, C] values into a layer's slots of [layers, B, T, K, C] at their rows' positions.

    Those outside 0 .. T - 1 are dropped.
    """
    rows = jnp.arange(slots.shape[1])[:, None]
    # Without the last argument -1 would mean the last slot.
    return slots.at[layer, rows, positions].set(values.astype(slots.dtype), mode="drop", wrap_negative_indices=False)


class _Mlp(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    config: LlamaConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        gate = _dense(self.config.ffn_width, self.dtype, "gate")(x)
        up = _dense(self.config.ffn_width, self.dtype, "up")(x)
        return _dense(self.config.width, self.dtype, "down")(nn.silu(gate) * up)
