"""Which kernel computes attention, and that the Pallas kernel (interpreted) computes what XLA does, forward and
backward, also on a mesh.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.config import LlamaConfig, MeshConfig, UNetConfig
from dreamjax.errors import ConfigError
from dreamjax.models.attention import causal_attention, full_attention, implementation
from dreamjax.parallel.mesh import make_mesh

LENGTH = 384  # three blocks, so that some lie wholly behind the diagonal


def shapes(positions: int, heads: int, width: int, keys: int = 0, dtype=jnp.bfloat16):
    def leaf(length):
        return jax.ShapeDtypeStruct((2, length, heads, width), dtype)

    return leaf(positions), leaf(keys or positions)


LLM, LEVEL_0, LEVEL_1 = shapes(2048, 32, 128), shapes(4096, 5, 64), shapes(1024, 10, 64)
CROSS, LEVEL_2, CLIP, VAE = shapes(4096, 5, 64, keys=64), shapes(256, 20, 64), shapes(257, 16, 64), shapes(4096, 1, 512)


@pytest.mark.parametrize("attended", [LLM, LEVEL_0, LEVEL_1], ids=["llm", "unet 64x64", "unet 32x32"])
def test_splash_on_tpu_where_scores_are_large(attended):
    assert implementation("auto", "tpu", *attended) == "splash"
    assert implementation("xla", "tpu", *attended) == "xla"
    assert implementation("auto", "cpu", *attended) == "xla"
    assert implementation("splash", "cpu", *attended) == "splash"


@pytest.mark.parametrize("attended", [CROSS, LEVEL_2, CLIP, VAE], ids=["cross-attention", "unet 16x16", "clip", "vae"])
def test_xla_on_tpu_elsewhere(attended):
    assert implementation("auto", "tpu", *attended) == "xla"


def test_a_forced_kernel_is_used_where_it_can_be():
    assert implementation("splash", "tpu", *LEVEL_2) == "splash" and implementation("splash", "tpu", *CLIP) == "xla"
    assert implementation("cudnn", "gpu", *LLM) == "cudnn"
    assert (
        implementation("cudnn", "gpu", *VAE) == "xla"
        and implementation("cudnn", "gpu", *shapes(64, 4, 32, dtype=jnp.float32)) == "xla"
    )
    for config in (LlamaConfig, UNetConfig):
        with pytest.raises(ConfigError, match="attention: 'flash' is none of auto, xla, splash, cudnn"):
            config(attention="flash")


def packed(seed: int = 0):
    """q, k, v with grouped heads and segments of two rows.

    Documents that end inside blocks with padding behind, and a row of padding alone.
    """
    rng = np.random.default_rng(seed)

    def draw(heads):
        return jnp.asarray(rng.normal(size=(2, LENGTH, heads, 64)), jnp.bfloat16)

    segments = np.zeros((2, LENGTH), np.int32)
    segments[0, :70], segments[0, 70:300] = 1, 2
    return draw(4), draw(2), draw(2), jnp.asarray(segments)


def with_gradients(attend, q, k, v):
    """The result and the gradients of a sum of it with fixed weights."""
    weights = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)

    def loss(*qkv):
        return (jnp.sum((out := attend(*qkv)).astype(jnp.float32) * weights), out)

    gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(x, np.float32) for x in (out, *gradients)]


@pytest.mark.parametrize("causal", [True, False])
def test_splash_is_xla_within_bfloat16(causal):
    q, k, v, segments = packed()
    attend = (
        (lambda wanted: lambda *qkv: causal_attention(*qkv, segments, wanted))
        if causal
        else (lambda wanted: lambda *qkv: full_attention(*qkv, wanted))
    )
    exact = with_gradients(attend("xla"), *(x.astype(jnp.float32) for x in (q, k, v)))
    plain, fast = with_gradients(attend("xla"), q, k, v), with_gradients(attend("splash"), q, k, v)

    def error(ours, theirs):
        return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)

    for one, other, truth in zip(fast, plain, exact, strict=True):
        assert np.isfinite(one).all()
        assert error(one, truth) < 2 * error(other, truth) + 1e-3 and error(one, truth) < 1e-2


def test_splash_on_a_mesh_is_splash_on_one_device():
    q, k, v, segments = packed()

    def attend(*qkv):
        return causal_attention(*qkv, segments, "splash")

    alone = with_gradients(attend, q, k, v)
    with jax.set_mesh(make_mesh(MeshConfig(1, 2, 2), jax.devices()[:4])):
        for one, other in zip(with_gradients(attend, q, k, v), alone, strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-2, atol=2e-3)
        lowered = jax.jit(attend).lower(q, k, v).as_text()
    assert "shard_map" in lowered or "manual" in lowered
