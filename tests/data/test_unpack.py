"""Compressed files.

What grows too much is refused, what is damaged is kept as far as it goes and never taken for whole, and indexes heal.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import pathlib
import struct
import tarfile
import zipfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import pairs, reasons, told, write_tar

from dreamjax.config import SourceConfig
from dreamjax.data.registry import open_source
from dreamjax.data.storage import files, unpack
from dreamjax.data.storage.unpack import Cache
from dreamjax.errors import ConfigError, SourceError

LINES = b"".join(
    json.dumps({"instruction": f"Write {i}", "text_list": [f"text {i}"], "image_info": []}).encode() + b"\n"
    for i in range(30)
)
TEXTS = [[f"Write {i}", f"text {i}"] for i in range(30)]
GROWN = b'{"instruction": "x", "text_list": ["' + b" " * (2**24 - 100)  # 16 MiB


def opened(path, format="instruct", **options):
    return open_source(SourceConfig(format, str(path), cache=str(pathlib.Path(path).parent / "cache"), **options))


def texts(source):
    return [told(source[i]) for i in range(len(source))]


def zipped(data, compression=zipfile.ZIP_DEFLATED, **changes) -> bytes:
    """A zip of one file, fields of its entry in the directory set afterwards."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("a.jsonl", data)
    whole = bytearray(file.getvalue())
    entry = whole.index(b"PK\x01\x02")
    for place, value in changes.items():
        at = entry + {"flags": 8, "method": 10, "sum": 16, "packed": 20, "size": 24, "offset": 42}[place]
        whole[at : at + len(value)] = value
    return bytes(whole)


# ----------------------------------------------------------------------------------------------------------------------
# Growth


def grown_zip(blocks=4) -> bytes:
    """A zip of blocks of 16 MiB, each packed to 16 KiB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(GROWN) + packer.flush(zlib.Z_FULL_FLUSH)
    whole = zipped(b"", packed=struct.pack("<I", len(packed) * blocks), size=struct.pack("<I", len(GROWN) * blocks))
    local = whole[: whole.index(b"PK\x01\x02")].removesuffix(b"\x03\x00")
    directory = bytearray(whole[whole.index(b"PK\x01\x02") :])
    end = directory.index(b"PK\x05\x06")
    directory[end + 16 : end + 20] = struct.pack("<I", len(local) + len(packed) * blocks)
    return local + packed * blocks + bytes(directory)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zip", "a.json.gz", "a.jsonl", "b.jsonl", "a.tar.gz"])
def test_what_grows_a_thousand_times_is_refused(tmp_path, name):
    packed = {
        "a.jsonl.zip": grown_zip,
        "a.jsonl": lambda: bz2.compress(GROWN, 1) * 4,
        "b.jsonl": lambda: lzma.compress(GROWN) * 4,
    }
    data = packed[name]() if name in packed else gzip.compress(GROWN, 6) * 4
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match="unpacks to too much: .* unpack to more than .*max_growth"):
        opened(tmp_path / name, "webdataset" if ".tar" in name else "instruct")
    assert not list((tmp_path / "cache").glob("unpacked-*")) and not list((tmp_path / "cache").glob("*.tmp"))


def test_packed_members_of_tars_do_not_grow_either(tmp_path):
    grown = gzip.compress(GROWN, 6) * 3
    write_tar(
        tmp_path / "a.tar",
        [
            ("1.txt.gz", grown),
            ("2.txt.gz", gzip.compress(b"words")),
            ("3.txt.gz", b"\x1f\x8bbroken"),
            ("4.jpg.gz", grown),
            ("4.txt", "late"),
        ],
    )
    source = opened(tmp_path / "a.tar", "webdataset")
    assert reasons(source) == ["unpacks to too much", "", "file damaged", ""] and told(source[1]) == ["words"]
    with pytest.raises(ValueError, match="unpack to more than"):
        source[3].parts[0].pil()
    assert reasons(opened(tmp_path / "a.tar", "webdataset", max_growth=1100.0))[0] == ""  # the limit is the user's


def test_the_limits_are_the_users(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES + b" " * 2**24 + b"\n"))
    with pytest.raises(SourceError, match="unpacks to too much"):
        opened(tmp_path / "a.jsonl.gz")
    assert texts(opened(tmp_path / "a.jsonl.gz", max_growth=1100.0)) == TEXTS
    with pytest.raises(SourceError, match="unpacks to too much"):  # also where it lies unpacked
        opened(tmp_path / "a.jsonl.gz")
    with pytest.raises(SourceError, match="unpacks to too much"):
        opened(tmp_path / "a.jsonl.gz", max_growth=1100.0, max_unpacked=0.001)
    with pytest.raises(ConfigError, match="max_growth: must be positive"):
        opened(tmp_path / "a.jsonl.gz", max_growth=0.0)
    assert (
        Cache().limit(100) == unpack.UNCHECKED
        and Cache().limit(10**9) == 200 * 10**9
        and Cache().limit(10**12) == 256 * 2**30
    )


# ----------------------------------------------------------------------------------------------------------------------
# Damage


ZIPS = {
    "encrypted": zipped(LINES, flags=b"\1\0"),
    "zstd": zipped(LINES, method=b"\x5d\0"),
    "bzip2": zipped(LINES, zipfile.ZIP_BZIP2),
    "lzma": zipped(LINES, zipfile.ZIP_LZMA),
    "offset beyond": zipped(LINES, offset=b"\xff\xff\xff\x7f"),
    "cut": zipped(LINES)[:-9],
}


@pytest.mark.parametrize("name", ZIPS)
def test_zips_that_cannot_be_read(tmp_path, name):
    (tmp_path / "a.jsonl.zip").write_bytes(ZIPS[name])
    with pytest.raises(SourceError, match="a.jsonl.zip: file damaged"):
        opened(tmp_path / "a.jsonl.zip")


def test_zips_that_lie(tmp_path):
    for changes in ({"size": b"\5\0\0\0"}, {"sum": b"\0\0\0\0"}):
        (tmp_path / "a.jsonl.zip").write_bytes(zipped(LINES, **changes))
        try:
            assert opened(tmp_path / "a.jsonl.zip").skipped[0].reason == "file damaged"
        except SourceError as error:
            assert "file damaged" in str(error)
    two = zipped(LINES)
    entry, end = two.index(b"PK\x01\x02"), two.index(b"PK\x05\x06")
    overlapping = (
        two[:end] + two[entry:end] + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 2, 2, 2 * (end - entry), entry, 0)
    )
    (tmp_path / "b.jsonl.zip").write_bytes(overlapping)
    with pytest.raises(SourceError, match="archive of several files"):
        opened(tmp_path / "b.jsonl.zip")


@pytest.mark.parametrize("magic", [b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c", b"Rar!"])
def test_other_compressions_are_named(tmp_path, magic):
    (tmp_path / "a.jsonl").write_bytes(magic + LINES)
    with pytest.raises(SourceError, match="unknown compression: .* is packed as .*unpack it"):
        opened(tmp_path / "a.jsonl")


def test_a_damaged_file_never_counts_as_whole(tmp_path):
    noise = b"".join(
        json.dumps({"instruction": "x", "text_list": [os.urandom(500).hex()], "image_info": []}).encode() + b"\n"
        for _ in range(200)
    )
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(noise)[:-20_000])
    first = opened(tmp_path / "a.jsonl.gz")
    for path in (tmp_path / "cache").iterdir():
        if path.name.startswith("scan-"):
            path.unlink()
        elif path.is_dir():
            (path / "index.json").unlink()
    again = opened(tmp_path / "a.jsonl.gz")  # scanned anew, from what lies unpacked
    assert [record.reason for record in first.skipped] == [record.reason for record in again.skipped] == [
        "file damaged"
    ] and len(first) == len(again) < 200


def test_what_the_disk_does_not_take_is_no_damage(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    monkeypatch.setattr(
        unpack, "_next_block", lambda content: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space left"):
        unpack.unpacked(str(tmp_path / "a.jsonl.gz"), Cache(str(tmp_path)))
    assert os.listdir(tmp_path) == ["a.jsonl.gz"]
    monkeypatch.undo()
    content, problem = unpack.unpacked(str(tmp_path / "a.jsonl.gz"), Cache(str(tmp_path)))
    assert problem == "" and files.read_bytes(content) == LINES


# ----------------------------------------------------------------------------------------------------------------------
# Indexes


@pytest.fixture
def indexed(tmp_path):
    """Pairs in a tar, instructions in a packed file, and what opening them has put into the cache."""
    write_tar(tmp_path / "a.tar", pairs(range(4)))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES))

    def read():
        return (
            [told(document) for document in opened(tmp_path / "a.tar", "webdataset")],
            texts(opened(tmp_path / "a.jsonl.gz")),
        )

    whole = read()
    return read, whole, sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())


DAMAGE = {
    "gone": lambda path, data: path.unlink(),
    "cut": lambda path, data: path.write_bytes(data[: len(data) // 2]),
    "a bit": lambda path, data: path.write_bytes(data[:-1] + bytes([data[-1] ^ 1])),
    "nested": lambda path, data: path.write_bytes(b"[" * 100_000),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_index_is_named_and_made_anew(indexed, capsys, name):
    read, whole, kept = indexed
    assert (
        len(kept) == 2 * 10 + 2
    )  # of each index its arrays, index.json, checksums, and what the scan found; what was unpacked, and its facts
    for path in kept:
        data = path.read_bytes()
        DAMAGE[name](path, data)
        capsys.readouterr()
        assert read() == whole, path
        if path.suffix == ".npy":
            assert "the index is damaged" in capsys.readouterr().err and path.read_bytes() == data


def test_all_of_a_cache_damaged_at_once(indexed):
    read, whole, kept = indexed
    for path in kept:
        path.write_bytes(path.read_bytes()[:-3])
    assert read() == whole
    for path in kept:
        path.unlink(missing_ok=True)
    assert read() == whole


@settings(deadline=None, derandomize=True, max_examples=int(os.environ.get("DREAMJAX_FUZZ", 40)))
@given(st.data())
def test_packed_files_with_any_bytes_changed(tmp_path_factory, data):
    pack = data.draw(
        st.sampled_from(
            [
                gzip.compress,
                bz2.compress,
                lzma.compress,
                zipped,
                lambda lines: zipped(lines, zipfile.ZIP_STORED),
                tarred,
            ]
        )
    )
    packed = bytearray(pack(LINES))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(packed) - 1), st.integers(0, 255)), max_size=6)):
        packed[at] = value
    packed = packed[: data.draw(st.sampled_from([len(packed), len(packed) // 2, 7, 0]))] + data.draw(
        st.sampled_from([b"", b"x", bytes(700)])
    )
    folder = tmp_path_factory.mktemp("packed")
    (folder / "a.jsonl").write_bytes(packed)
    try:
        source = opened(folder / "a.jsonl", "webdataset" if pack is tarred else "instruct")
    except SourceError as error:
        assert str(error).isprintable()
        return
    assert all(str(record).isprintable() for record in source.skipped)
    reasons(source)  # which lets nothing but BadRecord through


def tarred(lines: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for number, line in enumerate(lines.splitlines()):
            info = tarfile.TarInfo(f"{number}.json")
            info.size = len(line)
            tar.addfile(info, io.BytesIO(line))
    return file.getvalue()
