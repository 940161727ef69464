"""The folders of hostile inputs, the files outside that they reach for, and mutations of valid ones.

ROOT/inside/images/0-0.jpg ..     pictures that records may have; `link.png` and `linked/` there point outside
ROOT/inside/case/                 the files of one case
ROOT/outside/canary.png, .txt     what no document may ever hold
"""

import json
import os
import pathlib
import random
import shutil
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from dreamjax.config import SourceConfig

CANARY = "canary-5b1c93"  # in each file outside
CANARY_COLOUR = (201, 7, 133)
RAW = "@@raw {}@@"  # in a record before it becomes text: stands for TOKENS[i], which json.dumps cannot write
TOKENS = (
    "1" * 5000,
    "-" + "9" * 400,
    "1e999",
    "-1e999",
    "[" * 3000 + "]" * 3000,
    '{"a":' * 2000 + "1" + "}" * 2000,
    '"\\ud800"',
    '"\\udfff\\ud800"',
    "NaN",
    "01",
    "nul",
    '"\x00"',
)


class World(NamedTuple):
    """The folders above."""

    inside: pathlib.Path
    outside: pathlib.Path

    @property
    def images(self) -> pathlib.Path:
        """The pictures' folder."""
        return self.inside / "images"

    @property
    def case(self) -> pathlib.Path:
        """The folder of the case at hand."""
        return self.inside / "case"

    def source(self, format: str, name: str, **options) -> SourceConfig:
        """The source of one file of the case."""
        return SourceConfig(
            format, str(self.case / name), images=str(self.images), cache=str(self.inside / "cache"), **options
        )

    def clear(self):
        """Empties the case's folder and the caches."""
        for folder in (self.case, self.inside / "cache"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()


def make_world(root: pathlib.Path) -> World:
    """The folders with their pictures."""
    world = World(root / "inside", root / "outside")
    world.images.mkdir(parents=True)
    world.outside.mkdir()
    for number in range(2):
        for i in range(3):
            PIL.Image.new("RGB", (24, 16), (60 * number, 90, 40 * i)).save(world.images / f"{number}-{i}.jpg")
    save_canary(world.outside / "canary.png")
    (world.outside / "canary.txt").write_text(CANARY)
    (world.outside / "canary.json").write_text(json.dumps({"caption": CANARY}))
    (world.images / "link.png").symlink_to(world.outside / "canary.png")
    (world.images / "linked").symlink_to(world.outside)
    (world.images / "folder.jpg").mkdir()
    (world.images / "empty.jpg").write_bytes(b"")
    world.clear()
    return world


def save_canary(path: pathlib.Path):
    """A picture that says that it is from outside, in its bytes and in its pixels."""
    from PIL.PngImagePlugin import PngInfo

    facts = PngInfo()
    facts.add_text("where", CANARY)
    PIL.Image.fromarray(np.full((16, 24, 3), CANARY_COLOUR, np.uint8)).save(path, pnginfo=facts)


def paths_outside(world: World) -> list[str]:
    """Names that lead to the canary, or would if somebody followed them."""
    canary = world.outside / "canary.png"
    relative = os.path.relpath(canary, world.images)
    return [
        str(canary),
        relative,
        f"./{relative}",
        f"0-0.jpg/../{relative}",
        f"images/../{relative}",
        "link.png",
        "linked/canary.png",
        "./linked/../linked/canary.png",
        f"file://{canary}",
        f"local://{canary}",
        f"simplecache::file://{canary}",
        f"/proc/self/root{canary}",
        f"/{canary}",
        f"{relative}\0.jpg",
        relative.replace("/", "\\"),
        str(world.outside / "canary.txt"),
        "~/x.png",
        "..",
        ".",
        "/",
        "",
    ]


def hostile_value(rng: random.Random, world: World) -> Any:
    """Something that a key may hold and should not."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(
            [
                None,
                True,
                False,
                0,
                -1,
                1,
                2**31,
                2**63,
                2**64,
                -(2**63),
                10**400,
                0.5,
                -0.0,
                1e308,
                float("nan"),
                float("inf"),
                -float("inf"),
            ]
        )
    if kind == 1:
        return RAW.format(rng.randrange(len(TOKENS)))
    if kind == 2:
        return rng.choice(paths_outside(world))
    if kind == 3:
        return rng.choice(
            [
                "",
                " ",
                "\0",
                "\ud800",
                "\ufeffx",
                "a" * 100_000,
                "\u202e",
                "a\nb",
                "\r",
                "<image>" * 50,
                "<dream>",
                "=1+1",
                "\x1b[2J",
                "０",
                "NaN",
                "null",
                "0-0.jpg",
                "folder.jpg",
                "empty.jpg",
            ]
        )
    if kind == 4:
        return rng.choice(
            [
                "http://nowhere.invalid/a.jpg",
                "gs://nowhere/a.jpg",
                "s3://a/b",
                "data:image/png;base64,AAAA",
                "ftp://x/y",
                "://",
                "a://b",
                "memory://x",
                "zip://a::b",
                "https://[::1",
                "file:",
            ]
        )
    return rng.choice(
        [
            [],
            {},
            [None],
            [[]],
            [{}],
            {"": None},
            {"bytes": None, "path": "x"},
            [0],
            ["0-0.jpg", None],
            {"a": [1]},
            [[["x"]]] * 3,
            ["a"] * 300,
        ]
    )


def mutate(rng: random.Random, value: Any, world: World) -> Any:
    """The JSON value with one place of it replaced, removed, doubled, wrapped or renamed."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        changed, key = dict(value), rng.choice(list(value))
        match rng.randrange(8):
            case 0:
                del changed[key]
            case 1:
                changed[
                    rng.choice(["", "\0", "image", "images", "text", "texts", "url", "caption", "conversations"])
                ] = hostile_value(rng, world)
            case _:
                changed[key] = mutate(rng, changed[key], world)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.8:
        changed, at = list(value), rng.randrange(len(value))
        match rng.randrange(8):
            case 0:
                del changed[at]
            case 1:
                changed.insert(at, changed[at])
            case _:
                changed[at] = mutate(rng, changed[at], world)
        return changed
    return rng.choice([[value], {"a": value}, str(value)]) if rng.random() < 0.1 else hostile_value(rng, world)


def to_json(value: Any) -> bytes:
    """The text of a mutated value, lone surrogates as escapes."""
    text = json.dumps(value)
    for number, token in enumerate(TOKENS):
        text = text.replace(f'"{RAW.format(number)}"', token)
    return text.encode()


def mutate_bytes(rng: random.Random, data: bytes, most: int = 8) -> bytes:
    """Some bits flipped, bytes set, ranges removed, doubled or zeroed, or the end cut off."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, most)):
        if not changed:
            break
        at, size = rng.randrange(len(changed)), rng.choice([1, 1, 2, 4, 8, 64, 512])
        match rng.randrange(8):
            case 0 | 1:
                changed[at] ^= 1 << rng.randrange(8)
            case 2 | 3:
                changed[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x2F, rng.randrange(256)])
            case 4:
                del changed[at : at + size]
            case 5:
                changed[at:at] = changed[at : at + size]
            case 6:
                changed[at : at + size] = bytes(len(changed[at : at + size]))
            case 7 if rng.random() < 0.3:
                del changed[at:]
    return bytes(changed)
