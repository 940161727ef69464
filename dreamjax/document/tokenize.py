"""The one path from a Document to tokens, used by training, sampling and evaluation: turns of a template, segments of
text and images, chunks of tokens, truncated to a limit and joined to a sequence.

    <s> text <dream_start> Q x <im_patch> <dream_end> <im_start> P x <im_patch> <im_end> text </s>
             `------------ a target image ----------' `------- an input image --------'

In the loss are text, </s> and <dream_start>; never the slots, <im_start>, <im_end>, <dream_end> and <s>. A document
without roles none of whose text is supervised (a pair that is drawn, an image that follows an image) has none in it.

Sequences equal the rows of the official data builder (omni/data/builders/builder_dreamllm.py), but for its faults.
"""

import dataclasses
import enum
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from dreamjax.config import ModelConfig
from dreamjax.document import Document, Image, Text
from dreamjax.document.templates import Mark, Turn, open_turns, turns
from dreamjax.document.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Slots:
    """Positions that one image takes: Q dream queries and P patches."""

    queries: int
    patches: int

    @classmethod
    def of(cls, model: ModelConfig) -> "Slots":
        """Q and P of a model."""
        return cls(model.dream_queries, model.clip.patches if model.clip else 0)


@dataclasses.dataclass(frozen=True)
class TokenSequence:
    """The n tokens of one document and where its images go: `inputs` and `targets` hold (first slot, number of the
    part).
    """

    tokens: np.ndarray  # [n] int32
    loss_mask: np.ndarray  # [n] bool
    inputs: tuple[tuple[int, int], ...]
    targets: tuple[tuple[int, int], ...]
    truncated: bool  # the document went over a limit and lost something


@dataclasses.dataclass(frozen=True)
class Limits:
    """The most that one document may take: tokens (with <s> and </s>), input and target images."""

    tokens: int
    inputs: int
    targets: int


def tokenize_document(
    document: Document,
    tokenizer: Tokenizer,
    slots: Slots,
    template: str = "plain",
    limits: Limits | None = None,
    labels: str = "all",
) -> TokenSequence:
    """Tokens, loss mask and image slots of a document.

    What a document over a limit loses goes by its kind. Of an interleaved document, or an assistant's answer with
    images, the first text or image that does not fit is left out with all that follows, and </s> takes its place. A
    single text, with an image or alone, is shortened so that the image stays. Other conversations are truncated at a
    token or before an image, without </s>.
    """
    kind = _kind_of(document)
    chunks = _encode(turns(document, template), kind, _Encoder(tokenizer, slots, _dream_starts(kind, labels)))
    lost = None
    if limits:
        chunks, lost = _truncate(chunks, kind, limits, tokenizer.eos)
    chunks = [_Chunk([tokenizer.bos], [False]), *chunks]
    room = limits is None or sum(len(chunk.tokens) for chunk in chunks) < limits.tokens
    # A chat that stops with its user is nothing to learn: no </s>, unless that takes the place of what was lost.
    ends_open = lost.interleaved if lost else chunks[-1].tokens[-1] != tokenizer.eos
    if room and (kind is not _Kind.CHAT or ends_open):
        supervised = lost is not None if kind is _Kind.CHAT else kind is _Kind.INTERLEAVED
        chunks.append(_Chunk([tokenizer.eos], [supervised]))
    return _join(chunks, truncated=lost is not None)


def tokenize_prompt(
    document: Document, tokenizer: Tokenizer, slots: Slots, template: str = "plain", labels: str = "all"
) -> TokenSequence:
    """A document's tokens with an open end: no </s>, and after a user's turn what leads to the assistant's words."""
    kind = _kind_of(document)
    chunks = _encode(open_turns(document, template), kind, _Encoder(tokenizer, slots, _dream_starts(kind, labels)))
    return _join([_Chunk([tokenizer.bos], [False]), *chunks], truncated=False)


class _Kind(enum.Enum):
    """The kinds of documents that differ in their loss and in how they are truncated."""

    CHAT = "has roles"
    INTERLEAVED = "has supervised text"
    NO_LOSS = "has none, and no token is in the loss"


def _kind_of(document: Document) -> _Kind:
    if any(part.role for part in document.parts):
        return _Kind.CHAT
    supervised = any(isinstance(part, Text) and part.supervised for part in document.parts)
    return _Kind.INTERLEAVED if supervised else _Kind.NO_LOSS


def _dream_starts(kind: _Kind, labels: str) -> bool:
    """<dream_start> of images that no user asks for is in the loss."""
    return kind is _Kind.INTERLEAVED or (kind is _Kind.CHAT and labels != "official")


# ----------------------------------------------------------------------------------------------------------------------
# Segments: turns apart at their images and ends


@dataclasses.dataclass(frozen=True)
class _TextSegment:
    """The text up to an image or the end of a turn, encoded as one string, and the control tokens around it."""

    items: tuple[Text | Mark, ...]
    chat: bool
    is_first: bool  # of the document
    image_role: str | None  # of the image right before it

    @property
    def texts(self) -> list[Text]:
        return [item for item in self.items if isinstance(item, Text)]

    @property
    def interleaved(self) -> bool:
        """It is of an interleaved document, or of an answer behind an image of the assistant's own."""
        is_answer = bool(self.texts) and self.texts[0].role == self.image_role == "assistant"
        return not self.chat or is_answer

    @property
    def continued(self) -> bool:
        """It runs on behind a token of its own string, as most of a chat does."""
        own_string = self.interleaved and not (self.texts and self.texts[0].text[:1].isspace())
        return self.chat and not self.is_first and not own_string


@dataclasses.dataclass(frozen=True)
class _ImageSegment:
    """An image and the number of its part."""

    image: Image
    part: int


def _segments(document_turns: Sequence[Turn], kind: _Kind) -> Iterator[_TextSegment | _ImageSegment]:
    """The text and image segments of a document, in reading order."""
    chat = kind is _Kind.CHAT
    pending: list[Text | Mark] = []
    is_first, image_role = True, None
    for item in itertools.chain.from_iterable(turn.items for turn in document_turns):
        if isinstance(item, tuple):
            yield _TextSegment(tuple(pending), chat, is_first, image_role)
            image, part = item
            if image.is_input or image.is_target:
                yield _ImageSegment(image, part)
            pending, is_first, image_role = [], False, image.role
            continue
        pending.append(item)
        if item in (Mark.END, Mark.UNSUPERVISED_END):
            yield _TextSegment(tuple(pending), chat, is_first, image_role)
            pending, is_first, image_role = [], False, None
    yield _TextSegment(tuple(pending), chat, is_first, image_role)


# ----------------------------------------------------------------------------------------------------------------------
# Encoding: segments to chunks of tokens


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """A segment's tokens: what a limit leaves out as a whole."""

    tokens: list[int]
    loss_mask: list[bool]
    inputs: tuple[tuple[int, int], ...] = ()  # (first slot in the chunk, part)
    targets: tuple[tuple[int, int], ...] = ()
    interleaved: bool = True  # where it does not fit, </s> takes its place; other text is truncated at a token

    @property
    def is_image(self) -> bool:
        return bool(self.inputs or self.targets)

    def first(self, tokens: int) -> "_Chunk":
        """A text chunk shortened."""
        return dataclasses.replace(self, tokens=self.tokens[:tokens], loss_mask=self.loss_mask[:tokens])


@dataclasses.dataclass(frozen=True)
class _Encoder:
    """Segments to chunks with a tokenizer, for a model's slots."""

    tokenizer: Tokenizer
    slots: Slots
    dream_starts: bool  # <dream_start> of images that no user asks for is in the loss

    def text(self, segment: _TextSegment) -> _Chunk:
        """The texts encoded as one string, so that joins tokenise as in running text.

        A token is in the loss if the text it begins in is.
        """
        tokenizer, texts = self.tokenizer, segment.texts
        tokens: list[int] = [tokenizer.bos] * segment.items.count(Mark.START)
        loss_mask = [False] * len(tokens)
        if texts:
            string = "".join(text.text for text in texts)
            ids, starts = tokenizer.encode_with_offsets(string, segment.continued)
            ends = np.cumsum([len(text.text) for text in texts])
            owners = np.minimum(np.searchsorted(ends, starts, side="right"), len(texts) - 1)
            tokens += ids
            loss_mask += [texts[owner].supervised for owner in owners]
        for mark in segment.items[-1:]:
            if mark in (Mark.END, Mark.UNSUPERVISED_END):
                tokens.append(tokenizer.eos)
                loss_mask.append(mark is Mark.END)
        return _Chunk(tokens, loss_mask, interleaved=segment.interleaved)

    def image(self, segment: _ImageSegment) -> _Chunk:
        """The slots of an image: Q dream queries where it is a target, and behind them P patches where it is input."""
        tokenizer, image, part = self.tokenizer, segment.image, segment.part
        queries, patches = ([tokenizer.im_patch] * count for count in (self.slots.queries, self.slots.patches))
        asked_for = image.role not in (None, "assistant")
        tokens: list[int] = []
        inputs: tuple[tuple[int, int], ...] = ()
        targets: tuple[tuple[int, int], ...] = ()
        if image.is_target:
            targets = ((1, part),)
            tokens += [tokenizer.dream_start, *queries, tokenizer.dream_end]
        if image.is_input:
            inputs = ((len(tokens) + 1, part),)
            tokens += [tokenizer.im_start, *patches, tokenizer.im_end]
        loss_mask = [False] * len(tokens)
        loss_mask[0] = image.is_target and self.dream_starts and not asked_for
        return _Chunk(tokens, loss_mask, inputs, targets, interleaved=not asked_for)


def _encode(document_turns: Sequence[Turn], kind: _Kind, encoder: _Encoder) -> list[_Chunk]:
    """The chunks of a document, none of them empty."""
    segments = _segments(document_turns, kind)
    chunks = (encoder.text(part) if isinstance(part, _TextSegment) else encoder.image(part) for part in segments)
    return [chunk for chunk in chunks if chunk.tokens]


def _join(chunks: Sequence[_Chunk], truncated: bool) -> TokenSequence:
    """The sequence of all chunks."""
    starts = np.cumsum([0, *(len(chunk.tokens) for chunk in chunks)]).tolist()
    return TokenSequence(
        np.array([token for chunk in chunks for token in chunk.tokens], np.int32),
        np.array([mark for chunk in chunks for mark in chunk.loss_mask], bool),
        tuple((at + slot, part) for at, chunk in zip(starts, chunks, strict=False) for slot, part in chunk.inputs),
        tuple((at + slot, part) for at, chunk in zip(starts, chunks, strict=False) for slot, part in chunk.targets),
        truncated,
    )


# ----------------------------------------------------------------------------------------------------------------------
# Limits


def _truncate(chunks: list[_Chunk], kind: _Kind, limits: Limits, eos: int) -> tuple[list[_Chunk], _Chunk | None]:
    """The chunks within the limits, and the first that loses something."""
    if kind is _Kind.CHAT:
        # Behind a prompt another token than the one for </s> is kept free: the official builder counts <s> twice there.
        return _drop_rest(chunks, limits, eos, spare=2)
    chunks, shortened = _shorten_text(chunks, limits)
    within, lost = _drop_rest(chunks, limits, eos, spare=1)
    return within, lost or shortened


def _shorten_text(chunks: list[_Chunk], limits: Limits) -> tuple[list[_Chunk], _Chunk | None]:
    """Chunks of which the only text, with an image or alone, leaves room for the rest, and that text where it lost
    something.
    """
    texts = [chunk for chunk in chunks if not chunk.is_image]
    if len(texts) != 1 or len(chunks) > 2:
        return chunks, None
    (text,) = texts
    room = max(limits.tokens - 2 - sum(len(chunk.tokens) for chunk in chunks if chunk is not text), 0)
    if len(text.tokens) <= room:
        return chunks, None
    shortened = (text.first(room) if chunk is text else chunk for chunk in chunks)
    return [chunk for chunk in shortened if chunk.tokens], text


def _drop_rest(chunks: list[_Chunk], limits: Limits, eos: int, spare: int) -> tuple[list[_Chunk], _Chunk | None]:
    """The chunks before the first that does not fit, and that one.

    Behind what </s> may follow, `spare` tokens are kept free.
    """
    within: list[_Chunk] = []
    tokens, inputs, targets = 1, 0, 0  # <s>
    for chunk in chunks:
        room = limits.tokens - tokens - (spare - (chunk.tokens[-1] == eos) if chunk.interleaved else 0)
        inputs, targets = inputs + len(chunk.inputs), targets + len(chunk.targets)
        if len(chunk.tokens) > room or inputs > limits.inputs or targets > limits.targets:
            if not chunk.interleaved and not chunk.is_image:
                within.append(chunk.first(room))
            return within, chunk
        within.append(chunk)
        tokens += len(chunk.tokens)
    return within, None
