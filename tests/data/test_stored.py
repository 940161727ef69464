"""Stored pictures of frozen encoders.

Every array comes back, an interrupted writing goes on, nothing foreign is read.
"""

import numpy as np
import pytest

from dreamjax.data.features import stored as encoded_module
from dreamjax.data.features.stored import EncodedImage, card_of, decode, encode, open_encoded, write_encoded
from dreamjax.document.batch import Encoded
from dreamjax.errors import SourceError

LAYOUT = Encoded((3, 4), (2, 2, 6), "bfloat16")


def drawn(number, layout=LAYOUT):
    """The pictures of document `number`: as many as its remainder by 3, every fifth of which does not open."""
    rng = np.random.default_rng(number)

    def features():
        return rng.normal(size=layout.features).astype(layout.dtype) if layout.features else None

    def moments():
        return rng.normal(size=(2, *layout.moments)).astype(np.float32) if layout.moments else None

    return [None if (number + k) % 5 == 0 else EncodedImage(features(), moments()) for k in range(number % 3)]


def assert_same(ours, theirs):
    assert [one is None for one in ours] == [one is None for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        for mine, yours in zip(one or (), other or (), strict=True):
            assert (mine is None) == (yours is None) and (
                mine is None or (mine.dtype == yours.dtype and np.array_equal(mine, yours))
            )


@pytest.mark.parametrize("layout", [LAYOUT, Encoded((), (2, 2, 6), "float32"), Encoded((3, 4), (), "float32")])
def test_records_come_back(layout):
    for number in range(12):
        assert_same(decode(encode(drawn(number, layout)), number % 3, layout), drawn(number, layout))
    with pytest.raises(ValueError, match="bytes for 1 pictures"):
        decode(encode(drawn(2)), 1, LAYOUT)


@pytest.mark.parametrize("name", ["encoded.json", "encoded-00001-of-00003.array_record"])
@pytest.mark.parametrize("damage", [b"", b"hello", b"[1]", b"[" * 100_000, b'{"documents": "x"}', None, "half"])
def test_damaged_files_are_named_with_the_remedy(tmp_path, monkeypatch, name, damage):
    monkeypatch.setattr(encoded_module, "PER_FILE", 10)
    folder, card = str(tmp_path), card_of("source", LAYOUT, "encoders", 25)
    write_encoded(folder, card, lambda numbers: map(drawn, numbers))
    file = tmp_path / name
    file.unlink() if damage is None else file.write_bytes(file.read_bytes()[:-40] if damage == "half" else damage)
    with pytest.raises(SourceError, match="python -m dreamjax.precompute writes"):
        stored = open_encoded(folder, "source", LAYOUT)
        [stored.images(number, number % 3) for number in range(25)]
    for damaged in (file, tmp_path / "encoded.json"):  # the remedy
        damaged.unlink(missing_ok=True)
    write_encoded(folder, card, lambda numbers: map(drawn, numbers))
    stored = open_encoded(folder, "source", LAYOUT)
    for number in range(25):
        assert_same(stored.images(number, number % 3), drawn(number))


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_an_interrupted_writing_goes_on(tmp_path, monkeypatch, place):
    monkeypatch.setattr(encoded_module, "PER_FILE", 10)
    cache = str(tmp_path / "cache")
    folder, card, asked = (
        str(tmp_path / "pictures") if place == "disk" else "memory://encoded/pictures",
        card_of("source", LAYOUT, "sum", 35),
        [],
    )

    def documents(numbers, until=99):
        for number in numbers:
            if number == until:
                raise KeyboardInterrupt
            asked.append(number)
            yield drawn(number)

    with pytest.raises(KeyboardInterrupt):
        write_encoded(folder, card, lambda numbers: documents(numbers, until=25))
    with pytest.raises(SourceError, match="has no encoded.json"):
        open_encoded(folder, "source", LAYOUT, cache)
    with pytest.raises(SourceError, match="holds what was made of another source"):
        write_encoded(folder, card_of("other", LAYOUT, "sum", 35), documents)
    asked.clear()
    write_encoded(folder, card, documents)
    assert asked == list(range(20, 35))
    write_encoded(folder, card, None)  # it is complete
    found = open_encoded(folder, "source", LAYOUT, cache)
    assert found.encoders == "sum"
    for number in (0, 7, 19, 34):
        assert_same(found.images(number, number % 3), drawn(number))
