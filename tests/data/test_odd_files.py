"""Files that are none, and names of folders that mean something to a shell."""

import os

import pyarrow
import pyarrow.parquet
import pytest
from made_data import jpeg, told, write_jsonl

from dreamjax.config import SourceConfig
from dreamjax.data.registry import open_source
from dreamjax.errors import SourceError


@pytest.mark.parametrize("form", ["pairs", "webdataset", "parquet", "array_record"])
def test_pipes_devices_and_folders_are_no_files(form, tmp_path):
    """A pipe would be waited for, and /dev/zero read, for ever."""
    ending = {"pairs": "jsonl", "webdataset": "tar"}.get(form, form)
    os.mkfifo(tmp_path / f"pipe.{ending}")
    (tmp_path / f"folder.{ending}").mkdir()
    for path in (tmp_path / f"pipe.{ending}", tmp_path / "f*", "/dev/zero", "/dev/null"):
        with pytest.raises(SourceError, match="to read: .*: no regular file"):
            open_source(SourceConfig(form, str(path), cache=str(tmp_path / "cache")))


@pytest.mark.parametrize(
    "name",
    [
        "a{1,2}",
        "b[1]",
        "c*",
        "{0..2}",
        "d?",
        "~",
        "$HOME",
        "%2e%2e",
        "C:\\x",
        " e ",
        "f\ng",
        "h:i",
        os.fsdecode(b"caf\xe9"),
    ],
)
def test_a_folder_may_have_any_name(name, tmp_path, monkeypatch):
    """Braces, stars and ~ of a path that is there are its own."""
    monkeypatch.chdir(tmp_path)
    os.mkdir(name)
    write_jsonl(os.path.join(name, "r.jsonl"), [{"image": "1.jpg", "caption": "x"}])
    with open(os.path.join(name, "1.jpg"), "wb") as file:
        file.write(jpeg(1))
    table = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"image": ["1.jpg"], "text": ["x"]}), table)
    with open(os.path.join(name, "r.parquet"), "wb") as file, open(os.path.join(name, "r.array_record"), "wb"):
        file.write(table.getvalue())
    for path in (name, os.path.join(name, "r.jsonl"), os.path.join(tmp_path, name)):
        source = open_source(SourceConfig("pairs", path, cache=str(tmp_path / "cache")))
        assert told(source[0]) == [1, "x"]
    if name.isprintable() or name.isascii():
        assert told(open_source(SourceConfig("parquet", name))[0]) == [1, "x"]
    else:
        for form in ("parquet", "array_record"):
            with pytest.raises(SourceError, match="its name is not UTF-8; rename it"):
                open_source(SourceConfig(form, name))
