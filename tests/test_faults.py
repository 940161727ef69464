"""The campaign of faults itself: which round comes next, what adds up, and what it sees of writers that it kills."""

import json
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks.faults import watch
from benchmarks.faults.campaign import KILLED, OTHERS, STATE, Campaign, Outcome
from benchmarks.faults.compare import files, same
from benchmarks.faults.watch import Aim, Watched

# ----------------------------------------------------------------------------------------------------------------------
# Bookkeeping


def test_kills_are_split_evenly_and_every_sixth_round_is_another():
    campaign = Campaign(seed=3)
    kinds = [campaign.next_round((*KILLED, *OTHERS)).kind for _ in range(120)]
    assert {name: kinds.count(name) for name in KILLED} == dict.fromkeys(KILLED, 20)
    assert kinds[5::6] == [*OTHERS] * 5


def test_a_kind_that_is_left_out_does_not_come():
    campaign = Campaign(seed=3)
    assert {campaign.next_round(("prepare", "hosts")).kind for _ in range(12)} == {"prepare", "hosts"}
    assert {campaign.next_round(("hosts",)).kind for _ in range(12)} == {"hosts"}
    assert {campaign.next_round(("train",)).kind for _ in range(12)} == {"train"}


def test_rounds_differ_and_repeat_with_the_seed():
    def draw(seed):
        return [campaign.next_round(KILLED).seed for campaign in [Campaign(seed)] for _ in range(50)]

    assert draw(1) == draw(1) and len({*draw(1), *draw(2)}) == 100


def test_kills_that_missed_their_write_are_owed():
    campaign = Campaign(seed=0)
    done = campaign.next_round(("prepare",))
    assert done.inside == 0
    outcome = Outcome()
    outcome.counts.update({"kills prepare": 5, "inside prepare": 1})
    campaign.add(done, outcome)
    assert campaign.next_round(("prepare",)).inside == 3 and campaign.next_round(("train",)).inside == 0


def test_the_pace_is_that_of_the_rounds_so_far():
    campaign = Campaign(seed=0)
    for name in KILLED:
        campaign.counts.update({f"seconds {name}": 60, f"kills {name}": 4})
    campaign.counts.update({"seconds hosts": 90, "rounds hosts": 2})
    assert "train 15 s a kill" in campaign.pace(
        2
    ) and "hosts 45 s a round; 200 kills by themselves take 25 minutes in 2 lanes" in campaign.pace(2)
    assert Campaign(seed=0).pace(2) == ""


def test_rounds_add_up_over_calls(tmp_path):
    campaign = Campaign(seed=5)
    for name, number in (("kills train", 4), ("kills import", 3), ("inside train", 2)):
        outcome = Outcome()
        outcome.counts[name] += number
        campaign.add(campaign.next_round(KILLED), outcome)
    lost = Outcome()
    lost.fault("unequal", "params differ")
    campaign.add(campaign.next_round(KILLED), lost)
    campaign.next_round(KILLED)  # was interrupted
    campaign.save(tmp_path)
    again = Campaign.load(tmp_path)
    assert (
        again == campaign and not list(tmp_path.glob("*.tmp")) and [path.name for path in tmp_path.iterdir()] == [STATE]
    )
    assert again.next_round(KILLED).number == 5
    facts = json.loads(json.dumps(again.facts()))
    assert (facts["rounds"], facts["kills"], facts["kills_inside_a_write"], facts["unequal"], facts["crashes"]) == (
        4,
        7,
        2,
        1,
        0,
    )
    assert {"resumed_bit_equal", "unreadable", "hostile_records", "escapes"} <= facts.keys()
    assert "params differ" in again.faults[0] and "round 3" in again.faults[0]


# ----------------------------------------------------------------------------------------------------------------------
# What is seen of a folder


def test_unfinished_names_are_seen_wherever_they_lie(tmp_path):
    for name in ("run/config.json.0123456789ab.tmp", "run/lengths/a.0.npy.partial", "run/metrics.jsonl", "b.tmp.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    for name in (
        "run/checkpoints/4",
        "run/checkpoints/6.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp",
        "model/params.partial_save/pending",
    ):
        (tmp_path / name).mkdir(parents=True)
    found = {
        "run/config.json.0123456789ab.tmp",
        "run/lengths/a.0.npy.partial",
        "run/checkpoints/6.orbax-checkpoint-tmp",
        "model/params.partial_save",
    }
    assert watch.unfinished(tmp_path) == found and watch.unfinished(tmp_path / "nowhere") == set()
    assert (
        len({watch.kind_of(f"run/{name}.tmp") for name in ("config.json.0123456789ab", "config.json.ba9876543210")})
        == 1
    )


def test_a_beginning_of_a_file_is_torn_and_whole_lines_are_not(tmp_path):
    ours = {"a.json": "{", "b.json": "", "c.json": "{}", "d.jsonl": "1\n", "e.jsonl": "1\n0", "f": "z", "h.jsonl": ""}
    theirs = {
        "a.json": "{}",
        "b.json": "1",
        "c.json": "{}",
        "d.jsonl": "1\n2\n",
        "e.jsonl": "1\n2\n",
        "f": "yy",
        "g": "x",
        "h.jsonl": "1\n",
    }
    for home, contents in (("ours", ours), ("whole", theirs)):
        (tmp_path / home).mkdir()
        for name, text in contents.items():
            (tmp_path / home / name).write_text(text)
    assert watch.torn(tmp_path / "ours", tmp_path / "whole") == {"a.json", "b.json", "e.jsonl"}


# A writer that replaces a file again and again, beside it first or in place, as one must not, and then is long in the
# middle of a write.
WRITER = """
import os, sys, time
path, beside, short = sys.argv[1], sys.argv[2] == "beside", int(sys.argv[3])
for number in range(short + 1):
    name = f"{path}.{number:012x}.tmp" if beside else path
    with open(name, "w") as file:
        file.write("half, ")
        file.flush()
        time.sleep(0.2 if number < short else float(sys.argv[4]))
        file.write("whole")
    if beside:
        os.replace(name, path)
"""


def writer(folder: pathlib.Path, how: str, short: int, long: float = 60) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", WRITER, str(folder / "out"), how, str(short), str(long)],
        start_new_session=True,
    )


def kill_writer(folder: pathlib.Path, at: Aim, how: str, short: int, long: float = 60) -> watch.Kill | None:
    """Kills a writer in the folder `here`, whose file is whole in the folder `whole`."""
    for name in ("here", "whole"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "whole" / "out").write_text("half, whole")
    writes = watch.Writes(folder / "here")
    return watch.kill(writer(folder / "here", how, short, long), writes, at, Watched(), folder / "whole", limit=120)


@pytest.mark.parametrize("passing", [0, 1])
def test_a_writer_is_killed_inside_a_write(tmp_path, passing):
    killed = kill_writer(tmp_path, Aim(True, 0.5, passing=passing), "beside", passing)
    assert killed.inside and killed.left == (f"out.{passing:012x}.tmp",)
    assert (tmp_path / "here" / "out").exists() == (passing > 0)


def test_what_an_earlier_kill_left_is_not_counted_again(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "out.ffffffffffff.tmp").write_text("old")
    killed = kill_writer(tmp_path, Aim(True), "beside", 0)
    assert killed.left == ("out.000000000000.tmp",)


def test_a_file_written_in_place_is_seen_to_be_torn(tmp_path):
    killed = kill_writer(tmp_path, Aim(False), "in place", 0)
    assert killed.left == ("out",) and (tmp_path / "here" / "out").read_text() in ("", "half, ")


def test_a_command_that_ends_before_is_no_kill(tmp_path):
    for at in (Aim(True, passing=50), Aim(False, seconds=0.5), Aim(False, passing=50)):
        assert kill_writer(tmp_path, at, "beside", 0, 0.01) is None


def test_an_undisturbed_writer_is_measured(tmp_path):
    inputs = watch.watched(writer(tmp_path, "beside", 1, 0.2), tmp_path, time.monotonic())
    assert inputs.count == 2 and list(inputs.writes) == ["out.#.tmp"] and inputs.length("out.abcdefabcdef.tmp") > 0.05
    assert 0 < inputs.begins < inputs.ends and inputs.ends - inputs.begins > 0.2


# ----------------------------------------------------------------------------------------------------------------------
# What is compared


def test_every_difference_is_found():
    one = {"a": np.float32([1, 2]), "b": b"x"}
    assert same(one, dict(one)) == ""
    for other in (
        {"a": np.float32([1, 3])},
        {"a": np.float32([[1, 2]])},
        {"a": np.int32([1, 2])},
        {"b": b"y"},
        {"c": 1},
    ):
        assert same(one, one | other), other
    assert same(one, {"a": one["a"]}) and same({"a": np.float32([0.0])}, {"a": np.float32([-0.0])})


def test_what_a_killed_process_left_unfinished_is_no_output(tmp_path):
    for name in ("a/b.json", "a/b.json.0123456789ab.tmp", "c.partial/d", "e.tmp.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert files(tmp_path) == {"a/b.json": b"a/b.json", "e.tmp.json": b"e.tmp.json"}


def test_readers_refuse_an_empty_folder_in_one_line(tmp_path):
    from benchmarks.faults import readers  # imports all that reads weights

    (tmp_path / "empty").mkdir()
    for read in readers.READERS.values():
        if read is not readers.results:  # an evaluation that has written nothing yet is one
            refused = readers.refusal(lambda read=read: read(tmp_path / "empty"))
            assert refused and "\n" not in refused
    assert (
        readers.last_step(tmp_path) is None and readers.newest(tmp_path) is None and readers.metrics(tmp_path, 5) == []
    )
