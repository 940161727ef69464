"""The LLaMA decoder: parity with transformers, packing, the cache, recomputation, sizes."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from dreamjax.config import LlamaConfig, MeshConfig
from dreamjax.models.llama import Llama, init_cache
from dreamjax.parallel.mesh import make_mesh

# rope_theta and rms_norm_eps differ from the defaults so that a constant in their place would show.
CONFIG = LlamaConfig(
    vocab_size=48,
    width=32,
    layers=3,
    heads=4,
    kv_heads=2,
    ffn_width=40,
    max_positions=64,
    rope_theta=500.0,
    rms_norm_eps=1e-3,
)


def relative_error(ours, theirs) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def random_tokens(batch: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(CONFIG.vocab_size, size=(batch, length), dtype=np.int32)


def positions_like(tokens: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)


@functools.partial(jax.jit, static_argnums=0)
def run(module, params, tokens, positions=None, **kwargs):
    positions = positions_like(tokens) if positions is None else positions
    embeds = module.apply(params, tokens, method="embed")
    return module.apply(params, embeds, positions, **kwargs)


def init(module):
    return jax.jit(lambda key: module.init(key, method="init_all"))(jax.random.key(0))


@functools.cache
def initial():
    """A module and its first parameters."""
    module = Llama(CONFIG)
    return module, init(module)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("tied", [False, True])
def test_parity_with_transformers(kv_heads, tied):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from torch_weights_text import llama_params, randomise

    torch.set_num_threads(1)
    config = dataclasses.replace(CONFIG, kv_heads=kv_heads, tie_embeddings=tied)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=kv_heads,
            intermediate_size=config.ffn_width,
            max_position_embeddings=config.max_positions,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=tied,
            attn_implementation="eager",
        )
    ).eval()
    randomise(theirs, seed=1)
    module = Llama(config)
    params = llama_params(theirs, module)
    tokens = random_tokens(2, 11)
    # Uneven gaps: with plain 0, 1, 2, ... a row index in place of the position would pass.
    positions = np.cumsum(np.random.default_rng(2).integers(1, 5, size=tokens.shape), axis=1).astype(np.int32)
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(tokens).long(),
            position_ids=torch.tensor(positions).long(),
            attention_mask=torch.ones(tokens.shape, dtype=torch.long),
            output_hidden_states=True,
        )
    hidden, cache = run(module, params, tokens, positions)
    assert cache is None
    assert relative_error(hidden, expected.hidden_states[-1]) < 5e-6
    assert relative_error(module.apply(params, hidden, method="logits"), expected.logits) < 5e-6


def test_packed_segments_equal_the_segments_alone():
    module, params = initial()
    tokens = random_tokens(1, 12)
    lengths = (5, 3, 4)
    segments = np.repeat(np.arange(3, dtype=np.int32), lengths)[None]
    restarted = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])[None]
    packed, _ = run(module, params, tokens, restarted, segments=segments)
    starts = np.cumsum((0, *lengths))
    alone = [run(module, params, tokens[:, a:b])[0] for a, b in itertools.pairwise(starts)]
    assert relative_error(packed, np.concatenate(alone, axis=1)) < 5e-6
    unmarked, _ = run(module, params, tokens, restarted)
    assert relative_error(unmarked, packed) > 1e-2


def test_later_tokens_change_nothing_before():
    module, params = initial()
    tokens = random_tokens(1, 8)
    changed = tokens.copy()
    changed[:, 5] = (changed[:, 5] + 1) % CONFIG.vocab_size
    (before, _), (after, _) = run(module, params, tokens), run(module, params, changed)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert not np.allclose(before[:, 5:], after[:, 5:], atol=1e-3)


def test_cached_decoding_equals_the_uncached_run():
    module, params = initial()
    tokens, slots = random_tokens(3, 10), 10
    expected, _ = run(module, params, tokens)
    filled = np.array([6, 2, 4], np.int32)
    prompt = np.where(np.arange(6) < filled[:, None], tokens[:, :6], 0)  # ragged, padded on the right
    hidden, cache = run(module, params, prompt, cache=init_cache(CONFIG, 3, slots, jnp.float32))
    for row, length in enumerate(filled):
        assert relative_error(hidden[row, :length], expected[row, :length]) < 5e-6
    for _ in range(slots):
        # A row that is complete writes to slot `slots`, which does not exist.
        positions = filled[:, None]
        token = np.take_along_axis(tokens, np.minimum(positions, slots - 1), axis=1)
        hidden, cache = run(module, params, token, positions, cache=cache)
        for row in np.flatnonzero(filled < slots):
            assert relative_error(hidden[row, 0], expected[row, filled[row]]) < 5e-6
        filled = np.minimum(filled + 1, slots)
    assert (filled == slots).all()


@pytest.mark.parametrize("outside", [-1, 4, 1000])
def test_a_position_outside_the_cache_writes_nothing(outside):
    module, params = initial()
    empty = init_cache(CONFIG, 2, 4, jnp.float32)
    positions = np.array([[0, 1], [2, outside]], np.int32)
    _, cache = run(module, params, random_tokens(2, 2), positions, cache=empty)
    for name, values in cache.items():
        assert values.shape == empty[name].shape == (3, 2, 4, 2, 8)
        written = np.asarray(jnp.any(values != 0, axis=(3, 4)))
        np.testing.assert_array_equal(written, np.broadcast_to([[1, 1, 0, 0], [0, 0, 1, 0]], written.shape))


def test_segments_and_a_cache_exclude_each_other():
    module, params = initial()
    tokens = random_tokens(1, 2)
    with pytest.raises(ValueError, match="either segments or a cache"):
        run(module, params, tokens, segments=np.zeros_like(tokens), cache=init_cache(CONFIG, 1, 2, jnp.float32))


def test_remat_changes_what_is_recomputed_and_no_gradient():
    _, params = initial()
    tokens = random_tokens(2, 6)
    gradients, products = {}, {}
    for remat in ("none", "dots", "attention", "full"):
        module = Llama(dataclasses.replace(CONFIG, remat=remat))

        def loss(params, module=module):
            hidden, _ = run(module, params, tokens)
            return jnp.mean(jnp.square(module.apply(params, hidden, method="logits")))

        gradients[remat] = flatten_dict(jax.jit(jax.grad(loss))(params), sep="/")
        products[remat] = str(jax.make_jaxpr(jax.grad(loss))(params)).count("dot_general[")
    assert products["none"] < products["dots"] < products["attention"] < products["full"]
    for path, expected in gradients["none"].items():
        assert np.linalg.norm(expected) > 0, path
        for remat in ("dots", "attention", "full"):
            assert relative_error(gradients[remat][path], expected) < 1e-5, (remat, path)


def test_bfloat16_computes_in_bfloat16_with_float32_parameters_and_logits():
    module, params = initial()
    half = Llama(CONFIG, jnp.bfloat16)
    shapes = jax.eval_shape(lambda key: half.init(key, method="init_all"), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    tokens = random_tokens(2, 6)
    expected, _ = run(module, params, tokens)
    hidden, cache = run(half, params, tokens, cache=init_cache(CONFIG, 2, 6, jnp.bfloat16))
    assert hidden.dtype == cache["k"].dtype == cache["v"].dtype == jnp.bfloat16
    assert relative_error(hidden, expected) < 3e-2
    logits = half.apply(params, hidden, method="logits")
    assert logits.dtype == jnp.float32
    assert not np.array_equal(logits, logits.astype(jnp.bfloat16))  # accumulated in float32, not rounded on the way
    tied = Llama(dataclasses.replace(CONFIG, tie_embeddings=True), jnp.bfloat16)
    logits = tied.apply(params, hidden, method="logits")
    assert logits.dtype == jnp.float32 and not np.array_equal(logits, logits.astype(jnp.bfloat16))


def test_residual_stream_is_constrained_at_entry_after_each_sum_and_at_the_end():
    module, params = initial()
    tokens = random_tokens(len(jax.devices()), 4)
    with jax.set_mesh(make_mesh(MeshConfig())):
        text = str(jax.make_jaxpr(lambda params: run(module, params, tokens)[0])(params))
    assert text.count("sharding_constraint[") == 4  # the scanned layer stands once in the program


def test_initial_values_and_stacked_layers():
    module = Llama(dataclasses.replace(CONFIG, width=64, ffn_width=96))
    leaves = flatten_dict(init(module)["params"], sep="/")
    for path, leaf in leaves.items():
        if path.endswith("scale"):
            np.testing.assert_array_equal(leaf, 1)
        else:
            fan_in = leaf.shape[-1] if path == "embed/embedding" else leaf.shape[-2]
            assert abs(np.std(leaf) * fan_in**0.5 - 1) < 0.1, path
        if path.startswith("layers/"):
            assert leaf.shape[0] == CONFIG.layers
    kernel = leaves["layers/mlp/up/kernel"]
    assert not np.array_equal(kernel[0], kernel[1])


@pytest.mark.parametrize(
    "config, count",
    [
        (LlamaConfig(vocab_size=32000), 6_738_415_616),
        (LlamaConfig(), 6_738_415_616 + 65_536),  # eight more tokens in embedding and head
        (LlamaConfig(tie_embeddings=True), 6_738_415_616 + 65_536 - 32_008 * 4096),
    ],
)
def test_counts_at_the_real_size(config, count):
    shapes = jax.eval_shape(lambda key: Llama(config).init(key, method="init_all"), jax.random.key(0))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count
