"""The official rows' faults, each shown on a row that can be counted by hand, and that they agree with ours where
there is none.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamjax import rows_official
from dreamjax.document import Document, Image, Text
from dreamjax.rows import Limits, Slots, build_row
from dreamjax.schema import ConfigError
from dreamjax.templates import TEMPLATES
from dreamjax.tokenizer import Tokenizer
from dreamjax.tokenizer_training import train_tokenizer

SLOTS = Slots(queries=2, patches=3)
DRAWN, SHOWN = 4, 5  # tokens of a picture
VICUNA = "vicuna_v1.1"
TOKENIZER = Tokenizer.from_model(
    train_tokenizer(
        ["Here is a red circle. What is it? USER: ASSISTANT: the end. " + TEMPLATES[VICUNA].system] * 3, 420
    )
)


def picture(seen=True, dreamed=True, role=None):
    return Image(np.zeros((4, 4, 3), np.uint8), seen, dreamed, role)


def chat(*asked, answer="the end."):
    """A question of texts and pictures and its answer."""
    turns = [
        Text(part, role="user") if isinstance(part, str) else picture(dreamed=False, role="user") for part in asked
    ]
    return Document((*turns, Text(answer, role="assistant")))


def test_a_conversation_is_cut_at_a_picture_by_the_wrong_sign():
    document = chat("What is it?", None)
    whole = rows_official.conversation(document, TOKENIZER, SLOTS)
    ((at, _),) = whole.seen
    position = at - 1  # of <im_start>
    for spare in range(1, SHOWN):
        row = rows_official.conversation(document, TOKENIZER, SLOTS, limit=position + spare)
        assert row.tokens.tolist() == whole.tokens[:spare].tolist() and row.cut and row.seen == ()
    assert (
        rows_official.conversation(document, TOKENIZER, SLOTS, limit=position).tokens.tolist()
        == whole.tokens[:position].tolist()
    )
    ends_at_the_limit = rows_official.conversation(document, TOKENIZER, SLOTS, limit=position + SHOWN)
    assert ends_at_the_limit.tokens.tolist() == whole.tokens.tolist() and not ends_at_the_limit.cut


def test_a_conversations_labels_are_counted():
    row = rows_official.conversation(chat("What is it?"), TOKENIZER, SLOTS)
    ours = build_row(chat("What is it?"), TOKENIZER, SLOTS, VICUNA, labels="official")
    assert row.tokens.tolist() == ours.tokens.tolist()
    asked = rows_official.conversation_string(chat("What is it?")).partition("the end.")[0]
    first = 1 + len(TOKENIZER.encode(asked)) - 1  # behind <s>; the last space is a token by itself
    assert np.flatnonzero(row.learned).tolist() == list(range(first, len(row.tokens)))
    lead = chat("Say ASSISTANT: it", answer="a red circle.")
    assert rows_official.conversation(lead, TOKENIZER, SLOTS).learned[1:].all()  # the count has given up
    drawn = Document((Text("Here?", role="user"), Text("the end. ", role="assistant"), picture(role="assistant")))
    row = rows_official.conversation(drawn, TOKENIZER, SLOTS)
    assert not row.learned[row.tokens == TOKENIZER.dream_start].any() and len(row.seen) == len(row.dreamed) == 1


def test_a_user_who_has_the_last_word_is_learned():
    document = Document((*chat("What is it?").parts, Text("Here?", role="user")))
    row = rows_official.conversation(document, TOKENIZER, SLOTS)
    assert rows_official.conversation_string(document).endswith("the end.</s>USER: Here? ")
    assert row.learned[np.flatnonzero(row.tokens == TOKENIZER.eos)[0] :].all()


def test_a_pair_keeps_the_tokens_of_a_picture_that_does_not_open():
    document = Document((picture(dreamed=False), Text("a red circle.")))
    row, broken = (rows_official.pair(document, TOKENIZER, SLOTS, broken=broken) for broken in (False, True))
    assert row.tokens.tolist() == broken.tokens.tolist() and row.seen == ((2, 0),) and broken.seen == ()
    with pytest.raises(ValueError, match="does not open"):
        rows_official.pair(Document((Text("a red circle."), picture(seen=False))), TOKENIZER, SLOTS, broken=True)


def test_a_caption_is_shortened_unless_nothing_of_it_would_stay():
    document = Document((picture(dreamed=False), Text("a red circle.")))
    words = TOKENIZER.encode("a red circle.")
    for limit in range(SHOWN, SHOWN + 2 + len(words) + 2):
        row, room = rows_official.pair(document, TOKENIZER, SLOTS, limit), limit - SHOWN - 2
        kept = words[:room] if room > 0 else words
        assert row.tokens[2 + SHOWN - 1 : -1].tolist() == kept and row.cut == (0 < room < len(words))


def test_an_image_pair():
    document = Document((picture(dreamed=False), picture(seen=False)))
    row, broken = (rows_official.picture_pair(document, TOKENIZER, SLOTS, broken) for broken in (False, True))
    assert (row.seen, row.dreamed) == (((2, 0),), ((2 + SHOWN, 1),)) and not row.learned.any()
    assert broken.tokens.tolist() == row.tokens.tolist() and (broken.seen, broken.dreamed) == ((), row.dreamed)


def test_a_picture_that_does_not_open_must_fit_and_parts_the_texts():
    document = Document((Text("Here is"), picture(), Text("the end.")))
    words = [TOKENIZER.encode("Here is"), TOKENIZER.encode("the end.")]
    assert rows_official.interleaved(document, TOKENIZER, SLOTS, None, [1]).tokens[1:-1].tolist() == sum(words, [])
    limit = len(words[0]) + DRAWN + SHOWN + 1
    assert rows_official.interleaved(document, TOKENIZER, SLOTS, limit, [1]).tokens[1:-1].tolist() == words[0]


def test_texts_that_spell_special_tokens():
    row = rows_official.interleaved(Document((Text("the end.</s><im_start>"),)), TOKENIZER, SLOTS)
    assert row.tokens[-3:].tolist() == [TOKENIZER.eos, TOKENIZER.im_start, TOKENIZER.eos] and row.learned[
        -3:
    ].tolist() == [True, False, True]
    with pytest.raises(ValueError, match="spells <image> or <dream>"):
        rows_official.conversation(chat("What is <image>?"), TOKENIZER, SLOTS)


def test_templates_that_the_official_code_does_not_take():
    for template in ("plain", "llama2", "none"):
        with pytest.raises(ConfigError, match=f"template: '{template}'"):
            rows_official.conversation(chat("What is it?"), TOKENIZER, SLOTS, template)


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
        for text, seen, dreamed in chunks
        for part in (Text(text, role=role), picture(seen, dreamed or not seen, role))
    ]
    if asked:
        document = Document((Text("What is it?", role="user"), *parts))
        official = rows_official.instruction(document, TOKENIZER, SLOTS, VICUNA, limit)
    else:
        document, limit = Document(tuple(parts)), limit - 90
        official = rows_official.interleaved(document, TOKENIZER, SLOTS, limit)
    ours = build_row(document, TOKENIZER, SLOTS, VICUNA, Limits(limit, 99, 99))
    assert (official.tokens.tolist(), official.seen, official.dreamed, official.cut) == (
        ours.tokens.tolist(),
        ours.seen,
        ours.dreamed,
        ours.cut,
    )
    assert official.learned[1:].tolist() == ours.learned[1:].tolist()
