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
from dreamjax.sampling.interleave import Task
from dreamjax.sampling.options import Options
from dreamjax.sampling.prompts import answering


class TextPiece(NamedTuple):
    """Text that follows what came before; all pieces between two pictures are one part of the document."""

    text: str


class ImageStarted(NamedTuple):
    """The model wants its picture `number`, counted from 0, here."""

    number: int


class Preview(NamedTuple):
    """What picture `number` will look like, as guessed after `step` of `steps`."""

    number: int
    step: int
    steps: int
    image: PIL.Image.Image


class ImageDone(NamedTuple):
    """Picture `number` is drawn."""

    number: int
    image: PIL.Image.Image


class Finished(NamedTuple):
    """The whole document, without the prompt: what `generate` returns."""

    document: Document


Event = TextPiece | ImageStarted | Preview | ImageDone | Finished


def stream(
    model: Model,
    tokenizer: Tokenizer,
    prompt: Document,
    seed: int,
    options: Options,
    every: int = 1,
    preview_every: int = 0,
    watch: Callable[[interleave.Event], None] | None = None,
) -> Iterator[Event]:
    """What `interleave.generate` makes of the prompt, event by event, the last one Finished.

    Text comes after every `every` tokens, a Preview after every `preview_every` denoising steps (0: none). `watch` is
    called with the events of `interleave.run`.
    """
    task, state = interleave.begin(model, tokenizer, [prompt], [seed], options)
    images: list[np.ndarray] = []
    shown: dict[int, int] = {}  # characters told of each of the document's parts
    for event in interleave.run(task, state, tokens=every, steps=preview_every):
        if watch:
            watch(event)
        match event:
            case interleave.Wrote(state=state):
                yield from _new_text(task, state, images, shown)
                if int(state.status[0]) == DREAMING:
                    yield ImageStarted(len(images))
            case interleave.Drawing(moment=moment) if moment.step < moment.steps:
                guess = denoise.decode(model, moment.progress.estimate).images
                yield Preview(len(images), moment.step, moment.steps, PIL.Image.fromarray(np.asarray(guess)[0]))
            case interleave.Drawn(images=drawn):
                images.append(drawn[0])
                yield ImageDone(len(images) - 1, PIL.Image.fromarray(drawn[0]))
            case interleave.Finished(documents=documents):
                yield Finished(documents[0])


def _new_text(task: Task, state: State, images: Sequence[np.ndarray], shown: dict[int, int]) -> Iterator[TextPiece]:
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
    if len(words) > shown.get(number, 0):
        yield TextPiece(words[shown.get(number, 0) :])
        shown[number] = len(words)


def settled(words: str, stop: Sequence[str]) -> int:
    """Characters that no further token can change.

    Not the bytes of an unfinished character, nor what may become a stop string.
    """
    whole = len(words.rstrip("\ufffd"))
    begun = [n for string in stop for n in range(1, len(string)) if words[:whole].endswith(string[:n])]
    return whole - max(begun, default=0)


def save_while(
    events: Iterator[Event], prompt: Document, path: str | os.PathLike, pause: float = 0.5
) -> Iterator[Event]:
    """Passes the events on and keeps a page of the prompt and what there is so far at `path`, written anew after at
    least `pause` seconds.
    """
    made, written, role = [], -pause, answering(prompt)
    for event in events:
        match event:
            case TextPiece(text=piece) if made and isinstance(made[-1], Text):
                made[-1] = Text(made[-1].text + piece, role=role)
            case TextPiece(text=piece):
                made.append(Text(piece, role=role))
            case ImageDone(image=image):
                made.append(Image(image, role=role))
            case Finished(document=document):
                Document(prompt.parts + document.parts, prompt.id, document.notes).save_html(path)
        if not isinstance(event, Finished) and time.monotonic() - written >= pause:
            Document((*prompt.parts, *made), prompt.id).save_html(path, growing=True)
            written = time.monotonic()
        yield event
