"""The index pass: found once, stored, resumed where it was interrupted, and shared out over processes."""

import json

import numpy as np
import pytest
from etils import epath

from dreamjax.data import lengths as lengths_module
from dreamjax.data.lengths import PAIR, Measured, measure_all, shown
from dreamjax.data.sources import BadRecord


def measure(index):
    """A function of the index, in a module that a worker process can import."""
    if index % 100 == 7:
        return Measured(broken=BadRecord(f"here:{index}", "bad JSON"))
    return Measured((index + 1, index % 3, 0), cut=index % 10 == 0, apart=False)


def expected(count):
    return np.array([measure(index).entry for index in range(count)], np.int32).reshape(-1, 3)


@pytest.mark.parametrize("count", [0, 5, 2500])
@pytest.mark.parametrize("stored", [True, False])
def test_every_document_is_measured(tmp_path, count, stored):
    folder = epath.Path(tmp_path) / "lengths" if stored else None
    lengths, found = measure_all(measure, count, "key", folder)
    assert len(lengths) == count and np.array_equal(lengths.entries, expected(count)) and lengths.entries.dtype == np.int32
    assert (found.cut, found.broken) == (sum(i % 10 == 0 for i in range(count)), len([i for i in range(count) if i % 100 == 7]))
    assert found.tokens == expected(count)[:, 0].sum() and [str(record) for record in found.named][:1] == (["here:7: bad JSON"] if count > 7 else [])
    if stored:
        again, found_again = measure_all(None, count, "key", folder)  # nothing is measured again
        assert np.array_equal(again.entries, lengths.entries) and found_again.to_json() == found.to_json()
        assert sorted(path.name for path in folder.iterdir()) == ["key.json", "key.npy"]


def test_an_interrupted_pass_goes_on_where_it_was(tmp_path):
    folder, seen = epath.Path(tmp_path), []

    def interrupted(index):
        if index == 3000:
            raise KeyboardInterrupt
        return measure(index)

    with pytest.raises(KeyboardInterrupt):
        measure_all(interrupted, 5000, "key", folder)
    with open(tmp_path / "key.0.npy.partial.log", "a") as log:
        log.write('{"done": 30')  # a line that was being written
    lengths, found = measure_all(lambda index: seen.append(index) or measure(index), 5000, "key", folder)
    assert min(seen) == 2048 and np.array_equal(lengths.entries, expected(5000))
    assert found.broken == 50 and found.cut == 500
    assert json.loads((tmp_path / "key.json").read_text())["broken"] == 50


def test_worker_processes_find_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(lengths_module, "MANY", 100)
    lengths, found = measure_all(measure, 2500, "key", epath.Path(tmp_path), workers=2)
    assert np.array_equal(lengths.entries, expected(2500)) and found.broken == 25


def test_what_a_showing_takes():
    entries = np.array([(9, 2, 1), (20, PAIR, 7), (20, PAIR, 7), (0, 0, 0), (0, PAIR, 7)], np.int32)
    taken = shown(entries, np.array([0.1, 0.49, 0.5, 0.9, 0.7]))
    assert taken.dtype == np.int32 and taken[:4].tolist() == [[9, 2, 1], [7, 0, 1], [20, 1, 0], [0, 0, 0]] and taken[4, 0] == 0
