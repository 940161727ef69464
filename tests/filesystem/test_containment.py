"""Names that others wrote: whatever they are, what is read lies in the folder."""

import os
import pathlib
import pickle
import string

import hypothesis
import hypothesis.strategies as st
import pytest

from dreamjax.errors import OutsideFolder
from dreamjax.filesystem.containment import inside

PIECES = st.sampled_from(
    ["..", ".", "", "a", "b.png", "up", "away", "loop", "~", "...", "%2e%2e", "file:", "gs:", "C:\\x", "\0", "\ud800"]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a subfolder and links: up and away lead out, here does not, loop is one."""
    root = tmp_path_factory.mktemp("root")
    folder = root / "data"
    (folder / "a").mkdir(parents=True)
    for name, target in (("up", ".."), ("away", "/etc/passwd"), ("loop", "loop"), ("here", "a")):
        (folder / name).symlink_to(target)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "a.png",
        "a/b.png",
        "a/../b.png",
        "./a.png",
        "here/b.png",
        "..a.png",
        "...",
        "a:b.png",
        "~/a.png",
        "loop",
        "http:/a",
    ],
)
def test_names_in_the_folder(folder, name):
    assert inside(folder, name) == os.path.join(folder, name)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "//etc/passwd",
        "..",
        "../a.png",
        "a/../../a.png",
        "./../a.png",
        "up/a.png",
        "up",
        "away",
        "a/../up/x",
        "",
        "a\0.png",
        "\ud800.png",
        "http://host/a.png",
        "file:///etc/passwd",
        "gs://bucket/a.png",
        "a/memory://a",
        "local://etc/passwd",
    ],
)
def test_names_outside(folder, name):
    with pytest.raises(OutsideFolder, match="is outside the folder: "):
        inside(folder, name)


def test_names_in_a_bucket():
    assert inside("gs://bucket/data/", "a/b.png") == "gs://bucket/data/a/b.png"
    for name in ("/a.png", "../a.png", "a/../../b.png", "%2e%2E/a.png", "a%2f..%2f../b", "s3://other/a.png", ""):
        with pytest.raises(OutsideFolder):
            inside("gs://bucket/data", name)


def test_a_folder_that_is_itself_a_link(folder):
    (folder.parent / "link").symlink_to(folder)
    assert inside(folder.parent / "link", "a/b.png") == str(folder.parent / "link" / "a" / "b.png")
    assert inside("", "a.png") == "a.png" and inside("/", "a.png") == "/a.png"


@hypothesis.given(st.lists(PIECES | st.text(string.printable, max_size=3), max_size=6).map("/".join))
def test_whatever_is_named_lies_within(folder, name):
    try:
        path = inside(folder, name)
    except OutsideFolder:
        return
    assert pathlib.Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def test_the_error_is_one_line_and_travels_between_processes(folder):
    with pytest.raises(OutsideFolder) as caught:
        inside(folder, "/etc/\n" + "x" * 10_000)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value) and "\n" not in str(copy) and len(str(copy)) < 300
