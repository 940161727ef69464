"""All kinds of rounds, each run in a folder of its own, which stays where something was lost."""

import pathlib
import shutil
import sys
import time
import traceback

from absl import logging

from benchmarks.faults import damage, full_disk, hostile, hosts, kills, training
from benchmarks.faults.campaign import KILLED, Outcome, Round
from benchmarks.faults.reference import Reference

KINDS = {name: kills.round_of_kills for name in KILLED} | {
    "train": training.train_round,
    "damage": damage.damage_round,
    "full disk": full_disk.full_disk_round,
    "hosts": hosts.hosts_round,
    "hostile": hostile.hostile_round,
}


def possible() -> tuple[str, ...]:
    """The kinds that this system allows; a line on stderr for each that it does not."""
    if full_disk.can_mount():
        return tuple(KINDS)
    print("benchmarks.faults: no rounds of full disks: they need the right to mount (unshare, mount)", file=sys.stderr)
    return tuple(kind for kind in KINDS if kind != "full disk")


def play(round_: Round, reference: Reference, out: pathlib.Path) -> Outcome:
    """Runs one round in a folder below `out`.

    A fault of the campaign itself is told as one, and ends no more than its round.
    """
    began = time.monotonic()
    logging.set_verbosity(logging.ERROR)  # Orbax warns of every checkpoint that is not read through its manager
    name = f"{round_.number:05d}-{round_.kind.replace(' ', '-')}"
    running, lost = out / "running" / name, out / "lost" / name
    try:
        outcome = KINDS[round_.kind](round_, reference, running)
    except Exception:
        outcome = Outcome()
        outcome.fault("crashes", f"the round itself: {traceback.format_exc()}")
    outcome.counts[f"seconds {round_.kind}"] += round(time.monotonic() - began)
    if outcome.faults:
        lost.parent.mkdir(exist_ok=True)
        running.rename(lost)
        outcome.faults = [fault.replace(str(running), str(lost)) for fault in outcome.faults]
    else:
        shutil.rmtree(running, ignore_errors=True)
    return outcome
