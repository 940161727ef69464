"""How likely given continuations are: log-probabilities of their tokens, batched, for ranking answers."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.batch import Batch
from dreamjax.document import Document, Text
from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Parts
from dreamjax.rows import Row
from dreamjax.sampling.prompts import answering, batches, bucket, check_row, prompt_row
from dreamjax.schema import ConfigError
from dreamjax.tokenizer import Tokenizer

CHUNK = 16  # positions whose logits exist at one time; it divides every bucket of lengths


class Likelihood(NamedTuple):
    """Of each scored token of a row: its log-probability [n] float32, and whether it is the likeliest [n] bool."""

    log_probabilities: np.ndarray
    likeliest: np.ndarray


def log_probabilities(
    parts: Parts, params: dict, tokenizer: Tokenizer, pairs: Sequence[tuple[Document, str]], template: str = "plain"
) -> list[np.ndarray]:
    """The log-probability of each token of each continuation after its prompt, float32 [tokens]; the sum is the continuation's.

    Prompt and continuation are encoded as one running text, so a continuation usually begins with a space, but in a chat,
    where the template sets it off. Raises ConfigError for an empty continuation and one beyond the context.
    """
    whole = [_joined(prompt, continuation) for prompt, continuation in pairs]
    rows = [prompt_row(parts, tokenizer, document, template) for document in whole]
    for row, (_, continuation) in zip(rows, pairs):
        check_row(parts, row, parts.config.llm.max_positions, room=0)
        if not row.learned.any():
            raise ConfigError(f"continuation: {continuation!r} has no token of its own")
    return [found.log_probabilities for found in likelihoods(parts, params, whole, rows, bucket(len(pairs), 1))]


def likelihoods(parts: Parts, params: dict, documents: Sequence[Document], rows: Sequence[Row], size: int) -> list[Likelihood]:
    """How likely the learned tokens of each row are after what stands before them, computed `size` rows at once, which must hold them all.

    `documents` hold the pictures that rows have; rows are checked where they are made.
    """
    found: list = [None] * len(rows)
    for batch in batches(parts, documents, rows, size):
        shares, likeliest = map(np.asarray, _shares(parts, params, batch))
        for b in np.flatnonzero(batch.segments.any(axis=(1, 2))):
            learned = batch.learned[b, 0]
            found[b] = Likelihood(shares[b][learned], likeliest[b][learned])
    return found


def _joined(prompt: Document, continuation: str) -> Document:
    """The prompt, of which nothing is learned, and the continuation, of which everything is."""
    before = tuple(dataclasses.replace(part, learned=False) if isinstance(part, Text) else part for part in prompt.parts)
    return Document((*before, Text(continuation, role=answering(prompt))))


@functools.partial(jax.jit, static_argnames="parts")
def _shares(parts: Parts, params: dict, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """[B, L] float32 and bool: the log-probability of each token given those before it, and whether it is the likeliest; 0 and no for the first."""
    hidden = dreamllm.hidden_states(parts, params, batch)
    tokens = batch.tokens[:, 0]
    following = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))
    chunks = lambda x: x.reshape(x.shape[0], -1, CHUNK, *x.shape[2:]).swapaxes(0, 1)

    def of_chunk(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        states, wanted = chunk
        logits = parts.llm.apply({"params": params["llm"]}, states, method="logits")
        shares = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), wanted[..., None], axis=-1)[..., 0]
        return shares, jnp.argmax(logits, axis=-1) == wanted

    def aligned(x: jax.Array) -> jax.Array:
        return jnp.pad(x.swapaxes(0, 1).reshape(tokens.shape)[:, :-1], ((0, 0), (1, 0)))

    return jax.tree.map(aligned, jax.lax.map(of_chunk, (chunks(hidden), chunks(following))))
