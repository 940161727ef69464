"""Choosing tokens, and writing with a cache: against numpy and against the model run without a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import LLM, boosted, parameters

from dreamjax.config import ModelConfig
from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Model
from dreamjax.models.llama import init_cache
from dreamjax.sampling import decode
from dreamjax.sampling.decode import (
    CONTEXT_LIMIT,
    DREAMING,
    ENDED,
    PICTURE_LIMIT,
    TOKEN_LIMIT,
    WRITING,
    Settings,
    Special,
    State,
)

# ----------------------------------------------------------------------------------------------------------------------
# Choosing

LOGITS = np.array([1.0, 3.0, 0.5, 2.5, -1.0, 2.0, 0.0, 1.5], np.float32)
DRAWS = 6000


def drawn_shares(logits: np.ndarray, temperature: float, top_p: float = 1.0, top_k: int = 0) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), DRAWS)
    settings = settings_of(temperature, top_p, top_k=top_k)
    tokens = jax.jit(decode.choose)(np.broadcast_to(logits, (DRAWS, len(logits))), keys, settings)
    return np.bincount(tokens, minlength=len(logits)) / DRAWS


def nucleus(logits: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """Probabilities after the cut, by the words of the paper.

    Add the likeliest tokens until their probability reaches top_p.
    """
    probabilities = np.exp(logits / temperature) / np.sum(np.exp(logits / temperature))
    kept, total = np.zeros_like(probabilities), 0.0
    for token in np.argsort(-probabilities):
        if total >= top_p:
            break
        kept[token] = probabilities[token]
        total += probabilities[token]
    return kept / kept.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.8, 0.95, 1.0])
def test_tokens_come_from_the_nucleus_at_its_shares(temperature, top_p):
    shares, expected = drawn_shares(LOGITS, temperature, top_p), nucleus(LOGITS, temperature, top_p)
    assert not np.any(shares[expected == 0]), "a token outside the nucleus was drawn"
    assert np.all(shares[expected > 2e-3] > 0), "a token of the nucleus was never drawn"
    np.testing.assert_allclose(shares, expected, atol=4 * np.sqrt(0.25 / DRAWS))


@pytest.mark.parametrize("top_k, top_p", [(1, 1.0), (3, 1.0), (5, 0.8), (0, 0.8), (100, 0.95)])
@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_what_may_be_drawn_is_what_transformers_keeps(top_k, top_p, penalty):
    torch, logits_process = pytest.importorskip("torch"), pytest.importorskip("transformers.generation.logits_process")
    rng = np.random.default_rng(0)
    logits, there = rng.normal(size=(3, 40)).astype(np.float32) * 2, rng.integers(40, size=(3, 6))
    theirs = (
        logits_process.RepetitionPenaltyLogitsProcessor(penalty)(torch.from_numpy(there), torch.from_numpy(logits))
        / 0.7
    )
    for warper in [logits_process.TopKLogitsWarper(top_k or 40), logits_process.TopPLogitsWarper(top_p)]:
        theirs = warper(None, theirs)
    present = np.zeros((3, 40), bool)
    present[np.arange(3)[:, None], there] = True
    ours = decode._truncate(
        decode.penalise(logits, present, penalty) / np.float32(0.7), settings_of(top_k=top_k, top_p=top_p)
    )
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)


def test_top_k_and_top_p_hold_in_what_is_drawn():
    shares = drawn_shares(LOGITS, 1.0, top_k=3, top_p=0.7)
    kept = nucleus(np.where(LOGITS >= 2.0, LOGITS, -np.inf), 1.0, 0.7)
    assert np.count_nonzero(kept) == 2
    np.testing.assert_allclose(shares, kept, atol=4 * np.sqrt(0.25 / DRAWS))


def test_temperature_0_is_greedy_whatever_the_key():
    shares = drawn_shares(LOGITS, 0.0, 0.3)
    assert shares[1] == 1


def test_what_has_no_probability_is_never_drawn():
    banned = np.where(np.arange(8) % 2 == 1, -np.inf, LOGITS).astype(np.float32)
    shares = drawn_shares(banned, 100.0, 1.0)
    assert np.all((shares > 0) == np.isfinite(banned))


def test_each_document_draws_from_its_own_logits():
    peaks = np.eye(8, dtype=np.float32)[[3, 5, 0]] * 100
    tokens = decode.choose(peaks, jax.random.split(jax.random.key(0), 3), settings_of(temperature=1.0))
    assert tokens.tolist() == [3, 5, 0]


# ----------------------------------------------------------------------------------------------------------------------
# Writing

MODEL = ModelConfig(llm=LLM)
SLOTS, WIDTH = 24, 16
EOS, DREAM_START = 2, 62
SPECIAL = Special(EOS, DREAM_START, image_room=6)
PROMPTS = np.random.default_rng(0).integers(3, 60, size=(3, 8)).astype(np.int32)
LENGTHS = np.array([8, 5, 2], np.int32)


def settings_of(
    temperature=0.0,
    top_p=1.0,
    max_tokens=WIDTH,
    max_images=0,
    min_images=0,
    banned=(),
    top_k=0,
    penalty=1.0,
    context=SLOTS,
) -> Settings:
    mask = np.zeros(LLM.vocab_size, bool)
    mask[list(banned)] = True

    def whole(value):
        return jnp.full(3, value, jnp.int32)

    return Settings(
        jnp.float32(temperature),
        jnp.int32(top_k),
        jnp.float32(top_p),
        jnp.float32(penalty),
        whole(max_tokens),
        whole(max_images),
        whole(min_images),
        jnp.asarray(mask),
        jnp.int32(context),
    )


@jax.jit
def start(params) -> State:
    """The prompts in a cache."""
    zeros = jnp.zeros(3, jnp.int32)
    keys = jax.vmap(jax.random.key)(jnp.arange(3, dtype=jnp.uint32))
    cache = init_cache(LLM, 3, SLOTS, jnp.float32)
    present = jnp.zeros((3, LLM.vocab_size), bool)
    state = State(
        cache,
        zeros,
        jnp.zeros((3, LLM.vocab_size)),
        present,
        jnp.zeros((3, WIDTH), jnp.int32),
        zeros,
        zeros,
        zeros + WRITING,
        keys,
        zeros == 0,
    )
    return decode.extend(Model(MODEL, params), state, dreamllm.embed(Model(MODEL, params), PROMPTS), LENGTHS)[0]


write = jax.jit(
    lambda params, state, settings, steps=1000: decode.write(Model(MODEL, params), state, settings, SPECIAL, steps)
)


def written(state: State) -> list[list[int]]:
    return [
        row[:count].tolist() for row, count in zip(np.asarray(state.tokens), np.asarray(state.written), strict=True)
    ]


@pytest.fixture(scope="module")
def params():
    return boosted(parameters(MODEL), {EOS: -50.0, DREAM_START: -50.0})


def test_cached_writing_is_greedy_decoding_without_a_cache(params):
    state = write(params, start(params), settings_of())

    @jax.jit
    def best(tokens):
        hidden, _ = Model(MODEL, params).apply(
            "llm", dreamllm.embed(Model(MODEL, params), tokens), jnp.arange(SLOTS + 1)[None]
        )
        return jnp.argmax(Model(MODEL, params).apply("llm", hidden, method="logits"), axis=-1)

    for b, length in enumerate(LENGTHS):
        row = np.zeros((1, SLOTS + 1), np.int32)
        row[0, :length] = PROMPTS[b, :length]
        for at in range(length, length + WIDTH):
            row[0, at] = best(row)[0, at - 1]
        assert written(state)[b] == row[0, length : length + WIDTH].tolist()
    assert len({token for row in written(state) for token in row}) > 8  # not one token over and over


def test_limits_of_tokens_and_context_end_the_writing(params):
    state = write(params, start(params), settings_of(max_tokens=5))
    assert state.status.tolist() == [TOKEN_LIMIT] * 3 and state.written.tolist() == [5] * 3
    state = start(params)
    state = state._replace(length=jnp.array([SLOTS - 1, SLOTS - 3, 2], jnp.int32))
    state = write(params, state, settings_of())
    assert state.status.tolist() == [CONTEXT_LIMIT, CONTEXT_LIMIT, TOKEN_LIMIT] and state.written.tolist() == [
        1,
        3,
        WIDTH,
    ]


def test_the_end_token_ends_one_document_and_not_the_others(params):
    free = write(params, start(params), settings_of())
    second = written(free)[1]
    as_end = Special(second[4], DREAM_START, 6)
    state = jax.jit(lambda params, state, settings: decode.write(Model(MODEL, params), state, settings, as_end, 1000))(
        params, start(params), settings_of()
    )
    first = second.index(second[4])
    assert written(state)[1] == second[: first + 1] and state.status[1] == ENDED
    for b in (0, 2):
        expected = written(free)[b]
        assert written(state)[b] == expected[: expected.index(second[4]) + 1 if second[4] in expected else WIDTH]


def test_banned_tokens_are_never_written(params):
    banned = range(0, 60, 2)
    likely = boosted(parameters(MODEL), {token: 5.0 for token in banned} | {EOS: -50.0, DREAM_START: -50.0})
    free = write(likely, start(likely), settings_of(temperature=1.0))
    assert any(token in banned for row in written(free) for token in row)
    state = write(likely, start(likely), settings_of(temperature=1.0, banned=banned))
    assert not any(token in banned for row in written(state) for token in row)


def test_a_dream_stops_the_document_until_there_is_no_room_or_allowance():
    eager = boosted(parameters(MODEL), {EOS: -50.0, DREAM_START: 50.0})
    state = write(eager, start(eager), settings_of(max_images=1))
    assert (
        state.status.tolist() == [DREAMING] * 3
        and written(state) == [[DREAM_START]] * 3
        and state.images.tolist() == [1] * 3
    )
    assert state.length.tolist() == LENGTHS.tolist()  # <dream_start> goes into the cache together with the queries
    again = write(eager, state._replace(status=jnp.full(3, WRITING)), settings_of(max_images=1, max_tokens=4))
    assert again.status.tolist() == [PICTURE_LIMIT] * 3 and written(again) == [[DREAM_START]] * 3
    forbidden = write(eager, start(eager), settings_of(max_images=0, max_tokens=4))
    assert forbidden.status.tolist() == [TOKEN_LIMIT] * 3 and not any(DREAM_START in row for row in written(forbidden))
    crowded = start(eager)._replace(length=jnp.array([SLOTS - 6, SLOTS - 5, SLOTS - 7], jnp.int32))
    state = write(eager, crowded, settings_of(max_images=1))
    assert state.status.tolist() == [DREAMING, CONTEXT_LIMIT, DREAMING] and written(state)[1] == []


def test_the_end_waits_for_the_images_that_were_asked_for():
    ending = boosted(parameters(MODEL), {EOS: 50.0, DREAM_START: 20.0})
    assert write(ending, start(ending), settings_of(max_images=2)).status.tolist() == [ENDED] * 3
    state = write(ending, start(ending), settings_of(max_images=2, min_images=1))
    assert state.status.tolist() == [DREAMING] * 3
    state = write(ending, state._replace(status=jnp.full(3, WRITING)), settings_of(max_images=2, min_images=1))
    assert written(state) == [[DREAM_START, EOS]] * 3 and state.status.tolist() == [ENDED] * 3


def test_a_document_that_has_all_its_tokens_writes_no_more():
    eager = boosted(parameters(MODEL), {EOS: -50.0, DREAM_START: 50.0})
    state = write(eager, start(eager), settings_of(max_tokens=1, max_images=3))
    assert state.status.tolist() == [DREAMING] * 3
    state = write(
        eager, state._replace(status=jnp.full(3, WRITING)), settings_of(max_tokens=1, max_images=3)
    )  # the picture is drawn
    assert state.status.tolist() == [TOKEN_LIMIT] * 3 and state.written.tolist() == [1] * 3


def test_the_same_key_writes_the_same_and_another_does_not(params):
    state = start(params)
    once, twice = (written(write(params, state, settings_of(temperature=1.0))) for _ in range(2))
    other = written(write(params, state._replace(keys=state.keys[::-1]), settings_of(temperature=1.0)))
    assert once == twice and once[0] != other[0] and once[1] == other[1]


def test_images_that_were_asked_for_come_before_the_tokens_run_out():
    quiet = boosted(parameters(MODEL), {EOS: -50.0, DREAM_START: -50.0})
    settings = settings_of(max_images=2, min_images=2, max_tokens=5)
    state = write(quiet, start(quiet), settings)
    assert state.status.tolist() == [DREAMING] * 3 and state.written.tolist() == [4] * 3
    state = write(quiet, state._replace(status=jnp.full(3, WRITING)), settings)
    assert [row[3:] for row in written(state)] == [[DREAM_START] * 2] * 3
    state = write(quiet, state._replace(status=jnp.full(3, WRITING)), settings)
    assert state.status.tolist() == [TOKEN_LIMIT] * 3 and state.images.tolist() == [2] * 3


def test_tokens_in_small_portions_are_the_same_tokens(params):
    whole, state = write(params, start(params), settings_of(temperature=1.0)), start(params)
    for _ in range(2 * WIDTH):
        state = write(params, state, settings_of(temperature=1.0), 3)
    assert written(state) == written(whole) and state.status.tolist() == whole.status.tolist()
    assert write(params, start(params), settings_of(), 3).written.tolist() == [3] * 3


def test_a_repetition_penalty_makes_what_is_there_rare(params):
    def repeated(penalty):
        return WIDTH - np.mean(
            [len(set(row)) for row in written(write(params, start(params), settings_of(penalty=penalty)))]
        )

    assert repeated(50.0) == 0 < repeated(1.0)
