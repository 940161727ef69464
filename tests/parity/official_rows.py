"""Rows as the official data builder makes them, faults included, one function for each of its kinds of sample.

Training takes `tokenize_document`; these say to the letter what the released models were trained on
(builder_dreamllm.py in omni/data/builders). Where they differ from it:

* `conversation`: what is learned is found by counting the tokens of each turn, with offsets for the LLaMA vocabulary:
  under
  others, and where a user writes what leads to an answer, it is off. A drawing is never learned. Over a limit at a
  picture,
  only the first `limit - position` tokens stay, and a picture that ends right at the limit switches it off.
* `pair`: one whose picture does not open keeps the picture's tokens, which take the next picture of its batch. A
  caption
  that would not keep a token is not shortened at all.
* `interleaved`, `instruction`: a picture that does not open must fit all the same, and the texts that it parted are
  encoded apart.
* All: <s> is learned where the text behind it is, and strings in a text that spell special tokens become them.

Documents are as `data.modes.view` shows them; a picture's marks say which of its tokens stand in the row. Pictures go
to the row's <im_start> and <dream_start> in reading order, as the official model deals them.
"""

import itertools
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from dreamjax.document import Document, Image, Text
from dreamjax.document.templates import TEMPLATES, Item, Mark, Turn, open_turns, turns
from dreamjax.document.tokenize import Slots, TokenSequence
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import ConfigError

END = "</s>"
SEEN, DREAMED = "<image>", "<dream>"  # what stands for a picture in a conversation


def pair(
    document: Document, tokenizer: Tokenizer, slots: Slots, limit: int | None = None, broken: bool = False
) -> TokenSequence:
    """ImageTextPair: a picture that is seen before its caption, which is learned, or dreamed behind it, where nothing
    is.

    `limit` is in tokens; `broken` says that the picture does not open, which of a dreamed one nothing comes of
    (ValueError).
    """
    ((number, image),) = _images(document)
    slot_tokens, words = _tokens(image, tokenizer, slots), tokenizer.encode(_text(document.parts), special=True)
    if broken and not image.is_input:
        raise ValueError("the picture of a pair that is to be drawn does not open")
    excess = len(words) - (limit - len(slot_tokens) - 2) if limit is not None else 0
    cut = 0 < excess < len(words)  # else transformers leaves it alone
    words = words[:-excess] if cut else words
    tokens = (
        [tokenizer.bos, *slot_tokens, *words, tokenizer.eos]
        if image.is_input
        else [tokenizer.bos, *words, *slot_tokens, tokenizer.eos]
    )
    no_loss = (tokenizer.im_patch, tokenizer.im_start, tokenizer.im_end)
    return _row(
        tokens,
        [image.is_input and token not in no_loss for token in tokens],
        [] if broken else [(number, image)],
        tokenizer,
        cut,
    )


def image_pair(document: Document, tokenizer: Tokenizer, slots: Slots, broken: bool = False) -> TokenSequence:
    """ImageImagePair.

    A picture that is seen and one that is dreamed; nothing is learned. `broken`: the first does not open.
    """
    images = _images(document)
    tokens = [
        tokenizer.bos,
        *(token for _, image in images for token in _tokens(image, tokenizer, slots)),
        tokenizer.eos,
    ]
    return _row(
        tokens, [False] * len(tokens), [one for one in images if not (broken and one[1].is_input)], tokenizer, False
    )


def interleaved(
    document: Document, tokenizer: Tokenizer, slots: Slots, limit: int | None = None, broken: Collection[int] = ()
) -> TokenSequence:
    """InterleavedImageText: texts and pictures as far as they fit whole. `broken` are the parts whose pictures do not
    open.

    Texts between two pictures are one string, encoded by itself.
    """
    return _chunks([], list(enumerate(document.parts)), tokenizer, slots, limit, broken)


def instruction(
    document: Document,
    tokenizer: Tokenizer,
    slots: Slots,
    template: str = "vicuna_v1.1",
    limit: int | None = None,
    broken: Collection[int] = (),
) -> TokenSequence:
    """InstructInterleavedImageText.

    What the user asks for, not learned, and behind it the assistant's parts as in `interleaved`.
    """
    _lead(template)
    asked = [part for part in document.parts if part.role != "assistant"]
    prompt = _text(_items(open_turns(Document(tuple(asked)), template)))
    answer = [(number, part) for number, part in enumerate(document.parts) if part.role == "assistant"]
    return _chunks([tokenizer.bos, *tokenizer.encode(prompt, special=True)], answer, tokenizer, slots, limit, broken)


def conversation(
    document: Document, tokenizer: Tokenizer, slots: Slots, template: str = "vicuna_v1.1", limit: int | None = None
) -> TokenSequence:
    """Conversation: one string of all turns, in which pictures are put for their placeholders; the mode of training
    does not matter.

    A picture that is dreamed is also seen. Raises ConfigError for a template without words between question and answer,
    ValueError where a text spells a placeholder.
    """
    lead, images = (
        _lead(template),
        [(number, image) for number, image in _images(document) if image.is_input or image.is_target],
    )
    prompt = conversation_string(document, template)
    tokens = [tokenizer.bos, *tokenizer.encode(prompt, special=True)]
    inputs, targets = (tokenizer.special[name] for name in (SEEN, DREAMED))
    if [token == targets for token in tokens if token in (inputs, targets)] != [image.is_target for _, image in images]:
        raise ValueError(f"a text of the conversation spells {SEEN} or {DREAMED}, which stand for pictures")
    shown = Image(b"", is_input=True, is_target=False), Image(b"", is_input=True, is_target=True)
    put = {inputs: _tokens(shown[0], tokenizer, slots), targets: _tokens(shown[1], tokenizer, slots)}
    whole = sum(len(put.get(token, (token,))) for token in tokens)
    tokens, supervised = _put_in(tokens, _by_counting(prompt, lead, tokenizer), put, limit)
    return _row(
        tokens,
        supervised,
        [(number, shown[image.is_target]) for number, image in images],
        tokenizer,
        len(tokens) < whole,
    )


def conversation_string(document: Document, template: str = "vicuna_v1.1") -> str:
    """The turns as the official templates write them, with placeholders for pictures.

    A user who ends it is followed by a space.
    """
    said = ""
    for item in _items(turns(document, template)):
        match item:
            case Text():
                said += item.text
            case (Image() as image, int()):
                said += DREAMED if image.is_target else SEEN if image.is_input else ""
            case Mark.END | Mark.UNSUPERVISED_END:
                said += END
    lead = _lead(template)
    return (
        said + lead[: len(lead) - len(lead.lstrip())] if document.parts and document.parts[-1].role == "user" else said
    )


# ----------------------------------------------------------------------------------------------------------------------
# Pieces


def _lead(template: str) -> str:
    """What stands between a question and its answer."""
    lead = TEMPLATES[template].user_to_assistant if template in TEMPLATES and not TEMPLATES[template].restart else ""
    if not lead:
        raise ConfigError(
            f"template: {template!r}: official rows of conversations are made with one such as vicuna_v1.1 alone"
        )
    return lead


def _images(document: Document) -> list[tuple[int, Image]]:
    return [(number, part) for number, part in enumerate(document.parts) if isinstance(part, Image)]


def _items(document_turns: Sequence[Turn]) -> Iterator[Item]:
    return itertools.chain.from_iterable(turn.items for turn in document_turns)


def _text(parts) -> str:
    return "".join(part.text for part in parts if isinstance(part, Text))


def _tokens(image: Image, tokenizer: Tokenizer, slots: Slots) -> list[int]:
    targets = (
        [tokenizer.dream_start, *[tokenizer.im_patch] * slots.queries, tokenizer.dream_end] if image.is_target else []
    )
    return targets + (
        [tokenizer.im_start, *[tokenizer.im_patch] * slots.patches, tokenizer.im_end] if image.is_input else []
    )


def _row(
    tokens: list[int], supervised: list[bool], images: Sequence[tuple[int, Image]], tokenizer: Tokenizer, cut: bool
) -> TokenSequence:
    ids = np.array(tokens, np.int32)
    inputs, targets = (
        (np.flatnonzero(ids == token) + 1).tolist() for token in (tokenizer.im_start, tokenizer.dream_start)
    )
    return TokenSequence(  # of an image that does not open the slots stay, last
        ids, np.array(supervised, bool),
        tuple(zip(inputs, [number for number, image in images if image.is_input], strict=False)),
        tuple(zip(targets, [number for number, image in images if image.is_target], strict=False)), cut,
    )  # fmt: skip


def _chunks(
    prompt: list[int],
    parts: list[tuple[int, Text | Image]],
    tokenizer: Tokenizer,
    slots: Slots,
    limit: int | None,
    broken: Collection[int],
) -> TokenSequence:
    """The prompt, or <s>, with what fits behind it.

    Two tokens are kept free, also behind a prompt, which has its <s> already.
    """
    tokens, images, words = list(prompt), [], ""

    def fits(more):
        return limit is None or len(tokens) + len(more) + 2 <= limit

    cut = False
    for number, part in [*parts, (-1, None)]:
        if isinstance(part, Text):
            words += part.text
            continue
        chunk, words = tokenizer.encode(words, special=True), ""
        if cut := not fits(chunk):
            break
        tokens += chunk
        if part is None:
            break
        image = _tokens(part, tokenizer, slots)
        if cut := not fits(image):
            break
        if number not in broken:
            tokens += image
            images.append((number, part))
    tokens = [*([] if prompt else [tokenizer.bos]), *tokens, tokenizer.eos]
    no_loss = (tokenizer.im_patch, tokenizer.im_start, tokenizer.im_end, tokenizer.dream_end)
    return _row(
        tokens, [at >= len(prompt) and token not in no_loss for at, token in enumerate(tokens)], images, tokenizer, cut
    )


def _by_counting(prompt: str, lead: str, tokenizer: Tokenizer) -> list[bool]:
    """What of <s> and a conversation's string is learned: all but as many tokens as the question of each turn has by
    itself.

    Two are taken off, for <s> and for the lead's last space; one more behind the first turn under a tokenizer that is
    not legacy, which joins a turn to the </s> before it. The count ends at a turn without just one lead, behind which
    all is learned.
    """

    def count(text):
        return 1 + len(tokenizer.encode(text, special=True))  # with <s>

    supervised = [True] * count(prompt)
    supervised[0], at = False, 1
    for number, turn in enumerate(prompt.split(END)):
        sides = turn.split(lead)
        if len(sides) != 2:
            break
        joined = number > 0 and not tokenizer.legacy
        asked = count(sides[0] + lead) - 2 - joined
        supervised[at : at + asked] = [False] * asked
        at += count(turn) - joined
    return supervised


def _put_in(
    tokens: list[int], supervised: list[bool], put: dict[int, list[int]], limit: int | None
) -> tuple[list[int], list[bool]]:
    """Tokens and marks with pictures, not learned, for their placeholders, as far as the limit lets them."""
    made, marks = [], []
    for token, mark in zip(tokens, supervised, strict=False):
        if token in put:
            if limit is not None and len(made) + len(put[token]) > limit:
                left = limit - len(made)
                return (made[:left], marks[:left]) if left > 0 else (made, marks)  # meant was: as they are
            made += put[token]
            marks += [False] * len(put[token])
            continue
        made.append(token)
        marks.append(mark)
        if len(made) == limit:
            break
    return made, marks
