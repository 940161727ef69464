"""How likely given continuations are: log-probabilities of their tokens, batched, for ranking answers."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.batch import Batch
from dreamjax.document import Document, Text
from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Parts
from dreamjax.sampling.prompts import answering, batches, bucket, check_row, prompt_row
from dreamjax.schema import ConfigError
from dreamjax.tokenizer import Tokenizer

CHUNK = 16  # positions whose logits exist at one time; it divides every bucket of lengths


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
    found: list = [None] * len(pairs)
    for batch in batches(parts, whole, rows, bucket(len(pairs), 1)):
        shares = np.asarray(_shares(parts, params, batch))
        for b in np.flatnonzero(batch.segments.any(axis=(1, 2))):
            found[b] = shares[b][batch.learned[b, 0]]
    return found


def _joined(prompt: Document, continuation: str) -> Document:
    """The prompt, of which nothing is learned, and the continuation, of which everything is."""
    before = tuple(dataclasses.replace(part, learned=False) if isinstance(part, Text) else part for part in prompt.parts)
    return Document((*before, Text(continuation, role=answering(prompt))))


@functools.partial(jax.jit, static_argnames="parts")
def _shares(parts: Parts, params: dict, batch: Batch) -> jax.Array:
    """[B, L] float32: the log-probability of each token given those before it; 0 for the first."""
    hidden = dreamllm.hidden_states(parts, params, batch)
    tokens = batch.tokens[:, 0]
    following = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))
    chunks = lambda x: x.reshape(x.shape[0], -1, CHUNK, *x.shape[2:]).swapaxes(0, 1)

    def of_chunk(chunk: tuple[jax.Array, jax.Array]) -> jax.Array:
        states, wanted = chunk
        shares = jax.nn.log_softmax(parts.llm.apply({"params": params["llm"]}, states, method="logits"), axis=-1)
        return jnp.take_along_axis(shares, wanted[..., None], axis=-1)[..., 0]

    shares = jax.lax.map(of_chunk, (chunks(hidden), chunks(following))).swapaxes(0, 1).reshape(tokens.shape)
    return jnp.pad(shares[:, :-1], ((0, 0), (1, 0)))
