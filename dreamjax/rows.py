"""The one path from a Document to tokens, used by training, sampling and evaluation.

    <s> text <dream_start> Q x <im_patch> <dream_end> <im_start> P x <im_patch> <im_end> text </s>
             `---------- a dreamed picture ---------' `------- a seen picture --------'

Learned are text, </s> and <dream_start>; never the slots, <im_start>, <im_end>, <dream_end> and <s>.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from dreamjax.config import ModelConfig
from dreamjax.document import Document, Image, Text
from dreamjax.schema import ConfigError
from dreamjax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Template:
    """How the turns of a chat become text: an opening, and what stands before each role's words."""

    system: str
    user: str
    assistant: str


TEMPLATES = {
    "plain": Template(system="", user="", assistant=""),
    "vicuna_v1.1": Template(
        system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
        user="USER:",
        assistant="ASSISTANT:",
    ),
}


@dataclasses.dataclass(frozen=True)
class Slots:
    """Positions that one picture takes: Q dream queries and P patches."""

    queries: int
    patches: int

    @classmethod
    def of(cls, model: ModelConfig) -> "Slots":
        """Q and P of a model."""
        return cls(model.dream_queries, model.clip.patches if model.clip else 0)


@dataclasses.dataclass(frozen=True)
class Row:
    """The tokens of one document and where its pictures go; `seen` and `dreamed` hold (first slot, index of the part)."""

    tokens: np.ndarray  # [n] int32
    learned: np.ndarray  # [n] bool
    seen: tuple[tuple[int, int], ...]
    dreamed: tuple[tuple[int, int], ...]
    cut: bool  # the document went over a limit and lost its end


@dataclasses.dataclass(frozen=True)
class Limits:
    """The most that one document may take: tokens (with <s> and </s>), seen and dreamed pictures."""

    tokens: int
    seen: int
    dreamed: int


@dataclasses.dataclass
class _Chunk:
    """Text up to and including one picture: the unit that a limit cuts."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    learned: list[bool] = dataclasses.field(default_factory=list)
    seen: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    dreamed: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    def add(self, tokens, learned):
        self.tokens += tokens
        self.learned += learned


def build_row(
    document: Document, tokenizer: Tokenizer, slots: Slots, template: str = "plain", limits: Limits | None = None, prompt: bool = False
) -> Row:
    """Tokens, learned marks and slot positions of a document.

    A document over a limit is cut at a whole chunk (text with its picture) and still ends with </s>. `prompt` leaves the
    end open: no </s>, and after a user's turn what stands before the assistant's words.
    """
    whole = _Chunk([tokenizer.bos], [False])
    cut = False
    for chunk in _chunks(document, tokenizer, slots, template, prompt):
        fits = limits is None or (
            len(whole.tokens) + len(chunk.tokens) + (chunk.tokens[-1:] != [tokenizer.eos]) <= limits.tokens
            and len(whole.seen) + len(chunk.seen) <= limits.seen
            and len(whole.dreamed) + len(chunk.dreamed) <= limits.dreamed
        )
        if not fits:
            cut = True
            break
        start = len(whole.tokens)
        whole.seen += [(start + at, part) for at, part in chunk.seen]
        whole.dreamed += [(start + at, part) for at, part in chunk.dreamed]
        whole.add(chunk.tokens, chunk.learned)
    if not prompt and whole.tokens[-1] != tokenizer.eos:
        # A conversation that stops here was cut or ends with the user: that is nothing to learn.
        whole.add([tokenizer.eos], [not any(part.role for part in document.parts)])
    return Row(np.array(whole.tokens, np.int32), np.array(whole.learned, bool), tuple(whole.seen), tuple(whole.dreamed), cut)


def _chunks(document, tokenizer, slots, template, prompt) -> Iterator[_Chunk]:
    chunk, run = _Chunk(), []
    for piece in _pieces(document, template, prompt):
        match piece:
            case Text():
                run.append(piece)
            case (Image() as image, int(part)):
                _add_text(chunk, run, tokenizer)
                _add_picture(chunk, image, part, tokenizer, slots)
                yield chunk
                chunk, run = _Chunk(), []
            case "end of turn":
                _add_text(chunk, run, tokenizer)
                chunk.add([tokenizer.eos], [True])
                run = []
    _add_text(chunk, run, tokenizer)
    if chunk.tokens:
        yield chunk


def _pieces(document: Document, template: str, prompt: bool) -> Iterator:
    """Texts, (Image, part number) and "end of turn", with the template's words put in where roles begin."""
    if template not in TEMPLATES:
        raise ConfigError(f"template: {template!r} is unknown; there are {', '.join(TEMPLATES)}")
    labels = TEMPLATES[template]
    roles = [part.role for part in document.parts]
    chat = any(roles)
    fresh = True  # nothing stands before the next text that a space would have to part it from

    def text(words, learned):
        nonlocal fresh
        space = "" if fresh or not chat else " "
        fresh = False
        return Text(space + words, learned)

    if chat and labels.system and "system" not in roles:
        yield text(labels.system, False)
    previous = None
    for number, part in enumerate(document.parts):
        if part.role != previous and part.role in ("user", "assistant") and getattr(labels, part.role):
            yield text(getattr(labels, part.role), False)
        previous = part.role
        if isinstance(part, Image):
            yield part, number
            fresh = True
        elif part.text:
            yield text(part.text, part.learned and part.role in (None, "assistant"))
        last_of_turn = number + 1 == len(roles) or roles[number + 1] != part.role
        if part.role == "assistant" and last_of_turn and not (prompt and number + 1 == len(roles)):
            yield "end of turn"
            fresh = True
    if prompt and previous == "user" and labels.assistant:
        yield text(labels.assistant, False)


def _add_text(chunk: _Chunk, run: list[Text], tokenizer: Tokenizer):
    """Encodes the texts of a run as one string, so that joins tokenise as in running text; a token is learned if the text it begins in is."""
    if not run:
        return
    tokens, starts = tokenizer.encode_with_offsets("".join(text.text for text in run))
    bounds = np.cumsum([len(text.text) for text in run])
    owners = np.minimum(np.searchsorted(bounds, starts, side="right"), len(run) - 1)
    chunk.add(list(tokens), [run[owner].learned for owner in owners])


def _add_picture(chunk: _Chunk, image: Image, part: int, tokenizer: Tokenizer, slots: Slots):
    if image.dreamed:
        chunk.add([tokenizer.dream_start], [True])
        chunk.dreamed.append((len(chunk.tokens), part))
        chunk.add([tokenizer.im_patch] * slots.queries + [tokenizer.dream_end], [False] * (slots.queries + 1))
    if image.seen:
        chunk.add([tokenizer.im_start], [False])
        chunk.seen.append((len(chunk.tokens), part))
        chunk.add([tokenizer.im_patch] * slots.patches + [tokenizer.im_end], [False] * (slots.patches + 1))
