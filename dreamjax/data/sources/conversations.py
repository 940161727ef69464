"""Conversations as LLaVA's JSON has them, and documents written to an instruction.

A conversation (LLaVA, arXiv:2304.08485): `conversations`, turns {from: human | gpt | system, value}; `image`, the name
of the picture or a list of names, absent where it is text alone. `<image>` in a turn is where a picture is shown, and
`<dream>`, as DreamLLM's own data have it, where one is drawn. User and assistant take turns, as the templates have it:
fastchat and LLaVA's code refuse other conversations, and so are they bad records here. Turns without words are none.

An instruction document (InstructMMC4, Instruct-BLIP-LAION; DreamLLM, Sec. 3): `instruction`, what the user asks for,
and what the assistant answers: `text_list` with `image_info` as in MMC4; or `text_list`, `images` (names) and
`matched_text_index` (one of each for each picture); or `image` (a name), with `text` before it where there is one.
"""

import dataclasses
import itertools
import re

from dreamjax.data.sources.interleaved import Find, mmc4_document, place
from dreamjax.data.sources.records import Unusable, require, text_at, texts_at
from dreamjax.document import Document, Image, Part, Text

SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_PLACEHOLDER = re.compile(r"(<image>|<dream>)")


def conversation(record: dict, find: Find, drop_first_answer: bool = False) -> Document:
    """The Document of one conversation. Raises Unusable, and BadImage where a picture is missing.

    `drop_first_answer` leaves out what an assistant says before any user, as LLaVA's code does.
    """
    names = image_names(record)
    turns = [
        _turn(turn, f"conversations[{number}].")
        for number, turn in enumerate(require(record, "conversations", list, of=dict))
    ]
    turns = _alternating([turn for turn in turns if turn[1].strip()], drop_first_answer)
    if not any(role == "assistant" for role, _ in turns):
        raise Unusable("no text", "the assistant says nothing")
    return Document(tuple(turn_parts(turns, [find(name, number) for number, name in enumerate(names)])))


def image_names(record: dict) -> list[str]:
    """The names of a conversation's pictures, none where it is text alone. Raises Unusable."""
    names: str | list = next((record[key] for key in ("image", "images") if record.get(key) is not None), [])
    return [names] if isinstance(names, str) else require({"image": names}, "image", list, of=str)


def _alternating(turns: list[tuple[str, str]], drop_first_answer: bool) -> list[tuple[str, str]]:
    """The turns (role, words), of which one of the system may come first and no speaker has two that follow each other.

    Raises Unusable.
    """
    system, spoken = (turns[:1], turns[1:]) if turns and turns[0][0] == "system" else ([], turns)
    if drop_first_answer and spoken and spoken[0][0] == "assistant":
        spoken = spoken[1:]
    for before, after in itertools.pairwise([("", ""), *spoken]):
        if after[0] in ("system", before[0]):
            raise Unusable("turns do not alternate", f"{after[0]} after {before[0] or 'system'}")
    return system + spoken


def _turn(turn: dict, prefix: str) -> tuple[str, str]:
    speaker, words = ("from", "value") if "from" in turn or "value" in turn else ("role", "content")
    role = require(turn, speaker, str, prefix)
    if role not in SPEAKERS:
        raise Unusable("unknown speaker", f"{prefix}{speaker} is {role!r}, none of {', '.join(SPEAKERS)}")
    return SPEAKERS[role], text_at(turn, words, prefix)


def turn_parts(turns: list[tuple[str, str]], sources: list) -> list[Part]:
    """Parts of turns (role, words), with the pictures where their placeholders are.

    Without pictures the words are left as they are.
    """
    placeholders = sum(len(_PLACEHOLDER.findall(words)) for _, words in turns)
    if sources and placeholders != len(sources):
        detail = f"{placeholders} of <image> and <dream> for {len(sources)} pictures"
        raise Unusable("placeholders do not match", detail)
    parts: list[Part] = []
    images = iter(sources)
    for role, words in turns:
        for piece in _PLACEHOLDER.split(words) if sources else [words]:
            if sources and piece in ("<image>", "<dream>"):
                parts.append(Image(next(images), is_target=piece == "<dream>", role=role))
            elif piece:
                parts.append(Text(piece, role=role))
    return parts


def instruction(record: dict, find: Find, min_similarity: float | None = None) -> Document:
    """The Document of one instruction and its answer.

    Raises Unusable, and BadImage where a picture is missing that is not one of MMC4's.
    """
    asked = text_at(record, "instruction").strip()
    if not asked:
        raise Unusable("no text", "the instruction is empty")
    answer = _answer(record, find, min_similarity)
    if not answer.parts:
        raise Unusable("empty", "no answer to the instruction")
    return dataclasses.replace(answer, parts=(Text(asked, role="user"), *map(_spoken, answer.parts)))


def _answer(record: dict, find: Find, min_similarity: float | None) -> Document:
    if "image_info" in record:
        return mmc4_document(record, find, min_similarity or 0.0)  # these were chosen already
    if "text_list" in record:
        texts, names = texts_at(record, "text_list"), require(record, "images", list, of=str)
        places = require(record, "matched_text_index", list, of=int)
        if len(places) != len(names) or not all(0 <= index < len(texts) for index in places):
            raise Unusable(
                "bad index", f"matched_text_index is {places} for {len(names)} images and {len(texts)} texts"
            )
        return Document(
            place(
                texts,
                [
                    (index, Image(find(name, number)))
                    for number, (index, name) in enumerate(zip(places, names, strict=True))
                ],
            )
        )
    words = text_at(record, "text").strip() if record.get("text") is not None else ""
    image = Image(find(require(record, "image", str), 0))
    return Document((Text(words), image) if words else (image,))


def _spoken(part: Part) -> Part:
    if isinstance(part, Image):
        return Image(part.source, part.is_input, part.is_target, "assistant")
    return Text(part.text, part.supervised, "assistant")
