"""Writing: prompts into the cache, then token after token for a whole batch, each document at its own position.

Slot number is position: a document of `length` tokens fills cache slots 0 .. length - 1, and whatever stands in later
slots is masked out and overwritten. So documents of different lengths share one cache without padding, and a document
that waits or is done simply does not advance.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Model

Array = jax.Array

WRITING, DREAMING, ENDED, TOKEN_LIMIT, CONTEXT_LIMIT, PICTURE_LIMIT, STOPPED, NOT_FINITE = range(8)


class State(NamedTuple):
    """B documents in the making. T cache slots, V vocabulary, W most tokens written."""

    cache: dict  # k, v [layers, B, T, K, C]
    length: Array  # [B] int32: cache slots filled
    logits: Array  # [B, V] float32: of the next token
    # [B, V] bool: tokens but <dream_start> that the prompt has or that were written, for the repetition penalty
    present: Array
    tokens: Array  # [B, W] int32: what was written, <dream_start> and </s> included
    written: Array  # [B] int32: how many of them
    images: Array  # [B] int32: pictures begun
    status: Array  # [B] int32: WRITING, DREAMING, or how it ended
    keys: Array  # [B] keys: one per document
    finite: Array  # [B] bool: whether all its logits were so far


class Settings(NamedTuple):
    """Settings of the choice of tokens; arrays, so that a change does not recompile."""

    temperature: Array  # [] float32; 0 is greedy
    top_k: Array  # [] int32: this many likeliest tokens; 0 is all
    top_p: Array  # [] float32: smallest set of tokens with this probability
    repetition_penalty: Array  # [] float32; 1 is none
    max_tokens: Array  # [B] int32
    max_images: Array  # [B] int32; 0 forbids them, above it the wish for one more ends the document
    min_images: Array  # [B] int32: </s> is not written before, and the last tokens that are left become pictures
    banned: Array  # [V] bool: never written
    context: Array  # [] int32: positions that a document may take


class Special(NamedTuple):
    """Token ids that steer the writing, and the room that a picture takes in the cache."""

    eos: int
    dream_start: int
    image_room: int


def extend(model: Model, state: State, embeds: Array, counts: Array) -> tuple[State, Array]:
    """Appends the first counts[b] of embeds [B, n, D] to each document.

    The new state and the hidden states [B, n, D].
    """
    slots = state.cache["k"].shape[2]
    steps = jnp.arange(embeds.shape[1])
    positions = jnp.where(steps < counts[:, None], state.length[:, None] + steps, slots)  # out of range: not written
    hidden, cache = model.apply("llm", embeds, positions, cache=state.cache)
    last = jnp.take_along_axis(hidden, jnp.maximum(counts - 1, 0)[:, None, None], axis=1)[:, 0]
    logits = model.apply("llm", last, method="logits")
    finite = state.finite & ((counts == 0) | jnp.all(jnp.isfinite(logits), axis=-1))
    logits = jnp.where((counts > 0)[:, None], logits, state.logits)
    return state._replace(cache=cache, length=state.length + counts, logits=logits, finite=finite), hidden


# ----------------------------------------------------------------------------------------------------------------------
# Choosing


def penalise(logits: Array, present: Array, penalty: Array) -> Array:
    """Lowers the logits [B, V] of tokens that are there already.

    Positive ones are divided, negative ones multiplied (Keskar et al. 2019).
    """
    return jnp.where(present, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def choose(logits: Array, keys: Array, settings: Settings) -> Array:
    """The next token of each document: [B, V] logits -> [B] int32; the most likely one at temperature 0.

    Of the top_k likeliest tokens (Fan et al. 2018) nucleus sampling (Holtzman et al. 2020) keeps the likeliest until
    their probability reaches top_p. Tokens as likely as the last one kept are kept too.
    """

    def draw():
        scaled = logits / settings.temperature
        truncates = (settings.top_k > 0) | (settings.top_p < 1)
        candidates = jax.lax.cond(
            truncates, lambda: _truncate(scaled, settings), lambda: scaled
        )  # sorting costs more than all else here
        return jax.vmap(jax.random.categorical)(keys, candidates)

    def greedy():
        return jnp.argmax(logits, axis=-1)

    return jax.lax.cond(settings.temperature > 0, draw, greedy).astype(jnp.int32)


def _truncate(logits: Array, settings: Settings) -> Array:
    """Logits [B, V] with those of tokens that may not be drawn at minus infinity."""
    ordered = jnp.sort(logits, axis=-1)[:, ::-1]
    ranks = jnp.arange(logits.shape[-1])
    ordered = jnp.where((settings.top_k > 0) & (ranks >= settings.top_k), -jnp.inf, ordered)
    shares = jax.nn.softmax(ordered, axis=-1)
    candidates = (jnp.cumsum(shares, axis=-1) - shares < settings.top_p) & (ordered > -jnp.inf)
    threshold = jnp.take_along_axis(ordered, jnp.sum(candidates, axis=-1, keepdims=True) - 1, axis=-1)
    return jnp.where(logits >= threshold, logits, -jnp.inf)


# ----------------------------------------------------------------------------------------------------------------------
# Writing


def write(model: Model, state: State, settings: Settings, special: Special, steps: Array | int) -> State:
    """Writes until no document is WRITING, or `steps` tokens.

    Each has ended, met a limit, or stands at a <dream_start> and waits for its picture.
    """

    def more(carry: tuple[State, Array]) -> Array:
        state, step = carry
        return jnp.any(state.status == WRITING) & (step < steps)

    def step(carry: tuple[State, Array]) -> tuple[State, Array]:
        state, step = carry
        state = _record(state, _next_token(state, settings, special), settings, special)
        embeds = dreamllm.embed(
            model, jnp.take_along_axis(state.tokens, jnp.maximum(state.written - 1, 0)[:, None], axis=1)
        )
        return extend(model, state, embeds, (state.status == WRITING).astype(jnp.int32))[0], step + 1

    spent = (state.status == WRITING) & (state.written >= settings.max_tokens)  # the last token was a <dream_start>
    state = state._replace(status=jnp.where(spent, TOKEN_LIMIT, state.status))
    return jax.lax.while_loop(more, step, (state, jnp.int32(0)))[0]


def _next_token(state: State, settings: Settings, special: Special) -> Array:
    """The next token of each document, [B] int32, written or not."""
    logits = penalise(state.logits, state.present, settings.repetition_penalty)
    logits = jnp.where(settings.banned, -jnp.inf, logits)

    def allow(logits, token, allowed):
        return logits.at[:, token].set(jnp.where(allowed, logits[:, token], -jnp.inf))

    logits = allow(logits, special.dream_start, settings.max_images > 0)
    logits = allow(logits, special.eos, state.images >= settings.min_images)
    token = choose(logits, jax.vmap(jax.random.fold_in)(state.keys, state.length), settings)
    missing = settings.min_images - state.images
    forced = (missing > 0) & (settings.max_tokens - state.written <= missing)
    return jnp.where(forced, special.dream_start, token)


def _record(state: State, token: Array, settings: Settings, special: Special) -> State:
    """The state with the tokens [B] of the documents that are WRITING, and their new status.

    A picture for which there is no room, in the context or by max_images, ends the document without its token, as do
    logits that are not finite: of those any token would be chosen.
    """
    width = state.tokens.shape[1]
    rows, writing, dreams = jnp.arange(len(token)), state.status == WRITING, token == special.dream_start
    too_many = dreams & (state.images >= settings.max_images)
    no_room = dreams & (state.length + special.image_room > settings.context)
    appended = writing & ~too_many & ~no_room & state.finite
    tokens = state.tokens.at[rows, jnp.where(appended, state.written, width)].set(token, mode="drop")
    present = state.present.at[rows, jnp.where(appended & ~dreams, token, state.present.shape[1])].set(
        True, mode="drop"
    )
    written = state.written + appended
    status = jnp.where(state.length + 1 >= settings.context, CONTEXT_LIMIT, WRITING)
    status = jnp.where(written >= settings.max_tokens, TOKEN_LIMIT, status)
    status = jnp.where(dreams, DREAMING, status)
    status = jnp.where(no_room, CONTEXT_LIMIT, status)
    status = jnp.where(too_many, PICTURE_LIMIT, status)
    status = jnp.where(token == special.eos, ENDED, status)
    status = jnp.where(state.finite, status, NOT_FINITE)
    status = jnp.where(writing, status, state.status)
    images = state.images + (writing & (status == DREAMING))
    return state._replace(tokens=tokens, present=present, written=written, status=status, images=images)
