"""Free-form illustrated documents: the model writes, decides where a picture comes, draws it, looks at it and writes
on.

    prefill -> write -> (at <dream_start>) dream -> draw -> look -> write -> ... -> </s> or a limit

Every document of a batch is in its own state; all share the jitted pieces. Shapes come from buckets, and those in which
a document is computed depend on itself, the size of the batch and the options, never on the other documents: what it
becomes is the same to the bit whatever is written beside it. Pictures are drawn for all waiting documents at once.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.config.validation import require_seed
from dreamjax.document import Document, Image, Text, image_io
from dreamjax.document.tokenize import Slots
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import ConfigError
from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Model
from dreamjax.sampling import beam, decode, denoise, finite, memory
from dreamjax.sampling.decode import (
    CONTEXT_LIMIT,
    DREAMING,
    NOT_FINITE,
    PICTURE_LIMIT,
    STOPPED,
    TOKEN_LIMIT,
    WRITING,
    Settings,
    Special,
    State,
)
from dreamjax.sampling.options import Options
from dreamjax.sampling.prefill import context_of, dream, dream_frame, empty_condition, framed, prefill
from dreamjax.sampling.prompts import answering, banned, bucket, check_row, prompt_row

CHECK_EVERY = 16  # tokens between two looks for a stop string
ENDLESS = 2**30


_write = jax.jit(decode.write, static_argnames="special")


@jax.jit
def _image_keys(state: State) -> jax.Array:
    """[B] keys, one for the picture that each document has begun."""
    return denoise.image_keys(state.keys, state.images)


@functools.partial(jax.jit, static_argnames="frame")
def _look(model: Model, state: State, images, frame: tuple[int, int]) -> State:
    """Feeds the pictures of the waiting documents back: <im_start>, patches, <im_end>; then they write on."""
    embeds = framed(model, frame, dreamllm.see(model, images))
    counts = jnp.where(state.status == DREAMING, embeds.shape[1], 0)
    return _write_on(decode.extend(model, state, embeds, counts)[0])


@jax.jit
def _without(state: State, sound: jax.Array) -> State:
    """Ends the waiting documents whose pictures are not finite; `sound` [B] bool."""
    return state._replace(status=jnp.where((state.status == DREAMING) & ~sound, NOT_FINITE, state.status))


@jax.jit
def _write_on(state: State) -> State:
    return state._replace(status=jnp.where(state.status == DREAMING, WRITING, state.status))


# ----------------------------------------------------------------------------------------------------------------------
# The loop


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What stays the same while a batch of documents is written."""

    model: Model
    tokenizer: Tokenizer
    prompts: Sequence[Document]
    options: Options
    settings: Settings
    special: Special


class Wrote(NamedTuple):
    """Some tokens were written."""

    state: State


class Drawing(NamedTuple):
    """Some denoising steps were done for the documents `waiting`."""

    waiting: np.ndarray
    moment: denoise.Moment


class Drawn(NamedTuple):
    """The documents `waiting` have their pictures [B, H, W, 3] uint8; what other rows hold means nothing."""

    waiting: np.ndarray
    images: np.ndarray


class Finished(NamedTuple):
    """What was written and drawn after each prompt, without the prompts."""

    documents: list[Document]


Event = Wrote | Drawing | Drawn | Finished


def generate(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[Document],
    seeds: Sequence[int],
    options: Options,
    watch: Callable[[Event], None] | None = None,
    size: int = 0,
) -> list[Document]:
    """What the model writes and draws after each prompt (the prompt itself is not repeated), one Document each.

    `watch` is called with each Event, after every few tokens and denoising steps. `size` rows are computed (0: the
    power of two that holds the prompts).
    """
    task, state = begin(model, tokenizer, prompts, seeds, options, size)
    pace = {"tokens": CHECK_EVERY, "steps": 5} if watch else {}
    for event in run(task, state, **pace):
        if watch:
            watch(event)
    return event.documents


def begin(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[Document],
    seeds: Sequence[int],
    options: Options,
    size: int = 0,
) -> tuple[Task, State]:
    """The state after the prompts, and what stays the same from there on. Rows beyond the prompts may write nothing."""
    if model.config.unet is None and options.min_images:
        raise ConfigError(f"min_images: {options.min_images}, and this model has no picture decoder")
    if len(seeds) != len(prompts):
        raise ConfigError(f"seeds: {len(seeds)} seeds for {len(prompts)} prompts")
    seeds = [require_seed(f"seeds[{i}]", seed) for i, seed in enumerate(seeds)]
    count = size or bucket(len(prompts), 1)
    if model.config.unet is not None and options.max_images:
        denoise.check(model.config, options, count)
    context, room = context_of(model, options), image_room(model)
    rows = [prompt_row(model, tokenizer, prompt, options.template) for prompt in prompts]
    for row in rows:
        check_row(model, row, context)
    wanted = max(len(row.tokens) for row in rows) + options.max_tokens + options.max_images * room
    memory.require_room_for_documents(model.config, count, min(wanted, context))
    width = bucket(max(min(options.max_tokens, context), 1), 64)
    state = prefill(model, tokenizer, prompts, rows, seeds, min(wanted, context), width, size)

    def limit(value):
        return np.where(np.arange(len(state.length)) < len(prompts), value, 0).astype(np.int32)

    settings = Settings(
        np.float32(options.temperature),
        np.int32(options.top_k),
        np.float32(options.top_p),
        np.float32(options.repetition_penalty),
        limit(options.max_tokens),
        limit(options.max_images),
        limit(options.min_images),
        banned(model, tokenizer, options.unmasked),
        np.int32(context),
    )
    special = Special(tokenizer.eos, tokenizer.dream_start, room)
    return Task(model, tokenizer, prompts, options, settings, special), state


def run(task: Task, state: State, tokens: int = 0, steps: int = 0) -> Iterator[Event]:
    """Writes and draws to the end; the last Event is Finished.

    A Wrote comes after at most `tokens` tokens and a Drawing after every `steps` denoising steps (0: not in between).
    """
    options, images = task.options, [[] for _ in task.prompts]
    if options.beams > 1:
        state = beam.write(task.model, state, task.settings, task.special, options.beams, options.length_penalty)
    pace = np.int32(tokens or (CHECK_EVERY if options.stop else ENDLESS))
    while True:
        state = _write(task.model, state, task.settings, task.special, pace)
        status = np.asarray(state.status)
        if options.stop:
            status = np.where(_stopped(task, state), STOPPED, status)
            state = state._replace(status=jax.device_put(status))
        yield Wrote(state)
        if np.any(status == WRITING):
            continue
        waiting = np.flatnonzero(status == DREAMING)
        if not len(waiting):
            break
        state, hidden = dream(task.model, state, dream_frame(task.tokenizer))
        empty = empty_condition(task.model, task.tokenizer, options)
        for moment in denoise.moments(task.model, hidden, empty, _image_keys(state), options, every=steps):
            yield Drawing(waiting, moment)
        drawn, sound = map(np.asarray, denoise.decode(task.model, moment.progress.x))
        if not sound[waiting].all():
            state = _without(state, sound)
            waiting = waiting[sound[waiting]]
        for b in waiting:
            images[b].append(drawn[b])
        if len(waiting):
            yield Drawn(waiting, drawn)
            state = look_at(task, state, drawn)
    state = jax.device_get(state._replace(cache={}, logits=None, keys=None, present=None))
    yield Finished([document(task, state, b, images[b]) for b in range(len(task.prompts))])


def image_room(model: Model) -> int:
    """Cache slots that one drawn picture takes: the queries and the patches with the tokens around them."""
    slots = Slots.of(model.config)
    return slots.queries + 2 + (slots.patches + 2 if model.config.clip else 0)


def look_at(task: Task, state: State, drawn: np.ndarray) -> State:
    """Shows the waiting documents their pictures, where the model can see."""
    if task.model.config.clip is None:
        return _write_on(state)
    resized = np.stack([image_io.for_encoder(image, task.model.config.clip.image_size) for image in drawn])
    return _look(task.model, state, resized, (task.tokenizer.im_start, task.tokenizer.im_end))


# ----------------------------------------------------------------------------------------------------------------------
# Documents


def document(task: Task, state: State, b: int, images: Sequence[np.ndarray]) -> Document:
    """What document b wrote, as parts; in a chat they are the assistant's. The notes say where a limit ended it."""
    tokens = np.asarray(state.tokens[b])[: int(state.written[b])].tolist()
    role = answering(task.prompts[b])
    parts = [
        Text(part, role=role) if isinstance(part, str) else Image(part, role=role)
        for part in content(task, b, tokens, images)
    ]
    limits = {
        TOKEN_LIMIT: f"stopped at the limit of {task.options.max_tokens} tokens",
        CONTEXT_LIMIT: "stopped at the end of the model's context",
        PICTURE_LIMIT: f"stopped at the limit of {task.options.max_images} pictures",
    }
    stray = len(
        [
            token
            for token in tokens
            if token in task.tokenizer.special_ids - {task.tokenizer.eos, task.tokenizer.dream_start}
        ]
    )
    limits[NOT_FINITE] = finite.note(len(tokens), len(images), int(state.images[b]))
    notes = [limits[status]] if (status := int(state.status[b])) in limits else []
    return Document(tuple(parts), notes=(*notes, *([f"control tokens out of place: {stray}"] if stray else [])))


def content(task: Task, b: int, tokens: Sequence[int], images: Sequence[np.ndarray]) -> list[str | np.ndarray]:
    """Texts and pictures that document b's tokens stand for, up to a stop string; a picture that is not drawn yet is
    left out.

    A space before its first words is kept where the prompt ended in text.
    """
    prompt = task.prompts[b]
    last = prompt.parts[-1] if prompt.parts else None
    keeps_space = (
        isinstance(last, Text) and last.text != "" and not answering(prompt)
    )  # an empty prompt is the beginning of a text
    found, drawn = [], iter(images)
    for number, run in enumerate(_runs(task.tokenizer, tokens)):
        if number and (image := next(drawn, None)) is not None:
            found.append(image)
        words, stopped = cut(task.tokenizer.decode_continuation(run), task.options.stop)
        words = words if keeps_space and number == 0 else words.lstrip()
        found += [words] if words else []
        if stopped:
            break
    return found


def cut(words: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string in it, and whether there is one."""
    at = min((words.index(string) for string in stop if string in words), default=None)
    return (words, False) if at is None else (words[:at], True)


def _runs(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[list[int]]:
    """The tokens between pictures."""
    runs = [[]]
    for token in tokens:
        if token == tokenizer.dream_start:
            runs.append([])
        elif token != tokenizer.eos:
            runs[-1].append(token)
    return runs


def _stopped(task: Task, state: State) -> np.ndarray:
    """[B] bool: whether a document has written a stop string."""
    tokens, written = np.asarray(state.tokens), np.asarray(state.written)
    found = np.zeros(len(tokens), bool)
    for b in range(len(task.prompts)):
        runs = _runs(task.tokenizer, tokens[b, : written[b]].tolist())
        found[b] = any(cut(task.tokenizer.decode_continuation(run), task.options.stop)[1] for run in runs)
    return found
