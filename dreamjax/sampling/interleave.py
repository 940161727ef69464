"""Free-form illustrated documents: the model writes, decides where a picture comes, draws it, looks at it and writes on.

    prefill -> write -> (at <dream_start>) dream -> draw -> look -> write -> ... -> </s> or a limit

Every document of a batch is in its own state; all share the jitted pieces, whose shapes come from buckets. A picture is
drawn for each waiting document at once, and documents that wait for nothing keep their place in the batch.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import images
from dreamjax.batch import Batch, Shape, empty_batch, place
from dreamjax.document import Document, Image, Text
from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Parts
from dreamjax.models.llama import init_cache
from dreamjax.rows import Slots, build_row
from dreamjax.sampling import image, text
from dreamjax.sampling.image import Drawing
from dreamjax.sampling.text import CONTEXT_LIMIT, DREAMING, TOKEN_LIMIT, WRITING, Settings, Special, State
from dreamjax.schema import ConfigError
from dreamjax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user may ask of a generated document."""

    max_tokens: int = 256
    max_images: int = 8
    min_images: int = 0  # </s> is not written before this many pictures
    temperature: float = 0.0
    top_p: float = 1.0
    guidance_scale: float = 3.0
    num_steps: int = 25
    spacing: str = "trailing"
    template: str = "plain"

    def __post_init__(self):
        for name, low in (("max_tokens", 0), ("max_images", 0), ("min_images", 0), ("temperature", 0), ("guidance_scale", 1), ("num_steps", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name}: {getattr(self, name)} is below {low}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p: {self.top_p} is not in (0, 1]")


# ----------------------------------------------------------------------------------------------------------------------
# The jitted pieces


@functools.partial(jax.jit, static_argnames=("parts", "slots", "width"))
def _prefill(parts: Parts, params: dict, batch: Batch, keys, slots: int, width: int) -> State:
    """The state of prompts, one a group: tokens, pictures and queries in the cache, nothing written yet."""
    count = batch.tokens.shape[0]
    zeros = jnp.zeros(count, jnp.int32)
    cache = init_cache(parts.config.llm, count, slots, parts.llm.dtype)
    logits = jnp.zeros((count, parts.config.llm.vocab_size))
    state = State(cache, zeros, logits, jnp.zeros((count, width), jnp.int32), zeros, zeros, zeros + WRITING, keys)
    embeds = dreamllm.embed_batch(parts, params, batch)
    return text.extend(parts, params, state, embeds, jnp.sum(batch.segments[:, 0] > 0, axis=-1))[0]


_write = jax.jit(text.write, static_argnames=("parts", "special"))


@functools.partial(jax.jit, static_argnames=("parts", "frame"))
def _dream(parts: Parts, params: dict, state: State, frame: tuple[int, int]) -> tuple[State, jax.Array]:
    """Runs <dream_start>, the queries and <dream_end> over the cache of the waiting documents; hidden states at the queries [B, Q, D]."""
    count = state.length.shape[0]
    embeds = _framed(parts, params, frame, dreamllm.queries(parts, params, count))
    counts = jnp.where(state.status == DREAMING, embeds.shape[1], 0)
    state, hidden = text.extend(parts, params, state, embeds, counts)
    return state, hidden[:, 1:-1]


@functools.partial(jax.jit, static_argnames=("parts", "drawing"))
def _draw(parts: Parts, params: dict, hidden, unconditional, state: State, guidance, drawing: Drawing) -> jax.Array:
    keys = jax.vmap(jax.random.fold_in)(state.keys, -state.pictures)  # writing uses the lengths, which are positive
    return image.draw(parts, params, hidden, unconditional, keys, guidance, drawing)


@functools.partial(jax.jit, static_argnames=("parts", "frame"))
def _look(parts: Parts, params: dict, state: State, pictures, frame: tuple[int, int]) -> State:
    """Feeds the pictures of the waiting documents back: <im_start>, patches, <im_end>; then they write on."""
    embeds = _framed(parts, params, frame, dreamllm.see(parts, params, pictures))
    counts = jnp.where(state.status == DREAMING, embeds.shape[1], 0)
    return _write_on(text.extend(parts, params, state, embeds, counts)[0])


@jax.jit
def _write_on(state: State) -> State:
    return state._replace(status=jnp.where(state.status == DREAMING, WRITING, state.status))


def _framed(parts: Parts, params: dict, frame: tuple[int, int], features):
    """[B, n, D] features between the embeddings of two tokens."""
    before, after = (jnp.broadcast_to(dreamllm.embed(parts, params, jnp.int32(token)), (features.shape[0], 1, features.shape[2])) for token in frame)
    return jnp.concatenate([before, features, after], axis=1)


unconditional = jax.jit(dreamllm.unconditional, static_argnames=("parts", "bos", "dream_start"))


# ----------------------------------------------------------------------------------------------------------------------
# Prompts


def prompt_tokens(parts: Parts, tokenizer: Tokenizer, prompt: Document, template: str) -> int:
    """Positions that a prompt takes of the context."""
    return len(build_row(prompt, tokenizer, Slots.of(parts.config), template, prompt=True).tokens)


def prompt_batch(parts: Parts, tokenizer: Tokenizer, prompts: Sequence[Document], template: str, size: int) -> Batch:
    """Prompts as a Batch of `size` groups of one row each, padded to a bucket; ConfigError where one exceeds the context."""
    config = parts.config
    rows = [build_row(prompt, tokenizer, Slots.of(parts.config), template, prompt=True) for prompt in prompts]
    longest = max(len(row.tokens) for row in rows)
    if longest >= config.llm.max_positions:
        raise ConfigError(f"prompt: takes {longest} tokens, which leaves nothing of the model's context of {config.llm.max_positions}")
    if config.clip is None and any(row.seen for row in rows):
        raise ConfigError("prompt: has a picture, and this model has no picture encoder")
    encoder_size = config.clip.image_size if config.clip else 1
    seen = bucket(max(len(row.seen) for row in rows), 1)
    dreamed = bucket(max(len(row.dreamed) for row in rows), 1)
    length = min(bucket(longest, 16), config.llm.max_positions)
    batch = empty_batch(Shape(size, 1, length, seen, dreamed, encoder_size, 1))
    for g, (prompt, row) in enumerate(zip(prompts, rows)):
        pictures = [images.for_encoder(prompt.parts[part].pil(), encoder_size) for _, part in row.seen]
        place(batch, g, 0, row, pictures, [None] * len(row.dreamed))
    return batch


def bucket(n: int, smallest: int) -> int:
    """The power of two times `smallest` that holds n; 0 for 0."""
    return 0 if n == 0 else smallest * 2 ** max(0, (-(-n // smallest) - 1).bit_length())


def banned(parts: Parts, tokenizer: Tokenizer) -> np.ndarray:
    """[V] bool: ids that are never written: control tokens other than </s> and <dream_start>, and rows that no token has."""
    mask = np.zeros(parts.config.llm.vocab_size, bool)
    mask[tokenizer.size :] = True
    mask[list(tokenizer.special_ids | {tokenizer.bos, tokenizer.unk})] = True
    mask[[tokenizer.eos, tokenizer.dream_start]] = False
    mask[tokenizer.dream_start] = parts.unet is None
    return mask


# ----------------------------------------------------------------------------------------------------------------------
# The loop


def generate(parts: Parts, params: dict, tokenizer: Tokenizer, prompts: Sequence[Document], seeds: Sequence[int], options: Options) -> list[Document]:
    """What the model writes and draws after each prompt (the prompt itself is not repeated), one Document each."""
    state, settings = _begin(parts, params, tokenizer, prompts, seeds, options)
    special = Special(tokenizer.eos, tokenizer.dream_start, picture_room(parts))
    pictures: list[list[np.ndarray]] = [[] for _ in prompts]
    while True:
        state = _write(parts, params, state, settings, special)
        waiting = np.flatnonzero(np.asarray(state.status) == DREAMING)
        if not len(waiting):
            break
        state, drawn = draw_waiting(parts, params, tokenizer, state, options)
        for b in waiting:
            pictures[b].append(drawn[b])
        state = look_at(parts, params, tokenizer, state, drawn)
    state = jax.device_get(state._replace(cache={}, logits=None, keys=None))
    ends_in_text = [bool(prompt.parts) and isinstance(prompt.parts[-1], Text) for prompt in prompts]
    return [_document(tokenizer, state, b, pictures[b], ends_in_text[b], options.max_tokens) for b in range(len(prompts))]


def condition_after(parts: Parts, params: dict, tokenizer: Tokenizer, prompts: Sequence[Document], template: str, size: int) -> jax.Array:
    """The hidden states [size, Q, D] at dream queries put right after each prompt; rows beyond the prompts mean nothing."""
    options = Options(max_tokens=1, max_images=1, template=template)
    state, _ = _begin(parts, params, tokenizer, prompts, [0] * len(prompts), options, size)
    state = state._replace(status=jnp.full_like(state.status, DREAMING))
    return _dream(parts, params, state, (tokenizer.dream_start, tokenizer.dream_end))[1]


def draw_after(parts: Parts, params: dict, tokenizer: Tokenizer, prompts: Sequence[Document], seeds: Sequence[int], options: Options) -> list[np.ndarray]:
    """One picture right after each prompt, whatever the model would have written: uint8 [H, W, 3] each."""
    state, _ = _begin(parts, params, tokenizer, prompts, seeds, options)
    state = state._replace(status=jnp.full_like(state.status, DREAMING), pictures=jnp.ones_like(state.pictures))
    return list(draw_waiting(parts, params, tokenizer, state, options)[1][: len(prompts)])


def _begin(
    parts: Parts, params: dict, tokenizer: Tokenizer, prompts: Sequence[Document], seeds: Sequence[int], options: Options, size: int = 0
) -> tuple[State, Settings]:
    """The state after the prompts and the settings of the writing.

    Batch (`size` where given) and lengths come from buckets; rows beyond the prompts may write nothing.
    """
    count, size = len(prompts), size or bucket(len(prompts), 1)
    batch = prompt_batch(parts, tokenizer, prompts, options.template, size)
    wanted = batch.tokens.shape[-1] + options.max_tokens + options.max_images * picture_room(parts)
    slots = min(bucket(wanted, 128), parts.config.llm.max_positions)
    keys = jax.vmap(jax.random.key)(jnp.array([*seeds, *[0] * (size - count)], jnp.uint32))
    active = np.arange(size) < count
    settings = Settings(
        jnp.float32(options.temperature), jnp.float32(options.top_p), jnp.where(active, options.max_tokens, 0),
        jnp.full(size, options.max_images), jnp.full(size, options.min_images), jnp.asarray(banned(parts, tokenizer)),
    )
    return _prefill(parts, params, batch, keys, slots=slots, width=bucket(max(options.max_tokens, 1), 64)), settings


def picture_room(parts: Parts) -> int:
    """Cache slots that one drawn picture takes: the queries and the patches with the tokens around them."""
    slots = Slots.of(parts.config)
    return slots.queries + 2 + (slots.patches + 2 if parts.clip else 0)


def draw_waiting(parts: Parts, params: dict, tokenizer: Tokenizer, state: State, options: Options) -> tuple[State, np.ndarray]:
    """Reads the conditions of the waiting documents and draws: the new state and pictures [B, H, W, 3]; rows that do not wait mean nothing."""
    state, hidden = _dream(parts, params, state, (tokenizer.dream_start, tokenizer.dream_end))
    empty = unconditional(parts, params, tokenizer.bos, tokenizer.dream_start)
    drawing = Drawing(options.num_steps, options.spacing)
    return state, np.asarray(_draw(parts, params, hidden, empty, state, jnp.float32(options.guidance_scale), drawing))


def look_at(parts: Parts, params: dict, tokenizer: Tokenizer, state: State, drawn: np.ndarray) -> State:
    """Shows the waiting documents their pictures, where the model can see."""
    if parts.clip is None:
        return _write_on(state)
    resized = np.stack([images.for_encoder(picture, parts.config.clip.image_size) for picture in drawn])
    return _look(parts, params, state, resized, (tokenizer.im_start, tokenizer.im_end))


def _document(tokenizer: Tokenizer, state: State, b: int, pictures: list[np.ndarray], after_text: bool, max_tokens: int) -> Document:
    """What document b wrote, as parts; a space before its first words is kept where the prompt ended in text."""
    tokens = np.asarray(state.tokens[b])[: int(state.written[b])].tolist()
    parts, run, drawn = [], [], iter(pictures)

    def end_run():
        words = tokenizer.decode_continuation(run)
        words = words if after_text and not parts else words.lstrip()
        if words:
            parts.append(Text(words))
        run.clear()

    for token in tokens:
        if token == tokenizer.dream_start:
            end_run()
            parts.append(Image(next(drawn)))
        elif token != tokenizer.eos:
            run.append(token)
    end_run()
    notes = {TOKEN_LIMIT: (f"stopped at the limit of {max_tokens} tokens",), CONTEXT_LIMIT: ("stopped at the end of the model's context",)}
    return Document(tuple(parts), notes=notes.get(int(state.status[b]), ()))
