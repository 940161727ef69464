"""Parquet and TFDS: the same documents as from files, by number, with bad rows named."""

import pickle
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
from made_data import jpeg, make_image, mmc4, pairs, reasons, told, write_tar

from dreamjax.config import SourceConfig
from dreamjax.data.registry import open_source
from dreamjax.errors import BadImage, BadRecord, SourceError


def write_parquet(path, rows: dict, group=4):
    pyarrow.parquet.write_table(pyarrow.table(rows), path, row_group_size=group)


def opened(path, **options):
    return open_source(SourceConfig("parquet", str(path), **options))


def test_pairs_of_many_groups(tmp_path):
    for file in range(2):
        numbers = range(10 * file, 10 * file + 10)
        structs = [{"bytes": jpeg(i), "path": f"{i}.jpg"} for i in numbers]
        write_parquet(
            tmp_path / f"train-{file}.parquet",
            {"image": structs, "text": [f" caption {i}" for i in numbers], "similarity": [i / 100 for i in numbers]},
        )
    source = pickle.loads(pickle.dumps(opened(tmp_path)))
    assert len(source) == 20 and [told(source[i]) for i in (19, 0, 9, 10, 4)] == [
        [i, f"caption {i}"] for i in (19, 0, 9, 10, 4)
    ]
    assert (
        source[13].kind == "pair"
        and source[13].id == f"{tmp_path}/{source.key(13)}" == f"{tmp_path}/train-1.parquet:0:3"
        and len(list(source.texts())) == 20
    )
    assert source.fingerprint == opened(tmp_path).fingerprint != opened(tmp_path, min_similarity=0.1).fingerprint
    assert reasons(opened(tmp_path, min_similarity=0.18)) == ["low similarity"] * 18 + ["", ""]
    with pytest.raises(IndexError):
        source[20]


def test_other_columns(tmp_path):
    (tmp_path / "7.jpg").write_bytes(jpeg(7))
    write_parquet(
        tmp_path / "a.parquet",
        {"jpg": [jpeg(1), jpeg(2), None], "caption": ["one", " ", "three"], "alt": ["x", "y", None]},
    )
    source = opened(tmp_path / "a.parquet")
    assert told(source[0]) == [1, "one"] and reasons(source) == ["", "no text", ""]
    with pytest.raises(BadImage, match="a.parquet:0:2: no picture in the column jpg"):
        source[2].images  # noqa: B018
    assert (
        told(opened(tmp_path / "a.parquet", text_key="alt")[1]) == [2, "y"]
        and reasons(opened(tmp_path / "a.parquet", text_key="alt"))[2] == "missing key"
    )
    assert (
        set(reasons(opened(tmp_path / "a.parquet", text_key="none")))
        == set(reasons(opened(tmp_path / "a.parquet", image_key="none")))
        == {"missing key"}
    )
    write_parquet(tmp_path / "b.parquet", {"image": ["7.jpg", "8.jpg"], "text": ["by name", "gone"]})
    source = opened(tmp_path / "b.parquet")
    assert told(source[0]) == [7, "by name"]
    with pytest.raises(BadRecord, match="8.jpg: no such file"):
        source[1]
    write_parquet(tmp_path / "c.parquet", {"text": ["words alone"]})
    assert told(opened(tmp_path / "c.parquet")[0]) == ["words alone"]


def test_documents_in_rows(tmp_path):
    (tmp_path / "7.jpg").write_bytes(jpeg(7))
    structs = [
        [{"bytes": jpeg(1), "path": None}, None, {"bytes": None, "path": "7.jpg"}, {"bytes": None, "path": "gone.jpg"}],
        [None],
    ]
    write_parquet(tmp_path / "a.parquet", {"images": structs, "texts": [[None, "One.", None, None], ["Two."]]})
    assert [told(document) for document in opened(tmp_path / "a.parquet")] == [[1, "One.", 7], ["Two."]]
    talk = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A cat."}]
    write_parquet(tmp_path / "b.parquet", {"image": [{"bytes": jpeg(3)}, None], "conversations": [talk, talk]})
    source = opened(tmp_path / "b.parquet")
    assert told(source[0]) == [3, "What?", "A cat."] and told(source[1]) == ["<image>What?", "A cat."]
    record = mmc4(1, 2, [1, 0])
    rows = {
        "images": [[{"bytes": jpeg(5)}, {"bytes": jpeg(6)}]],
        "text_list": [record["text_list"]],
        "image_info": [record["image_info"]],
    }
    write_parquet(tmp_path / "c.parquet", rows)
    assert told(opened(tmp_path / "c.parquet")[0]) == ["Sentence 0 of 1.", 6, "Sentence 1 of 1.", 5]


def test_files_that_are_damaged_or_change(tmp_path):
    for number in range(3):
        write_parquet(tmp_path / f"{number}.parquet", {"text": [f"{number}-{i}" for i in range(6)]}, group=3)
    whole = (tmp_path / "1.parquet").read_bytes()
    (tmp_path / "1.parquet").write_bytes(whole[:200])
    source = opened(tmp_path / "{0..3}.parquet")
    assert [(record.name[-9:], record.reason) for record in source.skipped] == [
        ("1.parquet", "file damaged"),
        ("3.parquet", "file missing"),
    ]
    assert [told(document) for document in source] == [[f"{number}-{i}"] for number in (0, 2) for i in range(6)]
    write_parquet(tmp_path / "2.parquet", {"text": ["other"]})
    source = pickle.loads(pickle.dumps(source))
    from dreamjax.data.sources.parquet import _read_column

    _read_column.cache_clear()
    assert reasons(source) == [""] * 6 + ["file changed"] * 6
    for path, reason in [
        (tmp_path / "1.parquet", "no row to read: .*1.parquet: file damaged"),
        (tmp_path / "x*", "no such file"),
    ]:
        with pytest.raises(SourceError, match=reason):
            opened(path)


# ----------------------------------------------------------------------------------------------------------------------
# TFDS


def test_tfds_built_and_read_without_tensorflow(tmp_path):
    write_tar(tmp_path / "a.tar", [*pairs(range(5)), ("bad.jpg", jpeg(1))])
    code = (
        "import sys\nfrom dreamjax.config import SourceConfig\nfrom dreamjax.data.registry import "
        "open_source\nfrom dreamjax.data.sources.tfds import build\n"
        f"source = open_source(SourceConfig('webdataset', {str(tmp_path)!r}))\n"
        f"print(build({{'train': source, 'validation': source}}, {str(tmp_path / 'data')!r}))\nassert "
        "'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = done.stdout.splitlines()[-1]
    assert folder == str(tmp_path / "data" / "dreamjax_documents" / "1.0.0")
    source = open_source(SourceConfig("tfds", folder))
    other = open_source(SourceConfig("tfds", folder + "/validation"))
    assert len(source) == len(other) == 5 and sorted(told(document) for document in source) == [
        [i, f"caption {i}"] for i in range(5)
    ]
    again = pickle.loads(pickle.dumps(source))
    assert (
        told(again[2]) == told(source[2])
        and again.fingerprint == source.fingerprint != other.fingerprint
        and source[2].kind == "pair"
    )
    assert source[2].id.startswith(f"{tmp_path}/a.tar:") and source.key(2) == source[2].id.rpartition("/")[2]
    with pytest.raises(IndexError):
        source[5]
    with pytest.raises(SourceError, match="cannot be read as a dataset of tfds"):
        open_source(SourceConfig("tfds", folder + "/test"))
    with pytest.raises(SourceError, match="holds no dataset_info.json"):
        open_source(SourceConfig("tfds", str(tmp_path)))


def test_pairs_of_other_tfds_datasets():
    from dreamjax.data.sources.records import Unusable
    from dreamjax.data.sources.tfds import _document

    assert told(_document({"image": make_image(4), "captions": {"text": [b"a cat", b"two"]}}, "", "")) == [4, "a cat"]
    assert told(_document({"image": jpeg(4), "other": {"name": b"x"}, "text": b""}, "other/name", "image")) == [4, "x"]
    assert told(_document({"text": b"words"}, "", "")) == ["words"]
    for example, keys in [
        ({"image": jpeg(1)}, ("", "")),
        ({"text": b" "}, ("", "")),
        ({"text": b"x"}, ("", "jpg")),
        ({"captions": {"text": []}}, ("", "")),
    ]:
        with pytest.raises(Unusable):
            _document(example, *keys)
