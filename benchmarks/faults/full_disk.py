"""Rounds of full disks: a command writes to a disk of a few kilobytes too little, must end with one line, and goes on
where there is room.

The disk is a file system in memory of a chosen size, mounted in a namespace of the command's own (unshare, mount): no
other process sees it.
"""

import pathlib
import shutil
import subprocess

from benchmarks.faults import commands
from benchmarks.faults.campaign import Outcome, Round
from benchmarks.faults.commands import COMMANDS, TRAIN, Command
from benchmarks.faults.kills import check_reading, run_again
from benchmarks.faults.reference import Reference
from benchmarks.faults.training import Run

TIMES = 3  # a round
PAGE = 4096
# $1 is the size, $2 the folder for what is left when the disk is gone; the rest is the command.
SCRIPT = (
    'size=$1; left=$2; shift 2; mount -t tmpfs -o size=$size tmpfs . && cd "$PWD" || exit 99; "$@"; '
    'status=$?; cp -a . "$left"; exit $status'
)


def can_mount() -> bool:
    """True if this system lets the user have a namespace with mounts of its own."""
    if shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(
            ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True
        ).returncode
        == 0
    )


def full_disk_round(round_: Round, reference: Reference, folder: pathlib.Path) -> Outcome:
    """Some commands, each with a disk that is too small for it."""
    outcome, rng = Outcome(), round_.random()
    for number, command in enumerate(rng.sample(COMMANDS, TIMES)):
        size = round(rng.uniform(0.05, 0.95) * needed(command, reference))
        fill(command, size, reference, folder / str(number), outcome)
    return outcome


def needed(command: Command, reference: Reference) -> int:
    """Bytes of what a command leaves, in pages; of training with the three checkpoints that are there at most."""
    home = command.home(reference.made)
    if command is not TRAIN:
        return pages(home)
    checkpoints = home / command.out / "checkpoints"
    return pages(home) - pages(checkpoints) + 3 * pages(next(checkpoints.iterdir()))


def pages(folder: pathlib.Path) -> int:
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())


def fill(command: Command, size: int, reference: Reference, home: pathlib.Path, outcome: Outcome):
    """Runs a command on a disk of so many bytes; what it says, what is left, and how it goes on."""
    left = home.with_name(f"{home.name}-left")
    left.mkdir(parents=True)
    line = [
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        SCRIPT,
        "sh",
        str(size),
        str(left),
        *command.line(reference.made),
    ]
    started = commands.start(line, home, home.with_name(f"{home.name}-full"), reference.environment)
    status = started.finish()
    if status == 0:
        outcome.counts["missed"] += 1
        return
    outcome.counts["disks_full"] += 1
    outcome.lines.append(f"{command.name} on a disk of {size:,d} bytes ends with {status}: {started.last_line()[:200]}")
    if status != 2 or commands.has_traceback(started.stderr()):
        outcome.fault(
            "crashes", f"{command.name} on a full disk, left in {left}: status {status}: {started.last_line()}"
        )
    if command is TRAIN:
        run = Run(reference, left, outcome)
        run.compare("when the disk was full")
        run.stopped()
    else:
        run_again(command, left, check_reading(command, left, reference, outcome), reference, outcome)
