"""Documents in ArrayRecord: nothing is lost on the way, and a damaged file costs what lies in it."""

import os
import pathlib
import pickle

import numpy as np
import pytest
from array_record.python import array_record_module
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import jpeg, make_image, told

from dreamjax.config import SourceConfig
from dreamjax.data.registry import open_source
from dreamjax.data.sources.array_record import LENGTHS, WRITER_OPTIONS, decode, encode
from dreamjax.document import KINDS, ROLES, Document, Image, Text
from dreamjax.errors import BadRecord, SourceError

roles = st.sampled_from([None, *ROLES])
parts = st.one_of(
    st.builds(Text, st.text(), st.booleans(), roles), st.builds(Image, st.binary(), st.booleans(), st.booleans(), roles)
)
documents = st.builds(Document, st.lists(parts, max_size=6).map(tuple), st.text(), kind=st.sampled_from(KINDS))


def write(path, records):
    writer = array_record_module.ArrayRecordWriter(str(path), WRITER_OPTIONS)
    for record in records:
        writer.write(record if isinstance(record, bytes) else encode(record))
    writer.close()


def pair(number):
    return Document((Image(jpeg(number)), Text(f"caption {number}")), id=f"d{number}", kind="pair")


def opened(path):
    return open_source(SourceConfig("array_record", str(path)))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(documents)
def test_any_document_comes_back(document):
    again = decode(encode(document))
    assert (again.id, again.kind, len(again.parts)) == (document.id, document.kind, len(document.parts))
    for one, other in zip(again.parts, document.parts, strict=True):
        if isinstance(one, Text):
            assert one == other
        else:
            assert (one.source, one.is_input, one.is_target, one.role) == (
                other.source,
                other.is_input,
                other.is_target,
                other.role,
            )


def test_images_keep_their_files(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg(7))
    sources = [jpeg(7), tmp_path / "a.jpg", str(tmp_path / "a.jpg")]
    assert [part.source for part in decode(encode(Document(tuple(map(Image, sources))))).parts] == [jpeg(7)] * 3
    drawn = decode(encode(Document((Image(make_image(5)),)))).parts[0]
    assert np.array_equal(np.asarray(drawn.pil()), make_image(5))


def test_reading_by_number(tmp_path):
    write(tmp_path / "a-0.array_record", map(pair, range(3)))
    write(tmp_path / "a-1.array_record", map(pair, range(3, 8)))
    source = opened(tmp_path)
    again = pickle.loads(pickle.dumps(source))
    assert [told(again[i]) for i in (7, 0, 3)] == [[i, f"caption {i}"] for i in (7, 0, 3)] and len(again) == 8
    assert source[5].kind == "pair" and source[5].id == "d5" and source.key(5) == "a-1.array_record:2"
    assert list(source.texts()) == [f"caption {i}" for i in range(8)] and source.skipped == ()
    with pytest.raises(IndexError):
        source[8]
    assert source.lengths() is None
    np.save(tmp_path / LENGTHS, np.arange(24, dtype=np.int32).reshape(8, 3))
    assert source.lengths()[7].tolist() == [21, 22, 23] and opened(tmp_path / "a-0.array_record").lengths() is None
    assert (
        source.fingerprint
        == again.fingerprint
        == opened(tmp_path).fingerprint
        != opened(tmp_path / "a-0.array_record").fingerprint
    )


def test_damage_costs_what_lies_there(tmp_path):
    for number in range(3):
        write(tmp_path / f"a-{number}.array_record", map(pair, range(10 * number, 10 * number + 10)))
    cut = tmp_path / "a-1.array_record"
    cut.write_bytes(cut.read_bytes()[:3000])
    torn = tmp_path / "a-2.array_record"
    data = bytearray(torn.read_bytes())
    at = data.index(jpeg(24))
    data[at : at + 40] = bytes(40)
    torn.write_bytes(data)
    source = opened(tmp_path / "a-{0..3}.array_record")
    assert [(record.name[-14:], record.reason) for record in source.skipped] == [
        ("1.array_record", "file damaged"),
        ("3.array_record", "file missing"),
    ]
    assert len(source) == 20 and [told(source[i])[1:] for i in (0, 9, 10, 13, 15, 19)] == [
        [f"caption {i}"] for i in (0, 9, 20, 23, 25, 29)
    ]
    with pytest.raises(BadRecord, match=r"a-2.array_record:4: damaged record") as caught:
        source[14]
    assert "\n" not in str(caught.value)


def test_records_that_are_no_documents(tmp_path):
    good = encode(pair(1))
    newer = good.replace(b'"version": 1', b'"version": 2')
    write(
        tmp_path / "a.array_record",
        [good, b"", b"\x05\0\0\0{bad}", good[:-1], good + b"x", newer, b"\xff\xff\xff\xff", b"\x02\0\0\0{}"],
    )
    source = opened(tmp_path)
    for i in range(1, 8):
        with pytest.raises(BadRecord, match=f"array_record:{i}: no document"):
            source[i]


def test_what_cannot_be_opened(tmp_path):
    nowhere = [(tmp_path / "x*", "no such file"), (tmp_path / "x", "no document to read: .*/x: file missing")]
    for path, reason in [
        *nowhere,
        ("gs://b/a.array_record", "gcsfs"),
        ("memory://none/a.array_record", "file missing"),
    ]:
        with pytest.raises(SourceError, match=reason):
            opened(path)
    (tmp_path / "a.array_record").write_bytes(os.urandom(4000))
    with pytest.raises(SourceError, match="file damaged"):
        opened(pathlib.Path(tmp_path))
