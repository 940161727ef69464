"""Headers of tars that lie, links, and tars behind each other.

Bounded time and memory, and never a caption without its picture.
"""

import gzip
import io
import tarfile
import tracemalloc

import pytest
from made_data import jpeg, pairs, told, write_tar

from dreamjax.config import SourceConfig
from dreamjax.data.prepare.filters import Filters, keep
from dreamjax.data.registry import open_source
from dreamjax.data.sources.tar_members import BLOCK, walk
from dreamjax.data.storage import unpack

END = bytes(2 * BLOCK)
TERABYTE = b"\x80" + (2**40).to_bytes(11, "big")


def header(name="x.jpg", size=0, kind=b"0", link="", form=tarfile.GNU_FORMAT) -> bytes:
    """A header with a right checksum; a size in bytes stands as it is."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, 0 if isinstance(size, bytes) else size
    block = bytearray(info.tobuf(form)[-BLOCK:])
    if isinstance(size, bytes):
        block[124:136] = size
    return summed(block)


def summed(block) -> bytes:
    block = bytearray(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name, data: bytes, kind=b"0") -> bytes:
    return header(name, len(data), kind) + data + bytes(-len(data) % BLOCK)


def pax(key: str, value: bytes, kind=b"x") -> bytes:
    """An extended header of one record of right length, as the standard library writes it, around any bytes."""
    rest = b" " + key.encode() + b"=" + value + b"\n"
    size = next(n for n in range(len(rest), len(rest) + 20) if len(str(n)) + len(rest) == n)
    return member("pax", str(size).encode() + rest, kind)


TEXT = member("x.txt", b"caption x")
PICTURE = member("x.jpg", jpeg(5))


@pytest.fixture
def read(tmp_path):
    """What a tar gives: what its documents show, and the reasons for what was left out.

    Before the blocks stand the pair 0 and a text, which damage may cut, and behind them the pair 1.
    """
    before, after = (write_tar(tmp_path / "pair.tar", pairs([i])).read_bytes().rstrip(b"\0") for i in (0, 1))
    before, after = (data + bytes(-len(data) % BLOCK) for data in (before, after))

    def read(*blocks):
        (tmp_path / "a.tar").write_bytes(b"".join([before, member("w.txt", b"w"), *blocks, after, END]))
        source = open_source(SourceConfig("webdataset", str(tmp_path / "a.tar"), cache=str(tmp_path / "cache")))
        assert told(source[0]) == [0, "caption 0"] and all(str(record).isprintable() for record in source.skipped)
        return [shown for i in range(1, len(source)) if (shown := told(source[i])) != ["w"]], [
            record.reason for record in source.skipped
        ]

    return read


# ----------------------------------------------------------------------------------------------------------------------
# Headers


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g", b"X"])
def test_thousands_of_headers_before_one_member(read, kind):
    one = pax("path", b"y.txt", kind) if kind in b"xgX" else member("long", b"y.txt", kind)
    documents, skipped = read(one * 5000, member("z.txt", b"words"))
    assert ["words"] in documents or skipped
    if kind in b"LxX":
        assert documents == [["words"], [1, "caption 1"]] and not skipped


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g", b"X", b"0"])
@pytest.mark.parametrize(
    "size", [TERABYTE, b"\x80" + b"\x7f" * 11, b"\xff" * 12, b"77777777777\0", b"-0000000001\0", b"0000000012x\0"]
)
def test_sizes_that_lie(read, kind, size):
    tracemalloc.start()
    documents, skipped = read(header(size=size, kind=kind), TEXT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert documents == [] and skipped == ["tar damaged"] and peak < 20 * 2**20


@pytest.mark.parametrize(
    "content",
    [
        b"99999999999 path=y.txt\n",
        b"999 path=y.txt\n",
        b"0 path=y.txt\n",
        b"3 path=y.txt\n",
        b"9" * 5000 + b" path=y\n",
        b"-9 path=y.txt\n",
        b"path=y.txt\n",
        b"14 path=y.txt.",
        b"8 path\n",
        b"24 size=" + b"9" * 15 + b"\n",
        b"11 size=-5\n",
        b"13 size=1e30\n",
        b"9 size=\xb2\n",
        b"8 size=\n",
    ],
)
@pytest.mark.parametrize("kind", [b"x", b"g"])
def test_pax_records_that_lie(read, content, kind):
    assert read(member("pax", content, kind), PICTURE, TEXT) == ([], ["tar damaged"])


def test_fields_of_pax(read):
    assert read(pax("path", b"other/y.jpg"), PICTURE, member("other/y.txt", b"y")) == ([[5, "y"], [1, "caption 1"]], [])
    assert read(pax("size", str(len(jpeg(5))).encode()), header(size=0) + PICTURE[BLOCK:], TEXT) == (
        [[5, "caption x"], [1, "caption 1"]],
        [],
    )
    assert read(pax("comment", b"x" * 100_000, b"g") + pax("uid", b"9" * 100), PICTURE, TEXT) == (
        [[5, "caption x"], [1, "caption 1"]],
        [],
    )
    assert read(pax("path", b"n" * 5000), PICTURE, TEXT)[1] == ["tar damaged"]


def test_names_that_are_no_text(read):
    for name in (b"a\0b", b"\xff\xfe", b"\xed\xa0\x80", b"a\nb", b"\x1b[2J", b"a/" * 2000 + b"n", "ä".encode()):
        documents, skipped = read(pax("path", name + b".jpg"), PICTURE, pax("path", name + b".txt"), TEXT)
        assert documents == [[5, "caption x"], [1, "caption 1"]] and not skipped, name
        assert read(2 * (pax("path", name + b".jpg") + PICTURE))[1] == [
            "repeated member"
        ]  # whose name is told in one line


def test_sparse_members_are_no_images(read):
    old = bytearray(header(size=BLOCK, kind=b"S"))
    old[482], old[483:495] = 1, b"00000010000\0"
    more = bytearray(BLOCK)
    more[504] = 1
    assert read(summed(old) + bytes(more) * 2000 + bytes(BLOCK), bytes(BLOCK), TEXT) == (
        [[1, "caption 1"]],
        ["member is no file"],
    )
    assert read(pax("GNU.sparse.realsize", b"99999999") + PICTURE, TEXT) == ([[1, "caption 1"]], ["member is no file"])
    assert read(summed(old) + b"\xff" * BLOCK)[1] == ["tar damaged"]


@pytest.mark.parametrize("kind", [b"3", b"4", b"6", b"V", b"M", b"N", b"\xff"])
def test_members_that_are_no_files(read, kind):
    assert read(header(kind=kind), TEXT) == ([[1, "caption 1"]], ["member is no file"])


def test_a_wrong_checksum_ends_the_tar(read):
    broken = bytearray(PICTURE)
    broken[10] ^= 4
    assert read(bytes(broken), TEXT) == ([], ["tar damaged"])


# ----------------------------------------------------------------------------------------------------------------------
# Links


def test_links_within_the_tar(read):
    folder = member("d/y.txt", b"caption y") + member("d/blob", jpeg(7))
    for kind, target in (
        (b"2", "blob"),
        (b"2", "../d/blob"),
        (b"1", "d/blob"),
        (b"1", "./d/blob"),
        (b"2", "../d/./blob"),
    ):
        assert read(header("d/y.jpg", kind=kind, link=target), folder)[0] == [[7, "caption y"], [1, "caption 1"]], (
            target
        )
    chain = b"".join(header(f"{i}", kind=b"2", link=f"{i + 1}") for i in range(20)) + member("20", jpeg(7))
    assert read(header(kind=b"2", link="0"), TEXT, chain)[0] == [[7, "caption x"], [1, "caption 1"]]
    assert read(header("x.txt", kind=b"1", link="000000000.txt"), PICTURE)[0][0] == [5, "caption 0"]


@pytest.mark.parametrize(
    "target", ["none.jpg", "/etc/passwd", "../outside.jpg", "x.jpg", "", ".", "y.jpg", "000000000.jpg/..", "twice.bin"]
)
@pytest.mark.parametrize("kind", [b"1", b"2"])
def test_links_to_nothing_take_their_record_with_them(read, kind, target):
    more = header("y.jpg", kind=b"2", link="x.jpg") + member("twice.bin", b"1") + member("twice.bin", b"2")
    documents, skipped = read(header(kind=kind, link=target), TEXT, more)
    assert documents == [[1, "caption 1"]] or ["caption x"] not in documents
    assert "link leads nowhere" in skipped and not any(len(document) == 1 for document in documents)


# ----------------------------------------------------------------------------------------------------------------------
# Behind the end


def tar_of(numbers, form, blocking) -> bytes:
    """As other programs end their tars: two blocks of zeros, then zeros up to a multiple of the blocking factor."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, content in pairs(numbers):
            data = content if isinstance(content, bytes) else str(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = file.getvalue().rstrip(b"\0")
    data += bytes(-len(data) % BLOCK) + END
    return data + bytes(-len(data) % (blocking * BLOCK))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("blocking", [1, 20, 100])
@pytest.mark.parametrize("count", [2, 3])
def test_tars_behind_each_other(tmp_path, form, blocking, count):
    (tmp_path / "a.tar").write_bytes(b"".join(tar_of(range(3 * i, 3 * i + 3), form, blocking) for i in range(count)))
    source = open_source(SourceConfig("webdataset", str(tmp_path)))
    assert [told(source[i]) for i in range(len(source))] == [
        [i, f"caption {i}"] for i in range(3 * count)
    ] and source.skipped == ()


def test_the_same_names_in_two_tars_are_two_records(tmp_path):
    link = header("l.jpg", kind=b"2", link="000000000.jpg") + member("l.txt", b"link")
    first, second = ([member("000000000.jpg", jpeg(i)), member("000000000.txt", b"%d" % i), link] for i in (1, 2))
    (tmp_path / "a.tar").write_bytes(b"".join([*first, END, *second, END]))
    source = open_source(SourceConfig("webdataset", str(tmp_path)))
    assert [told(source[i]) for i in range(len(source))] == [
        [1, "1"],
        [1, "link"],
        [2, "2"],
        [2, "link"],
    ] and source.skipped == ()


@pytest.mark.parametrize("garbage", [b"x", b"\n", b"\x93garbage" * 500, bytes(5000) + b"x"])
def test_what_is_no_tar_behind_the_end_is_said(tmp_path, garbage):
    (tmp_path / "a.tar").write_bytes(tar_of(range(2), tarfile.USTAR_FORMAT, 20) + garbage)
    source = open_source(SourceConfig("webdataset", str(tmp_path)))
    assert [told(source[i]) for i in range(len(source))] == [[i, f"caption {i}"] for i in range(2)]
    (record,) = source.skipped
    assert record.reason == "data behind the end" and "no tar" in record.detail


def test_one_block_of_zeros_is_no_end(read):
    assert read(PICTURE, bytes(BLOCK), TEXT) == ([[5, "caption x"], [1, "caption 1"]], [])
    assert read(TEXT, bytes(BLOCK), b"\x93" * BLOCK) == ([], ["tar damaged"])


def test_times_in_the_headers_of_gnu_are_no_part_of_a_name(tmp_path):
    """`tar --incremental` writes them where POSIX has the beginning of a long name.

    The picture would be parted from its caption.
    """
    write_tar(tmp_path / "a.tar", [("1.jpg", jpeg(1)), ("1.txt", "x")])
    data = bytearray((tmp_path / "a.tar").read_bytes())
    for number, at in enumerate(at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"):
        data[at + 257 : at + 265] = tarfile.GNU_MAGIC
        data[at + 345 : at + 357] = b"1475267345%d\0" % number
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    (tmp_path / "a.tar").write_bytes(data)
    source = open_source(SourceConfig("webdataset", str(tmp_path / "a.tar"), cache=str(tmp_path / "cache")))
    assert [told(document) for document in source] == [[1, "x"]] and not source.skipped


def test_one_zero_block_before_each_member_takes_no_longer(tmp_path):
    """The bytes read stay those of the file: each zero block may stand alone."""
    folder = tarfile.TarInfo("d")
    folder.type = tarfile.DIRTYPE

    class Counted(io.BytesIO):
        count = 0

        def read(self, size=-1):
            data = super().read(size)
            self.count += len(data)
            return data

    file = Counted((bytes(512) + folder.tobuf()) * 500 + bytes(1024))
    assert list(walk(file)) == [] and file.count < 5 * len(file.getvalue())


def test_a_record_of_many_packed_members_grows_no_more_than_one(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "UNCHECKED", 2**22)
    grows = gzip.compress(jpeg(1) + bytes(2**21))
    infos = [{"image_name": f"{i}.jpg", "matched_text_index": 0, "matched_sim": 0.3} for i in range(9)]
    for name, count in (("few", 1), ("many", 9)):
        packed = [(f"1.{i}.jpg.gz", grows) for i in range(count)]
        write_tar(tmp_path / f"{name}.tar", [*packed, ("1.json", {"text_list": ["a"], "image_info": infos[:count]})])
    left_out = {}
    for name in ("few", "many"):
        source = open_source(SourceConfig("webdataset", str(tmp_path / f"{name}.tar"), cache=str(tmp_path / "cache")))
        left_out[name] = [error.reason for error in keep(source[0], Filters())[1]]
    assert left_out == {"few": [], "many": ["unpacks to too much"] * 9}


def test_garbage_behind_packed_tars_costs_no_record(tmp_path):
    write_tar(tmp_path / "a.tar", pairs([1]))
    whole = gzip.compress((tmp_path / "a.tar").read_bytes())
    (tmp_path / "a.tgz").write_bytes(whole * 3 + b"garbage")
    source = open_source(SourceConfig("webdataset", str(tmp_path / "a.tgz"), cache=str(tmp_path / "cache")))
    assert [told(document)[0] for document in source] == [1] * 3 and [bad.reason for bad in source.skipped] == [
        "data behind the end"
    ]
