"""Attention behind one place: the only file that knows which kernel computes it.

Axes: B rows, L query positions, T key positions, H heads, K kv heads (K divides H), C head width. Queries are [B, L, H,
C], keys and values [B, T, K, C], results [B, L, H, C]; scores are scaled by 1 / sqrt(C) and the softmax runs in
float32, whatever the inputs' dtype.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from dreamjax.parallel.mesh import ROWS

Array = jax.Array

BLOCK = 128  # cache slots that are read at a time, and the unit of splash attention's blocks
SPLASH_FROM = 512  # positions from which on scores are not worth writing out
# What a kernel takes and splash attention gives, by name: a policy of jax.checkpoint can keep it.
TAKEN, ATTENDED = ("queries", "keys", "values"), "attended"
HIDDEN = -1e30  # score of a slot that a query does not see; finite, so that a difference of two is no NaN


def causal_attention(q: Array, k: Array, v: Array, segments: Array | None = None, wanted: str = "auto") -> Array:
    """Each position attends to itself and to earlier positions, of its own segment where [B, L] `segments` are
    given.
    """
    return _attend(q, k, v, segments, True, wanted)


def full_attention(q: Array, k: Array, v: Array, wanted: str = "auto") -> Array:
    """Each position attends to every position."""
    return _attend(q, k, v, None, False, wanted)


def cached_attention(q: Array, keys: Array, values: Array, layer: Array, positions: Array) -> Array:
    """Queries at [B, L] `positions` attend to the cache slots of a layer at or before their own; slot number is
    position.

    `keys` and `values` [layers, B, T, K, C] are read in blocks, up to the last one that a query sees, with a running
    softmax (Milakov & Gimelshein 2018). So the time depends on what is filled, not on T, and blocks that only other
    rows need change no bit of a row's result. Positions outside 0 .. T - 1 have no meaning here.
    """
    batch, length, heads, width = q.shape
    slots, kv_heads = keys.shape[2:4]
    block = BLOCK if slots % BLOCK == 0 else slots
    grouped = (q * width**-0.5).reshape(batch, length, kv_heads, heads // kv_heads, width)
    shape = (batch, kv_heads, heads // kv_heads, length)

    def attend(number: Array, running: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        highest, total, attended = running

        def read(x):
            return jax.lax.dynamic_slice(x, (layer, 0, number * block, 0, 0), (1, batch, block, kv_heads, width))[0]

        scores = jnp.einsum("blkgc,btkc->bkglt", grouped, read(keys), preferred_element_type=jnp.float32)
        visible = number * block + jnp.arange(block) <= positions[:, None, None, :, None]
        scores = jnp.where(visible, scores, HIDDEN)
        higher = jnp.maximum(highest, scores.max(axis=-1))
        weights, faded = jnp.exp(scores - higher[..., None]), jnp.exp(highest - higher)
        inputs = jnp.einsum(
            "bkglt,btkc->bkglc", weights.astype(values.dtype), read(values), preferred_element_type=jnp.float32
        )
        return higher, total * faded + weights.sum(axis=-1), attended * faded[..., None] + inputs

    last = jnp.max(jnp.where((positions >= 0) & (positions < slots), positions, 0))
    start = jnp.full(shape, HIDDEN), jnp.zeros(shape), jnp.zeros((*shape, width))
    _, total, attended = jax.lax.fori_loop(0, last // block + 1, attend, start)
    attended = (attended / total[..., None]).astype(q.dtype)
    return attended.transpose(0, 3, 1, 2, 4).reshape(q.shape)


# ----------------------------------------------------------------------------------------------------------------------
# Kernels


def implementation(wanted: str, platform: str, q: Array, k: Array) -> str:
    """Which of xla, splash, cudnn computes attention: the one that `wanted` forces, for "auto" the platform's, XLA
    where that cannot.

    splash (Pallas, TPU; Dao et al. 2022 in blocks) needs as many keys as queries, in whole blocks of 128, and heads 64
    or a multiple of 128 wide. Below SPLASH_FROM positions the scores are small, and "auto" leaves them to XLA. cudnn
    needs 16 bits and heads of at most 128.
    """
    positions, width = q.shape[1], q.shape[-1]
    blocks = positions == k.shape[1] and positions % BLOCK == 0 and (width == 64 or width % 128 == 0) and width <= 256
    sixteen_bits = q.dtype in (jnp.bfloat16, jnp.float16) and width % 8 == 0 and width <= 128
    match wanted:
        case "auto" if platform == "tpu":
            return "splash" if blocks and positions >= SPLASH_FROM else "xla"
        case "auto" if platform in ("gpu", "cuda"):
            return "cudnn" if sixteen_bits and _tensor_cores() else "xla"
        case "splash":
            return "splash" if blocks else "xla"
        case "cudnn":
            return "cudnn" if sixteen_bits else "xla"
    return "xla"


def _platform(mesh: jax.sharding.AbstractMesh) -> str:
    """The devices that the program is compiled for: the mesh's, which need not be at hand, else this process' own."""
    return mesh.abstract_device.platform if mesh.abstract_device is not None else jax.default_backend()


def _tensor_cores() -> bool:
    """True on GPUs that cuDNN's fused attention runs on (Ampere or later)."""
    return float(getattr(jax.devices()[0], "compute_capability", 0)) >= 8


def _attend(q: Array, k: Array, v: Array, segments: Array | None, causal: bool, wanted: str) -> Array:
    """Attention by the implementation that `implementation` names.

    A kernel is opaque to XLA's partitioner, so it runs under shard_map: each device has its rows and its heads.
    """
    mesh = jax.sharding.get_abstract_mesh()
    platform = _platform(mesh)
    kind = implementation(wanted, platform, q, k)
    if kind == "splash":
        q = q * q.shape[-1] ** -0.5  # before it is kept, so that the backward pass need not
    q, k, v = map(checkpoint_name, (q, k, v), TAKEN)
    if kind == "xla":
        mask = None if segments is None else (segments[:, None, :, None] == segments[:, None, None, :])
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal)
    kernel = functools.partial(_splash, interpret=platform != "tpu") if kind == "splash" else _cudnn

    def run(q, k, v, *segments):
        return kernel(q, k, v, *(segments or (None,)), causal=causal)

    arrays = (q, k, v) if segments is None else (q, k, v, segments)
    if mesh.empty or mesh.size == 1:
        return run(*arrays)
    rows = ROWS[0] if q.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 else None
    heads = "tensor" if q.shape[2] % mesh.shape["tensor"] == 0 and k.shape[2] % mesh.shape["tensor"] == 0 else None
    spec = P(rows, None, heads, None)
    # No check of varying axes: Pallas calls do not say over which axes their results vary.
    return jax.shard_map(
        run, mesh=mesh, in_specs=(spec, spec, spec, P(rows, None))[: len(arrays)], out_specs=spec, check_vma=False
    )(*arrays)


def _splash(q: Array, k: Array, v: Array, segments: Array | None, causal: bool, interpret: bool) -> Array:
    """The Pallas kernel of jax, row by row, for queries that are scaled; `interpret` runs it without a TPU, slowly.

    Padding is a segment of its own, so every position attends to itself at least and no softmax is empty.
    """
    # Here, since it is slow to import and of no use elsewhere.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

    length, heads = q.shape[1:3]
    block = next(size for size in (512, 256, BLOCK) if length % size == 0)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    mask = (splash_mask.CausalMask if causal else splash_mask.FullMask)((length, length))
    kernel = splash.make_splash_mha_single_device(
        splash_mask.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        interpret=interpret,
        residual_checkpoint_name=ATTENDED,
    )

    def heads_first(x):
        return x.transpose(0, 2, 1, 3)

    def one_row(q, k, v, segments):
        return kernel(q, k, v, segment_ids=None if segments is None else splash.SegmentIds(segments, segments))

    return heads_first(jax.vmap(one_row)(heads_first(q), heads_first(k), heads_first(v), segments))


def _cudnn(q: Array, k: Array, v: Array, segments: Array | None, causal: bool) -> Array:
    """cuDNN's fused attention.

    It knows no segments: packed rows give it a [B, 1, L, L] mask, which it reads as a bias in q's dtype.
    """
    mask = None if segments is None else (segments[:, None, :, None] == segments[:, None, None, :])
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation="cudnn")
