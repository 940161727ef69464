"""Prompts in the cache, and conditions: the hidden states at dream queries, from which pictures are drawn."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.config import ModelConfig
from dreamjax.config.validation import require_present
from dreamjax.document import Document, Image
from dreamjax.document.batch import Batch
from dreamjax.document.tokenize import TokenSequence
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import ConfigError
from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Model
from dreamjax.models.llama import init_cache
from dreamjax.sampling import decode
from dreamjax.sampling.decode import DREAMING, WRITING, State
from dreamjax.sampling.options import Options
from dreamjax.sampling.prompts import answering, batches, bucket, check_row, prompt_row

# ----------------------------------------------------------------------------------------------------------------------
# Prompts


def empty_state(config: ModelConfig, seeds: Sequence[int], slots: int, width: int = 64) -> State:
    """The state of documents without a token, one for each seed.

    There is room for `slots` positions, rounded up, and `width` written tokens.
    """
    keys = jax.vmap(jax.random.key)(np.array(seeds, np.uint32))
    return _empty_state(config, keys, slots=bucket(slots, 128), width=width)


@functools.partial(jax.jit, static_argnames=("config", "slots", "width"))
def _empty_state(config: ModelConfig, keys: jax.Array, slots: int, width: int) -> State:
    llm = require_present(config.llm, "model.llm")
    count, vocabulary = len(keys), llm.vocab_size
    zeros = jnp.zeros(count, jnp.int32)
    cache = init_cache(llm, count, slots, jnp.dtype(config.dtype))
    present = jnp.zeros((count, vocabulary), bool)
    tokens = jnp.zeros((count, width), jnp.int32)
    return State(
        cache, zeros, jnp.zeros((count, vocabulary)), present, tokens, zeros, zeros, zeros + WRITING, keys, zeros == 0
    )


def prefill(
    model: Model, state: State, prompts: Sequence[Document], rows: Sequence[TokenSequence], dream_start: int
) -> State:
    """Put prompts and their tokens `rows` into the cache of an empty state, which has at least as many rows."""
    for batch in batches(model, prompts, rows, len(state.length)):
        state = _prefill(model, state, batch, dream_start)
    return state


@functools.partial(jax.jit, static_argnames="dream_start")
def _prefill(model: Model, state: State, batch: Batch, dream_start: int) -> State:
    """Puts prompts, one a group, into the cache of the documents that they belong to: tokens, pictures and queries."""
    tokens, segments = batch.tokens[:, 0], batch.segments[:, 0]
    embeds = dreamllm.embed_batch(model, batch)
    state, _ = decode.extend(model, state, embeds, jnp.sum(segments > 0, axis=-1))
    there = jnp.where((segments > 0) & (tokens != dream_start), tokens, state.present.shape[1])
    present = state.present.at[jnp.arange(len(tokens))[:, None], there].set(True, mode="drop")
    return state._replace(present=present)


def context_of(model: Model, options: Options) -> int:
    """Positions that a document with its prompt may take."""
    if options.context > model.llm.config.max_positions:
        raise ConfigError(f"context: {options.context} is above the model's {model.llm.config.max_positions} positions")
    return options.context or model.llm.config.max_positions


# ----------------------------------------------------------------------------------------------------------------------
# Conditions


def framed(model: Model, frame: tuple[int, int], features: jax.Array) -> jax.Array:
    """[B, n, D] features between the embeddings of two tokens."""
    before, after = (
        jnp.broadcast_to(dreamllm.embed(model, jnp.int32(token)), (features.shape[0], 1, features.shape[2]))
        for token in frame
    )
    return jnp.concatenate([before, features, after], axis=1)


def dream_frame(tokenizer: Tokenizer) -> tuple[int, int]:
    """The tokens around dream queries."""
    return tokenizer.dream_start, tokenizer.dream_end


@functools.partial(jax.jit, static_argnames="frame")
def dream(model: Model, state: State, frame: tuple[int, int]) -> tuple[State, jax.Array]:
    """Runs <dream_start>, the queries and <dream_end> over the cache of the waiting documents.

    Hidden states at the queries [B, Q, D].
    """
    embeds = framed(model, frame, dreamllm.queries(model, len(state.length)))
    counts = jnp.where(state.status == DREAMING, embeds.shape[1], 0)
    state, hidden = decode.extend(model, state, embeds, counts)
    return state, hidden[:, 1:-1]


def condition_after(
    model: Model, tokenizer: Tokenizer, prompts: Sequence[Document], template: str, size: int = 0
) -> jax.Array:
    """The hidden states [size, Q, D] at dream queries put right after each prompt.

    Rows beyond the prompts mean nothing.
    """
    rows = [prompt_row(model, tokenizer, prompt, template) for prompt in prompts]
    needed, longest = model.config.dream_queries + 2, model.llm.config.max_positions
    for row in rows:
        check_row(model, row, longest, needed)
    slots = max(len(row.tokens) for row in rows) + needed
    state = empty_state(model.config, [0] * (size or bucket(len(prompts), 1)), slots)
    state = prefill(model, state, prompts, rows, tokenizer.dream_start)
    state = state._replace(status=jnp.full_like(state.status, DREAMING))
    return dream(model, state, dream_frame(tokenizer))[1]


def condition_after_padding(
    model: Model, tokenizer: Tokenizer, prompts: Sequence[Document], template: str
) -> jax.Array:
    """`condition_after` as the official code has it, [B, Q, D]: prompts padded on the right to the longest, padding
    counted in the positions.

    So the queries of a shorter prompt stand farther from it, and what it becomes depends on the longest one.
    """
    asked = [Document((*prompt.parts, Image(b"", is_input=False, role=answering(prompt)))) for prompt in prompts]
    rows = [prompt_row(model, tokenizer, prompt, template) for prompt in asked]
    for row in rows:
        check_row(model, row, model.llm.config.max_positions, room=0)
    longest = max(len(row.tokens) for row in rows)
    conditions: dict[int, jax.Array] = {}
    for batch in batches(model, asked, rows, len(prompts)):
        hidden = _padded_condition(model, _with_gap(batch, longest, model.config.dream_queries))
        for b in np.flatnonzero(batch.segments.any(axis=(1, 2))):
            conditions[int(b)] = hidden[b]
    return jnp.stack([conditions[b] for b in range(len(prompts))])


def _with_gap(batch: Batch, longest: int, count: int) -> Batch:
    """Moves the last picture's tokens, <dream_start>, queries and <dream_end>, to where the longest prompt has them."""
    lengths = np.sum(batch.segments > 0, axis=-1, keepdims=True)
    later = np.arange(batch.tokens.shape[-1]) >= lengths - count - 2
    return batch._replace(
        positions=np.where(later, batch.positions + longest - lengths, batch.positions).astype(np.int32)
    )


@jax.jit
def _padded_condition(model: Model, batch: Batch) -> jax.Array:
    hidden = dreamllm.hidden_states(model, batch)
    last = jnp.maximum(jnp.sum(batch.target_valid, axis=-1) - 1, 0)
    read = dreamllm.read_out(model, hidden, batch).reshape(*batch.target_valid.shape, model.config.dream_queries, -1)
    return read[jnp.arange(len(last)), last]


unconditional = jax.jit(dreamllm.unconditional, static_argnames=("bos", "dream_start"))


def unconditional_states(model: Model, tokenizer: Tokenizer, options: Options) -> jax.Array | None:
    """Hidden states [Q, D] after the negative prompt, or without any context; None without guidance."""
    if options.guidance_scale == 1:
        return None
    if options.negative is None:
        return unconditional(model, tokenizer.bos, tokenizer.dream_start)
    return condition_after(model, tokenizer, [options.negative], options.template)[0]
