"""One writer for a folder.

A second is refused while the first is alive, and what a dead one has left is in nobody's way.
"""

import errno
import json
import multiprocessing
import os
import pathlib
import signal
import threading
import time

import pytest
from etils import epath

from dreamjax.errors import ConfigError, RunStopped
from dreamjax.filesystem import lock

BEAT = 0.05


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", BEAT)
    monkeypatch.setattr(lock, "SILENT", 8 * BEAT)


def hold(folder, flag, connection):
    """A process that holds a folder until it is killed."""
    with lock.held(folder, flag):
        connection.send("held")
        time.sleep(600)


@pytest.fixture(scope="module")
def spawn():
    """Starts a process that holds a folder; all are killed in the end."""
    context, started = multiprocessing.get_context("spawn"), []

    def start(folder):
        ours, theirs = context.Pipe()
        process = context.Process(target=hold, args=(os.fspath(folder), "--workdir", theirs), daemon=True)
        process.start()
        started.append(process)
        assert ours.poll(120) and ours.recv() == "held"
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def no_locks(monkeypatch):
    """A file system that knows no locks, as some on a network."""

    def flock(*_):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr("fcntl.flock", flock)


def elsewhere(folder: pathlib.Path, **other):
    """Makes a folder's lock one that a process on another machine has written."""
    holder = (
        json.loads((folder / lock.FILE).read_text())
        | {"host": "tpu-7", "process": 11, "machine": "another", "token": "x"}
        | other
    )
    (folder / lock.FILE).write_text(json.dumps(holder))


def test_a_second_one_is_refused_until_the_first_ends(tmp_path):
    with lock.held(tmp_path, "--workdir") as check:
        check()
        with pytest.raises(ConfigError) as refused, lock.held(tmp_path, "--workdir"):
            pass
        text = str(refused.value)
        assert (
            text.startswith(f"--workdir: {tmp_path} is in use by process {os.getpid()} on ")
            and " since 20" in text
            and "\n" not in text
        )
        check()
    assert not list(tmp_path.iterdir())
    with lock.held(tmp_path, "--workdir"):
        pass


def test_one_of_another_process_is_free_as_soon_as_that_is_killed(tmp_path, spawn):
    process = spawn(tmp_path)
    with pytest.raises(ConfigError, match=f"in use by process {process.pid} on "), lock.held(tmp_path, "--workdir"):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (tmp_path / lock.FILE).exists()
    began = time.monotonic()
    with lock.held(tmp_path, "--workdir"):  # whatever process now has that number
        assert time.monotonic() - began < lock.SILENT / 10


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "none"])
def test_one_of_a_dead_machine_is_free_when_it_has_been_silent(tmp_path, monkeypatch, quick, capsys, locks):
    """As after a preemption: the same command goes on, on another machine."""
    with lock.held(tmp_path, "--workdir"):
        pass
    (tmp_path / lock.FILE).write_text("{}")
    elsewhere(tmp_path, since="2026-11-30 08:00:00 UTC")
    locks or no_locks(monkeypatch)
    began = time.monotonic()
    with lock.held(tmp_path, "--workdir"):
        assert time.monotonic() - began >= 8 * BEAT
        assert json.loads((tmp_path / lock.FILE).read_text())["process"] == os.getpid()
    assert "process 11 on tpu-7 since 2026-11-30 08:00:00 UTC holds the folder; waits" in capsys.readouterr().err


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "none"])
def test_one_of_a_machine_that_lives_is_refused_at_its_heartbeat(tmp_path, monkeypatch, quick, locks):
    (tmp_path / lock.FILE).write_text("{}")
    elsewhere(tmp_path, heartbeats=1)
    locks or no_locks(monkeypatch)
    timer = threading.Timer(3 * BEAT, lambda: elsewhere(tmp_path, heartbeats=2))
    timer.start()
    with pytest.raises(ConfigError, match="in use by process 11 on tpu-7"), lock.held(tmp_path, "--workdir"):
        pass
    timer.join()


def test_one_that_was_taken_for_dead_ends(tmp_path, monkeypatch, quick):
    no_locks(monkeypatch)
    with lock.held(tmp_path, "--workdir") as check:
        elsewhere(tmp_path)
        limit = time.monotonic() + 60
        with pytest.raises(RunStopped, match=f"{tmp_path}: was taken over by process 11 on tpu-7"):
            while time.monotonic() < limit:
                check()
                time.sleep(BEAT / 5)
    assert json.loads((tmp_path / lock.FILE).read_text())["process"] == 11  # which is not removed


@pytest.mark.parametrize("left", [b"", b"\0" * 300, b"[1]", b"{", b"\xff\xfe", b"{}"])
def test_a_damaged_lock_file_stops_nobody(tmp_path, quick, left):
    (tmp_path / lock.FILE).write_bytes(left)
    with lock.held(tmp_path, "--workdir"):
        assert json.loads((tmp_path / lock.FILE).read_bytes())["process"] == os.getpid()


def test_of_two_that_start_in_a_bucket_at_once_one_ends(tmp_path, monkeypatch):
    """A bucket has no locks; a local folder stands for it here."""
    monkeypatch.setattr(lock, "_lock_file", lambda *_: (False, None))
    first = lock.take(epath.Path(tmp_path), "--workdir")
    (tmp_path / lock.FILE).unlink()  # the second has looked before the first had written
    second = lock.take(epath.Path(tmp_path), "--workdir")
    for each in (first, second, first, second):
        each.beat()
    second.check()
    with pytest.raises(RunStopped, match="was taken over by"):
        first.check()
