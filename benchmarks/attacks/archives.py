"""Hostile tars, and zip, gzip, bzip2 and xz files: known attacks, and valid ones with bytes changed."""

import gzip
import io
import json
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable

from benchmarks.attacks.case import Case
from benchmarks.attacks.json_records import FORMATS
from benchmarks.attacks.world import World, hostile_value, mutate_bytes, to_json

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)
MANY = 5000  # headers behind each other


def header(
    name: str = "a.txt", size: int | bytes = 0, kind: bytes = b"0", link: str = "", form: int = tarfile.GNU_FORMAT
) -> bytes:
    """A member's header with a right checksum; a size in bytes stands as it is, in 12 of them."""
    info = tarfile.TarInfo(name[:90])
    info.size, info.type, info.linkname = size if isinstance(size, int) and 0 <= size < 8**11 else 0, kind, link[:90]
    block = bytearray(info.tobuf(form)[-BLOCK:])
    if isinstance(size, bytes):
        block[124:136] = size.ljust(12, b"\0")[:12]
    return with_checksum(block)


def with_checksum(block: bytes) -> bytes:
    """The header with its checksum put right."""
    block = bytearray(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: str, data: bytes, **options) -> bytes:
    """Header and content."""
    return header(name, len(data), **options) + padded(data)


def padded(data: bytes) -> bytes:
    """Up to whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    """An extended header of records as they are."""
    return member("././@PaxHeader", b"".join(records), kind=kind)


def record(key: str, value: bytes) -> bytes:
    """A pax record with its right length."""
    rest = f" {key}=".encode() + value + b"\n"
    size = len(rest) + 1
    while len(str(size)) + len(rest) != size:
        size += 1
    return str(size).encode() + rest


def valid(world: World, first: int = 0, count: int = 2) -> list[bytes]:
    """Members of pairs."""
    image = (world.images / "0-0.jpg").read_bytes()
    return [
        part
        for i in range(first, first + count)
        for part in (member(f"{i:04d}.jpg", image), member(f"{i:04d}.txt", f"caption {i}".encode()))
    ]


def attacks(world: World) -> dict[str, list[bytes]]:
    """Blocks between a valid pair before and one behind, by what they do."""
    canary, image = str(world.outside / "canary.png"), (world.images / "0-0.jpg").read_bytes()
    text = member("x.txt", b"caption x")
    sizes = {
        "negative": b"-0000000001",
        "negative base-256": b"\xff" * 11 + b"\0",
        "huge base-256": b"\x80" + b"\x7f" * 11,
        "terabyte": b"17777777777\0",
        "blank": b" " * 12,
        "no number": b"12x4",
        "digit 9": b"00000000999",
        "beyond the end": b"00007777777",
    }
    found = {f"size {name}": [header("x.jpg", size), text] for name, size in sizes.items()}
    for kind, title in (
        (b"L", "longname"),
        (b"K", "longlink"),
        (b"x", "pax"),
        (b"g", "global pax"),
        (b"X", "solaris pax"),
    ):
        found |= {
            f"{title} x {MANY}": [member("x", record("path", b"y.jpg") if kind in b"xgX" else b"y.jpg", kind=kind)]
            * MANY
            + [header("x.jpg", len(image)), padded(image), text],
            f"{title} claims a terabyte": [header("x", b"\x80" + (2**40).to_bytes(11, "big"), kind=kind), text],
            f"{title} claims 8 GiB": [header("x", 8**11 - 1, kind=kind), text],
            f"{title} of negative size": [header("x", b"\xff" * 12, kind=kind), text],
            f"{title} without content": [header("x", 0, kind=kind), text],
            f"{title} at the end": [member("x", b"y", kind=kind)],
            f"{title} of 3 MB": [
                member("x", record("path", b"n" * 3_000_000) if kind in b"xgX" else b"n" * 3_000_000, kind=kind),
                text,
            ],
        }
    lies = {
        "length beyond": b"99999999999 path=y.txt\n",
        "length 0": b"0 path=y.txt\n",
        "length 1": b"1 path=y.txt\n",
        "length of 5,000 digits": b"9" * 5000 + b" path=y.txt\n",
        "length negative": b"-5 path=y.txt\n",
        "no length": b"path=y.txt\n",
        "no equals": b"12 path y.txt\n",
        "no line end": b"15 path=y.txt..",
        "size of 5,000 digits": record("size", b"9" * 5000),
        "size negative": record("size", b"-1"),
        "size of words": record("size", b"many"),
        "size 1e30": record("size", b"1e30"),
        "size beyond": record("size", str(2**62).encode()),
        "size empty": record("size", b""),
        "name empty": record("path", b""),
        "NUL in the name": record("path", b"y\0z.txt"),
        "no UTF-8 in the name": record("path", b"\xff\xfe\xed\xa0\x80.txt"),
        "line end in the name": record("path", b"y\nz.txt"),
        "binary charset": record("hdrcharset", b"BINARY") + record("path", b"\xff.txt"),
        "bad charset": record("hdrcharset", b"\xff\xff"),
        "name outside": record("path", f"{canary}".encode()),
        "name of slashes": record("path", b"/" * 60_000),
        "name of dots": record("path", b"." * 60_000 + b"/x.txt"),
        "sparse 1.0": record("GNU.sparse.major", b"1")
        + record("GNU.sparse.minor", b"0")
        + record("GNU.sparse.name", b"x.jpg")
        + record("GNU.sparse.realsize", b"99999999999"),
        "sparse 0.1": record("GNU.sparse.map", b"0,5,x,9") + record("GNU.sparse.size", b"many"),
        "sparse 0.0": record("GNU.sparse.size", b"9") + record("GNU.sparse.numblocks", b"9" * 30),
        "ten thousand keys": b"".join(record(f"k{i}", b"v") for i in range(10_000)),
    }
    found |= {
        f"pax, {name}": [pax(lie), header("x.jpg", len(image)), padded(image), text] for name, lie in lies.items()
    }
    found |= {
        f"global pax, {name}": [pax(lie, kind=b"g"), header("x.jpg", len(image)), padded(image), text]
        for name, lie in lies.items()
    }
    links = {
        "outside": canary,
        "up": "../../outside/canary.png",
        "itself": "x.jpg",
        "nothing": "none.jpg",
        "the picture before": "0000.jpg",
        "a text": "x.txt",
        "empty": "",
        "a URL": f"file://{canary}",
    }
    for kind, title in ((b"1", "hard link"), (b"2", "symbolic link")):
        found |= {
            f"{title} to {name}": [header("x.jpg", kind=kind, link=target), text] for name, target in links.items()
        }
        found[f"{title} with a size"] = [header("x.jpg", 700, kind=kind, link="0000.jpg"), text]
    found["links in a ring"] = [
        *(header(f"{i}.jpg", kind=b"2", link=f"{i + 1}.jpg") for i in range(50)),
        header("50.jpg", kind=b"2", link="x.jpg"),
        header("x.jpg", kind=b"2", link="0.jpg"),
        text,
    ]
    found["links to links"] = [
        *(header(f"{i}.jpg", kind=b"2", link=f"{i + 1}.jpg") for i in range(3000)),
        header("x.jpg", kind=b"2", link="0.jpg"),
        text,
    ]
    found |= {
        f"picture of type {kind!r}": [header("x.jpg", kind=kind), text]
        for kind in (b"3", b"4", b"6", b"7", b"S", b"V", b"M", b"D", b"N", b"Z", b"\0", b"\xff")
    }
    sparse = bytearray(header("x.jpg", 512, kind=b"S"))
    sparse[482], sparse[483:495] = 1, b"17777777777\0"
    found["sparse, extended for ever"] = [with_checksum(sparse), *[b"\xff" * BLOCK] * MANY, text]
    wrong = bytearray(header("x.jpg", 5))
    wrong[148:156] = b"0000001\0"
    found |= {
        "checksum": [bytes(wrong), padded(b"12345"), text],
        "one block of zeros": [bytes(BLOCK), text],
        "zeros": [bytes(7 * BLOCK), text],
        "the end, then garbage": [END, b"\x93garbage" * 300],
        "the end, then a bit": [END, b"x"],
        "another tar": [END, *valid(world, 10)],
        "two other tars": [END, *valid(world, 10), bytes(20 * BLOCK), *valid(world, 20)],
        "same names again": [*valid(world), *valid(world)],
        "ring of folders": [header("x.jpg/", kind=b"5"), text],
        "names with escapes": [member("\x1b[2J\n\r.txt", b"words")],
        "text of 20 MB": [member("x.txt", b"a" * 20_000_000)],
        "bad base64": [member("x.json", to_json(FORMATS["mmc4"] | {"image_info": [{"image_base64": "%"}]}))],
        "gz member that grows": [header("x.txt.gz", len(bomb())), padded(bomb())],
        "gz picture that grows": [header("x.jpg.gz", len(bomb())), padded(bomb()), text],
        "gz member cut": [member("x.txt.gz", gzip.compress(b"words" * 99)[:20])],
    }
    return found


def bomb(blocks: int = 100, block: bytes = b" " * 2**24) -> bytes:
    """A gzip file of as many members of 16 MiB, 16 KiB each: at once it is made, and 1.6 GiB it becomes."""
    return gzip.compress(block, 9) * blocks


def tar_attack(rng: random.Random, world: World) -> Case:
    """A tar with one of the attacks in its middle; the pair before it is whole."""
    found = attacks(world)
    name = rng.choice(list(found))
    data = b"".join([*valid(world), *found[name], *valid(world, 5, 1), END])
    packed = rng.random() < 0.1
    (world.case / "a.tar").write_bytes(gzip.compress(data, 1) if packed else data)
    torn = ("hard link", "symbolic link", "picture of type", "sparse", "links", "pax, sparse", "checksum")
    return Case(f"tar: {name}", world.source("webdataset", "a.tar"), survivors=(0,), pairs=name.startswith(torn))


def tar_mutated(rng: random.Random, world: World) -> Case:
    """A tar with bytes of its headers changed, half of the time with right checksums, or any of its bytes."""
    kinds = {
        form: name
        for form, name in ((tarfile.USTAR_FORMAT, "ustar"), (tarfile.GNU_FORMAT, "gnu"), (tarfile.PAX_FORMAT, "pax"))
    }
    form = rng.choice(list(kinds))
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data in _members(rng, world):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = bytearray(file.getvalue())
    if rng.random() < 0.3:
        data = mutate_bytes(rng, bytes(data))
    else:
        starts = [at for at in range(0, len(data), BLOCK) if data[at + 257 : at + 262] == b"ustar"]
        for at in rng.sample(starts, min(len(starts), rng.choice([1, 1, 2, 5]))):
            data[at : at + BLOCK] = mutate_bytes(rng, bytes(data[at : at + BLOCK]), 3).ljust(BLOCK, b"\0")[:BLOCK]
            if rng.random() < 0.7:
                data[at : at + BLOCK] = with_checksum(data[at : at + BLOCK])
    (world.case / "a.tar").write_bytes(bytes(data))
    return Case(f"tar: {kinds[form]} mutated", world.source("webdataset", "a.tar"))


def _members(rng: random.Random, world: World) -> Iterable[tuple[str, bytes]]:
    image = (world.images / "0-0.jpg").read_bytes()
    for i in range(4):
        name = ("deep/" * 40 if rng.random() < 0.3 else "") + f"{i}"
        yield f"{name}.jpg", image
        yield (
            f"{name}.json",
            to_json({"caption": hostile_value(rng, world), "text": "other", "similarity": hostile_value(rng, world)}),
        )
        if rng.random() < 0.5:
            yield f"{name}.txt", b"words"


def zip_attack(rng: random.Random, world: World) -> Case:
    """A .jsonl.zip that lies about what it holds, or has bytes changed."""
    lines = b"\n".join(json.dumps(FORMATS["pairs"]).encode() for _ in range(3)) + b"\n"
    whole = _zip({"records.jsonl": lines})
    entry = whole.index(b"PK\x01\x02")
    zeros = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = zeros.compress(b" " * 2**24) + zeros.flush(zlib.Z_FULL_FLUSH)
    kinds = {
        "grows": lambda: _zip_of(block * 100 + b"\x03\x00", 100 * 2**24),
        "size too small": lambda: _patch(whole, entry + 24, struct.pack("<I", 5)),
        "size too large": lambda: _patch(whole, entry + 24, struct.pack("<I", 2**32 - 2)),
        "packed size too large": lambda: _patch(whole, entry + 20, struct.pack("<I", 2**32 - 2)),
        "encrypted": lambda: _patch(whole, entry + 8, b"\x01\x00"),
        "unknown method": lambda: _patch(whole, entry + 10, b"\x63\x00"),
        "zstd": lambda: _patch(whole, entry + 10, b"\x5d\x00"),
        "lzma that is none": lambda: _patch(whole, entry + 10, b"\x0e\x00"),
        "bzip2 that is none": lambda: _patch(whole, entry + 10, b"\x0c\x00"),
        "place beyond": lambda: _patch(whole, entry + 42, struct.pack("<I", 2**32 - 2)),
        "wrong sum": lambda: _patch(whole, entry + 16, b"\0\0\0\0"),
        "several": lambda: _zip({"a.jsonl": lines, "b.jsonl": lines}),
        "name outside": lambda: _zip({"../../outside/canary.txt": lines}),
        "the same name twice": lambda: _zip({"a.jsonl": lines}, twice=True),
        "empty": lambda: _zip({}),
        "many": lambda: _zip({f"{i}": b"" for i in range(3000)}),
        "zip in a zip": lambda: _zip({"a.jsonl.zip": whole}),
        "overlapping": lambda: (
            whole[:entry]
            + _directory(whole, entry) * 2
            + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 2, 2, 2 * len(_directory(whole, entry)), entry, 0)
        ),
        "name no UTF-8": lambda: _patch(_patch(whole, entry + 8, b"\x00\x08"), entry + 46, b"\xff\xfe"),
    }
    name = rng.choice([*kinds, *["mutated"] * len(kinds)])
    data = mutate_bytes(rng, whole) if name == "mutated" else kinds[name]()
    (world.case / "records.jsonl.zip").write_bytes(data)
    return Case(f"zip: {name}", world.source("pairs", "records.jsonl.zip"))


def _zip(contents: dict[str, bytes], twice: bool = False) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            for _ in range(1 + twice):
                archive.writestr(zipfile.ZipInfo(name), data)
    return file.getvalue()


def _zip_of(deflated: bytes, size: int) -> bytes:
    """A zip of one file whose packed bytes are given; its checksum is wrong, which only reading all of it tells."""
    name = b"records.jsonl"
    facts = (20, 0, 8, 0, 33, 0, len(deflated), size, len(name), 0)
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", *facts) + name + deflated
    central = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, *facts, 0, 0, 0, 0, 0) + name
    return local + central + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(central), len(local), 0)


def _directory(data: bytes, entry: int) -> bytes:
    return data[entry : data.index(b"PK\x05\x06")]


def _patch(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def packed_attack(rng: random.Random, world: World) -> Case:
    """Compressed JSON lines and tars: cut, changed, with something behind them, or growing without end."""
    import bz2
    import lzma

    lines = b"\n".join(json.dumps(FORMATS["pairs"]).encode() for _ in range(3)) + b"\n"
    title, pack = rng.choice([("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress)])
    whole = pack(lines)
    kinds = {
        "cut": lambda: whole[: rng.randrange(6, len(whole))],
        "mutated": lambda: mutate_bytes(rng, whole),
        "garbage behind": lambda: whole + b"garbage" * 9,
        "zeros behind": lambda: whole + bytes(99),
        "twice": lambda: whole * 2,
        "twice packed": lambda: pack(whole),
        "nothing": lambda: pack(b""),
        "grows": lambda: bomb() if title == "gzip" else pack(b" " * 2**24) * 40,
        "magic alone": lambda: whole[:6],
    }
    name = rng.choice(list(kinds))
    tarred = rng.random() < 0.3
    (world.case / ("a.tgz" if tarred else "records.jsonl.gz")).write_bytes(kinds[name]())
    return Case(
        f"{title}: {name}", world.source("webdataset", "a.tgz") if tarred else world.source("pairs", "records.jsonl.gz")
    )
