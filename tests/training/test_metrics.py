"""What a run says of itself: broken records named once and counted by reason, and how its losses fell."""

import dataclasses
import json

import pytest
from etils import epath
from small_run import CONFIG

from dreamjax.data.sources import BadRecord
from dreamjax.schema import RunStopped
from dreamjax.training.metrics import Watch, losses_of


def watch(tmp_path, share, records=100, broken=(), unnamed=0):
    data = dataclasses.replace(CONFIG.data, max_bad_share=share)
    return Watch(dataclasses.replace(CONFIG, data=data), epath.Path(tmp_path), 0, records, broken, unnamed)


def test_each_is_named_once(tmp_path, capsys):
    one = watch(tmp_path, 0.05, broken=(BadRecord("a.tar:3", "bad JSON", "at byte 7"),))
    for _ in range(3):  # an epoch after the other meets it
        one.count_broken([BadRecord("b.tar:1", "image too small")])
    one.close()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped")]
    assert lines == ["skipped a.tar:3: bad JSON: at byte 7", "skipped b.tar:1: image too small"]


def test_too_many_stop_the_run_with_a_count_by_reason(tmp_path):
    one = watch(tmp_path, 0.05)
    one.count_broken([BadRecord(f"a:{i}", "bad JSON") for i in range(3)])
    with pytest.raises(RunStopped) as stopped:
        one.count_broken([BadRecord(f"b:{i}", "image too small") for i in range(4)])
    one.close()
    assert str(stopped.value) == (
        "7 of 100 records are broken, more than config.data.max_bad_share = 5.00%: 4 image too small, 3 bad JSON; the first: a:0: bad JSON"
    )


def test_those_that_were_too_many_to_name_count_as_well(tmp_path):
    with pytest.raises(RunStopped, match="51 of 100 records are broken, .*: 1 bad JSON; the first: a: bad JSON"):
        watch(tmp_path, 0.05, broken=(BadRecord("a", "bad JSON"),), unnamed=50)


def show(one, documents, broken):
    """Shows the watch so many documents in batches of ten, `broken(i)` of which do not open; how many it was shown when it stopped, or None."""
    for start in range(0, documents, 10):
        numbers = range(start, start + 10)
        one.pending = None  # no step to wait for
        try:
            one.after_dispatch(1, {}, tuple(f"d{i}" for i in numbers if not broken(i)), [BadRecord(f"d{i}", "image missing") for i in numbers if broken(i)])
        except RunStopped as error:
            assert "records were broken among the" in str(error) and error.args[0].endswith("image missing; the first: d0: image missing")
            return start + 10
    return None


def test_of_a_large_set_those_shown_so_far_decide(tmp_path):
    """A host of many meets but a few of all records: it must not wait for one in a hundred of all to be broken."""
    million = lambda share=0.01: watch(tmp_path, share, records=10**6)
    assert show(million(), 2000, lambda i: True) <= 20  # nothing opens: at once
    assert show(million(), 2000, lambda i: i % 20 == 0) <= 500
    assert show(million(), 20_000, lambda i: i % 50 == 0) <= 3000  # twice what is allowed
    assert show(million(), 20_000, lambda i: i % 100 == 0) is None  # what is allowed
    assert show(million(), 20_000, lambda i: i < 10 or i % 125 == 0) is None  # a bad beginning
    assert show(million(1.0), 2000, lambda i: True) is None


def test_what_the_opening_found_is_no_share_of_what_is_shown(tmp_path):
    opened = [BadRecord(f"a:{i}", "bad JSON") for i in range(900)]
    assert show(watch(tmp_path, 0.01, records=10**5, broken=opened), 1000, lambda i: i % 100 == 99) is None


def test_losses_are_means_of_the_first_and_last_lines(tmp_path):
    assert losses_of(epath.Path(tmp_path)) == {}
    lines = [{"step": step, "lm_loss": 10.0 - step, "image_loss": 1 / step} | ({"eval_loss": 3.0, "eval_x": 1.0} if step == 4 else {}) for step in range(1, 7)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = losses_of(epath.Path(tmp_path), lines=2)
    assert found["first"] == {"lm_loss": 8.5, "image_loss": 0.75} and found["last"]["lm_loss"] == 4.5
    assert found["held_back"] == {4: {"eval_loss": 3.0, "eval_x": 1.0}}
