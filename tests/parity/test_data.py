"""Documents to rows against what the official data builder made of the same inputs.

Every recorded case becomes a Document and takes the one path to a row. Where the official code is at fault, a test of
its own says what is right; `official_rows` makes what it made of every case.
"""

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
from goldens import recorded_file
from parity import official_rows

from dreamjax.data.pipeline.task_view import view
from dreamjax.document import Document, Image, Text
from dreamjax.document.tokenize import Limits, Slots, TokenSequence, tokenize_document
from dreamjax.document.tokenizer import Tokenizer

CONVERSATION, INSTRUCT, PAIR = "Conversation", "InstructInterleavedImageText", "ImageTextPair"
LEAD = " ASSISTANT: "  # what stands before an answer
IGNORED = -100
ENOUGH = 10**6  # slots: the official code knows no limit of pictures


@dataclasses.dataclass(frozen=True)
class Recorded:
    """The recorded cases of a bundle, and what it takes to build them again."""

    cases: list[dict]
    tokenizers: dict[str, Tokenizer]
    slots: Slots
    template: str
    longest: int  # the limit of cases without one of their own

    def limit(self, case: dict) -> int:
        return case.get("max_len") or self.longest

    def tokenizer(self, case: dict) -> Tokenizer:
        return self.tokenizers[case["tokenizer"]]

    def row(self, case: dict, limited: bool = True, **options) -> TokenSequence:
        """The case as a Document, through the one path; the official code ignores the mode in conversations."""
        document = view(
            document_of(case), "joint" if case["kind"] == CONVERSATION else case["mode"], case.get("prob") or 0.0
        )
        limits = Limits(self.limit(case), ENOUGH, ENOUGH) if limited else None
        options = {"labels": "official" if case["kind"] == CONVERSATION else "all"} | options
        return tokenize_document(document, self.tokenizer(case), self.slots, self.template, limits, **options)

    def official_row(self, case: dict) -> tuple[Document, TokenSequence]:
        """The case as a Document, whose broken pictures are still there, and its row by the official rules."""
        document, given = inputs_of(case), case["desc"].get("bad_images", ())
        if case["kind"] != CONVERSATION:
            document = view(document, case["mode"], case.get("prob") or 0.0)
        broken = [i for i, part in enumerate(document.parts) if isinstance(part, Image) and number_of(part) in given]
        common, limit, template = (document, self.tokenizer(case), self.slots), self.limit(case), self.template
        match case["kind"]:
            case "ImageTextPair":
                return document, official_rows.pair(*common, limit, bool(broken))
            case "ImageImagePair":
                return document, official_rows.image_pair(*common, bool(broken))
            case "InterleavedImageText":
                return document, official_rows.interleaved(*common, limit, broken)
            case "InstructInterleavedImageText":
                return document, official_rows.instruction(*common, template, limit, broken)
            case "Conversation":
                return document, official_rows.conversation(*common, template, limit)


@pytest.fixture(scope="module")
def recorded(bundle) -> Recorded:
    made = json.loads(recorded_file(bundle, "data.json").read_text())
    tokenizer = Tokenizer.load(bundle / "ckpt")
    tokenizers = {name: dataclasses.replace(tokenizer, legacy=name == "legacy") for name in ("legacy", "nonlegacy")}
    longest = json.loads((bundle / "ckpt" / "tokenizer_config.json").read_text())["model_max_length"]
    return Recorded(
        made["cases"],
        tokenizers,
        Slots(made["num_dream_queries"], made["clip_embed_len"]),
        made["conv_template"],
        longest,
    )


# ----------------------------------------------------------------------------------------------------------------------
# The recorded inputs as Documents


def make_image(number: int, **marks) -> Image:
    """Picture `number` of the inputs: one pixel tells which it is."""
    return Image(np.full((1, 1, 3), number, np.uint8), **marks)


def number_of(image: Image) -> int:
    return int(image.source[0, 0, 0])


def document_of(case: dict) -> Document:
    """What a source would yield for the inputs of a case.

    A picture that is broken is left out of all but a pair, as the loader does.
    """
    document = inputs_of(case)
    for broken in case["desc"].get("bad_images", ()) if document.kind != "pair" else ():
        document = document.without(
            next(i for i, part in enumerate(document.parts) if isinstance(part, Image) and number_of(part) == broken)
        )
    return document


def inputs_of(case: dict) -> Document:
    """The inputs of a case, whatever of them is broken."""
    given = case["desc"]
    match case["kind"]:
        case "ImageTextPair":
            return Document((make_image(0), Text(given["text"])), kind="pair")
        case "ImageImagePair":
            return Document((make_image(0, is_target=False), make_image(1, is_input=False)))
        case "InterleavedImageText":
            return Document(interleaved(given, None))
        case "InstructInterleavedImageText":
            return Document((Text(given["instruction"], role="user"), *interleaved(given, "assistant")))
        case "Conversation":
            numbers = itertools.count()
            return Document(tuple(part for role, words in given["turns"] for part in message(role, words, numbers)))


def interleaved(given: dict, role: str | None) -> tuple:
    """MMC4's layout: picture i stands behind the sentence matched_text_index[i]."""
    parts, words = [], []
    for number, sentence in enumerate(given["text_list"]):
        words.append(sentence.strip())
        if here := [i for i, index in enumerate(given["matched_text_index"]) if index == number]:
            parts += [Text(" ".join(words), role=role), *(make_image(i, role=role) for i in here)]
            words = []
    return *parts, Text(" ".join(words), role=role)


def message(role: str, words: str, numbers) -> list:
    """One turn of a conversation, in which `<image>` and `<dream>` stand for pictures.

    Those of the first kind are numbered first.
    """
    marks = {"<image>": {"is_target": False}, "<dream>": {}}
    pieces = [piece for piece in re.split("(<image>|<dream>)", words) if piece]
    waiting = {mark: [next(numbers) for piece in pieces if piece == mark] for mark in marks}
    return [
        make_image(waiting[piece].pop(0), role=role, **marks[piece]) if piece in marks else Text(piece, role=role)
        for piece in pieces
    ]


# ----------------------------------------------------------------------------------------------------------------------
# Where the official code is at fault


def lost_its_image(case: dict) -> bool:
    """A pair whose picture does not open keeps the picture's tokens, and takes the picture of the next document of
    its batch.
    """
    return case["kind"] == PAIR and 0 in case["desc"].get("bad_images", ())


def cut_elsewhere(case: dict, recorded: Recorded) -> bool:
    """A conversation over its limit, at a picture that does not fit, keeps limit - position tokens instead of those
    up to its position.
    """
    if case["kind"] != CONVERSATION:
        return False
    return len(case["output"]["input_ids"]) != fitting(
        recorded.row(case, limited=False).tokens.tolist(), recorded.limit(case), recorded.tokenizer(case)
    )


def fitting(tokens: list[int], limit: int, tokenizer: Tokenizer) -> int:
    """How many tokens stay within a limit without half a picture."""
    opens = [i for i, token in enumerate(tokens) if token in (tokenizer.im_start, tokenizer.dream_start)]
    closes = [i for i, token in enumerate(tokens) if token in (tokenizer.im_end, tokenizer.dream_end)]
    return min(
        [limit, len(tokens), *(first for first, last in zip(opens, closes, strict=False) if first < limit <= last)]
    )


def mislabelled(case: dict, recorded: Recorded) -> bool:
    """What a conversation teaches is found by counting the tokens of its parts.

    The count gives up where a user writes what leads to an answer. Non-legacy tokenizers cut a turn by itself otherwise
    than behind </s>, and so may other vocabularies: then what is learned is not what the assistant says.
    """
    if case["kind"] != CONVERSATION:
        return False
    turns, made, tokenizer = case["desc"]["turns"], case["output"], recorded.tokenizer(case)
    if any(LEAD in words for role, words in turns if role == "user"):
        return True
    if not tokenizer.legacy and len(turns) > 2:
        return True
    to_learn = re.findall(rf"{LEAD.strip()}(.*?(?:</s>|$))", said(made["input_ids"], itertools.repeat(True), tokenizer))
    return said(made["input_ids"], [label != IGNORED for label in made["labels"]], tokenizer) != "".join(to_learn)


def said(ids, supervised, tokenizer: Tokenizer) -> str:
    """The learned tokens as text without spaces, of special tokens </s> alone."""
    text = tokenizer.decode_continuation
    words = (
        "</s>" if i == tokenizer.eos else text([i])
        for i, yes in zip(ids, supervised, strict=False)  # all of them: an endless `repeat`
        if yes and (i == tokenizer.eos or i not in tokenizer.special_ids)
    )
    return re.sub(r"\s", "", "".join(words))


def answers(case: dict) -> str:
    """The assistant's words in the same form: what a conversation is to teach."""
    turns = [
        words.replace("<image>", "").replace("<dream>", "")
        for role, words in case["desc"]["turns"]
        if role == "assistant"
    ]
    return re.sub(r"\s", "", "".join(f"{words}</s>" for words in turns))


def test_rows_are_the_recorded_ones(recorded):
    compared = {"ids": 0, "labels": 0}
    for number, case in enumerate(recorded.cases):
        where, made = f"case {number}: {case}", case["output"]
        if lost_its_image(case) or cut_elsewhere(case, recorded):
            continue
        row, document = recorded.row(case), document_of(case)
        assert row.tokens.tolist() == made["input_ids"], where
        viewed = view(document, case["mode"], case.get("prob") or 0.0) if document.kind == "pair" else document
        assert [number_of(viewed.parts[part]) for _, part in row.inputs] == made["images"], where
        assert [number_of(viewed.parts[part]) for _, part in row.targets] == made["images_dm"], where
        compared["ids"] += 1
        if not mislabelled(case, recorded):
            # The official labels keep <s>, which nothing predicts.
            assert np.where(row.loss_mask, row.tokens, IGNORED)[1:].tolist() == made["labels"][1:], where
            compared["labels"] += 1
    others = sum(case["kind"] != CONVERSATION and not lost_its_image(case) for case in recorded.cases)
    assert compared["ids"] >= compared["labels"] >= others > 0, compared


def test_official_rows_are_the_recorded_ones_without_exception(recorded):
    """Ids, labels and pictures of every case, whatever is wrong with it."""
    for number, case in enumerate(recorded.cases):
        where, made = f"case {number}: {case}", case["output"]
        document, row = recorded.official_row(case)
        assert row.tokens.tolist() == made["input_ids"], where
        assert np.where(row.loss_mask, row.tokens, IGNORED).tolist() == made["labels"], where
        for placed, numbers in ((row.inputs, made["images"]), (row.targets, made["images_dm"])):
            assert [number_of(document.parts[part]) for _, part in placed] == numbers, where
    assert len(recorded.cases) > 0


def test_conversations_read_as_recorded(recorded, bundle):
    prompts = json.loads((bundle / "golden" / "data.json").read_text())["prompts"]
    ours = {
        official_rows.conversation_string(inputs_of(case), recorded.template)
        for case in recorded.cases
        if case["kind"] == CONVERSATION
    }
    assert ours == set(prompts)


def test_a_pair_without_its_image_is_no_pair(recorded):
    """Quirk.

    Its slots would show the picture of another document. The loader leaves such a pair out (tests/data/test_loader.py).
    """
    cases = [case for case in recorded.cases if lost_its_image(case)]
    for case in cases:
        ids = case["output"]["input_ids"]
        assert recorded.tokenizer(case).im_patch in ids and case["output"]["images"] == []  # the quirk is there
        assert recorded.row(case).inputs  # ours never has slots without a picture


def test_a_conversation_is_cut_where_its_limit_is(recorded):
    """Quirk: what stays is the beginning up to the limit, or up to the picture that does not fit."""
    for case in recorded.cases:
        if case["kind"] == CONVERSATION:
            whole, cut = recorded.row(case, limited=False), recorded.row(case)
            kept = fitting(whole.tokens.tolist(), recorded.limit(case), recorded.tokenizer(case))
            assert cut.truncated == (kept < len(whole.tokens)) and len(cut.tokens) == kept
            assert (
                cut.tokens.tolist() == whole.tokens[:kept].tolist()
                and cut.loss_mask.tolist() == whole.loss_mask[:kept].tolist()
            )


def test_conversations_teach_what_the_assistant_says_and_nothing_else(recorded):
    """Quirk: labels by offsets, not by counting."""
    conversations = [case for case in recorded.cases if case["kind"] == CONVERSATION]
    for case in conversations:
        row = recorded.row(case)
        taught = said(row.tokens.tolist(), row.loss_mask, recorded.tokenizer(case))
        assert answers(case).startswith(taught) if row.truncated else taught == answers(case), case


def test_conversations_teach_to_draw_unless_their_labels_are_official(recorded):
    """Quirk.

    The official labels never teach a conversation's <dream_start>, which a model needs to draw when it is asked to.
    """
    for case in recorded.cases:
        if case["kind"] == CONVERSATION:
            ours, official = recorded.row(case, labels="all"), recorded.row(case, labels="official")
            assert ours.tokens.tolist() == official.tokens.tolist()
            assert (
                np.flatnonzero(ours.loss_mask != official.loss_mask).tolist()
                == np.flatnonzero(ours.tokens == recorded.tokenizer(case).dream_start).tolist()
            )
