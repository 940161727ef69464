"""What is imported or exported is whole under its name or not there.

After a kill, beside another writer, over what is there already.
"""

import os
import pathlib
import subprocess
import sys

import pytest
from etils import epath

from dreamjax.convert import output
from dreamjax.errors import ConfigError
from dreamjax.filesystem import lock

KILLED = """
import os, sys
from etils import epath
from dreamjax.convert import output
with output.written(epath.Path(sys.argv[1])) as folder:
    (folder / "params").mkdir(parents=True)
    (folder / "params" / "half").write_text("half")
    os.kill(os.getpid(), 9)
"""


def write(out: pathlib.Path, text: str = "whole"):
    with output.written(epath.Path(out)) as folder:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(text)


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_killed_writer_leaves_nothing_under_the_name_and_the_same_command_begins_anew(tmp_path):
    out = tmp_path / "model"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, out],
        cwd=pathlib.Path(__file__).parents[2],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == -9 and names(tmp_path) == ["model.tmp"]
    assert names(tmp_path / "model.tmp" / "model") == ["params"]
    write(out)
    assert names(tmp_path) == ["model"] and names(out) == ["config.json"]


@pytest.mark.parametrize("made", ["before", "meanwhile"])
def test_what_is_there_already_stays(tmp_path, made):
    out = tmp_path / "model"
    refused = pytest.raises(
        ConfigError, match="^--out: .*model holds something already; name another folder, or remove it"
    )
    if made == "before":
        write(out, "mine")
        with refused:
            write(out)
    else:
        with refused, output.written(epath.Path(out)) as folder:
            folder.mkdir()
            (folder / "config.json").write_text("whole")
            out.mkdir()
            (out / "config.json").write_text("mine")
    assert names(tmp_path) == ["model"] and (out / "config.json").read_text() == "mine"


def test_a_file_of_that_name_is_in_the_way_and_an_empty_folder_is_not(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file holds something already"):
        write(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert names(tmp_path / "empty") == ["config.json"]


def test_of_two_writers_the_second_is_refused(tmp_path):
    out = tmp_path / "model"
    with output.written(epath.Path(out)) as folder:
        folder.mkdir()
        with pytest.raises(ConfigError, match=r"^--out: .*model.tmp is in use by process \d+"):
            write(out)
        (folder / "config.json").write_text("first")
    assert names(tmp_path) == ["model"] and (out / "config.json").read_text() == "first"


@pytest.mark.parametrize(
    "error", [ConfigError("--source: no"), OSError(28, "No space left on device"), KeyboardInterrupt()]
)
def test_an_error_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)), output.written(epath.Path(tmp_path / "model")) as folder:
        (folder / "params").mkdir(parents=True)
        raise error
    assert names(tmp_path) == []


def test_in_a_bucket_what_has_no_config_is_begun_anew(tmp_path):
    """Written in place there; a folder of this machine stands for it."""
    out = epath.Path(tmp_path / "model")
    (out / "params").mkdir(parents=True)
    (out / "params" / "half").write_text("half")
    with output.in_bucket(out) as folder:
        assert folder == out and names(tmp_path / "model") == [lock.FILE]
        (out / "params").mkdir()
        (out / "config.json").write_text("whole")
    assert names(tmp_path / "model") == ["config.json", "params"]
    with pytest.raises(ConfigError, match="holds something already"), output.in_bucket(out):
        pass
    (out / "config.json").unlink()
    with pytest.raises(ConfigError, match="no"), output.in_bucket(out) as folder:
        raise ConfigError("no")
    assert names(tmp_path / "model") == []
