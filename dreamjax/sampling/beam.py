"""Beam search: text alone, the likeliest of several continuations (transformers' beam search with early_stopping
false).

Axes: B documents, K beams, V vocabulary, W most tokens written. Documents of a batch do not touch each other.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Model
from dreamjax.sampling import decode
from dreamjax.sampling.decode import CONTEXT_LIMIT, ENDED, NOT_FINITE, TOKEN_LIMIT, WRITING, Settings, Special, State

Array = jax.Array

NEVER = -1e9  # score of what is not there; finite, so that it can still be divided and compared


class Beams(NamedTuple):
    """A search in the making. `state` holds B K rows, the beams of a document next to each other."""

    state: State
    scores: Array  # [B, K] float32: sum of log-probabilities of what goes on, falling
    done: Array  # [B, K, W] int32: the best that have ended
    done_scores: Array  # [B, K] float32: divided by length ** length_penalty, falling
    done_lengths: Array  # [B, K] int32; 0 where none has ended
    improvable: Array  # [B] bool: something better may still come
    step: Array  # [] int32: tokens written
    not_finite_at: Array  # [B] int32: number, from 1, of the token whose logits were not finite in a beam; 0: none


def write(model: Model, state: State, settings: Settings, special: Special, beams: int, length_penalty: float) -> State:
    """The state with the best continuation of each document written.

    None is WRITING any more, and the cache is that of before.
    """
    return _search(model, state, settings, special, beams, jnp.float32(length_penalty))


def _search_loop(
    model: Model, state: State, settings: Settings, special: Special, beams: int, length_penalty: Array
) -> State:
    count, width = state.tokens.shape
    limits = jnp.minimum(settings.max_tokens, settings.context - state.length)
    expanded = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), state._replace(cache={}))
    expanded = expanded._replace(cache=jax.tree.map(lambda x: jnp.repeat(x, beams, axis=1), state.cache))
    nothing = jnp.full((count, beams), NEVER)
    search = Beams(
        expanded,
        nothing.at[:, 0].set(0.0),
        jnp.zeros((count, beams, width), jnp.int32),
        nothing,
        jnp.zeros((count, beams), jnp.int32),
        limits > 0,
        jnp.int32(0),
        jnp.zeros(count, jnp.int32),
    )

    def step(search):
        return _step(model, search, settings, special, limits, length_penalty)

    search = jax.lax.while_loop(lambda search: jnp.any(search.improvable), step, search)
    is_broken = search.not_finite_at > 0  # the document has what a beam had written by then
    tokens = jnp.where(is_broken[:, None], search.state.tokens.reshape(count, beams, width)[:, 0], search.done[:, 0])
    written = jnp.where(is_broken, search.not_finite_at - 1, search.done_lengths[:, 0])
    last = jnp.take_along_axis(tokens, jnp.maximum(written - 1, 0)[:, None], axis=1)[:, 0]
    limit = jnp.where(settings.max_tokens <= settings.context - state.length, TOKEN_LIMIT, CONTEXT_LIMIT)
    status = jnp.where(is_broken, NOT_FINITE, jnp.where((written > 0) & (last == special.eos), ENDED, limit))
    return state._replace(
        tokens=tokens, written=written, status=jnp.where(state.status == WRITING, status, state.status)
    )


_search = jax.jit(_search_loop, static_argnames=("special", "beams"))


def _step(
    model: Model, search: Beams, settings: Settings, special: Special, limits: Array, length_penalty: Array
) -> Beams:
    """One more token.

    The best 2 K continuations of all beams, of which those that end compete with the ended ones and K go on.
    """
    state, (count, beams) = search.state, search.scores.shape
    shares = jax.nn.log_softmax(state.logits, axis=-1)
    shares = decode.penalise(shares, state.present, settings.repetition_penalty)
    shares = jnp.where(settings.banned, NEVER, shares).at[:, special.dream_start].set(NEVER)
    vocabulary = shares.shape[-1]
    totals = (shares.reshape(count, beams, vocabulary) + search.scores[..., None]).reshape(count, -1)
    scores, index = jax.lax.top_k(totals, 2 * beams)  # with one way to end, K of these go on
    parents, tokens = index // vocabulary, index % vocabulary
    ends = (tokens == special.eos) | (search.step + 1 >= limits[:, None])

    def of_parents(x):
        return jnp.take_along_axis(x.reshape(count, beams, -1), parents[..., None], axis=1)

    written = of_parents(state.tokens).at[:, :, search.step].set(tokens)

    length = (search.step + 1).astype(jnp.float32)
    first = jnp.arange(2 * beams) < beams  # the others are there to go on, should these end
    eligible = ends & first & search.improvable[:, None]
    ended = jnp.where(eligible, scores / length**length_penalty, NEVER)
    all_scores, ranking = jax.lax.top_k(jnp.concatenate([search.done_scores, ended], axis=1), beams)

    def pick(old, new):
        return jnp.take_along_axis(
            jnp.concatenate([old, new], axis=1), ranking.reshape(ranking.shape + (1,) * (old.ndim - 2)), axis=1
        )

    done = pick(search.done, written)
    done_lengths = pick(search.done_lengths, jnp.where(eligible, search.step + 1, 0))

    running, chosen_beams = jax.lax.top_k(jnp.where(ends, scores + NEVER, scores), beams)

    def keep(x):
        return jnp.take_along_axis(x, chosen_beams.reshape(chosen_beams.shape + (1,) * (x.ndim - 2)), axis=1)

    state = _go_on(model, state, keep(parents), keep(tokens), keep(written))
    worst = jnp.where(jnp.all(done_lengths > 0, axis=1), all_scores[:, -1], NEVER)
    finite = jnp.all(search.state.finite.reshape(count, beams), axis=1)
    not_finite_at = jnp.where(
        search.improvable & ~finite & (search.not_finite_at == 0), search.step + 1, search.not_finite_at
    )
    improvable = (
        search.improvable & finite & (running[:, 0] / length**length_penalty > worst) & (search.step + 1 < limits)
    )
    return Beams(state, running, done, all_scores, done_lengths, improvable, search.step + 1, not_finite_at)


def _go_on(model: Model, state: State, parents: Array, tokens: Array, written: Array) -> State:
    """The beams [B, K] that go on, in the order of their scores, with their new tokens in the cache."""
    count, beams = parents.shape
    rows = (jnp.arange(count)[:, None] * beams + parents).reshape(-1)
    chosen = tokens.reshape(-1)
    state = state._replace(
        cache=jax.tree.map(lambda x: x[:, rows], state.cache),
        finite=state.finite[rows],
        present=state.present[rows].at[jnp.arange(len(rows)), chosen].set(True),
        tokens=written.reshape(len(rows), -1),
    )
    return decode.extend(model, state, dreamllm.embed(model, chosen)[:, None], jnp.ones_like(state.length))[0]
