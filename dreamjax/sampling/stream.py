"""One document as it is written: pieces of text, pictures as they appear, and a page that grows with them."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image

from dreamjax.document import Document, Image, Text
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.models.dreamllm import Model
from dreamjax.sampling import denoise, interleave
from dreamjax.sampling.decode import DREAMING, WRITING, State
from dreamjax.sampling.interleave import GenerationRequest, Pace, Task
from dreamjax.sampling.prompts import answering


class TextPiece(NamedTuple):
    """Text that follows what came before; all pieces between two pictures are one part of the document."""

    text: str


class ImageStarted(NamedTuple):
    """The model wants its picture `number`, counted from 0, here."""

    number: int


class Preview(NamedTuple):
    """The estimate of image `number` after `step` of `steps`."""

    number: int
    step: int
    steps: int
    image: PIL.Image.Image


class ImageDone(NamedTuple):
    """Picture `number` is drawn."""

    number: int
    image: PIL.Image.Image


class Finished(NamedTuple):
    """The decoded document, without the prompt: what `generate` returns."""

    document: Document


Event = TextPiece | ImageStarted | Preview | ImageDone | Finished


def stream(
    model: Model,
    tokenizer: Tokenizer,
    request: GenerationRequest,
    pace: Pace = Pace(tokens=1),
    on_event: Callable[[interleave.Event], None] | None = None,
) -> Iterator[Event]:
    """The document that `interleave.generate` returns for the one prompt of a request, event by event, Finished last.

    Text comes after every `pace.tokens` tokens, a Preview after every `pace.steps` denoising steps (0: none).
    `on_event` is called with the events of `interleave.run`.
    """
    task, state = interleave.begin(model, tokenizer, request)
    images: list[np.ndarray] = []
    yielded: dict[int, int] = {}  # characters of each of the document's parts
    for event in interleave.run(task, state, pace):
        if on_event:
            on_event(event)
        match event:
            case interleave.TokensWritten(state=state):
                yield from _new_text(task, state, images, yielded)
                if int(state.status[0]) == DREAMING:
                    yield ImageStarted(len(images))
            case interleave.ImageStep(step=step) if step.step < step.steps:
                estimate = denoise.decode(model, step.progress.estimate).images
                yield Preview(len(images), step.step, step.steps, PIL.Image.fromarray(np.asarray(estimate)[0]))
            case interleave.ImagesDone(images=batch):
                images.append(batch[0])
                yield ImageDone(len(images) - 1, PIL.Image.fromarray(batch[0]))
            case interleave.Finished(documents=documents):
                yield Finished(documents[0])


def _new_text(task: Task, state: State, images: Sequence[np.ndarray], yielded: dict[int, int]) -> Iterator[TextPiece]:
    """The piece, if any, by which the last text has grown.

    While it is being written what may still change is held back.
    """
    tokens = np.asarray(state.tokens[0])[: int(state.written[0])].tolist()
    content = interleave.content(task, 0, tokens, images)
    if not content or not isinstance(content[-1], str):
        return
    number, words = len(content) - 1, content[-1]
    if int(state.status[0]) == WRITING:
        words = words[: settled(words, task.options.stop)]
    if len(words) > yielded.get(number, 0):
        yield TextPiece(words[yielded.get(number, 0) :])
        yielded[number] = len(words)


def settled(words: str, stop: Sequence[str]) -> int:
    """Characters that no further token can change.

    Not the bytes of an unfinished character, nor what may become a stop string.
    """
    decoded = len(words.rstrip("\ufffd"))
    begun = [n for string in stop for n in range(1, len(string)) if words[:decoded].endswith(string[:n])]
    return decoded - max(begun, default=0)


def save_while(
    events: Iterator[Event], prompt: Document, path: str | os.PathLike, pause: float = 0.5
) -> Iterator[Event]:
    """Pass the events on and keep a page of the document so far at `path`, written at most every `pause` seconds."""
    parts: list[Text | Image] = []
    written, role = -pause, answering(prompt)
    for event in events:
        match event:
            case TextPiece(text=piece) if parts and isinstance(parts[-1], Text):
                parts[-1] = Text(parts[-1].text + piece, role=role)
            case TextPiece(text=piece):
                parts.append(Text(piece, role=role))
            case ImageDone(image=image):
                parts.append(Image(image, role=role))
            case Finished(document=document):
                Document(prompt.parts + document.parts, prompt.id, document.notes).save_html(path)
        if not isinstance(event, Finished) and time.monotonic() - written >= pause:
            Document((*prompt.parts, *parts), prompt.id).save_html(path, growing=True)
            written = time.monotonic()
        yield event


def last_document(events: Iterator[Event]) -> Document:
    """The document of Finished, which ends the events."""
    *_, last = events
    assert isinstance(last, Finished)
    return last.document
