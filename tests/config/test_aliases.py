"""Earlier names of fields: in constructors, in stored settings and documents, and back for digests."""

import dataclasses

import pytest

from dreamjax.cli import with_current_names
from dreamjax.config import DataConfig, RunConfig, SourceConfig, from_dict, to_dict
from dreamjax.config.aliases import current_names, current_path, earlier_names, renamed
from dreamjax.document import Document, Image, Text
from dreamjax.errors import ConfigError

TRAIN = (SourceConfig("shapes"),)


@renamed({"old": "new"})
@dataclasses.dataclass(frozen=True)
class Thing:
    new: int = 1
    other: int = 2


def test_a_constructor_takes_either_name_and_both_are_read():
    assert Thing(old=5) == Thing(new=5) == Thing(5) == dataclasses.replace(Thing(), new=5)
    assert Thing(old=5).old == Thing(old=5).new == 5
    with pytest.raises(TypeError, match="old: is the earlier name of new, which is given too"):
        Thing(old=5, new=5)
    with pytest.raises(TypeError, match="unknown"):
        Thing(unknown=5)


def test_names_there_and_back():
    assert current_names(Thing, {"old": 1, "other": 2}) == {"new": 1, "other": 2}
    assert earlier_names(Thing, current_names(Thing, {"old": 1, "other": 2})) == {"old": 1, "other": 2}
    assert current_names(int, {"old": 1}) == earlier_names(int, {"old": 1}) == {"old": 1}


def test_parts_and_settings_of_version_0_1():
    assert Text("a", learned=False) == Text("a", supervised=False)
    image = Image(b"", seen=False, dreamed=True)
    assert (image.is_input, image.is_target, image.seen, image.dreamed) == (False, True, False, True)
    assert DataConfig(TRAIN, seen_slots=3, dreamed_slots=4) == DataConfig(TRAIN, input_slots=3, target_slots=4)
    assert from_dict(DataConfig, {"train": TRAIN, "seen_slots": 3}) == DataConfig(TRAIN, input_slots=3)
    assert "seen_slots" not in to_dict(DataConfig(TRAIN, seen_slots=3))
    with pytest.raises(ConfigError, match="config.seen_slots: is the earlier name of input_slots"):
        from_dict(DataConfig, {"train": TRAIN, "seen_slots": 3, "input_slots": 3})
    assert RunConfig.old_names == {"whole": "replicated"}


def test_documents_by_their_earlier_names():
    document = Document((Text("a", False), Image("1.png", True, False)))
    earlier = {"type": "text", "text": "a", "learned": False, "role": None}
    assert Document((document.parts[0],)).to_earlier_json()["parts"] == [earlier]
    stored = {"parts": [earlier, {"type": "image", "image": "data:;base64,", "seen": True, "dreamed": False}]}
    text, image = Document.from_json(stored).parts
    assert text == document.parts[0] and (image.is_input, image.is_target) == (True, False)


def test_overrides_on_the_command_line():
    paths = {"data.seen_slots": "data.input_slots", "loss.picture_chunks": "loss.image_chunks", "whole": "replicated"}
    same = ("seed", "data.train[0].path", "model.llm.width", "nowhere.seen_slots", "seen_slots")
    for path, current in {**paths, **dict.fromkeys(same)}.items():
        assert current_path(RunConfig, path) == (current or path)
    words = [
        "train",
        "--config=x.py:seen_slots",
        "--config.data.seen_slots=4",
        "--config.whole",
        "('.',)",
        "--seen_slots=1",
    ]
    expected = [*words[:2], "--config.data.input_slots=4", "--config.replicated", *words[4:]]
    assert with_current_names(words) == expected
