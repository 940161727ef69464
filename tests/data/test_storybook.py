"""Picture stories from a folder.

Documents, splits that share no picture, and what happens to records that are broken.
"""

import json
import os
import pathlib

import fsspec
import numpy as np
import pytest
from PIL import Image as PilImage

from dreamjax.config import SourceConfig
from dreamjax.data.registry import open_source
from dreamjax.data.sources.storybook import Story, Storybook, assign_splits
from dreamjax.document import Image, Text
from dreamjax.errors import BadImage, SourceError

REAL = pathlib.Path(os.environ.get("DREAMJAX_DATA", pathlib.Path(__file__).parents[2] / "../shared/data")) / "storybook"


def record(number, images=None, **changes):
    images = [f"images/{number}.png"] if images is None else images
    story = {
        "id": f"s{number:03}",
        "title": f"Story {number}",
        "pages": [{"text": f"Page {i}.", "image": p} for i, p in enumerate(images)],
    }
    return story | {"text_by": "Ann", "illustration_by": "Ben", "license": "CC BY"} | changes


def write(folder, records):
    folder.mkdir(exist_ok=True)
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    (folder / "stories.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def stories(links):
    return [Story(id, id, tuple(("", image) for image in images)) for id, images in links.items()]


def test_a_story_becomes_a_document(tmp_path):
    pages = [
        {"text": "A goat. ", "image": "images/a.png"},
        {"text": "", "image": "images/b.png"},
        {"text": "Alone.", "image": None},
        {"text": "Bye."},
    ]
    pages.append({"text": "", "image": None})
    folder = write(tmp_path, [record(1, title="Goat", pages=pages), record(2), record(3)])
    (folder / "images").mkdir()
    PilImage.new("RGB", (5, 4), (9, 8, 7)).save(folder / "images/a.png")
    documents = [document for split in ("train", "eval") for document in Storybook(folder, split)]
    (document,) = [document for document in documents if document.id == "s001"]
    found = [part if isinstance(part, Text) else part.source for part in document.parts]
    assert found == [
        Text("Goat."),
        Text(" A goat."),
        folder / "images/a.png",
        folder / "images/b.png",
        Text("Alone."),
        Text(" Bye."),
    ]
    image = document.parts[2]
    assert (
        image.is_input and image.is_target and image.pil().size == (5, 4)
    )  # b.png is missing: nothing is opened before its use


def test_pages_are_documents_of_their_own(tmp_path):
    pages = [
        {"text": "A goat.", "image": "images/a.png"},
        {"text": "", "image": "images/b.png"},
        {"text": "Alone.", "image": None},
    ]
    folder = write(tmp_path, [record(1, pages=pages), record(2), record(3)])
    found = [
        document
        for split in ("train", "eval")
        for document in open_source(SourceConfig("storybook_pages", str(folder), split))
    ]
    assert {document.id for document in found} == {
        "s001/1",
        "s002/1",
        "s003/1",
    }  # only pages with both text and picture
    text, image = next(document.parts for document in found if document.id == "s001/1")
    assert (
        text == Text("A goat.") and image.source == folder / "images/a.png" and image.is_target and not image.is_input
    )
    split = {
        part: {document.id[:4] for document in open_source(SourceConfig("storybook_pages", str(folder), part))}
        for part in ("train", "eval")
    }
    assert split["eval"] == {story.id for story in Storybook(folder, "eval").stories}


def test_titles_keep_their_own_mark(tmp_path):
    folder = write(
        tmp_path, [record(i, title=title) for i, title in enumerate(["What is it?", "Rats!", "My home.", "Goat"])]
    )
    titles = {document.parts[0].text for split in ("train", "eval") for document in Storybook(folder, split)}
    assert titles == {"What is it?", "Rats!", "My home.", "Goat."}


def test_texts_and_credits(tmp_path):
    source = Storybook(write(tmp_path, [record(1, ["a", "b"]), record(2, ["b"]), record(3)]))
    index = [story.id for story in source.stories].index("s001")
    assert source.credits(index) == '"Story 1" (s001), text by Ann, pictures by Ben, licence CC BY'
    assert list(source.texts())[:3] == ["Story 1.", "Page 0.", "Page 1."]
    assert source[index].id == "s001"
    with pytest.raises(IndexError, match="'train'"):
        source[len(source)]


def test_stories_that_share_an_image_stay_together():
    links = {f"x{i:02}": [f"p{i}"] for i in range(40)}
    links |= {"a": ["1", "2"], "b": ["2", "3"], "c": ["3"]}  # a and c share nothing, but both share with b
    for salt in range(20):
        renamed = {f"{salt}{id}": images for id, images in links.items()}
        split = dict(zip(renamed, assign_splits(stories(renamed)), strict=True))
        assert split[f"{salt}a"] == split[f"{salt}b"] == split[f"{salt}c"]
        assert list(split.values()).count("eval") == 4


def test_covers_count_as_images(tmp_path):
    records = [record(i, cover="images/../images/same.png" if i % 2 else "images/same.png") for i in range(8)] + [
        record(i) for i in range(8, 40)
    ]
    heldout = {document.id for document in Storybook(write(tmp_path, records), "eval")}
    assert heldout and not heldout & {f"s{i:03}" for i in range(8)}  # eight stories are more than a tenth of forty


def test_splits_do_not_depend_on_the_order_of_the_file():
    made = stories({f"s{i}": [f"p{i // 2}"] for i in range(50)})
    forward, backward = assign_splits(made), assign_splits(made[::-1])[::-1]
    assert forward == backward and 0 < forward.count("eval") <= 5


def test_broken_records_are_skipped_and_named(tmp_path):
    broken = [
        "{oops",
        json.dumps([1]),
        record(9, title=None),
        record(9, pages="x"),
        record(9, pages=[{"text": 3}]),
        record(9, pages=[]),
        record(1),
    ]
    source = Storybook(write(tmp_path, [record(1), *broken, record(2, title="Où?"), "", record(3)]))
    assert len(source) + len(Storybook(tmp_path, "eval")) == 3
    reasons = [
        "bad JSON",
        "not a JSON object",
        "title is missing",
        "pages is missing",
        "text is",
        "no page has",
        "id s001 occurs twice",
    ]
    assert len(source.skipped) == len(reasons)
    for number, (line, reason) in enumerate(zip(map(str, source.skipped), reasons, strict=True), start=2):
        assert line.startswith(f"{tmp_path / 'stories.jsonl'}:{number}: ") and reason in line and "\n" not in line


@pytest.mark.parametrize(
    "lines, message",
    [
        (None, "cannot read .*stories.jsonl"),
        ([], "the file is empty"),
        (["oops"], "first of 1 bad records is .*:1: bad JSON"),
        (["{}"], "pages is missing"),
    ],
)
def test_a_folder_without_stories_is_one_clear_error(tmp_path, lines, message):
    if lines is not None:
        write(tmp_path, lines)
    with pytest.raises(SourceError, match=message) as error:
        open_source(SourceConfig("storybook", str(tmp_path)))
    assert "\n" not in str(error.value)


def test_other_whole_source_errors(tmp_path):
    with pytest.raises(SourceError, match="nowhere is no folder"):
        Storybook(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="split 'test'"):
        Storybook(tmp_path, "test")
    write(tmp_path, [record(1)])
    assert len(Storybook(tmp_path)) == 1
    with pytest.raises(SourceError, match="falls into the split 'eval'"):
        Storybook(tmp_path, "eval")


def test_stories_in_a_bucket(tmp_path):
    write(tmp_path, [record(i) for i in range(4)])
    (tmp_path / "images").mkdir()
    for i in range(4):
        PilImage.new("RGB", (5, 4), (9, 8, i)).save(tmp_path / f"images/{i}.png")
    fsspec.filesystem("memory").put(str(tmp_path), "memory://stories", recursive=True)
    for form in ("storybook", "storybook_pages"):
        here, there = (open_source(SourceConfig(form, folder)) for folder in (str(tmp_path), "memory://stories"))
        assert there.fingerprint == here.fingerprint and len(there) == len(here) == 3
        for ours, theirs in zip(there, here, strict=True):
            assert ours.id == theirs.id and ours.text == theirs.text
            assert [np.asarray(image).tolist() for image in ours.images] == [
                np.asarray(image).tolist() for image in theirs.images
            ]
    fsspec.filesystem("memory").rm("memory://stories/images/1.png")
    missing = Image("memory://stories/images/1.png")
    with pytest.raises(BadImage, match="memory://stories/images/1.png: no such file"):
        missing.pil()
    with pytest.raises(SourceError, match="memory://nowhere is no folder"):
        Storybook("memory://nowhere")


@pytest.mark.skipif(
    not REAL.is_dir(), reason=f"{REAL} is absent: set DREAMJAX_DATA to the folder that holds storybook/"
)
def test_the_real_stories():
    train, heldout = Storybook(REAL), Storybook(REAL, "eval")
    assert len(train) + len(heldout) == 257 and len(heldout) == 25
    assert train.skipped == heldout.skipped == ()
    assert not set.union(*(s.images for s in train.stories)) & set.union(*(s.images for s in heldout.stories))
    document = heldout[0]
    images = [part for part in document.parts if isinstance(part, Image)]
    assert images and min(images[0].pil().size) == 256 and "CC BY" in heldout.credits(0)
