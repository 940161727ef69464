"""Hostile ArrayRecord and parquet files, and damaged indexes."""

import io
import json
import pathlib
import random

import pyarrow
import pyarrow.parquet
from array_record.python import array_record_module

from benchmarks.attacks.case import Case
from benchmarks.attacks.json_records import FORMATS
from benchmarks.attacks.world import World, hostile_value, mutate, mutate_bytes, paths_outside, to_json
from dreamjax.data.registry import open_source
from dreamjax.data.sources.array_record import WRITER_OPTIONS, encode
from dreamjax.document import Document, Image, Text


def array_record(rng: random.Random, world: World) -> Case:
    """Records whose heads are mutated, or a file with bytes changed."""
    valid = encode(
        Document((Image((world.images / "0-0.jpg").read_bytes()), Text("a goat")), id="d", kind="pair"), "key"
    )
    size = int.from_bytes(valid[:4], "little")
    head, blobs = json.loads(valid[4 : 4 + size]), valid[4 + size :]
    records = [valid]
    for _ in range(20):
        changed = to_json(mutate(rng, head, world))
        length = len(changed) if rng.random() < 0.8 else rng.choice([0, 1, 2**31, 2**32 - 1, len(changed) + 5])
        records.append(
            mutate_bytes(rng, valid) if rng.random() < 0.2 else length.to_bytes(4, "little") + changed + blobs
        )
    path = world.case / "a.array_record"
    writer = array_record_module.ArrayRecordWriter(
        str(path), rng.choice([WRITER_OPTIONS, "group_size:4", "group_size:1,brotli:1"])
    )
    for one in [*records, valid]:
        writer.write(one)
    writer.close()
    if rng.random() < 0.5:
        return Case("array_record: heads", world.source("array_record", path.name), survivors=(0, -1))
    path.write_bytes(mutate_bytes(rng, path.read_bytes(), 20))
    return Case("array_record: mutated", world.source("array_record", path.name))


def parquet(rng: random.Random, world: World) -> Case:
    """Columns of other types, hostile cells, or a file with bytes changed."""
    image = (world.images / "0-0.jpg").read_bytes()

    def outside():
        return rng.choice(paths_outside(world))

    def struct():
        return {"bytes": rng.choice([image, None, b""]), "path": outside()}

    columns = {
        "pairs": lambda: {"image": [struct() for _ in range(8)], "text": [f"goat {i}" for i in range(8)]},
        "names": lambda: {"image": [outside() for _ in range(8)], "caption": ["goat", None] * 4},
        "numbers": lambda: {"image": list(range(8)), "text": [0.5] * 8},
        "numbers as text": lambda: {"image": [image] * 8, "text": list(range(8))},
        "nulls": lambda: {"image": pyarrow.nulls(8), "text": pyarrow.nulls(8)},
        "lists": lambda: {
            "images": [[struct()], [], [None], None, [struct(), struct()], [struct()], [], []],
            "texts": [["a"], [], [None], None, ["a", "b"], ["a", None], ["x"], [""]],
        },
        "lists of numbers": lambda: {"image": [[1, 2]] * 8, "text": ["goat"] * 8},
        "similarity": lambda: {
            "image": [struct() for _ in range(8)],
            "text": ["goat"] * 8,
            "similarity": [float("nan"), float("inf"), None, -1.0, 0.1, 0.9, 1e308, 0.0],
        },
        "structs as text": lambda: {"image": [struct()] * 8, "text": [{"a": 1}] * 8},
        "conversations": lambda: {
            "conversations": [FORMATS["llava"]["conversations"]] * 4
            + [None, [], [{"from": None, "value": None}], [{"from": "x", "value": "y"}]],
            "image": [struct() for _ in range(8)],
        },
        "no columns known": lambda: {"a": [1] * 8},
        "dates": lambda: {"text": pyarrow.array([0] * 8, pyarrow.timestamp("s")), "image": [image] * 8},
        "bytes as text": lambda: {"text": [b"\xff\xfe"] * 8, "image": [image] * 8},
        "large repetition": lambda: {"text": ["a" * 100_000] * 5_000},
    }
    name = rng.choice(list(columns))
    file = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.table(columns[name]()),
        file,
        row_group_size=rng.choice([3, 8, 5000]),
        compression=rng.choice(["none", "snappy", "zstd", "gzip"]),
    )
    data = file.getvalue()
    if rng.random() < 0.5:
        name, data = "mutated", mutate_bytes(rng, data, 6)
    (world.case / "a.parquet").write_bytes(data)
    similarity = {"min_similarity": 0.2} if rng.random() < 0.5 else {}
    return Case(f"parquet: {name}", world.source("parquet", "a.parquet", **similarity))


def index(rng: random.Random, world: World) -> Case:
    """A valid source whose index, kept from an opening before, has files emptied, cut, changed or deleted."""
    lines = b"\n".join(json.dumps(FORMATS["pairs"]).encode() for _ in range(4)) + b"\n"
    (world.case / "records.jsonl").write_bytes(lines)
    source = world.source("pairs", "records.jsonl")
    open_source(source)
    kept = sorted(path for path in pathlib.Path(source.cache).rglob("*") if path.is_file())
    for path in rng.sample(kept, rng.randint(1, len(kept))):
        data = path.read_bytes()
        match rng.randrange(5):
            case 0:
                path.unlink()
            case 1:
                path.write_bytes(b"")
            case 2:
                path.write_bytes(data[: rng.randrange(len(data) + 1)])
            case 3:
                path.write_bytes(mutate_bytes(rng, data))
            case 4:
                path.write_bytes(to_json(hostile_value(rng, world)))
    return Case("index: damaged", source, survivors=(0, 1, 2, 3))
