"""Rounds of damaged files: a bit that flipped, a file that was cut off, a block of zeros, in whatever the commands have
written.

What is read then must be what was written, or be refused in one line. A flip in a text, a setting or a file of another
format, which has no checksum, cannot be told from an edit: there only crashes count.
"""

import itertools
import pathlib
import random
import shutil
from collections.abc import Callable, Mapping

from benchmarks.faults import commands, readers
from benchmarks.faults.campaign import Outcome, Round
from benchmarks.faults.commands import EVALUATE, EXPORT_FOLDERS, EXPORT_MODEL, PREPARE, TRAIN, Command
from benchmarks.faults.compare import Contents, same
from benchmarks.faults.reference import Reference
from benchmarks.faults.training import stop_when_saved

DAMAGES = 12  # a round, of which as many as below run a command
COMMANDS_RUN = 3
KEPT = 2  # checkpoints of a run that is damaged


def damage_round(round_: Round, reference: Reference, folder: pathlib.Path) -> Outcome:
    """Damages single files of copies, and reads them; some are read by a command that goes on with them."""
    outcome, rng = Outcome(), round_.random()
    for number, (command, read) in zip(range(DAMAGES - COMMANDS_RUN), itertools.cycle(READ.items())):
        home = copy(command, reference, folder / str(number), rng)
        whole = read(home / command.out)
        damaged = damage(home / command.out, rng)
        outcome.counts["damaged"] += 1
        judge(
            f"{command.name} in {home}: {damaged}",
            lambda read=read, home=home, command=command: read(home / command.out),
            whole,
            outcome,
        )
    for number in range(DAMAGES - COMMANDS_RUN, DAMAGES):
        command = (TRAIN, EVALUATE, PREPARE)[number % 3]
        home = copy(command, reference, folder / str(number), rng)
        outcome.counts["damaged"] += 1
        go_on(command, home, reference, rng, outcome)
    return outcome


def copy(command: Command, reference: Reference, home: pathlib.Path, rng: random.Random) -> pathlib.Path:
    """A copy of what a command has left; of training, a run that has come to some step."""
    source = command.home(reference.made)
    leave_out = shutil.ignore_patterns("checkpoints") if command is TRAIN else None
    shutil.copytree(source, home, ignore=leave_out)
    if command is TRAIN:
        steps = sorted(int(path.name) for path in (source / "run" / "checkpoints").iterdir())
        last = rng.randrange(KEPT, len(steps) // 2)
        for step in steps[last - KEPT : last]:
            shutil.copytree(source / "run" / "checkpoints" / str(step), home / "run" / "checkpoints" / str(step))
        metrics = home / "run" / "metrics.jsonl"
        metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[: steps[last - 1] + 1]))
    return home


# ----------------------------------------------------------------------------------------------------------------------
# Damage


def damage(folder: pathlib.Path, rng: random.Random) -> str:
    """Damages one file below a folder; says which and how."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    path = rng.choice(files)
    data, how = damaged(path.read_bytes(), rng)
    path.write_bytes(data)
    return f"{path.relative_to(folder)}: {how}"


def damaged(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Other bytes than these, as a bad disk or memory gives them, and what was done."""
    at = rng.randrange(len(data))
    kind = rng.choices(("bit", "cut", "zeros"), (6, 3, 1))[0]
    if kind == "cut":
        return data[:at], f"cut off at byte {at} of {len(data)}"
    zeros = data[:at] + bytes(len(data) - at)
    if kind == "zeros" and zeros != data:
        return zeros, f"zeros from byte {at} of {len(data)}"
    bit = rng.randrange(8)
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :], f"bit {bit} of byte {at} of {len(data)}"


# ----------------------------------------------------------------------------------------------------------------------
# Reading


def judge(what: str, read: Callable[[], Contents], whole: Contents, outcome: Outcome):
    """Reads something damaged: the same, refused in one line, or a fault."""
    found: Contents = {}
    try:
        refused = readers.refusal(lambda: found.update(read()))
    except Exception as error:
        outcome.fault("crashes", f"{what}: reading raised {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return
    outcome.lines.append(f"{what}: {'refused: ' + refused[:160] if refused else 'read'}")
    outcome.counts["damaged_refused" if refused else "damaged_read"] += 1
    difference = "" if refused else same(found, {name: whole[name] for name in found if name in whole})
    if difference:
        outcome.fault("unequal", f"{what}: {difference}")


def crashes_alone(read: Callable[[pathlib.Path], Contents]) -> Callable[[pathlib.Path], Contents]:
    """A reader of a format that has no checksum: what it reads is not compared."""

    def only_read(folder: pathlib.Path) -> Contents:
        read(folder)
        return {}

    return only_read


READ: Mapping[Command, Callable[[pathlib.Path], Contents]] = {
    TRAIN: readers.weights,
    EXPORT_MODEL: readers.weights,
    PREPARE: readers.documents,
    EXPORT_FOLDERS: crashes_alone(readers.folders),
}


# ----------------------------------------------------------------------------------------------------------------------
# Going on


def go_on(command: Command, home: pathlib.Path, reference: Reference, rng: random.Random, outcome: Outcome):
    """Damages what a command has left and runs it again: it ends well, or with one line."""
    if command is PREPARE:  # what it reads is its index; it writes anew
        shutil.rmtree(home / command.out)
    folder = home / "index" if command is PREPARE else home / command.out
    what = f"{command.name} in {home}: {damage(folder, rng)}"
    again = commands.start(
        command.line(reference.made), home, home.with_name(f"{home.name}-again"), reference.environment
    )
    if command is TRAIN:
        stop_when_saved(again, home / TRAIN.out)
    status = again.finish()
    outcome.lines.append(f"{what}: ends with {status}{f': {again.last_line()[:200]}' if status else ''}")
    outcome.counts["damaged_refused" if status else "damaged_read"] += 1
    if status not in (0, 2) or commands.has_traceback(again.stderr()):
        outcome.fault("crashes", f"{what}: again: status {status}: {again.last_line()}")
    elif status == 0:
        difference = compare_ends(command, home, reference)
        if difference:
            outcome.fault("unequal", f"{what}: again: {difference}")


def compare_ends(command: Command, home: pathlib.Path, reference: Reference) -> str:
    """The differences of the end from the undisturbed one; none of an evaluation, whose texts have no checksum."""
    undisturbed = command.home(reference.made) / command.out
    if command is TRAIN:
        step = readers.newest(home / command.out)
        return same(readers.state(home / command.out, step), readers.state(undisturbed, step))
    return same(readers.files(home / command.out), readers.files(undisturbed)) if command is PREPARE else ""
