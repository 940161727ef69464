"""Containers with any bytes changed.

A record, or a name and a reason, and nothing else. DREAMJAX_FUZZ=100000 goes on for hours.
"""

import io
import os
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from array_record.python import array_record_module
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_data import jpeg, reasons, told

from dreamjax.config import SourceConfig
from dreamjax.data.registry import open_source
from dreamjax.data.sources import parquet
from dreamjax.data.sources.array_record import LENGTHS, WRITER_OPTIONS, encode
from dreamjax.document import Document, Image, Text
from dreamjax.errors import SourceError

EXAMPLES = int(os.environ.get("DREAMJAX_FUZZ", 40))
values = st.one_of(st.binary(min_size=1, max_size=12), st.sampled_from([b"", bytes(64), b"\xff" * 12]))
changes = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), values), max_size=5)
fuzzed = settings(
    deadline=None,
    derandomize="DREAMJAX_FUZZ" not in os.environ,
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow],
)


def changed(data: bytes, changes) -> bytes:
    """Bytes set at some places; b"" cuts the rest off."""
    data = bytearray(data)
    for place, value in changes:
        at = int(place * len(data))
        data[at : at + len(value) if value else len(data)] = value
    return bytes(data)


def read(path, format):
    """The reasons of all records, after those of what was skipped.

    One that can be printed for a file in which nothing can be read.
    """
    try:
        source = open_source(SourceConfig(format, str(path), cache=str(path.parent / "cache")))
    except SourceError as error:
        assert str(error).isprintable()
        return [str(error)]
    for record in source.skipped:
        assert str(record).isprintable()
    number = min(len(source), 50)
    assert number > 0
    return [record.reason for record in source.skipped] + reasons(source)[:number]


def tar_of(form) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for number in range(4):
            for kind, data in (("jpg", jpeg(number)), ("json", b'{"caption": "c"}'), ("txt", b"caption")):
                info = tarfile.TarInfo(f"{'deep/' * 25}{number}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


TARS = {form: tar_of(form) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)}


@fuzzed
@given(
    st.sampled_from(list(TARS)),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 511), st.binary(min_size=1, max_size=12)), max_size=4),
    changes,
    st.booleans(),
)
def test_tars(tmp_path_factory, form, in_headers, anywhere, summed):
    data = bytearray(TARS[form])
    starts = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    for number, place, value in in_headers:
        at = starts[number % len(starts)]
        block = bytearray(data[at : at + 512])
        block[place : place + len(value)] = value
        block = block[:512].ljust(512, b"\0")
        if summed:  # what a checksum would have told is let through
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
        data[at : at + 512] = block
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    path.write_bytes(changed(data, anywhere))
    assert anywhere or in_headers or read(path, "webdataset") == [""] * 4
    read(path, "webdataset")


@pytest.fixture(scope="module")
def array_record(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("made") / "a.array_record"
    writer = array_record_module.ArrayRecordWriter(str(path), WRITER_OPTIONS)
    for number in range(3):
        writer.write(encode(Document((Image(jpeg(number)), Text("a goat")), id=f"{number}", kind="pair")))
    writer.close()
    return path.read_bytes()


@fuzzed
@given(changes)
def test_array_record(tmp_path_factory, array_record, changes):
    path = tmp_path_factory.mktemp("array_record") / "a.array_record"
    path.write_bytes(changed(array_record, changes))
    assert changes or read(path, "array_record") == [""] * 3
    read(path, "array_record")


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", bytes(200), b"[1]", "cut", "type", "shape", "negative"])
def test_damaged_lengths_of_prepared_files_are_measured_anew(tmp_path, array_record, capsys, damage):
    (tmp_path / "a.array_record").write_bytes(array_record)
    lengths = np.arange(9, dtype=np.int32).reshape(3, 3)
    np.save(
        tmp_path / LENGTHS,
        {"type": lengths.astype(np.int64), "shape": lengths[:, 0], "negative": -lengths}.get(str(damage), lengths),
    )
    source = open_source(SourceConfig("array_record", str(tmp_path)))
    if isinstance(damage, bytes):
        (tmp_path / LENGTHS).write_bytes(damage)
    if damage == "cut":
        (tmp_path / LENGTHS).write_bytes((tmp_path / LENGTHS).read_bytes()[:-5])
    assert source.lengths() is None and "lengths are measured anew" in capsys.readouterr().err


def parquet_of() -> bytes:
    file = io.BytesIO()
    rows = {"image": [{"bytes": jpeg(i), "path": None} for i in range(6)], "text": [f"caption {i}" for i in range(6)]}
    pyarrow.parquet.write_table(pyarrow.table(rows), file, row_group_size=3)
    return file.getvalue()


PARQUET = parquet_of()


@fuzzed
@given(changes)
def test_parquet(tmp_path_factory, changes):
    path = tmp_path_factory.mktemp("parquet") / "a.parquet"
    path.write_bytes(changed(PARQUET, changes))
    parquet._read_column.cache_clear()
    assert changes or read(path, "parquet") == [""] * 6
    read(path, "parquet")


def test_a_value_that_stands_in_many_rows(tmp_path, monkeypatch):
    pyarrow.parquet.write_table(
        pyarrow.table({"text": ["a" * 100_000] * 200}), tmp_path / "a.parquet", row_group_size=100
    )
    assert (tmp_path / "a.parquet").stat().st_size < 500_000
    source = open_source(SourceConfig("parquet", str(tmp_path / "a.parquet")))
    monkeypatch.setattr(parquet, "LARGEST", 10**6)
    parquet._read_column.cache_clear()
    assert set(reasons(source)) == {"unpacks to too much"}
    monkeypatch.setattr(parquet, "LARGEST", 2 * 10**7)
    parquet._read_column.cache_clear()
    assert told(source[199]) == ["a" * 100_000]
