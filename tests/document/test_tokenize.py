"""From a Document to a row, drawn by hand: tokens, what is learned, where pictures go, what a limit cuts."""

import dataclasses
import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamjax.config import tiny
from dreamjax.document import Document, Image, Text
from dreamjax.document.templates import TEMPLATES
from dreamjax.document.tokenize import Limits, Slots, tokenize_document, tokenize_prompt
from dreamjax.document.tokenizer import ADDED_TOKENS, SPACE, Tokenizer
from dreamjax.document.tokenizer_training import train_tokenizer
from dreamjax.errors import ConfigError

SLOTS = Slots(queries=2, patches=3)
PICTURE = np.zeros((4, 4, 3), np.uint8)
CORPUS = ["Here is a red circle. What is it? USER: ASSISTANT: the end. " + TEMPLATES["vicuna_v1.1"].system] * 3
TOKENIZER = Tokenizer.from_model(train_tokenizer(CORPUS, 420))

DREAMED = "+<dream_start> q q <dream_end>"
SEEN = "<im_start> p p p <im_end>"


def make_image(is_input=True, is_target=True, role=None):
    return Image(PICTURE, is_input, is_target, role)


def row_of(*parts, **options):
    return tokenize_document(Document(parts), TOKENIZER, SLOTS, **options)


def prompt_of(*parts, **options):
    return tokenize_prompt(Document(parts), TOKENIZER, SLOTS, **options)


def drawing(row) -> str:
    """The row in one line.

    Words, control tokens, q and p for slots; a + before each stretch of learned tokens, a - before unlearned text.
    """
    slots = {start + i: "q" for start, _ in row.targets for i in range(SLOTS.queries)}
    slots |= {start + i: "p" for start, _ in row.inputs for i in range(SLOTS.patches)}
    drawn, run, before = [], [], None

    def end_run():
        if run:
            drawn.append(("+" if before else "-") + repr(TOKENIZER.decode_continuation(run)))
            run.clear()

    for i, (token, supervised) in enumerate(zip(row.tokens.tolist(), row.loss_mask.tolist(), strict=True)):
        if token in TOKENIZER.special_ids:
            end_run()
            assert (token == TOKENIZER.im_patch) == (i in slots)
            drawn.append("+" * supervised + slots.get(i, TOKENIZER.pieces([token])[0]))
            continue
        if supervised != before:
            end_run()
        before = supervised
        run.append(token)
    end_run()
    return " ".join(drawn)


# ----------------------------------------------------------------------------------------------------------------------
# Outside conversations


def test_plain_text():
    row = row_of(Text("Here is a red circle."))
    assert row.tokens.tolist() == [TOKENIZER.bos, *TOKENIZER.encode("Here is a red circle."), TOKENIZER.eos]
    assert row.loss_mask.tolist() == [False] + [True] * (len(row.tokens) - 1)
    assert (row.tokens.dtype, row.loss_mask.dtype) == (np.int32, bool)
    assert (row.inputs, row.targets, row.truncated) == ((), (), False)


@pytest.mark.parametrize(
    "inputs, targets, drawn",
    [(True, True, f"{DREAMED} {SEEN} "), (True, False, f"{SEEN} "), (False, True, f"{DREAMED} "), (False, False, "")],
)
def test_an_image_between_words(inputs, targets, drawn):
    row = row_of(Text("Here is"), make_image(inputs, targets), Text("the end."))
    expected = f"<s> +' Here is' {drawn}+' the end.' +</s>" if drawn else "<s> +' Here is the end.' +</s>"
    assert drawing(row) == expected
    n = 1 + len(TOKENIZER.encode("Here is"))
    assert row.targets == (((n + 1, 1),) if targets else ())
    assert row.inputs == (((n + (4 if targets else 0) + 1, 1),) if inputs else ())


def test_images_stand_next_to_each_other_and_first():
    row = row_of(make_image(is_target=False), make_image(is_input=False), Text("it"))
    assert drawing(row) == f"<s> {SEEN} {DREAMED} +' it' +</s>"
    assert (row.inputs, row.targets) == (((2, 0),), ((7, 1),))


def test_texts_that_follow_each_other_are_one_text_whose_marks_go_by_offsets():
    together, apart = (
        row_of(Text("Here is a red circle.")),
        row_of(Text("Here is a re", supervised=False), Text("d circle.")),
    )
    assert apart.tokens.tolist() == together.tokens.tolist()  # the join cuts a word, not its tokens
    starts = TOKENIZER.encode_with_offsets("Here is a red circle.")[1]
    assert apart.loss_mask.tolist() == [False, *(start >= len("Here is a re") for start in starts), True]
    assert apart.loss_mask.any() and not apart.loss_mask[1:].all()


def test_a_document_without_learned_text_teaches_no_token():
    """The sides of a pair that is drawn, and of a picture that follows a picture."""
    no_loss = DREAMED.removeprefix("+")
    assert (
        drawing(row_of(Text("a red circle.", supervised=False), make_image(is_input=False)))
        == f"<s> -' a red circle.' {no_loss} </s>"
    )
    assert drawing(row_of(make_image(is_target=False), make_image(is_input=False))) == f"<s> {SEEN} {no_loss} </s>"
    assert (
        drawing(row_of(Text("a red", supervised=False), make_image(), Text("circle.")))
        == f"<s> -' a red' {DREAMED} {SEEN} +' circle.' +</s>"
    )


def test_an_empty_document():
    assert drawing(row_of()) == "<s> </s>" and drawing(row_of(Text(""))) == "<s> +</s>"
    assert prompt_of().tokens.tolist() == [TOKENIZER.bos]


def test_special_strings_in_a_text_stay_text():
    text = "it</s> <s><dream_start><im_patch> the end. <image>"
    row = row_of(Text(text))
    assert not set(row.tokens[1:-1].tolist()) & TOKENIZER.special_ids
    assert TOKENIZER.decode_continuation(row.tokens) == " " + text
    assert row.inputs == row.targets == ()


def test_a_prompt_ends_open():
    whole, prompt = row_of(Text("Here is"), make_image()), prompt_of(Text("Here is"), make_image())
    assert prompt.tokens.tolist() == whole.tokens[:-1].tolist()
    assert drawing(prompt) == f"<s> +' Here is' {DREAMED} {SEEN}"


# ----------------------------------------------------------------------------------------------------------------------
# Conversations


def chat():
    return (
        make_image(is_target=False, role="user"),
        Text("What is it?", supervised=False, role="user"),
        Text("a red circle.", role="assistant"),
        Text("Here?", supervised=False, role="user"),
        Text("the end.", role="assistant"),
        make_image(role="assistant"),
    )


def test_a_plain_chat():
    drawn = f"<s> {SEEN} -' What is it?' +' a red circle.' +</s> -' Here?' +' the end.' {DREAMED} {SEEN} +</s>"
    assert drawing(row_of(*chat())) == drawn
    assert drawing(prompt_of(*chat())) == drawn.removesuffix(" +</s>")  # the assistant's turn may go on


def test_a_vicuna_chat():
    opening = TEMPLATES["vicuna_v1.1"].system
    drawn = (  # a picture at the beginning of a turn stands behind the template's space, as in the official string
        f"<s> -\" {opening} USER: \" {SEEN} -' What is it? ASSISTANT:' +' a red circle.' +</s>"
        f" -' USER: Here? ASSISTANT:' +' the end.' {DREAMED} {SEEN} +</s>"
    )
    assert drawing(row_of(*chat(), template="vicuna_v1.1")) == drawn
    user, asked = Text("What is it?", supervised=False, role="user"), f'<s> -" {opening} USER: What is it? ASSISTANT:"'
    assert drawing(prompt_of(user, template="vicuna_v1.1")) == asked


def test_vicuna_is_the_official_string():
    turns = [("user", "What is it?"), ("assistant", "a red circle."), ("user", "Here?"), ("assistant", "the end.")]
    row = row_of(*(Text(words, role == "assistant", role) for role, words in turns), template="vicuna_v1.1")
    # fastchat's conv_vicuna_v1_1: seps " " and "</s>"; written out.
    official = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to "
        "the user's questions. USER: What is it? ASSISTANT: a red circle.</s>USER: Here? ASSISTANT: the end.</s>"
    )
    assert row.tokens[1:].tolist() == TOKENIZER.encode(official, special=True)
    supervised = [
        TOKENIZER.decode_continuation([t]) if t != TOKENIZER.eos else "</s>"
        for t, yes in zip(row.tokens.tolist(), row.loss_mask, strict=True)
        if yes
    ]
    assert "".join(supervised) == " a red circle.</s> the end.</s>"


def test_llama2_is_the_official_string():
    system, user, assistant = (
        lambda words, role=role: Text(words, role == "assistant", role) for role in ("system", "user", "assistant")
    )
    row = row_of(
        system("the end."),
        user("What is it?"),
        assistant("a red circle."),
        user("Here?"),
        assistant("the end."),
        template="llama2",
    )
    # Meta's reference code: each round between <s> and </s>, its words stripped; written out.
    official = (
        "[INST] <<SYS>>\nthe end.\n<</SYS>>\n\nWhat is it? [/INST] a red circle. </s><s>[INST] Here? "
        "[/INST] the end. </s>"
    )
    assert row.tokens[1:].tolist() == TOKENIZER.encode(official, special=True)
    assert drawing(row).count("+' a red circle. ' +</s> <s> -' [INST] Here? [/INST]' +' the end. ' +</s>") == 1
    assert drawing(prompt_of(user("Here?"), template="llama2")) == "<s> -' [INST] Here? [/INST]'"


def test_official_labels_leave_a_conversations_dreams_unlearned():
    ours, official = drawing(row_of(*chat())), drawing(row_of(*chat(), labels="official"))
    assert official == ours.replace("+<dream_start>", "<dream_start>") != ours
    assert drawing(row_of(*STORY, labels="official")) == drawing(row_of(*STORY))


def test_a_users_dream_is_never_learned():
    assert (
        drawing(row_of(Text("Here is", role="user"), make_image(role="user"), Text("it.", role="assistant"))).count(
            "+<dream_start>"
        )
        == 0
    )


def test_a_system_turn_takes_the_place_of_the_templates_own():
    system, user = Text("the end.", supervised=False, role="system"), Text("Here?", supervised=False, role="user")
    assert drawing(prompt_of(system, user, template="vicuna_v1.1")) == "<s> -' the end. USER: Here? ASSISTANT:'"
    assert drawing(prompt_of(system, user)) == "<s> -' the end. Here?'"


def test_templates_leave_documents_without_roles_alone():
    parts = Text("Here is"), make_image(), Text(" the end.")
    assert drawing(row_of(*parts, template="vicuna_v1.1")) == drawing(row_of(*parts))


def test_a_chat_that_ends_with_the_user_does_not_teach_to_stop():
    row = row_of(*chat()[:4])
    assert drawing(row).endswith("+</s> -' Here?' </s>")


def test_an_unknown_template():
    with pytest.raises(ConfigError, match="template: 'alpaca' is unknown; there are plain, vicuna_v1.1"):
        row_of(Text("it"), template="alpaca")


# ----------------------------------------------------------------------------------------------------------------------
# Limits

STORY = (
    Text("Here is"),
    make_image(),
    Text("a red"),
    make_image(),
    Text("circle."),
    make_image(is_target=False),
    Text("the end."),
)
STEPS = (
    " +' Here is'",
    f" {DREAMED} {SEEN}",
    " +' a red'",
    f" {DREAMED} {SEEN}",
    " +' circle.'",
    f" {SEEN}",
    " +' the end.'",
)
PREFIXES = ["<s>" + "".join(STEPS[:n]) for n in range(len(STEPS) + 1)]


def test_cut_by_tokens():
    """Text and pictures are left out whole, and </s> follows what stays."""
    lengths = [len(row_of(*STORY[:n]).tokens) for n in range(len(STEPS) + 1)]
    for n, (length, following) in enumerate(itertools.pairwise(lengths)):
        for limit in range(max(length, 3), following):
            row = row_of(*STORY, limits=Limits(limit, 9, 9))
            assert (drawing(row), row.truncated, len(row.tokens)) == (f"{PREFIXES[n]} +</s>", True, length)
    whole = row_of(*STORY, limits=Limits(lengths[-1], 3, 2))
    assert (drawing(whole), whole.truncated) == (f"{PREFIXES[-1]} +</s>", False)


@pytest.mark.parametrize("inputs, targets, kept", [(9, 1, 3), (2, 9, 5), (1, 1, 3), (3, 2, 7), (0, 9, 1), (9, 0, 1)])
def test_cut_by_images(inputs, targets, kept):
    row = row_of(*STORY, limits=Limits(999, inputs, targets))
    assert (drawing(row), row.truncated) == (f"{PREFIXES[kept]} +</s>", kept < len(STEPS))
    assert len(row.inputs) <= inputs and len(row.targets) <= targets


@pytest.mark.parametrize("spare", range(6))
def test_a_single_text_is_shortened_so_that_its_image_stays(spare):
    words = Text("Here is a red circle. " * 9)
    tokens = TOKENIZER.encode(words.text)
    for parts, reserved in (
        ((words,), 2),
        ((words, make_image(is_input=False)), 6),
        ((make_image(is_target=False), words), 7),
    ):
        limit = reserved + spare
        row = row_of(*parts, limits=Limits(limit, 1, 1))
        assert row.truncated and len(row.tokens) == limit and row.tokens[-1] == TOKENIZER.eos
        assert [token for token in row.tokens.tolist() if token not in TOKENIZER.special_ids] == tokens[:spare]
        assert (len(row.inputs), len(row.targets)) == tuple(
            sum(isinstance(p, Image) and getattr(p, name) for p in parts) for name in ("is_input", "is_target")
        )
        whole = row_of(*parts, limits=Limits(reserved + len(tokens), 1, 1))
        assert not whole.truncated and len(whole.tokens) == reserved + len(tokens)


def test_a_chat_is_cut_at_a_token_or_before_an_image_and_does_not_teach_to_stop():
    parts = (
        Text("Here?", role="user"),
        Text("a red circle.", role="assistant"),
        Text("What is it?", role="user"),
        make_image(is_target=False, role="user"),
    )
    parts = (*parts, Text("the end.", role="assistant"))
    whole = row_of(*parts)
    ((start, _),) = whole.inputs
    for limit in range(3, len(whole.tokens)):
        row = row_of(*parts, limits=Limits(limit, 1, 0))
        kept = limit if not start - 1 <= limit < start + SLOTS.patches + 1 else start - 1
        assert (
            row.truncated
            and row.tokens.tolist() == whole.tokens[:kept].tolist()
            and row.loss_mask.tolist() == whole.loss_mask[:kept].tolist()
        )
    assert not row_of(*parts, limits=Limits(len(whole.tokens), 1, 0)).truncated
    assert drawing(row_of(*parts, limits=Limits(99, 0, 0))) == "<s> -' Here?' +' a red circle.' +</s> -' What is it?'"


def test_an_answer_with_images_is_cut_as_an_interleaved_document():
    answer = [dataclasses.replace(part, role="assistant") for part in STORY]
    whole = row_of(Text("Here?", role="user"), *answer)
    assert drawing(whole) == f"<s> -' Here?' +' Here is'{''.join(STEPS[1:])} +</s>"
    length = len(whole.tokens)
    assert not row_of(
        Text("Here?", role="user"), *answer, limits=Limits(length + 1, 9, 9)
    ).truncated  # the official code keeps a token more free here
    cut = row_of(Text("Here?", role="user"), *answer, limits=Limits(length - 1, 9, 9))
    assert cut.truncated and drawing(cut) == f"<s> -' Here?' +' Here is'{''.join(STEPS[1:6])} +</s>"


@pytest.mark.parametrize("legacy", [True, False])
def test_any_tokenizer_reads_a_chat_as_its_official_string(legacy):
    """Runs behind a picture or </s> go on in the same string: only a legacy tokenizer puts a space before them."""
    tokenizer = dataclasses.replace(TOKENIZER, legacy=legacy)
    marks = {"<image>": make_image(is_target=False, role="user")}
    turns = (["Here is ", "<image>", "?"], "the end."), (["<image>", " a red"], "a circle.")
    parts, official = [], TEMPLATES["vicuna_v1.1"].system + " "
    for asked, answer in turns:
        parts += [marks.get(piece) or Text(piece, role="user") for piece in asked] + [Text(answer, role="assistant")]
        official += f"USER: {''.join(asked)} ASSISTANT: {answer}</s>"
    row = tokenize_document(Document(parts), tokenizer, SLOTS, "vicuna_v1.1")
    placeholder = [tokenizer.im_start, *[tokenizer.im_patch] * SLOTS.patches, tokenizer.im_end]
    expected = [
        i
        for token in tokenizer.encode(official, special=True)
        for i in (placeholder if token == tokenizer.special["<image>"] else [token])
    ]
    assert row.tokens[1:].tolist() == expected


# ----------------------------------------------------------------------------------------------------------------------
# Any document

texts = st.text(st.characters(exclude_characters=SPACE, exclude_categories=["Cs"]), max_size=12)
texts |= st.sampled_from(["a red", *ADDED_TOKENS, "</s>", "<s>"])
roles = st.sampled_from([None, "system", "user", "assistant"])
parts = st.builds(Text, texts, st.booleans(), roles) | st.builds(make_image, st.booleans(), st.booleans(), roles)
limits = st.none() | st.builds(Limits, st.integers(3, 60), st.integers(0, 3), st.integers(0, 3))


@settings(deadline=None, derandomize=True, max_examples=150)
@given(st.lists(parts, max_size=7), st.sampled_from([*TEMPLATES]), limits, st.booleans())
def test_any_document(parts, template, limits, prompt):
    if prompt:
        row, limits = prompt_of(*parts, template=template), None
    else:
        row = row_of(*parts, template=template, limits=limits)
    assert row.tokens[0] == TOKENIZER.bos and not row.loss_mask[0]
    assert len(row.tokens) == len(row.loss_mask) and not row.loss_mask[row.tokens == TOKENIZER.bos].any()
    assert np.count_nonzero(row.tokens == TOKENIZER.bos) == 1 or template == "llama2"
    if limits:
        assert (
            len(row.tokens) <= limits.tokens and len(row.inputs) <= limits.inputs and len(row.targets) <= limits.targets
        )

    teaches = any(part.role for part in parts) or any(isinstance(part, Text) and part.supervised for part in parts)
    assert teaches or not row.loss_mask.any()

    # Pictures: in order, each once, all of them or a prefix; slots in their frames, apart from each other, never
    # learned.
    for name, placed, count, before, after in (
        ("is_input", row.inputs, SLOTS.patches, TOKENIZER.im_start, TOKENIZER.im_end),
        ("is_target", row.targets, SLOTS.queries, TOKENIZER.dream_start, TOKENIZER.dream_end),
    ):
        wanted = [i for i, part in enumerate(parts) if isinstance(part, Image) and getattr(part, name)]
        assert [part for _, part in placed] == (wanted[: len(placed)] if row.truncated else wanted)
        for start, part in placed:
            assert row.tokens[start - 1 : start + count + 1].tolist() == [before] + [TOKENIZER.im_patch] * count + [
                after
            ]
            assert not row.loss_mask[start : start + count + 1].any()
            assert row.loss_mask[start - 1] == (
                name == "is_target" and teaches and parts[part].role in (None, "assistant")
            )
    slots = [i for s, _ in row.inputs for i in range(s, s + SLOTS.patches)] + [
        i for s, _ in row.targets for i in range(s, s + SLOTS.queries)
    ]
    assert (
        sorted(slots) == np.flatnonzero(row.tokens == TOKENIZER.im_patch).tolist()
    )  # no two overlap, and there are no others

    # Text: what stands between control tokens decodes to what the parts say, in order, or to a prefix of it.
    words = TOKENIZER.decode_continuation(row.tokens).rstrip(
        "\ufffd" if row.truncated else ""
    )  # a cut may leave half a character
    if not any(part.role for part in parts):
        said = "".join(part.text for part in parts if isinstance(part, Text))

        def squeeze(text):
            return re.sub(" ", "", text)  # each stretch may begin with a space of its own

        assert squeeze(said).startswith(squeeze(words)) if row.truncated else squeeze(said) == squeeze(words)
    assert row.truncated <= (limits is not None)


def test_slots_of_a_model():
    assert Slots.of(tiny()) == Slots(queries=4, patches=16)
