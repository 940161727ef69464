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


def test_losses_are_means_of_the_first_and_last_lines(tmp_path):
    assert losses_of(epath.Path(tmp_path)) == {}
    lines = [{"step": step, "lm_loss": 10.0 - step, "image_loss": 1 / step} | ({"eval_loss": 3.0, "eval_x": 1.0} if step == 4 else {}) for step in range(1, 7)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = losses_of(epath.Path(tmp_path), lines=2)
    assert found["first"] == {"lm_loss": 8.5, "image_loss": 0.75} and found["last"]["lm_loss"] == 4.5
    assert found["held_back"] == {4: {"eval_loss": 3.0, "eval_x": 1.0}}
