"""Writing by beams, and greedy writing with a repetition penalty, against transformers' generate on a tiny random
LLaMA.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import LLM

from dreamjax.config import ModelConfig
from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Model
from dreamjax.models.llama import init_cache
from dreamjax.sampling import beam, decode
from dreamjax.sampling.decode import CONTEXT_LIMIT, ENDED, TOKEN_LIMIT, WRITING, Settings, Special, State

CONFIG, SLOTS, WIDTH, MOST = ModelConfig(llm=LLM), 32, 16, 12
EOS, DREAM_START, PAD = 2, 62, 0
PROMPTS = np.random.default_rng(3).integers(3, 60, size=(4, 9)).astype(np.int32)
LENGTHS = np.array([9, 6, 7, 3], np.int32)


@functools.cache
def models():
    """(transformers' model, our parameters): </s> is likely enough to end some beams before others."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from torch_weights_text import llama_params, randomise

    torch.set_num_threads(1)
    config = transformers.LlamaConfig(
        vocab_size=LLM.vocab_size,
        hidden_size=LLM.width,
        num_hidden_layers=LLM.layers,
        num_attention_heads=LLM.heads,
        num_key_value_heads=LLM.kv_heads,
        intermediate_size=LLM.ffn_width,
        max_position_embeddings=LLM.max_positions,
        rms_norm_eps=LLM.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": LLM.rope_theta},
        bos_token_id=1,
        eos_token_id=EOS,
        pad_token_id=PAD,
        attn_implementation="eager",
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    randomise(theirs, seed=4)
    with torch.no_grad():
        theirs.lm_head.weight *= 1.5
    return theirs, Model(CONFIG, {"llm": llama_params(theirs, Model(CONFIG, {}).llm)["params"]})


def their_tokens(prompt: np.ndarray, **options) -> list[int]:
    import torch

    ids = torch.tensor(prompt[None]).long()
    options = {"max_new_tokens": MOST, "do_sample": False, "suppress_tokens": [DREAM_START], **options}
    return models()[0].generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()


def settings_of(penalty=1.0, max_tokens=MOST, context=SLOTS) -> Settings:
    def whole(value):
        return np.full(4, value, np.int32)

    banned = np.zeros(LLM.vocab_size, bool)
    return Settings(
        np.float32(0),
        np.int32(0),
        np.float32(1),
        np.float32(penalty),
        whole(max_tokens),
        whole(0),
        whole(0),
        banned,
        np.int32(context),
    )


@jax.jit
def start(model, prompts) -> State:
    count, zeros = len(prompts), jnp.zeros(len(prompts), jnp.int32)
    keys = jax.vmap(jax.random.key)(jnp.arange(count, dtype=jnp.uint32))
    there = jnp.where(jnp.arange(prompts.shape[1]) < LENGTHS[:, None], prompts, LLM.vocab_size)
    present = jnp.zeros((count, LLM.vocab_size), bool).at[jnp.arange(count)[:, None], there].set(True, mode="drop")
    cache = init_cache(LLM, count, SLOTS, jnp.float32)
    state = State(
        cache,
        zeros,
        jnp.zeros((count, LLM.vocab_size)),
        present,
        jnp.zeros((count, WIDTH), jnp.int32),
        zeros,
        zeros,
        zeros + WRITING,
        keys,
        zeros == 0,
    )
    return decode.extend(model, state, dreamllm.embed(model, prompts), LENGTHS)[0]


def written(state: State) -> list[list[int]]:
    return [
        row[:count].tolist() for row, count in zip(np.asarray(state.tokens), np.asarray(state.written), strict=True)
    ]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_five_beams_are_those_of_transformers(penalty, length_penalty):
    model = models()[1]
    state = beam.write(
        model,
        start(model, PROMPTS),
        settings_of(penalty),
        Special(EOS, DREAM_START, 1),
        5,
        length_penalty,
    )
    for b, length in enumerate(LENGTHS):
        theirs = their_tokens(
            PROMPTS[b, :length], num_beams=5, length_penalty=length_penalty, repetition_penalty=penalty
        )
        assert written(state)[b] == theirs
        assert state.status[b] == (ENDED if theirs[-1] == EOS else TOKEN_LIMIT)


def test_beams_end_at_different_lengths_and_differ_from_greedy_writing():
    """The comparison above would say little otherwise."""
    model = models()[1]
    state = beam.write(model, start(model, PROMPTS), settings_of(), Special(EOS, DREAM_START, 1), 5, 0.0)
    assert len({len(row) for row in written(state)}) > 1 and ENDED in state.status.tolist()
    long = beam.write(model, start(model, PROMPTS), settings_of(), Special(EOS, DREAM_START, 1), 5, 3.0)
    greedy = decode.write(model, start(model, PROMPTS), settings_of(), Special(EOS, DREAM_START, 1), 100)
    assert written(state) != written(long) and written(long) != written(greedy)


def test_greedy_writing_with_a_repetition_penalty_is_that_of_transformers():
    model = models()[1]
    state = decode.write(model, start(model, PROMPTS), settings_of(1.4), Special(EOS, DREAM_START, 1), 100)
    for b, length in enumerate(LENGTHS):
        assert written(state)[b] == their_tokens(PROMPTS[b, :length], repetition_penalty=1.4)


def test_the_end_of_the_context_ends_beams():
    model = models()[1]
    state = beam.write(model, start(model, PROMPTS), settings_of(context=12), Special(EOS, DREAM_START, 1), 5, 3.0)
    for b, length in enumerate(LENGTHS):
        theirs = their_tokens(PROMPTS[b, :length], num_beams=5, length_penalty=3.0, max_new_tokens=12 - int(length))
        assert written(state)[b] == theirs and state.status[b] == (ENDED if theirs[-1] == EOS else CONTEXT_LIMIT)
