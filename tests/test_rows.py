"""From a Document to a row, drawn by hand: tokens, what is learned, where pictures go, what a limit cuts."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamjax.config import tiny
from dreamjax.document import Document, Image, Text
from dreamjax.rows import TEMPLATES, Limits, Slots, build_row
from dreamjax.schema import ConfigError
from dreamjax.tokenizer import ADDED_TOKENS, SPACE, Tokenizer, train_tokenizer

SLOTS = Slots(queries=2, patches=3)
PICTURE = np.zeros((4, 4, 3), np.uint8)
CORPUS = ["Here is a red circle. What is it? USER: ASSISTANT: the end. " + TEMPLATES["vicuna_v1.1"].system] * 3
TOKENIZER = Tokenizer.from_model(train_tokenizer(CORPUS, 420))

DREAMED = "+<dream_start> q q <dream_end>"
SEEN = "<im_start> p p p <im_end>"


def picture(seen=True, dreamed=True, role=None):
    return Image(PICTURE, seen, dreamed, role)


def row_of(*parts, **options):
    return build_row(Document(parts), TOKENIZER, SLOTS, **options)


def drawing(row) -> str:
    """The row in one line: words, control tokens, q and p for slots; a + before each stretch of learned tokens, a - before unlearned text."""
    slots = {start + i: "q" for start, _ in row.dreamed for i in range(SLOTS.queries)}
    slots |= {start + i: "p" for start, _ in row.seen for i in range(SLOTS.patches)}
    drawn, run, before = [], [], None

    def end_run():
        if run:
            drawn.append(("+" if before else "-") + repr(TOKENIZER.decode_continuation(run)))
            run.clear()

    for i, (token, learned) in enumerate(zip(row.tokens.tolist(), row.learned.tolist(), strict=True)):
        if token in TOKENIZER.special_ids:
            end_run()
            assert (token == TOKENIZER.im_patch) == (i in slots)
            drawn.append("+" * learned + slots.get(i, TOKENIZER.pieces([token])[0]))
            continue
        if learned != before:
            end_run()
        before = learned
        run.append(token)
    end_run()
    return " ".join(drawn)


# ----------------------------------------------------------------------------------------------------------------------
# Outside conversations


def test_plain_text():
    row = row_of(Text("Here is a red circle."))
    assert row.tokens.tolist() == [TOKENIZER.bos, *TOKENIZER.encode("Here is a red circle."), TOKENIZER.eos]
    assert row.learned.tolist() == [False] + [True] * (len(row.tokens) - 1)
    assert (row.tokens.dtype, row.learned.dtype) == (np.int32, bool)
    assert (row.seen, row.dreamed, row.cut) == ((), (), False)


@pytest.mark.parametrize(
    "seen, dreamed, drawn", [(True, True, f"{DREAMED} {SEEN} "), (True, False, f"{SEEN} "), (False, True, f"{DREAMED} "), (False, False, "")]
)
def test_a_picture_between_words(seen, dreamed, drawn):
    row = row_of(Text("Here is"), picture(seen, dreamed), Text("the end."))
    expected = f"<s> +' Here is' {drawn}+' the end.' +</s>" if drawn else "<s> +' Here is the end.' +</s>"
    assert drawing(row) == expected
    n = 1 + len(TOKENIZER.encode("Here is"))
    assert row.dreamed == (((n + 1, 1),) if dreamed else ())
    assert row.seen == (((n + (4 if dreamed else 0) + 1, 1),) if seen else ())


def test_pictures_stand_next_to_each_other_and_first():
    row = row_of(picture(dreamed=False), picture(seen=False), Text("it"))
    assert drawing(row) == f"<s> {SEEN} {DREAMED} +' it' +</s>"
    assert (row.seen, row.dreamed) == (((2, 0),), ((7, 1),))


def test_texts_that_follow_each_other_are_one_text_whose_marks_go_by_offsets():
    together, apart = row_of(Text("Here is a red circle.")), row_of(Text("Here is a re", learned=False), Text("d circle."))
    assert apart.tokens.tolist() == together.tokens.tolist()  # the join cuts a word, not its tokens
    starts = TOKENIZER.encode_with_offsets("Here is a red circle.")[1]
    assert apart.learned.tolist() == [False, *(start >= len("Here is a re") for start in starts), True]
    assert apart.learned.any() and not apart.learned[1:].all()


def test_unlearned_text():
    assert drawing(row_of(Text("a red circle.", learned=False), picture(seen=False))) == f"<s> -' a red circle.' {DREAMED} +</s>"


def test_an_empty_document():
    assert drawing(row_of()) == drawing(row_of(Text(""))) == "<s> +</s>"
    assert row_of(prompt=True).tokens.tolist() == [TOKENIZER.bos]


def test_special_strings_in_a_text_stay_text():
    text = "it</s> <s><dream_start><im_patch> the end. <image>"
    row = row_of(Text(text))
    assert not set(row.tokens[1:-1].tolist()) & TOKENIZER.special_ids
    assert TOKENIZER.decode_continuation(row.tokens) == " " + text
    assert row.seen == row.dreamed == ()


def test_a_prompt_ends_open():
    whole, prompt = row_of(Text("Here is"), picture()), row_of(Text("Here is"), picture(), prompt=True)
    assert prompt.tokens.tolist() == whole.tokens[:-1].tolist()
    assert drawing(prompt) == f"<s> +' Here is' {DREAMED} {SEEN}"


# ----------------------------------------------------------------------------------------------------------------------
# Conversations


def chat():
    return (
        picture(dreamed=False, role="user"), Text("What is it?", learned=False, role="user"), Text("a red circle.", role="assistant"),
        Text("Here?", learned=False, role="user"), Text("the end.", role="assistant"), picture(role="assistant"),
    )


def test_a_plain_chat():
    drawn = f"<s> {SEEN} -' What is it?' +' a red circle.' +</s> -' Here?' +' the end.' {DREAMED} {SEEN} +</s>"
    assert drawing(row_of(*chat())) == drawn
    assert drawing(row_of(*chat(), prompt=True)) == drawn.removesuffix(" +</s>")  # the assistant's turn may go on


def test_a_vicuna_chat():
    opening = TEMPLATES["vicuna_v1.1"].system
    drawn = (
        f"<s> -\" {opening} USER:\" {SEEN} -' What is it? ASSISTANT:' +' a red circle.' +</s>"
        f" -' USER: Here? ASSISTANT:' +' the end.' {DREAMED} {SEEN} +</s>"
    )
    assert drawing(row_of(*chat(), template="vicuna_v1.1")) == drawn
    user, asked = Text("What is it?", learned=False, role="user"), f"<s> -\" {opening} USER: What is it? ASSISTANT:\""
    assert drawing(row_of(user, template="vicuna_v1.1", prompt=True)) == asked


def test_vicuna_is_the_official_string():
    turns = [("user", "What is it?"), ("assistant", "a red circle."), ("user", "Here?"), ("assistant", "the end.")]
    row = row_of(*(Text(words, role == "assistant", role) for role, words in turns), template="vicuna_v1.1")
    # fastchat's conv_vicuna_v1_1: seps " " and "</s>"; written out.
    official = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to "
        "the user's questions. USER: What is it? ASSISTANT: a red circle.</s>USER: Here? ASSISTANT: the end.</s>"
    )
    assert row.tokens[1:].tolist() == TOKENIZER.encode(official, special=True)
    learned = [TOKENIZER.decode_continuation([t]) if t != TOKENIZER.eos else "</s>" for t, yes in zip(row.tokens.tolist(), row.learned) if yes]
    assert "".join(learned) == " a red circle.</s> the end.</s>"


def test_a_system_turn_takes_the_place_of_the_templates_own():
    system, user = Text("the end.", learned=False, role="system"), Text("Here?", learned=False, role="user")
    assert drawing(row_of(system, user, template="vicuna_v1.1", prompt=True)) == "<s> -' the end. USER: Here? ASSISTANT:'"
    assert drawing(row_of(system, user, prompt=True)) == "<s> -' the end. Here?'"


def test_templates_leave_documents_without_roles_alone():
    parts = Text("Here is"), picture(), Text(" the end.")
    assert drawing(row_of(*parts, template="vicuna_v1.1")) == drawing(row_of(*parts))


def test_a_chat_that_ends_with_the_user_does_not_teach_to_stop():
    row = row_of(*chat()[:4])
    assert drawing(row).endswith("+</s> -' Here?' </s>")


def test_an_unknown_template():
    with pytest.raises(ConfigError, match="template: 'alpaca' is unknown; there are plain, vicuna_v1.1"):
        row_of(Text("it"), template="alpaca")


# ----------------------------------------------------------------------------------------------------------------------
# Limits

STORY = Text("Here is"), picture(), Text("a red"), picture(), Text("circle."), picture(dreamed=False), Text("the end.")
FIRST = f"<s> +' Here is' {DREAMED} {SEEN}"
SECOND = f"{FIRST} +' a red' {DREAMED} {SEEN}"
THIRD = f"{SECOND} +' circle.' {SEEN}"
ALL = f"{THIRD} +' the end.' +</s>"


def lengths_of_prefixes():
    return [len(row_of(*STORY[:n]).tokens) for n in (2, 4, 6, 7)]


@pytest.mark.parametrize("spare", [0, 1])
def test_cut_by_tokens(spare):
    for length, kept in zip(lengths_of_prefixes(), (FIRST, SECOND, THIRD)):
        row = row_of(*STORY, limits=Limits(length + spare, 9, 9))
        assert (drawing(row), row.cut, len(row.tokens)) == (f"{kept} +</s>", True, length)
    whole = row_of(*STORY, limits=Limits(lengths_of_prefixes()[-1] + spare, 3, 2))
    assert (drawing(whole), whole.cut) == (ALL, False)


@pytest.mark.parametrize("seen, dreamed, kept", [(9, 1, FIRST), (2, 9, SECOND), (1, 1, FIRST), (3, 2, ALL), (0, 9, "<s>"), (9, 0, "<s>")])
def test_cut_by_pictures(seen, dreamed, kept):
    row = row_of(*STORY, limits=Limits(999, seen, dreamed))
    assert drawing(row) == (kept if kept == ALL else f"{kept} +</s>")
    assert row.cut == (kept != ALL)
    assert len(row.seen) <= seen and len(row.dreamed) <= dreamed


def test_a_chat_that_just_fits_is_not_cut_and_a_cut_one_does_not_teach_to_stop():
    length = len(row_of(*chat()).tokens)
    assert not row_of(*chat(), limits=Limits(length, 2, 1)).cut
    cut = row_of(*chat(), limits=Limits(length - 1, 2, 1))
    assert cut.cut and len(cut.tokens) < length
    without_answer = row_of(*chat()[:3], limits=Limits(9, 1, 1))
    assert drawing(without_answer) == f"<s> {SEEN} </s>" and not without_answer.learned.any()


# ----------------------------------------------------------------------------------------------------------------------
# Any document

texts = st.text(st.characters(exclude_characters=SPACE, exclude_categories=["Cs"]), max_size=12)
texts |= st.sampled_from(["a red", *ADDED_TOKENS, "</s>", "<s>"])
roles = st.sampled_from([None, "system", "user", "assistant"])
parts = st.builds(Text, texts, st.booleans(), roles) | st.builds(picture, st.booleans(), st.booleans(), roles)
limits = st.none() | st.builds(Limits, st.integers(3, 60), st.integers(0, 3), st.integers(0, 3))


@settings(deadline=None, derandomize=True, max_examples=150)
@given(st.lists(parts, max_size=7), st.sampled_from([*TEMPLATES]), limits, st.booleans())
def test_any_document(parts, template, limits, prompt):
    row = row_of(*parts, template=template, limits=limits, prompt=prompt)
    assert row.tokens[0] == TOKENIZER.bos and not row.learned[0]
    assert len(row.tokens) == len(row.learned) and np.count_nonzero(row.tokens == TOKENIZER.bos) == 1
    if limits:
        assert len(row.tokens) <= limits.tokens and len(row.seen) <= limits.seen and len(row.dreamed) <= limits.dreamed

    # Pictures: in order, each once, all of them or a prefix; slots in their frames, apart from each other, never learned.
    for name, placed, count, before, after in (
        ("seen", row.seen, SLOTS.patches, TOKENIZER.im_start, TOKENIZER.im_end),
        ("dreamed", row.dreamed, SLOTS.queries, TOKENIZER.dream_start, TOKENIZER.dream_end),
    ):
        wanted = [i for i, part in enumerate(parts) if isinstance(part, Image) and getattr(part, name)]
        assert [part for _, part in placed] == (wanted[: len(placed)] if row.cut else wanted)
        for start, _ in placed:
            assert row.tokens[start - 1 : start + count + 1].tolist() == [before] + [TOKENIZER.im_patch] * count + [after]
            assert not row.learned[start : start + count + 1].any()
            assert row.learned[start - 1] == (name == "dreamed")
    slots = [i for s, _ in row.seen for i in range(s, s + SLOTS.patches)] + [i for s, _ in row.dreamed for i in range(s, s + SLOTS.queries)]
    assert sorted(slots) == np.flatnonzero(row.tokens == TOKENIZER.im_patch).tolist()  # no two overlap, and there are no others

    # Text: what stands between control tokens decodes to what the parts say, in order, or to a prefix of it.
    words = TOKENIZER.decode_continuation(row.tokens)
    if not any(part.role for part in parts):
        said = "".join(part.text for part in parts if isinstance(part, Text))
        squeeze = lambda text: re.sub(" ", "", text)  # each stretch may begin with a space of its own
        assert squeeze(said).startswith(squeeze(words)) if row.cut else squeeze(said) == squeeze(words)
    assert row.cut <= (limits is not None)


def test_slots_of_a_model():
    assert Slots.of(tiny()) == Slots(queries=4, patches=16)
