"""The one path from a Document to tokens, used by training, sampling and evaluation.

    <s> text <dream_start> Q x <im_patch> <dream_end> <im_start> P x <im_patch> <im_end> text </s>
             `---------- a dreamed picture ---------' `------- a seen picture --------'

Learned are text, </s> and <dream_start>; never the slots, <im_start>, <im_end>, <dream_end> and <s>. A document without
roles none of whose text is learned (a pair that is drawn, a picture that follows a picture) teaches no token at all.

Rows equal those of the official data builder (omni/data/builders/builder_dreamllm.py), but for its faults.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from dreamjax.config import ModelConfig
from dreamjax.document import Document, Image, Text
from dreamjax.document.templates import Mark, stream
from dreamjax.document.tokenizer import Tokenizer

LABELS = ("all", "official")  # official: <dream_start> is not learned in conversations


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
class TokenSequence:
    """The tokens of one document and where its pictures go.

    `seen` and `dreamed` hold (first slot, index of the part).
    """

    tokens: np.ndarray  # [n] int32
    loss_mask: np.ndarray  # [n] bool
    inputs: tuple[tuple[int, int], ...]
    targets: tuple[tuple[int, int], ...]
    truncated: bool  # the document went over a limit and lost something


@dataclasses.dataclass(frozen=True)
class Limits:
    """The most that one document may take: tokens (with <s> and </s>), seen and dreamed pictures."""

    tokens: int
    inputs: int
    targets: int


@dataclasses.dataclass
class _Unit:
    """A stretch of text up to a picture or the end of a turn, or a picture: what a limit leaves out."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    loss_mask: list[bool] = dataclasses.field(default_factory=list)
    inputs: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # (first slot, part)
    targets: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    closes: bool = True  # where it does not fit, </s> takes its place; other text is cut at a token

    def add(self, tokens: list[int], loss_mask: list[bool]):
        self.tokens += tokens
        self.loss_mask += loss_mask

    def append(self, unit: "_Unit"):
        start = len(self.tokens)
        self.inputs += [(start + at, part) for at, part in unit.inputs]
        self.targets += [(start + at, part) for at, part in unit.targets]
        self.add(unit.tokens, unit.loss_mask)

    def first(self, tokens: int) -> "_Unit":
        """Its text shortened."""
        return dataclasses.replace(self, tokens=self.tokens[:tokens], loss_mask=self.loss_mask[:tokens])


def tokenize_document(
    document: Document,
    tokenizer: Tokenizer,
    slots: Slots,
    template: str = "plain",
    limits: Limits | None = None,
    prompt: bool = False,
    labels: str = "all",
) -> TokenSequence:
    """Tokens, learned marks and slot positions of a document.

    What a document over a limit loses goes by its kind. Of an interleaved document, or an assistant's answer with
    pictures, the first text or picture that does not fit is left out with all that follows, and </s> takes its place. A
    single text, with a picture or alone, is shortened so that the picture stays. Other conversations are cut at a token
    or before a picture, without </s>. `prompt` leaves the end open: no </s>, and after a user's turn what leads to the
    assistant's words.
    """
    chat = any(part.role for part in document.parts)
    no_loss = not chat and not any(isinstance(part, Text) and part.supervised for part in document.parts)
    supervise_dream_start = not no_loss and not (chat and labels == "official")  # whether <dream_start> is learned
    units = list(_units(document, tokenizer, slots, template, prompt, chat, supervise_dream_start))
    lost = None
    if limits:
        units, shortened = (units, None) if chat else _shortened(units, limits)
        units, lost = _within(units, limits, tokenizer.eos, spare=2 if chat else 1)
        lost = lost or shortened
    whole = _Unit([tokenizer.bos], [False])
    for unit in units:
        whole.append(unit)
    if not prompt and (limits is None or len(whole.tokens) < limits.tokens):
        open_end = lost.closes if lost else whole.tokens[-1] != tokenizer.eos
        if not chat or open_end:  # a chat that stops with its user is nothing to learn
            whole.add([tokenizer.eos], [lost is not None if chat else not no_loss])
    return TokenSequence(
        np.array(whole.tokens, np.int32),
        np.array(whole.loss_mask, bool),
        tuple(whole.inputs),
        tuple(whole.targets),
        lost is not None,
    )


# ----------------------------------------------------------------------------------------------------------------------
# Units


def _units(
    document: Document,
    tokenizer: Tokenizer,
    slots: Slots,
    template: str,
    prompt: bool,
    chat: bool,
    supervise_dream_start: bool,
) -> Iterator[_Unit]:
    """The document's units, none of them empty.

    `calls`: <dream_start> is learned where no user calls for the picture.
    """
    unit, run = _Unit(), []
    role = None  # of the picture right before the run
    continued = False  # the run stands behind a token of its own string, as all but the first runs of a chat do

    def end_run() -> _Unit:
        # An assistant's words behind its own picture are a chunk by themselves, as in an interleaved document.
        interleaved = not chat or (role == "assistant" and bool(run) and run[0].role == "assistant")
        unit.closes = interleaved
        _add_text(unit, run, tokenizer, continued and not (interleaved and run and not run[0].text[:1].isspace()))
        return unit

    for item in stream(document, template, prompt):
        match item:
            case Text():
                run.append(item)
                continue
            case (Image() as image, int(part)):
                if end_run().tokens:
                    yield unit
                if image.is_input or image.is_target:
                    yield _image(image, part, tokenizer, slots, supervise_dream_start)
                role = image.role
            case Mark.START:
                unit.add([tokenizer.bos], [False])
                continue
            case Mark.END | Mark.UNSUPERVISED_END:
                end_run().add([tokenizer.eos], [item is Mark.END])
                yield unit
                role = None
        unit, run, continued = _Unit(), [], chat
    if end_run().tokens:
        yield unit


def _add_text(unit: _Unit, run: list[Text], tokenizer: Tokenizer, continued: bool):
    """Encodes the texts of a run as one string, so that joins tokenise as in running text.

    A token is learned if the text it begins in is.
    """
    if not run:
        return
    tokens, starts = tokenizer.encode_with_offsets("".join(text.text for text in run), continued)
    bounds = np.cumsum([len(text.text) for text in run])
    owners = np.minimum(np.searchsorted(bounds, starts, side="right"), len(run) - 1)
    unit.add(list(tokens), [run[owner].supervised for owner in owners])


def _image(image: Image, part: int, tokenizer: Tokenizer, slots: Slots, supervise_dream_start: bool) -> _Unit:
    unit = _Unit(closes=image.role in (None, "assistant"))
    if image.is_target:
        unit.add([tokenizer.dream_start], [supervise_dream_start and unit.closes])
        unit.targets.append((len(unit.tokens), part))
        unit.add([tokenizer.im_patch] * slots.queries + [tokenizer.dream_end], [False] * (slots.queries + 1))
    if image.is_input:
        unit.add([tokenizer.im_start], [False])
        unit.inputs.append((len(unit.tokens), part))
        unit.add([tokenizer.im_patch] * slots.patches + [tokenizer.im_end], [False] * (slots.patches + 1))
    return unit


# ----------------------------------------------------------------------------------------------------------------------
# Limits


def _shortened(units: list[_Unit], limits: Limits) -> tuple[list[_Unit], _Unit | None]:
    """Units of which the only text, with a picture or alone, leaves room for the rest.

    And that text where it lost something.
    """
    texts = [unit for unit in units if not unit.inputs and not unit.targets]
    if len(texts) != 1 or len(units) > 2:
        return units, None
    room = max(limits.tokens - 2 - sum(len(unit.tokens) for unit in units if unit is not texts[0]), 0)
    if len(texts[0].tokens) <= room:
        return units, None
    units = [unit.first(room) if unit is texts[0] else unit for unit in units]
    return [unit for unit in units if unit.tokens], texts[0]


def _within(units: list[_Unit], limits: Limits, eos: int, spare: int) -> tuple[list[_Unit], _Unit | None]:
    """The units that stay, and the first that does not stay whole.

    Behind what </s> may follow, `spare` tokens are kept free: one for </s>, and behind a prompt another, since the
    official builder counts <s> twice there.
    """
    kept, tokens, inputs, targets = [], 1, 0, 0
    for unit in units:
        room = limits.tokens - tokens - (spare - (unit.tokens[-1] == eos) if unit.closes else 0)
        inputs, targets = inputs + len(unit.inputs), targets + len(unit.targets)
        if len(unit.tokens) > room or inputs > limits.inputs or targets > limits.targets:
            if not unit.closes and not unit.inputs and not unit.targets:
                kept.append(unit.first(room))
            return kept, unit
        kept.append(unit)
        tokens += len(unit.tokens)
    return kept, None
