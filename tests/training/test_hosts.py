"""Runs of several real processes over loopback: they train as one would, and what happens to one of them stops all and
costs nothing.

One run goes through it all: two hosts of which one is killed in a step, four of which one is killed in a save, two on
another mesh of which one is asked to stop, and one by itself that ends it. Its losses are those of a run that nothing
disturbed.
"""

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import time

import made_data
import numpy as np
import pytest
import quick_xla
from ports import free_port

ROOT = pathlib.Path(__file__).parents[2]
STEPS, EVERY = 24, 6
WITHIN = 60  # seconds in which the others have to end; --heartbeat is far below
STOPPED = 75

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """A folder of 24 stories of one to three pages."""
    return made_data.write_stories(tmp_path_factory.mktemp("stories"), 24, 3, (12, 16))


@dataclasses.dataclass
class Hosts:
    """The processes of one launch."""

    running: list[subprocess.Popen]
    folder: pathlib.Path  # of what they print

    def printed(self, host: int) -> str:
        return (self.folder / str(host)).read_text()

    def finish(self, seconds: float) -> list[int]:
        """Statuses; whoever has not ended by then is killed and fails the test."""
        limit = time.monotonic() + seconds
        try:
            return [process.wait(max(limit - time.monotonic(), 0.01)) for process in self.running]
        finally:
            self.kill()

    def kill(self):
        for process in self.running:
            process.kill()
            process.wait()


def start(command: list[str], count: int, folder: pathlib.Path, devices: int = 1) -> Hosts:
    """Starts a command on so many hosts, each with so many devices."""
    folder.mkdir()
    settings = {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(count),
    }
    running = []
    for host in range(count):
        with open(folder / str(host), "w") as out:
            environment = quick_xla.environment(devices, **settings, JAX_PROCESS_ID=str(host))
            running.append(
                subprocess.Popen(
                    [sys.executable, *command], cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT
                )
            )
    return Hosts(running, folder)


def lines(workdir: pathlib.Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().rpartition("\n")[0].splitlines()] if path.exists() else []


def checkpoints(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def is_saving(workdir: pathlib.Path, step: int) -> bool:
    """Whether the checkpoint of a step is begun and not whole."""
    return any((workdir / "checkpoints").glob(f"{step}.*"))


def wait_until(condition, hosts: Hosts, seconds: float = 240):
    limit = time.monotonic() + seconds
    while not condition():
        ended = any(process.poll() is not None for process in hosts.running)
        if ended or time.monotonic() > limit:
            hosts.kill()
            pytest.fail(
                f"{'a host has ended' if ended else 'the run does not get on'}: "
                f"{[hosts.printed(host)[-3000:] for host in range(len(hosts.running))]}"
            )
        time.sleep(0.005)


@dataclasses.dataclass
class Phase:
    """One launch of the run: its statuses, what it printed, how long the others lived on, and what it left."""

    statuses: list[int]
    printed: list[str]
    seconds: float
    lines: list[dict]
    checkpoints: list[int]


@pytest.fixture(scope="module")
def runs(stories, tmp_path_factory):
    """(phases of the disturbed run, lines of a straight one)."""
    folder = tmp_path_factory.mktemp("runs")

    def launch(workdir: str, count: int, *flags: str) -> Hosts:
        shape = [f"--config.total_steps={STEPS}", f"--config.checkpoint_every={EVERY}", f"--workdir={folder / workdir}"]
        command = [
            "-m",
            "dreamjax.train",
            f"--config=tests/training/seeing.py:{stories}",
            *shape,
            "--heartbeat=10",
            f"--stopped_status={STOPPED}",
            *flags,
        ]
        return start(command, count, folder / f"printed_{len(list(folder.iterdir()))}", devices=4 // count)

    def end(hosts: Hosts, seconds: float, workdir: str = "run") -> Phase:
        began = time.monotonic()
        statuses = hosts.finish(seconds)
        took = time.monotonic() - began
        for host, status in enumerate(statuses):
            if status not in (0, STOPPED, -signal.SIGKILL):
                wait_until_told(hosts, host)
        return Phase(
            statuses,
            [hosts.printed(host) for host in range(len(statuses))],
            took,
            lines(folder / workdir),
            checkpoints(folder / workdir),
        )

    run = folder / "run"
    first = launch("run", 2)
    wait_until(lambda: len(lines(run)) >= EVERY + 2 and checkpoints(run), first)
    first.running[1].kill()
    phases = [end(first, WITHIN)]
    second = launch("run", 4)
    wait_until(lambda: is_saving(run, 2 * EVERY), second)
    second.running[3].kill()
    phases.append(end(second, WITHIN))
    third = launch("run", 2, "--config.mesh.data=4", "--config.mesh.fsdp=1")
    wait_until(lambda: len(lines(run)) >= 2 * EVERY + 1, third)
    third.running[1].send_signal(signal.SIGTERM)
    phases.append(end(third, 240))
    phases.append(end(launch("run", 1), 240))
    straight = end(launch("straight", 1), 240, "straight")
    assert straight.statuses == [0], straight.printed
    return phases, straight.lines


def assert_ends_with_one_line(text: str):
    """What a host prints whose peer has died: the line as the last one, and no stack of Python or of the runtime."""
    assert (
        "lost another host" in text.splitlines()[-1]
        and "the same command, on all of them" in text.splitlines()[-1].lower()
    ), text[-3000:]
    assert not any(
        word in text for word in ("Traceback", "stack trace", "Fatal Python error", "Terminating process")
    ), text[-3000:]


def assert_same(ours: list[dict], theirs: list[dict], tolerance: float):
    """The same steps with the same documents, and losses of the same size."""
    assert len(ours) > 1 and [line["step"] for line in ours] == [line["step"] for line in theirs]
    for name in ("tokens", "documents", "learning_rate"):
        assert [line[name] for line in ours] == [line[name] for line in theirs], name
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(
            [line[name] for line in ours], [line[name] for line in theirs], rtol=tolerance, err_msg=name
        )


def test_two_hosts_train_as_one_does(runs):
    phases, straight = runs
    assert_same(phases[0].lines, straight[: len(phases[0].lines)], 1e-5)
    assert len({line["loss"] for line in straight}) == STEPS


def test_a_host_killed_in_a_step_stops_the_other_in_time(runs):
    killed = runs[0][0]
    assert killed.statuses[1] == -signal.SIGKILL and killed.statuses[0] not in (0, STOPPED) and killed.seconds < WITHIN
    assert_ends_with_one_line(killed.printed[0])
    assert killed.checkpoints and len(killed.lines) < STEPS


def test_a_host_killed_in_a_save_stops_the_others_in_time_and_spoils_nothing(runs):
    before, killed = runs[0][:2]
    assert (
        killed.statuses[3] == -signal.SIGKILL
        and not {0, STOPPED} & set(killed.statuses[:3])
        and killed.seconds < WITHIN
    )
    for text in killed.printed[:3]:
        assert_ends_with_one_line(text)
    assert killed.lines[0]["step"] == 1 and killed.lines[max(before.checkpoints)]["step"] == max(before.checkpoints) + 1
    assert killed.checkpoints and set(killed.checkpoints) <= {EVERY, 2 * EVERY}


def test_a_host_asked_to_stop_lets_all_save_the_same_step(runs):
    stopped = runs[0][2]
    saved = max(stopped.checkpoints)
    assert stopped.statuses == [STOPPED, STOPPED] and 2 * EVERY < saved < STEPS
    assert (
        f"saved step {saved}; the same command goes on from there" in stopped.printed[0]
        and "saved step" not in stopped.printed[1]
    )
    assert "mesh          data 4 x fsdp 1" in stopped.printed[0] and "mesh" not in stopped.printed[1]


def test_the_relaunched_run_ends_as_if_nothing_had_been(runs):
    phases, straight = runs
    assert phases[3].statuses == [0] and max(phases[3].checkpoints) == STEPS
    assert_same(phases[3].lines, straight, 1e-4)
    heldout = {line["step"]: line["eval_loss"] for line in straight if "eval_loss" in line}
    ours = {line["step"]: line["eval_loss"] for line in phases[3].lines if "eval_loss" in line}
    assert list(heldout) == list(range(6, STEPS + 1, 6)) and set(ours) == {
        *heldout,
        max(phases[2].checkpoints),
    }  # measured at the stop as well
    np.testing.assert_allclose([ours[step] for step in heldout], list(heldout.values()), rtol=1e-4)


STEPPING = """
import jax, numpy as np, time
from absl import app
from jax.sharding import NamedSharding, PartitionSpec
from dreamjax import cli
from dreamjax.parallel import multihost

def main():
    multihost.join()
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    spread, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    step = jax.jit(lambda x: x.sum(), out_shardings=whole)
    multihost.wait_for_all("begin")
    while True:
        step(jax.make_array_from_callback((mesh.size,), spread, lambda _: np.ones(1))).block_until_ready()
        print("stepped", flush=True)
        time.sleep(0.02)

cli.run("stepping", multihost.multihost_main(main))
"""


@pytest.mark.parametrize("host", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "silent"])
def test_a_host_that_is_gone_in_a_step_ends_the_other_with_one_line(tmp_path, host, number):
    """Host 0 leads: the runtime of the others ends them when it is gone. One that is silent counts as dead."""
    hosts = start(["-c", STEPPING, "--heartbeat=5"], 2, tmp_path / "printed")
    wait_until(lambda: "stepped" in hosts.printed(0) and "stepped" in hosts.printed(1), hosts)
    hosts.running[host].send_signal(number)
    began = time.monotonic()
    status = hosts.running[1 - host].wait(WITHIN)
    assert status not in (0, STOPPED) and time.monotonic() - began < 30
    wait_until_told(hosts, 1 - host)
    assert_ends_with_one_line(hosts.printed(1 - host))
    hosts.kill()


def wait_until_told(hosts: Hosts, host: int):
    """What a process has said goes through another one, which is there a moment longer."""
    limit = time.monotonic() + 30
    while "lost another host" not in hosts.printed(host) and time.monotonic() < limit:
        time.sleep(0.05)
