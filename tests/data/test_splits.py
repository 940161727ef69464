"""Train and held-back parts by keys, for formats that have none of their own.

Disjoint, complete, the same wherever the files lie.
"""

import dataclasses
import json
import os
import pathlib
import shutil

import pyarrow
import pyarrow.parquet
import pytest
from made_data import jpeg, mmc4, pairs, write_jsonl, write_tar

from dreamjax.config import DataConfig, OptimConfig, RunConfig, SourceConfig, tiny
from dreamjax.data.pipeline.loader import Loader
from dreamjax.data.prepare import writer
from dreamjax.data.registry import open_source
from dreamjax.data.sources.storybook import Storybook
from dreamjax.data.sources.tfds import build
from dreamjax.errors import ConfigError

COUNT, SHARE = 40, 0.3


def talk(number: int) -> dict:
    """Three conversations about each picture."""
    turns = [{"from": "human", "value": f"<image>\nQuestion {number}?"}, {"from": "gpt", "value": f"Answer {number}."}]
    return {"id": str(number), "image": f"{number // 3}-0.jpg", "conversations": turns}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same forty pairs or documents in every format; pictures lie in `images`."""
    folder = tmp_path_factory.mktemp("formats")
    (folder / "images").mkdir()
    for number in range(COUNT):
        (folder / "images" / f"{number}-0.jpg").write_bytes(jpeg(number))
    write_tar(folder / "a.tar", pairs(range(COUNT)))
    write_jsonl(folder / "mmc4.jsonl", [mmc4(number, 2, [0]) for number in range(COUNT)])
    write_jsonl(folder / "llava.jsonl", [talk(number) for number in range(COUNT)])
    table = {
        "image": [jpeg(number) for number in range(COUNT)],
        "text": [f"caption {number}" for number in range(COUNT)],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), folder / "a.parquet")
    for name in ("llava", "mmc4"):
        writer.write(writer.Job(open_source(source(name, folder)), str(folder / f"prepared-{name}")), 1)
    (folder / "tfds").mkdir()
    build({"train": open_source(source("llava", folder))}, str(folder / "tfds"))
    return folder


def source(name: str, folder: pathlib.Path) -> SourceConfig:
    form, path = {
        "webdataset": ("webdataset", "a.tar"),
        "mmc4": ("mmc4", "mmc4.jsonl"),
        "llava": ("llava", "llava.jsonl"),
        "parquet": ("parquet", "a.parquet"),
        "prepared-llava": ("array_record", "prepared-llava"),
        "prepared-mmc4": ("array_record", "prepared-mmc4"),
        "tfds": ("tfds", "tfds/dreamjax_documents/1.0.0"),
    }[name]
    return SourceConfig(form, str(folder / path), images=str(folder / "images"))


def shown(one: SourceConfig, split: str, tokenizer) -> set[str]:
    """The ids of all documents that a run's loader shows of a split."""
    one = dataclasses.replace(one, split=split, eval_share=SHARE)
    data = DataConfig((one,), template="vicuna_v1.1", length=256, input_slots=8, target_slots=8)
    config = RunConfig(model=tiny(), data=data, optim=OptimConfig(trainable=(".",)), batch_size=1)
    loader, number, ids = Loader(config, data.train, tokenizer), 0, []
    while loader.has(number):
        ids += loader.load_first_epoch(number).documents
        number += 1
    assert len(ids) == len(set(ids)) == loader.documents
    return {os.path.basename(name) for name in ids}


@pytest.mark.parametrize("name", ["webdataset", "mmc4", "llava", "parquet", "prepared-llava", "prepared-mmc4", "tfds"])
def test_every_format_has_a_held_back_part(name, folder, shapes_tokenizer):
    train, heldout = (shown(source(name, folder), split, shapes_tokenizer) for split in ("train", "eval"))
    assert not train & heldout and len(train | heldout) == COUNT and 4 <= len(heldout) <= 20
    if name in ("llava", "prepared-llava", "tfds"):  # documents are numbered from 1, and three have one picture
        images = [{(int(one.rpartition(":")[2]) - 1) // 3 for one in part} for part in (train, heldout)]
        assert not set.intersection(*images)


def test_keys_move_with_the_files_and_through_prepare(folder, tmp_path):
    def keys(name, where):
        opened = open_source(source(name, where))
        return [opened.key(i) for i in range(len(opened))]

    def image_number(key):
        return int(key.partition("-")[0])  # tfds shuffles what it builds

    shutil.copytree(folder, tmp_path / "moved")
    for name in ("webdataset", "mmc4", "llava", "parquet", "prepared-llava", "tfds"):
        assert keys(name, folder) == keys(name, tmp_path / "moved"), name
    images = sorted(keys("tfds", folder), key=image_number)
    assert (
        keys("prepared-llava", folder)
        == images
        == keys("llava", folder)
        == [f"{number // 3}-0.jpg" for number in range(COUNT)]
    )
    assert keys("prepared-mmc4", folder) == keys("mmc4", folder) and len(set(keys("mmc4", folder))) == COUNT


def test_stories_that_share_images_have_one_key(tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))

    def page(*images):
        return [{"text": "Words.", "image": f"{number}.jpg"} for number in images]

    stories = [
        {"id": name, "title": name, "pages": page(*images)}
        for name, images in (("c", (0, 1)), ("a", (1, 2)), ("b", (3,)), ("d", (2, 4)))
    ]
    (tmp_path / "stories.jsonl").write_text("".join(json.dumps(story) + "\n" for story in stories))
    book = open_source(SourceConfig("storybook", str(tmp_path)))
    keys = {story.id: book.key(i) for i, story in enumerate(book.stories)}
    assert keys == {story.id: "b" if story.id == "b" else "a" for story in book.stories} and len(keys) >= 3
    assert isinstance(book, Storybook)
    writer.write(writer.Job(book, str(tmp_path / "out")), 1)
    again = open_source(SourceConfig("array_record", str(tmp_path / "out")))
    assert [again.key(i) for i in range(len(again))] == [book.key(i) for i in range(len(book))]
    pages = open_source(SourceConfig("storybook_pages", str(tmp_path)))
    assert {pages.key(i) for i in range(len(pages))} == set(keys.values())


def test_splits_that_cannot_be():
    with pytest.raises(ConfigError, match="webdataset has no part that is held out; set eval_share"):
        open_source(SourceConfig("webdataset", "nowhere", "eval"))
    with pytest.raises(ConfigError, match="shapes has splits of its own"):
        open_source(SourceConfig("shapes", eval_share=0.1))
