"""The index pass: found once, stored, resumed where it was interrupted, and shared out over processes."""

import io
import json
import pathlib
import shutil

import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamjax.data.pipeline import lengths as lengths_module
from dreamjax.data.pipeline.lengths import PAIR, Measured, measure_all, shown
from dreamjax.errors import BadRecord


def measure(index):
    """A function of the index, in a module that a worker process can import."""
    if index % 100 == 7:
        return Measured(broken=BadRecord(f"here:{index}", "bad JSON"))
    return Measured((index + 1, index % 3, 0), truncated=index % 10 == 0, other_split=False)


def expected(count):
    return np.array([measure(index).entry for index in range(count)], np.int32).reshape(-1, 3)


@pytest.mark.parametrize("count", [0, 5, 2500])
@pytest.mark.parametrize("stored", [True, False])
def test_every_document_is_measured(tmp_path, count, stored):
    folder = epath.Path(tmp_path) / "lengths" if stored else None
    lengths, found = measure_all(measure, count, "key", folder)
    assert (
        len(lengths) == count and np.array_equal(lengths.entries, expected(count)) and lengths.entries.dtype == np.int32
    )
    assert (found.truncated, found.broken) == (
        sum(i % 10 == 0 for i in range(count)),
        len([i for i in range(count) if i % 100 == 7]),
    )
    assert found.tokens == expected(count)[:, 0].sum() and [str(record) for record in found.named][:1] == (
        ["here:7: bad JSON"] if count > 7 else []
    )
    if stored:
        again, found_again = measure_all(None, count, "key", folder)  # nothing is measured again
        assert np.array_equal(again.entries, lengths.entries) and found_again.to_json() == found.to_json()
        assert sorted(path.name for path in folder.iterdir()) == ["key.json", "key.npy"]


def test_an_interrupted_pass_goes_on_where_it_was(tmp_path):
    folder, inputs = epath.Path(tmp_path), []

    def interrupted(index):
        if index == 3000:
            raise KeyboardInterrupt
        return measure(index)

    with pytest.raises(KeyboardInterrupt):
        measure_all(interrupted, 5000, "key", folder)
    with open(tmp_path / "key.0.npy.partial.log", "a") as log:
        log.write('{"done": 30')  # a line that was being written
    lengths, found = measure_all(lambda index: inputs.append(index) or measure(index), 5000, "key", folder)
    assert min(inputs) == 2048 and np.array_equal(lengths.entries, expected(5000))
    assert found.broken == 50 and found.truncated == 500
    assert json.loads((tmp_path / "key.json").read_text())["broken"] == 50


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder of lengths as a start has left it, and what is in it."""
    folder = tmp_path_factory.mktemp("kept")
    measure_all(measure, 300, "key", epath.Path(folder))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def other_shape(count, dtype=np.int32):
    file = io.BytesIO()
    np.save(file, np.zeros((count, 3), dtype))
    return file.getvalue()


DAMAGE = {
    "deleted": None,
    "empty": b"",
    "garbage": b"\x93NUMPY garbage",
    "nul": b"\0" * 4000,
    "zip": b"PK\x03\x04" + b"\0" * 40,
    "text": b"[" * 100_000,
    "shorter": other_shape(299),
    "other_type": other_shape(300, np.float64),
    "zeros": other_shape(300),
    "number": b"7",
    "list": b"[1]",
    "keys": b'{"tokens": 1}',
    "types": b'{"tokens": "x", "cut": 0, "apart": 0, "broken": 0, "named": []}',
    "object": other_shape(1, object),
}


@pytest.mark.parametrize("name", ["key.npy", "key.json"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_files_are_named_and_measured_anew(tmp_path, kept, capsys, name, damage):
    restore(tmp_path, kept)
    (tmp_path / name).unlink() if damage is None else (tmp_path / name).write_bytes(damage)
    lengths, found = measure_all(measure, 300, "key", epath.Path(tmp_path))
    assert np.array_equal(lengths.entries, expected(300)) and found.broken == 3
    told = capsys.readouterr().err.splitlines()
    assert (
        len(told) == 1 and told[0].startswith(f"{tmp_path}/key.*: damaged (") or name == "key.json" and damage is None
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept


def restore(folder: pathlib.Path, kept: dict):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in kept.items():
        (folder / name).write_bytes(data)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["key.npy", "key.json"]),
    at=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
    cut=st.booleans(),
)
def test_no_byte_changes_a_length_unseen(tmp_path_factory, kept, name, at, flip, cut):
    folder = tmp_path_factory.mktemp("flipped")
    data = bytearray(kept[name])
    place = int(at * len(data))
    data[place] ^= flip
    restore(folder, kept | {name: bytes(data[:place] if cut else data)})
    lengths, _ = measure_all(measure, 300, "key", epath.Path(folder))
    assert np.array_equal(lengths.entries, expected(300))


@pytest.mark.parametrize("damaged", ["log", "entries"])
def test_an_interrupted_pass_that_was_damaged_goes_on_from_what_is_whole(tmp_path, damaged):
    def interrupted(index):
        if index == 3000:
            raise KeyboardInterrupt
        return measure(index)

    with pytest.raises(KeyboardInterrupt):
        measure_all(interrupted, 5000, "key", epath.Path(tmp_path))
    path = tmp_path / ("key.0.npy.partial.log" if damaged == "log" else "key.0.npy.partial")
    data, inputs = bytearray(path.read_bytes()), []
    place = data.index(b"\n") + 5 if damaged == "log" else 128 + 1500 * 12
    data[place : place + 9] = b"\0" * 9
    path.write_bytes(data)
    lengths, found = measure_all(
        lambda index: inputs.append(index) or measure(index), 5000, "key", epath.Path(tmp_path)
    )
    assert min(inputs) == 1024 and np.array_equal(lengths.entries, expected(5000)) and found.broken == 50


def test_worker_processes_find_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(lengths_module, "MANY", 100)
    lengths, found = measure_all(measure, 2500, "key", epath.Path(tmp_path), workers=2)
    assert np.array_equal(lengths.entries, expected(2500)) and found.broken == 25


def test_what_a_showing_takes():
    entries = np.array([(9, 2, 1), (20, PAIR, 7), (20, PAIR, 7), (0, 0, 0), (0, PAIR, 7)], np.int32)
    taken = shown(entries, np.array([0.1, 0.49, 0.5, 0.9, 0.7]))
    assert (
        taken.dtype == np.int32
        and taken[:4].tolist() == [[9, 2, 1], [7, 0, 1], [20, 1, 0], [0, 0, 0]]
        and taken[4, 0] == 0
    )
