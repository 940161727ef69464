"""Log-probabilities of the tokens of given continuations, batched, for ranking answers."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.document import Document, Text
from dreamjax.document.batch import Batch
from dreamjax.document.tokenize import TokenSequence
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import ConfigError
from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Model
from dreamjax.sampling.prompts import answering, batches, bucket, check_row, prompt_row

CHUNK = 16  # positions whose logits exist at one time; it divides every bucket of lengths


class Likelihood(NamedTuple):
    """Of each scored token of a row: its log-probability [n] float32, and whether it is the likeliest [n] bool."""

    log_probabilities: np.ndarray
    likeliest: np.ndarray


def log_probabilities(
    model: Model, tokenizer: Tokenizer, pairs: Sequence[tuple[Document, str]], template: str = "plain"
) -> list[np.ndarray]:
    """The log-probability of each token of each continuation after its prompt, float32 [tokens]; the sum is the
    continuation's.

    Prompt and continuation are encoded as one running text and parted as lm-evaluation-harness does: white space at the
    prompt's end counts to the continuation, and so do the tokens beyond as many as the prompt alone has. In a chat the
    template sets the continuation off. Raises ConfigError for a continuation without a token and one beyond the
    context.
    """
    documents, rows = zip(
        *(_scored(model, tokenizer, prompt, continuation, template) for prompt, continuation in pairs), strict=True
    )
    for row in rows:
        check_row(model, row, model.llm.config.max_positions, room=0)
    return [result.log_probabilities for result in likelihoods(model, documents, rows, bucket(len(pairs), 1))]


def likelihoods(
    model: Model, documents: Sequence[Document], rows: Sequence[TokenSequence], size: int
) -> list[Likelihood]:
    """Log-probabilities of the supervised tokens of each row, `size` rows at once, which must hold them all.

    `documents` hold the pictures that rows have; rows are checked where they are made.
    """
    results: list = [None] * len(rows)
    for batch in batches(model, documents, rows, size):
        shares, likeliest = map(np.asarray, _shares(model, batch))
        for b in np.flatnonzero(batch.segments.any(axis=(1, 2))):
            loss_mask = batch.loss_mask[b, 0]
            results[b] = Likelihood(shares[b][loss_mask], likeliest[b][loss_mask])
    return results


def alternatives(
    model: Model,
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[Document, Sequence[str]]],
    size: int,
    template: str = "plain",
) -> list[np.ndarray] | None:
    """For each (prompt, continuations) the log-probability of each continuation, float32 [n], where these differ in
    their one token alone.

    The prompt, which they share, is computed once. None where a continuation is of several tokens: `log_probabilities`
    then says it. Computed `size` prompts at once, which must hold them all.
    """
    documents, rows, choices = [], [], []
    for prompt, continuations in pairs:
        variants = [_scored(model, tokenizer, prompt, continuation, template)[1] for continuation in continuations]
        if any(
            int(variant.loss_mask.sum()) != 1
            or not variant.loss_mask[-1]
            or not np.array_equal(variant.tokens[:-1], variants[0].tokens[:-1])
            for variant in variants
        ):
            return None
        check_row(model, variants[0], model.llm.config.max_positions, room=0)
        documents.append(prompt)
        rows.append(
            dataclasses.replace(variants[0], tokens=variants[0].tokens[:-1], loss_mask=variants[0].loss_mask[:-1])
        )
        choices.append([int(variant.tokens[-1]) for variant in variants])
    ids, ends = np.zeros((size, max(map(len, choices))), np.int32), np.zeros(size, np.int32)
    for b, (row, tokens) in enumerate(zip(rows, choices, strict=True)):
        ids[b, : len(tokens)], ends[b] = tokens, len(row.tokens) - 1
    results: list = [None] * len(rows)
    for batch in batches(model, documents, rows, size):
        shares = np.asarray(_next_shares(model, batch, ends, ids))
        for index in np.flatnonzero(batch.segments.any(axis=(1, 2))):
            results[index] = shares[index, : len(choices[index])]
    return results


@jax.jit
def _next_shares(model: Model, batch: Batch, ends: jax.Array, tokens: jax.Array) -> jax.Array:
    """[B, n] float32: the log-probability of each of `tokens` [B, n] right after position `ends` [B]."""
    hidden = dreamllm.hidden_states(model, batch)
    last = jnp.take_along_axis(hidden, jnp.minimum(ends, hidden.shape[1] - 1)[:, None, None], axis=1)
    logits = model.apply("llm", last, method="logits")[:, 0]
    return jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), tokens, axis=-1)


def _scored(
    model: Model, tokenizer: Tokenizer, prompt: Document, continuation: str, template: str
) -> tuple[Document, TokenSequence]:
    """Prompt and continuation as one document, and its tokens, of which the continuation's alone are in the loss."""
    if not isinstance(continuation, str) or not continuation:
        raise ConfigError(f"continuation: {continuation!r:.80} has no token of its own")
    before, space, role = list(prompt.parts), "", answering(prompt)
    runs_on = False  # whether prompt and continuation are one running text
    while before and not runs_on:
        last = before[-1]
        if not isinstance(last, Text) or last.role != role:
            break
        before.pop()
        bare = last.text.rstrip()
        space, runs_on = last.text[len(bare) :] + space, bare != ""
        if runs_on:
            before.append(dataclasses.replace(last, text=bare))
    unsupervised = tuple(
        dataclasses.replace(part, supervised=False) if isinstance(part, Text) else part for part in before
    )
    document = Document((*unsupervised, Text(space + continuation, role=role)))
    row = prompt_row(model, tokenizer, document, template)
    if runs_on:
        own = np.arange(len(row.tokens)) >= len(prompt_row(model, tokenizer, Document(unsupervised), template).tokens)
        row = dataclasses.replace(row, loss_mask=own)
    if not row.loss_mask.any():
        reason = "has no token of its own: it only changes the last word of the prompt; begin it where a word begins"
        raise ConfigError(f"continuation: {continuation!r:.80} {reason}")
    return document, row


@jax.jit
def _shares(model: Model, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """[B, L] float32 and bool.

    The log-probability of each token given those before it, and whether it is the likeliest; 0 and no for the first.
    """
    hidden = dreamllm.hidden_states(model, batch)
    tokens = batch.tokens[:, 0]
    following = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))

    def chunks(x):
        return x.reshape(x.shape[0], -1, CHUNK, *x.shape[2:]).swapaxes(0, 1)

    def of_chunk(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        states, targets = chunk
        logits = model.apply("llm", states, method="logits")
        shares = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), targets[..., None], axis=-1)[..., 0]
        return shares, jnp.argmax(logits, axis=-1) == targets

    def aligned(x: jax.Array) -> jax.Array:
        return jnp.pad(x.swapaxes(0, 1).reshape(tokens.shape)[:, :-1], ((0, 0), (1, 0)))

    return jax.tree.map(aligned, jax.lax.map(of_chunk, (chunks(hidden), chunks(following))))
