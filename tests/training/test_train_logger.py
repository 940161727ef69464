"""What a run says of itself: broken records named once and counted by reason, and how its losses fell."""

import dataclasses
import importlib
import json
import sys

import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from small_run import CONFIG

from dreamjax.errors import BadRecord, RunStopped
from dreamjax.training.train_logger import (
    MetricsLog,
    RecordCounts,
    TrainLogger,
    _torch_hidden,
    losses_of,
    read_metrics,
    train_seconds,
)


def watch(tmp_path, share, records=100, broken=(), unnamed=0):
    data = dataclasses.replace(CONFIG.data, max_bad_share=share)
    counts = RecordCounts(records, broken, unnamed)
    return TrainLogger(dataclasses.replace(CONFIG, data=data), epath.Path(tmp_path), 0, counts)


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
        "7 of 100 records are broken, more than config.data.max_bad_share = 5.00%: 4 image too small, 3 "
        "bad JSON; the first: a:0: bad JSON"
    )


def test_those_that_were_too_many_to_name_count_as_well(tmp_path):
    with pytest.raises(RunStopped, match="51 of 100 records are broken, .*: 1 bad JSON; the first: a: bad JSON"):
        watch(tmp_path, 0.05, broken=(BadRecord("a", "bad JSON"),), unnamed=50)


def show(one, documents, broken):
    """Shows the watch so many documents in batches of ten, `broken(i)` of which do not open.

    How many it was shown when it stopped, or None.
    """
    for start in range(0, documents, 10):
        numbers = range(start, start + 10)
        one.pending = None  # no step to wait for
        try:
            one.after_dispatch(
                1,
                {},
                tuple(f"d{i}" for i in numbers if not broken(i)),
                [BadRecord(f"d{i}", "image missing") for i in numbers if broken(i)],
            )
        except RunStopped as error:
            assert "records were broken among the" in str(error) and error.args[0].endswith(
                "image missing; the first: d0: image missing"
            )
            return start + 10
    return None


def test_of_a_large_set_those_shown_so_far_decide(tmp_path):
    """A host of many meets but a few of all records: it must not wait for one in a hundred of all to be broken."""

    def million(share=0.01):
        return watch(tmp_path, share, records=10**6)

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

    def losses(step):
        return {"elapsed": 1.0, "lm_loss": 10.0 - step, "image_loss": 1 / step}

    lines = [
        {"step": step} | losses(step) | ({"eval_loss": 3.0, "eval_x": 1.0} if step == 4 else {}) for step in range(1, 7)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = losses_of(epath.Path(tmp_path), lines=2)
    assert found["first"] == {"lm_loss": 8.5, "image_loss": 0.75} and found["last"]["lm_loss"] == 4.5
    assert found["held_out"] == {4: {"eval_loss": 3.0, "eval_x": 1.0}}


def line_of(step):
    return json.dumps({"step": step, "elapsed": step / 2, "lm_loss": 1.5, "image_loss": 0.5}).encode()


DAMAGE = {
    "half": line_of(3)[:20],
    "nul": b"\0" * 40,
    "nul_before": b"\0\0" + line_of(3),
    "not_utf8": b"\xff\xfe{",
    "empty": b"",
    "no_object": b"[3]",
    "number": b"3",
    "no_step": b'{"elapsed": 1.0}',
    "no_elapsed": b'{"step": 3}',
    "other_types": b'{"step": "3", "elapsed": 1.0}',
    "nan": b'{"step": 3, "elapsed": NaN}',
    "huge": b'{"step": 3, "elapsed": 1' + b"0" * 400 + b"}",
    "deep": b"[" * 100_000,
    "long": b"9" * 5000,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_line_is_named_and_the_others_stay(tmp_path, capsys, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([line_of(1), line_of(2), damage, line_of(4), line_of(5), line_of(6)[:15]]))
    workdir = epath.Path(tmp_path)
    assert train_seconds(workdir) == 2.5 and losses_of(workdir)["last"]["lm_loss"] == 1.5
    capsys.readouterr()
    MetricsLog(workdir, 4).close()
    assert capsys.readouterr().err == f"{path}: line 3 of 5 damaged, left out\n"
    assert path.read_bytes() == b"".join(line_of(step) + b"\n" for step in (1, 2, 4))


@settings(max_examples=60, deadline=None)
@given(damage=st.lists(st.binary(max_size=30) | st.sampled_from(list(DAMAGE.values())), max_size=4))
def test_no_bytes_hide_the_lines_around_them(tmp_path_factory, damage):
    workdir = epath.Path(tmp_path_factory.mktemp("run"))
    (workdir / "metrics.jsonl").write_bytes(b"\n".join([line_of(1), *damage, line_of(4)]))
    assert [line["step"] for line in read_metrics(workdir)] == [1, 4]
    MetricsLog(workdir, 4).close()
    assert (workdir / "metrics.jsonl").read_bytes() == line_of(1) + b"\n" + line_of(4) + b"\n"


def test_a_start_that_is_killed_in_the_rewriting_loses_no_line(tmp_path, monkeypatch):
    """What rewrites the file replaces it: a kill leaves the old one, as does a full disk."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line_of(1) + b"\n" + line_of(2) + b"\n")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        MetricsLog(epath.Path(tmp_path), 1)
    assert path.read_bytes() == line_of(1) + b"\n" + line_of(2) + b"\n" and len(list(tmp_path.iterdir())) == 1


def test_tensorboard_reads_what_the_run_wrote(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    log = MetricsLog(epath.Path(tmp_path), 6)
    log.write({"step": 7, "elapsed": 1.0, "loss": 2.5, "nothing": None})
    log.close()
    (path,) = tmp_path.glob("events.out.tfevents.*")
    data, events = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    assert events[0].file_version == "brain.Event:2" and (events[1].step, events[1].session_log.status) == (7, 1)
    assert events[2].step == 7 and {value.tag: value.simple_value for value in events[2].summary.value} == {
        "elapsed": 1.0,
        "loss": 2.5,
    }


def test_events_are_written_without_torch(tmp_path, monkeypatch):
    """Where it is installed tensorboardX would import it: for seconds, in every command."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with _torch_hidden(), pytest.raises(ImportError):
        importlib.import_module("torch")
    assert "torch" not in sys.modules
    monkeypatch.setitem(sys.modules, "torch", sys)
    with _torch_hidden():
        assert importlib.import_module("torch") is sys
    log = MetricsLog(epath.Path(tmp_path), 0)
    log.write({"step": 1, "elapsed": 1.0, "loss": 2.0})
    log.close()
    (events,) = tmp_path.glob("events*")
    assert b"loss" in events.read_bytes()
