"""Prompts as batches: each in the smallest bucket of lengths and pictures that holds it, whatever the others need."""

from collections.abc import Iterator, Sequence

import numpy as np
import PIL.Image

from dreamjax.document import Document, Image, image_io
from dreamjax.document.batch import Batch, Shape, empty_batch, place
from dreamjax.document.tokenize import Slots, TokenSequence, tokenize_prompt
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import ConfigError
from dreamjax.models.dreamllm import Model

SHORTEST = 16  # tokens of the smallest bucket; it divides the others


def bucket(n: int, smallest: int) -> int:
    """The power of two times `smallest` that holds n; 0 for 0."""
    return 0 if n == 0 else smallest * 2 ** max(0, (-(-n // smallest) - 1).bit_length())


def answering(prompt: Document) -> str | None:
    """The role in which the model goes on: the assistant's in a chat."""
    return "assistant" if any(part.role for part in prompt.parts) else None


def prompt_row(model: Model, tokenizer: Tokenizer, prompt: Document, template: str) -> TokenSequence:
    """The tokens of a prompt, its end open."""
    return tokenize_prompt(prompt, tokenizer, Slots.of(model.config), template)


def prompt_tokens(model: Model, tokenizer: Tokenizer, prompt: Document, template: str) -> int:
    """Positions that a prompt takes of the context."""
    return len(prompt_row(model, tokenizer, prompt, template).tokens)


def check_row(model: Model, row: TokenSequence, context: int, room: int = 1):
    """Raises ConfigError where a prompt leaves less than `room` of `context` positions, or has a picture that the
    model cannot see.
    """
    if len(row.tokens) + room > context:
        raise ConfigError(
            f"prompt: takes {len(row.tokens)} tokens, with {room} to come that is more than the context of {context}"
        )
    if model.config.clip is None and row.inputs:
        raise ConfigError("prompt: has a picture, and this model has no picture encoder")


def batches(model: Model, prompts: Sequence[Document], rows: Sequence[TokenSequence], size: int) -> Iterator[Batch]:
    """The prompts as Batches of `size` groups of one row each, prompt b in group b of one of them; its other groups are
    empty.

    One batch for each bucket of (tokens, input images, target images). So the shapes in which a prompt is computed
    depend on itself and on `size` alone, and with them every bit of what comes out.
    """
    keys = [
        (bucket(len(row.tokens), SHORTEST), bucket(len(row.inputs), 1), bucket(len(row.targets), 1)) for row in rows
    ]
    encoder_size = model.config.clip.image_size if model.config.clip else 1
    for length, inputs, targets in sorted(set(keys)):
        batch = empty_batch(Shape(size, 1, length, inputs, targets, encoder_size, 1))
        for b, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
            if keys[b] == (length, inputs, targets):
                images = [image_io.for_encoder(_image(prompt, part), encoder_size) for _, part in row.inputs]
                place(batch, (b, 0), row, images, [None] * len(row.targets))
        yield batch


def _image(prompt: Document, number: int) -> PIL.Image.Image:
    part = prompt.parts[number]
    assert isinstance(part, Image)
    return part.pil()


def banned(model: Model, tokenizer: Tokenizer, unmasked: bool = False) -> np.ndarray:
    """[V] bool: ids that are never written: control tokens other than </s> and <dream_start>, and rows that no token
    has.

    `unmasked` leaves the control tokens free.
    """
    mask = np.zeros(model.llm.config.vocab_size, bool)
    mask[tokenizer.size :] = True
    if not unmasked:
        mask[list(tokenizer.special_ids | {tokenizer.bos, tokenizer.unk})] = True
        mask[tokenizer.eos] = False
    if tokenizer.dream_start < len(mask):
        mask[tokenizer.dream_start] = model.config.unet is None
    return mask
