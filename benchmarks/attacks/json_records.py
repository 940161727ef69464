"""Hostile records of the JSON formats.

One valid record of each format, mutated, between two that must still be read.
"""

import bz2
import copy
import gzip
import io
import json
import random
import zipfile
from typing import Any

from benchmarks.attacks.case import Case
from benchmarks.attacks.world import World, mutate, mutate_bytes, to_json

RECORDS = 25  # to a file

FORMATS: dict[str, Any] = {
    "pairs": {"image": "0-0.jpg", "caption": "a pair", "similarity": 0.4, "key": "0"},
    "mmc4": {
        "url": "http://nowhere",
        "text_list": ["One goat.", "Two goats."],
        "similarity_matrix": [[0.3, 0.1], [0.1, 0.3]],
        "could_have_url_duplicate": 0,
        "image_info": [
            {
                "image_name": f"0-{i}.jpg",
                "raw_url": "http://nowhere/a.jpg",
                "matched_text_index": i,
                "matched_sim": 0.3,
                "face_detections": None,
            }
            for i in range(2)
        ],
    },
    "obelics": {
        "images": ["0-0.jpg", None, "0-1.jpg"],
        "texts": [None, "Two goats.", None],
        "metadata": "[]",
        "general_metadata": "{}",
    },
    "llava": {
        "id": "7",
        "image": "0-0.jpg",
        "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A goat."}],
    },
    "instruct": {
        "instruction": "Draw a goat.",
        "text_list": ["Here.", "It is."],
        "images": ["0-0.jpg"],
        "matched_text_index": [0],
    },
}
COCO = {
    "info": {"year": 2014},
    "licenses": [],
    "images": [{"id": i, "file_name": f"0-{i}.jpg", "height": 16, "width": 24} for i in range(3)],
    "annotations": [{"id": 10 + i, "image_id": i % 3, "caption": f"goat {i}"} for i in range(6)],
}


def lines(rng: random.Random, world: World) -> Case:
    """A file of JSON lines, plain or packed; the first and the last record are valid."""
    format = rng.choice(list(FORMATS))
    valid = FORMATS[format]
    records = [to_json(valid)]
    for _ in range(RECORDS):
        record = copy.deepcopy(valid)
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            record = mutate(rng, record, world)
        line = to_json(record)
        records.append(mutate_bytes(rng, line).replace(b"\n", b" ") if rng.random() < 0.2 else line)
    data = b"\n".join([*records, to_json(valid)]) + b"\n"
    name, packed = _packed(rng, data)
    (world.case / name).write_bytes(packed)
    similarity = {"min_similarity": 0.2} if rng.random() < 0.5 else {}
    return Case(f"{format}: {name}", world.source(format, name, **similarity), survivors=(0, -1))


def whole_list(rng: random.Random, world: World) -> Case:
    """One JSON list, some bytes of it damaged."""
    format = rng.choice(list(FORMATS))
    data = b"[" + b", ".join(to_json(mutate(rng, copy.deepcopy(FORMATS[format]), world)) for _ in range(RECORDS)) + b"]"
    (world.case / "records.json").write_bytes(mutate_bytes(rng, data) if rng.random() < 0.5 else data)
    return Case(f"{format}: list", world.source(format, "records.json"))


def coco(rng: random.Random, world: World) -> Case:
    """COCO's captions."""
    value = copy.deepcopy(COCO)
    for _ in range(rng.choice([1, 2, 4])):
        value = mutate(rng, value, world)
    data = to_json(value)
    (world.case / "captions.json").write_bytes(mutate_bytes(rng, data) if rng.random() < 0.3 else data)
    return Case("pairs: coco", world.source("pairs", "captions.json"))


def odd_files(rng: random.Random, world: World) -> Case:
    """Files that are none of JSON lines: other encodings and line ends, nothing, one endless line."""
    format = rng.choice(list(FORMATS))
    text = "\n".join(json.dumps(FORMATS[format]) for _ in range(3))
    kinds = {
        "byte order mark": b"\xef\xbb\xbf" + text.encode(),
        "utf-16": text.encode("utf-16"),
        "utf-32": text.encode("utf-32"),
        "carriage returns": text.replace("\n", "\r").encode(),
        "empty": b"",
        "blank": b" \n\t\n" * 100,
        "one bracket": b"[",
        "brackets": b"[" * 200_000,
        "objects": b'{"a":' * 50_000,
        "long line": b'"' + b"a" * 3_000_000,
        "zeros": bytes(100_000),
        "a list of a list": b"[[" + text.replace("\n", ",").encode() + b"]]",
        "a string": json.dumps(text).encode(),
        "a number": b"7" * 10_000,
        "a picture": (world.images / "0-0.jpg").read_bytes(),
        "nothing but commas": b"[" + b"," * 100_000,
        "records without lines": text.replace("\n", "").encode(),
    }
    kind = rng.choice(list(kinds))
    (world.case / "records.jsonl").write_bytes(kinds[kind])
    return Case(f"{format}: {kind}", world.source(format, "records.jsonl"))


def _packed(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    match rng.randrange(8):
        case 0:
            return "records.jsonl.gz", gzip.compress(data)
        case 1:
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("records.jsonl", data)
            return "records.jsonl.zip", file.getvalue()
        case 2:
            return "records.jsonl", bz2.compress(data)
    return "records.jsonl", data
