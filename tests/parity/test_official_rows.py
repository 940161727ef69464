"""The official rows' faults, each shown on a row that can be counted by hand, and that they agree with ours where
there is none.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import official_rows

from dreamjax.document import Document, Image, Text
from dreamjax.document.templates import TEMPLATES
from dreamjax.document.tokenize import Limits, Slots, tokenize_document
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.document.tokenizer_training import train_tokenizer
from dreamjax.errors import ConfigError

SLOTS = Slots(queries=2, patches=3)
DRAWN, SHOWN = 4, 5  # tokens of a picture
VICUNA = "vicuna_v1.1"
TOKENIZER = Tokenizer.from_model(
    train_tokenizer(
        ["Here is a red circle. What is it? USER: ASSISTANT: the end. " + TEMPLATES[VICUNA].system] * 3, 420
    )
)


def make_image(is_input=True, is_target=True, role=None):
    return Image(np.zeros((4, 4, 3), np.uint8), is_input, is_target, role)


def chat(*asked, answer="the end."):
    """A question of texts and pictures and its answer."""
    turns = [
        Text(part, role="user") if isinstance(part, str) else make_image(is_target=False, role="user") for part in asked
    ]
    return Document((*turns, Text(answer, role="assistant")))


def test_a_conversation_is_cut_at_an_image_by_the_wrong_sign():
    document = chat("What is it?", None)
    whole = official_rows.conversation(document, TOKENIZER, SLOTS)
    ((at, _),) = whole.inputs
    position = at - 1  # of <im_start>
    for spare in range(1, SHOWN):
        row = official_rows.conversation(document, TOKENIZER, SLOTS, limit=position + spare)
        assert row.tokens.tolist() == whole.tokens[:spare].tolist() and row.truncated and row.inputs == ()
    assert (
        official_rows.conversation(document, TOKENIZER, SLOTS, limit=position).tokens.tolist()
        == whole.tokens[:position].tolist()
    )
    ends_at_the_limit = official_rows.conversation(document, TOKENIZER, SLOTS, limit=position + SHOWN)
    assert ends_at_the_limit.tokens.tolist() == whole.tokens.tolist() and not ends_at_the_limit.truncated


def test_a_conversations_labels_are_counted():
    row = official_rows.conversation(chat("What is it?"), TOKENIZER, SLOTS)
    ours = tokenize_document(chat("What is it?"), TOKENIZER, SLOTS, VICUNA, labels="official")
    assert row.tokens.tolist() == ours.tokens.tolist()
    asked = official_rows.conversation_string(chat("What is it?")).partition("the end.")[0]
    first = 1 + len(TOKENIZER.encode(asked)) - 1  # behind <s>; the last space is a token by itself
    assert np.flatnonzero(row.loss_mask).tolist() == list(range(first, len(row.tokens)))
    lead = chat("Say ASSISTANT: it", answer="a red circle.")
    assert official_rows.conversation(lead, TOKENIZER, SLOTS).loss_mask[1:].all()  # the count has given up
    drawn = Document((Text("Here?", role="user"), Text("the end. ", role="assistant"), make_image(role="assistant")))
    row = official_rows.conversation(drawn, TOKENIZER, SLOTS)
    assert not row.loss_mask[row.tokens == TOKENIZER.dream_start].any() and len(row.inputs) == len(row.targets) == 1


def test_a_user_who_has_the_last_word_is_learned():
    document = Document((*chat("What is it?").parts, Text("Here?", role="user")))
    row = official_rows.conversation(document, TOKENIZER, SLOTS)
    assert official_rows.conversation_string(document).endswith("the end.</s>USER: Here? ")
    assert row.loss_mask[np.flatnonzero(row.tokens == TOKENIZER.eos)[0] :].all()


def test_a_pair_keeps_the_tokens_of_an_image_that_does_not_open():
    document = Document((make_image(is_target=False), Text("a red circle.")))
    row, broken = (official_rows.pair(document, TOKENIZER, SLOTS, broken=broken) for broken in (False, True))
    assert row.tokens.tolist() == broken.tokens.tolist() and row.inputs == ((2, 0),) and broken.inputs == ()
    with pytest.raises(ValueError, match="does not open"):
        official_rows.pair(Document((Text("a red circle."), make_image(is_input=False))), TOKENIZER, SLOTS, broken=True)


def test_a_caption_is_shortened_unless_nothing_of_it_would_stay():
    document = Document((make_image(is_target=False), Text("a red circle.")))
    words = TOKENIZER.encode("a red circle.")
    for limit in range(SHOWN, SHOWN + 2 + len(words) + 2):
        row, room = official_rows.pair(document, TOKENIZER, SLOTS, limit), limit - SHOWN - 2
        kept = words[:room] if room > 0 else words
        assert row.tokens[2 + SHOWN - 1 : -1].tolist() == kept and row.truncated == (0 < room < len(words))


def test_an_image_pair():
    document = Document((make_image(is_target=False), make_image(is_input=False)))
    row, broken = (official_rows.image_pair(document, TOKENIZER, SLOTS, broken) for broken in (False, True))
    assert (row.inputs, row.targets) == (((2, 0),), ((2 + SHOWN, 1),)) and not row.loss_mask.any()
    assert broken.tokens.tolist() == row.tokens.tolist() and (broken.inputs, broken.targets) == ((), row.targets)


def test_an_image_that_does_not_open_must_fit_and_parts_the_texts():
    document = Document((Text("Here is"), make_image(), Text("the end.")))
    words = [TOKENIZER.encode("Here is"), TOKENIZER.encode("the end.")]
    assert official_rows.interleaved(document, TOKENIZER, SLOTS, None, [1]).tokens[1:-1].tolist() == sum(words, [])
    limit = len(words[0]) + DRAWN + SHOWN + 1
    assert official_rows.interleaved(document, TOKENIZER, SLOTS, limit, [1]).tokens[1:-1].tolist() == words[0]


def test_texts_that_spell_special_tokens():
    row = official_rows.interleaved(Document((Text("the end.</s><im_start>"),)), TOKENIZER, SLOTS)
    assert row.tokens[-3:].tolist() == [TOKENIZER.eos, TOKENIZER.im_start, TOKENIZER.eos] and row.loss_mask[
        -3:
    ].tolist() == [True, False, True]
    with pytest.raises(ValueError, match="spells <image> or <dream>"):
        official_rows.conversation(chat("What is <image>?"), TOKENIZER, SLOTS)


def test_templates_that_the_official_code_does_not_take():
    for template in ("plain", "llama2", "none"):
        with pytest.raises(ConfigError, match=f"template: '{template}'"):
            official_rows.conversation(chat("What is it?"), TOKENIZER, SLOTS, template)


words_ = st.lists(st.sampled_from(["red", "circle.", "the end.", "What"]), min_size=1, max_size=5).map(" ".join)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.lists(st.tuples(words_, st.booleans(), st.booleans()), min_size=2, max_size=4),
    st.booleans(),
    st.integers(100, 180),
)
def test_interleaved_documents_and_answers_are_ours(chunks, asked, limit):
    """But for <s>, which the official labels keep."""
    role = "assistant" if asked else None
    parts = [
        part
        for text, inputs, targets in chunks
        for part in (Text(text, role=role), make_image(inputs, targets or not inputs, role))
    ]
    if asked:
        document = Document((Text("What is it?", role="user"), *parts))
        official = official_rows.instruction(document, TOKENIZER, SLOTS, VICUNA, limit)
    else:
        document, limit = Document(tuple(parts)), limit - 90
        official = official_rows.interleaved(document, TOKENIZER, SLOTS, limit)
    ours = tokenize_document(document, TOKENIZER, SLOTS, VICUNA, Limits(limit, 99, 99))
    assert (official.tokens.tolist(), official.inputs, official.targets, official.truncated) == (
        ours.tokens.tolist(),
        ours.inputs,
        ours.targets,
        ours.truncated,
    )
    assert official.loss_mask[1:].tolist() == ours.loss_mask[1:].tolist()
