"""Writing: prompts into the cache, then token after token for a whole batch, each document at its own position.

Slot number is position: a document of `length` tokens fills cache slots 0 .. length - 1, and whatever stands in later slots
is masked out and overwritten. So documents of different lengths share one cache without padding, and a document that
waits or is done simply does not advance.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Parts

Array = jax.Array

WRITING, DREAMING, ENDED, TOKEN_LIMIT, CONTEXT_LIMIT = range(5)


class State(NamedTuple):
    """B documents in the making. T cache slots, V vocabulary, W most tokens written."""

    cache: dict  # k, v [layers, B, T, K, C]
    length: Array  # [B] int32: cache slots filled
    logits: Array  # [B, V] float32: of the next token
    tokens: Array  # [B, W] int32: what was written, <dream_start> and </s> included
    written: Array  # [B] int32: how many of them
    pictures: Array  # [B] int32: pictures begun
    status: Array  # [B] int32: WRITING, DREAMING, or how it ended
    keys: Array  # [B] keys: one per document


class Settings(NamedTuple):
    """How to choose tokens; arrays, so that a change does not recompile."""

    temperature: Array  # [] float32; 0 is greedy
    top_p: Array  # [] float32: smallest set of tokens with this probability
    max_tokens: Array  # [B] int32
    max_images: Array  # [B] int32
    min_images: Array  # [B] int32: </s> is not written before
    banned: Array  # [V] bool: never written


class Special(NamedTuple):
    """Token ids that steer the writing, and the room that a picture takes in the cache."""

    eos: int
    dream_start: int
    picture_room: int


def extend(parts: Parts, params: dict, state: State, embeds: Array, counts: Array) -> tuple[State, Array]:
    """Appends the first counts[b] of embeds [B, n, D] to each document: the new state and the hidden states [B, n, D]."""
    slots = state.cache["k"].shape[2]
    steps = jnp.arange(embeds.shape[1])
    positions = jnp.where(steps < counts[:, None], state.length[:, None] + steps, slots)  # out of range: not written
    hidden, cache = parts.llm.apply({"params": params["llm"]}, embeds, positions, cache=state.cache)
    last = jnp.take_along_axis(hidden, jnp.maximum(counts - 1, 0)[:, None, None], axis=1)[:, 0]
    logits = parts.llm.apply({"params": params["llm"]}, last, method="logits")
    logits = jnp.where((counts > 0)[:, None], logits, state.logits)
    return state._replace(cache=cache, length=state.length + counts, logits=logits), hidden


def choose(logits: Array, keys: Array, temperature: Array, top_p: Array) -> Array:
    """The next token of each document: [B, V] logits -> [B] int32; the most likely one at temperature 0.

    Nucleus sampling (Holtzman et al. 2020) keeps the likeliest tokens until their probability reaches top_p.
    """
    greedy = jnp.argmax(logits, axis=-1)
    scaled = logits / jnp.maximum(temperature, 1e-6)
    ordered = jnp.sort(jax.nn.softmax(scaled), axis=-1)[:, ::-1]
    needed = jnp.sum(jnp.cumsum(ordered, axis=-1) - ordered < top_p, axis=-1, keepdims=True)
    threshold = jnp.take_along_axis(ordered, needed - 1, axis=-1)
    kept = jnp.where(jax.nn.softmax(scaled) >= threshold, scaled, -jnp.inf)
    drawn = jax.vmap(jax.random.categorical)(keys, kept)
    return jnp.where(temperature > 0, drawn, greedy).astype(jnp.int32)


def write(parts: Parts, params: dict, state: State, settings: Settings, special: Special) -> State:
    """Writes until no document is WRITING: each has ended, met a limit, or stands at a <dream_start> and waits for its picture."""
    slots, width = state.cache["k"].shape[2], state.tokens.shape[1]
    rows = jnp.arange(state.length.shape[0])

    def step(state: State) -> State:
        writing = state.status == WRITING
        may_dream = (state.pictures < settings.max_images) & (state.length + special.picture_room <= slots)
        logits = jnp.where(settings.banned, -jnp.inf, state.logits)
        logits = logits.at[:, special.dream_start].set(jnp.where(may_dream, logits[:, special.dream_start], -jnp.inf))
        may_end = state.pictures >= jnp.minimum(settings.min_images, settings.max_images)
        logits = logits.at[:, special.eos].set(jnp.where(may_end, logits[:, special.eos], -jnp.inf))
        keys = jax.vmap(jax.random.fold_in)(state.keys, state.length)
        token = choose(logits, keys, settings.temperature, settings.top_p)
        tokens = state.tokens.at[rows, jnp.where(writing, state.written, width)].set(token, mode="drop")
        written = state.written + writing
        status = jnp.where(state.length + 1 >= slots, CONTEXT_LIMIT, WRITING)
        status = jnp.where(written >= settings.max_tokens, TOKEN_LIMIT, status)
        status = jnp.where(token == special.dream_start, DREAMING, status)
        status = jnp.where(token == special.eos, ENDED, status)
        status = jnp.where(writing, status, state.status)
        state = state._replace(tokens=tokens, written=written, status=status, pictures=state.pictures + (writing & (status == DREAMING)))
        embeds = dreamllm.embed(parts, params, token)[:, None]
        return extend(parts, params, state, embeds, (status == WRITING).astype(jnp.int32))[0]

    spent = (state.status == WRITING) & (state.written >= settings.max_tokens)  # the last token was a <dream_start>
    state = state._replace(status=jnp.where(spent, TOKEN_LIMIT, state.status))
    return jax.lax.while_loop(lambda state: jnp.any(state.status == WRITING), step, state)
