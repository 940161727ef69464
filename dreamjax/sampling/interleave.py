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
from dreamjax.sampling.prefill import (
    context_of,
    dream,
    dream_frame,
    empty_state,
    framed,
    prefill,
    unconditional_states,
)
from dreamjax.sampling.prompts import answering, banned, bucket, check_row, prompt_row

CHECK_EVERY = 16  # tokens between two looks for a stop string
ENDLESS = 2**30


_write = jax.jit(decode.write, static_argnames="special")


@jax.jit
def _image_keys(state: State) -> jax.Array:
    """[B] keys, one for the picture that each document has begun."""
    return denoise.image_keys(state.keys, state.images)


@functools.partial(jax.jit, static_argnames="frame")
def _feed_images(model: Model, state: State, images: jax.Array, frame: tuple[int, int]) -> State:
    """Append <im_start>, patches, <im_end> of the waiting documents' images; then they write on."""
    embeds = framed(model, frame, dreamllm.embed_images(model, images))
    counts = jnp.where(state.status == DREAMING, embeds.shape[1], 0)
    return _write_on(decode.extend(model, state, embeds, counts)[0])


@jax.jit
def _end_not_finite(state: State, finite_rows: jax.Array) -> State:
    """End the waiting documents whose images are not finite; `finite_rows` [B] bool."""
    return state._replace(status=jnp.where((state.status == DREAMING) & ~finite_rows, NOT_FINITE, state.status))


@jax.jit
def _write_on(state: State) -> State:
    return state._replace(status=jnp.where(state.status == DREAMING, WRITING, state.status))


# ----------------------------------------------------------------------------------------------------------------------
# The loop


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """The constants of a batch of documents while it is written."""

    model: Model
    tokenizer: Tokenizer
    prompts: Sequence[Document]
    options: Options
    settings: Settings
    special: Special


class TokensWritten(NamedTuple):
    """The state after some more tokens."""

    state: State


class ImageStep(NamedTuple):
    """Images of the documents `waiting` [n] int after some more denoising steps."""

    waiting: np.ndarray
    step: denoise.DenoisingStep


class ImagesDone(NamedTuple):
    """Images [B, H, W, 3] uint8 of the documents `waiting` [n] int; other rows mean nothing."""

    waiting: np.ndarray
    images: np.ndarray


class Finished(NamedTuple):
    """The continuation of each prompt, without the prompts."""

    documents: list[Document]


Event = TokensWritten | ImageStep | ImagesDone | Finished


class Pace(NamedTuple):
    """Events come after at most `tokens` tokens and every `steps` denoising steps; 0: not in between."""

    tokens: int = 0
    steps: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """Prompts to continue, each with its seed."""

    prompts: Sequence[Document]
    seeds: Sequence[int]
    options: Options
    size: int = 0  # rows of the batch that is computed; 0: the power of two that holds the prompts

    def __post_init__(self):
        if len(self.seeds) != len(self.prompts):
            raise ConfigError(f"seeds: {len(self.seeds)} seeds for {len(self.prompts)} prompts")
        object.__setattr__(self, "seeds", [require_seed(f"seeds[{i}]", seed) for i, seed in enumerate(self.seeds)])


def generate(
    model: Model,
    tokenizer: Tokenizer,
    request: GenerationRequest,
    on_event: Callable[[Event], None] | None = None,
) -> list[Document]:
    """Continue each prompt with text and images: one Document each, without the prompt.

    `on_event` is called with each Event, after every few tokens and denoising steps.
    """
    pace, documents = Pace(tokens=CHECK_EVERY, steps=5) if on_event else Pace(), []
    for event in run(*begin(model, tokenizer, request), pace):
        if on_event:
            on_event(event)
        if isinstance(event, Finished):
            documents = event.documents
    return documents


def begin(model: Model, tokenizer: Tokenizer, request: GenerationRequest) -> tuple[Task, State]:
    """The task and the state after the prompts. Rows beyond the prompts may write nothing."""
    prompts, options = request.prompts, request.options
    if model.config.unet is None and options.min_images:
        raise ConfigError(f"min_images: {options.min_images}, and this model has no picture decoder")
    count = request.size or bucket(len(prompts), 1)
    if model.config.unet is not None and options.max_images:
        denoise.check(model.config, options, count)
    context, room = context_of(model, options), image_room(model)
    rows = [prompt_row(model, tokenizer, prompt, options.template) for prompt in prompts]
    for row in rows:
        check_row(model, row, context)
    longest = max(len(row.tokens) for row in rows) + options.max_tokens + options.max_images * room
    slots = min(longest, context)
    memory.require_room_for_documents(model.config, count, slots)
    width = bucket(max(min(options.max_tokens, context), 1), 64)
    state = empty_state(model.config, [*request.seeds, *[0] * (count - len(prompts))], slots, width)
    state = prefill(model, state, prompts, rows, tokenizer.dream_start)

    def limit(value: int) -> jax.Array:
        return jnp.asarray(np.where(np.arange(count) < len(prompts), value, 0), jnp.int32)

    settings = Settings(
        jnp.float32(options.temperature),
        jnp.int32(options.top_k),
        jnp.float32(options.top_p),
        jnp.float32(options.repetition_penalty),
        limit(options.max_tokens),
        limit(options.max_images),
        limit(options.min_images),
        jnp.asarray(banned(model, tokenizer, options.unmasked)),
        jnp.int32(context),
    )
    special = Special(tokenizer.eos, tokenizer.dream_start, room)
    return Task(model, tokenizer, prompts, options, settings, special), state


def run(task: Task, state: State, pace: Pace = Pace()) -> Iterator[Event]:
    """Generate to the end, event by event; the last one is Finished."""
    options = task.options
    images: list[list[np.ndarray]] = [[] for _ in task.prompts]
    if options.beams > 1:
        state = beam.write(task.model, state, task.settings, task.special, options.beams, options.length_penalty)
    tokens = np.int32(pace.tokens or (CHECK_EVERY if options.stop else ENDLESS))
    while True:
        state = _write(task.model, state, task.settings, task.special, tokens)
        status = np.asarray(state.status)
        if options.stop:
            status = np.where(_stopped(task, state), STOPPED, status)
            state = state._replace(status=jax.device_put(status))
        yield TokensWritten(state)
        if np.any(status == WRITING):
            continue
        waiting = np.flatnonzero(status == DREAMING)
        if not len(waiting):
            break
        state, hidden = dream(task.model, state, dream_frame(task.tokenizer))
        conditions = denoise.Conditions(hidden, unconditional_states(task.model, task.tokenizer, options))
        noise = denoise.Noise(_image_keys(state))
        for step in denoise.denoising_steps(task.model, conditions, noise, options, pace.steps):
            yield ImageStep(waiting, step)
        decoded, finite_rows = map(np.asarray, denoise.decode(task.model, step.progress.x))
        if not finite_rows[waiting].all():
            state = _end_not_finite(state, finite_rows)
            waiting = waiting[finite_rows[waiting]]
        for b in waiting:
            images[b].append(decoded[b])
        if len(waiting):
            yield ImagesDone(waiting, decoded)
            state = feed_images(task, state, decoded)
    state = state._replace(
        **{name: jax.device_get(getattr(state, name)) for name in ("tokens", "written", "images", "status")}
    )
    yield Finished([document(task, state, b, images[b]) for b in range(len(task.prompts))])


def image_room(model: Model) -> int:
    """Cache slots that one drawn picture takes: the queries and the patches with the tokens around them."""
    slots = Slots.of(model.config)
    return slots.queries + 2 + (slots.patches + 2 if model.config.clip else 0)


def feed_images(task: Task, state: State, images: np.ndarray) -> State:
    """Feed the waiting documents their images [B, H, W, 3], where the model has an encoder."""
    if task.model.config.clip is None:
        return _write_on(state)
    resized = np.stack([image_io.for_encoder(image, task.model.config.clip.image_size) for image in images])
    return _feed_images(task.model, state, resized, (task.tokenizer.im_start, task.tokenizer.im_end))


# ----------------------------------------------------------------------------------------------------------------------
# Documents


def document(task: Task, state: State, b: int, images: Sequence[np.ndarray]) -> Document:
    """The written parts of document b, in a chat the assistant's; the notes say where a limit ended it."""
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
    misplaced = len(
        [
            token
            for token in tokens
            if token in task.tokenizer.special_ids - {task.tokenizer.eos, task.tokenizer.dream_start}
        ]
    )
    limits[NOT_FINITE] = finite.note(len(tokens), len(images), int(state.images[b]))
    notes = [limits[status]] if (status := int(state.status[b])) in limits else []
    return Document(tuple(parts), notes=(*notes, *([f"control tokens out of place: {misplaced}"] if misplaced else [])))


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
    contents: list[str | np.ndarray] = []
    remaining = iter(images)
    for number, run in enumerate(_runs(task.tokenizer, tokens)):
        if number and (image := next(remaining, None)) is not None:
            contents.append(image)
        words, stopped = truncate_at_stop(task.tokenizer.decode_continuation(run), task.options.stop)
        words = words if keeps_space and number == 0 else words.lstrip()
        contents += [words] if words else []
        if stopped:
            break
    return contents


def truncate_at_stop(words: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string in it, and whether there is one."""
    at = min((words.index(string) for string in stop if string in words), default=None)
    return (words, False) if at is None else (words[:at], True)


def _runs(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[list[int]]:
    """The tokens between pictures."""
    runs: list[list[int]] = [[]]
    for token in tokens:
        if token == tokenizer.dream_start:
            runs.append([])
        elif token != tokenizer.eos:
            runs[-1].append(token)
    return runs


def _stopped(task: Task, state: State) -> np.ndarray:
    """[B] bool: whether a document has written a stop string."""
    tokens, written = np.asarray(state.tokens), np.asarray(state.written)
    stopped = np.zeros(len(tokens), bool)
    for b in range(len(task.prompts)):
        runs = _runs(task.tokenizer, tokens[b, : written[b]].tolist())
        stopped[b] = any(
            truncate_at_stop(task.tokenizer.decode_continuation(run), task.options.stop)[1] for run in runs
        )
    return stopped
