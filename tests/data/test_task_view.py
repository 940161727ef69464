"""What training shows of a document, by mode, and the coin that decides for pairs."""

import numpy as np
import pytest

from dreamjax.config.run import MODES
from dreamjax.data.pipeline.task_view import directions, view
from dreamjax.document import Document, Image, Text

PICTURE = np.zeros((4, 4, 3), np.uint8)


def marks(document: Document) -> list:
    return [
        (part.is_input, part.is_target) if isinstance(part, Image) else (part.text, part.supervised)
        for part in document.parts
    ]


@pytest.mark.parametrize("caption_first", [True, False])
@pytest.mark.parametrize(
    "mode, direction, comprehended",
    [
        ("joint", 0.5, True),
        ("joint", 0.99, True),
        ("joint", 0.49, False),
        ("comprehension_only", 0.0, True),
        ("creation_only", 0.99, False),
    ],
)
def test_a_pair_shows_one_side(caption_first, mode, direction, comprehended):
    parts = (Text("A goat."), Image(PICTURE))
    shown = view(Document(parts if caption_first else parts[::-1], id="a", kind="pair"), mode, direction)
    assert marks(shown) == ([(True, False), ("A goat.", True)] if comprehended else [("A goat.", False), (False, True)])
    assert shown.kind == "" and shown.id == "a"


def test_other_documents_keep_their_order():
    document = Document(
        (
            Text("A"),
            Image(PICTURE),
            Image(PICTURE, is_target=False),
            Text("B", supervised=False),
            Image(PICTURE, is_input=False),
        )
    )
    assert view(document, "joint", 0.0) is document
    assert marks(view(document, "comprehension_only", 0.0)) == [
        ("A", True),
        (True, False),
        (True, False),
        ("B", False),
        (False, False),
    ]
    assert marks(view(document, "creation_only", 0.0)) == [
        ("A", True),
        (False, True),
        (True, False),
        ("B", False),
        (False, True),
    ]
    assert len(MODES) == 3


def test_coins_are_fair_and_each_depends_on_its_own_key_alone():
    indices = np.arange(20_000)
    drawn = directions(3, np.zeros(20_000, np.int64), indices)
    assert (
        abs(np.mean(drawn >= 0.5) - 0.5) < 0.015
        and abs(np.var(drawn) - 1 / 12) < 0.002
        and drawn.min() >= 0
        and drawn.max() < 1
    )
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.03
    assert np.array_equal(
        directions(3, np.zeros(3, np.int32), np.array([7, 11, 19_999], np.int32)), drawn[[7, 11, 19_999]]
    )
    for other in (
        directions(4, np.zeros(20_000, np.int64), indices),
        directions(3, np.ones(20_000, np.int64), indices),
    ):
        assert abs(np.corrcoef(drawn, other)[0, 1]) < 0.03 and not np.any(drawn == other)
