"""The filters of `prepare`: the reason of each, and what passes."""

import pytest
from made_data import encoded, jpeg, make_image, told

from dreamjax.data.prepare.filters import Filters, keep, read_words
from dreamjax.data.sources.records import Unusable
from dreamjax.document import Document, Image, Text
from dreamjax.errors import BadImage, ConfigError


def caption(text, size=(24, 32)):
    return Document((Image(encoded(make_image(1, size))), Text(text)), kind="pair")


@pytest.mark.parametrize(
    "document, filters, reason",
    [
        (caption("a cat", (23, 90)), {"min_side": 24}, "image too small"),
        (caption("a cat", (24, 73)), {"max_aspect": 3}, "image too long"),
        (caption("see http://x.y/z"), {"urls": False}, "address in the caption"),
        (caption("buy at Shop-24.COM now"), {"urls": False}, "address in the caption"),
        (caption("un café"), {"non_ascii": False}, "caption not ASCII"),
        (caption("cat"), {"min_characters": 4}, "caption too short"),
        (caption("a cat on"), {"max_characters": 7}, "caption too long"),
        (caption("A Bad, cat"), {"words": ("bad",)}, "unwanted word"),
        (Document((Text("nothing to see"),)), {"min_images": 1}, "too few pictures"),
        (Document((Image(b"x"),)), {}, "empty"),
        (Document((Image(b"x", role="user"), Text("yes", role="assistant"))), {}, "image in no known format"),
    ],
)
def test_each_filter(document, filters, reason):
    with pytest.raises((Unusable, BadImage)) as caught:
        keep(document, Filters(**filters))
    assert getattr(caught.value, "reason", caught.value.args[0]) == reason
    if filters:
        assert keep(document, Filters())[0].parts[-1] == document.parts[-1]


def test_what_passes_every_filter_and_words():
    filters = Filters(24, 1.5, True, 1, 4, 30, False, False, read_words("Bad\n\n worse \n"))
    document = caption("a badly drawn cat, 2.5 m tall.")
    assert filters.words == ("bad", "worse") and keep(document, filters)[0].parts[1] == document.parts[1]
    with pytest.raises(ConfigError, match="max_aspect: is at least 1"):
        Filters(max_aspect=0.5)


def test_texts_that_a_lost_image_parted_are_joined():
    document = Document((Text("One."), Image(b"x"), Text("Two."), Image(jpeg(3)), Text("Three.")), id="d")
    kept, left_out = keep(document, Filters())
    assert told(kept) == ["One. Two.", 3, "Three."] and len(left_out) == 1 and kept.id == "d"
