"""Rounds of kill -9 of the commands that end with the same output, whatever was in between."""

import pathlib
import random

from benchmarks.faults import commands, readers, watch
from benchmarks.faults.campaign import Outcome, Round
from benchmarks.faults.commands import COMMANDS, Command
from benchmarks.faults.compare import Contents, same
from benchmarks.faults.reference import Reference
from benchmarks.faults.watch import Aim, Kill

KILLS = 4  # a round
TRIES = 3  # for each of them: a command may end before it is killed


def aims(round_: Round) -> list[bool]:
    """The kills of a round that aim inside a write: half of them, and those that earlier rounds have missed."""
    inside = min(KILLS, KILLS // 2 + round_.inside)
    chosen = [number < inside for number in range(KILLS)]
    round_.random().shuffle(chosen)
    return chosen


def aim(rng: random.Random, inside: bool, usual: watch.Watched) -> Aim:
    """A moment of one of a command's writes.

    Or else one of its work in its folder, or right behind one of the changes that it makes there.
    """
    if inside:
        return Aim(True, share=rng.random(), passing=rng.randrange(max(usual.count, 1)))
    if rng.random() < 0.5:
        return Aim(False, seconds=rng.random() * (usual.ends - usual.begins))
    return Aim(False, passing=rng.randrange(max(usual.changes, 1)))


def count(outcome: Outcome, command: Command, killed: Kill, home: pathlib.Path):
    """Counts a kill, and says when it was and what it left."""
    outcome.counts[f"kills {command.kind}"] += 1
    outcome.counts[f"inside {command.kind}"] += killed.inside
    left = ", ".join(killed.left[:2]) + (f" and {len(killed.left) - 2} more" if len(killed.left) > 2 else "")
    outcome.lines.append(
        f"{command.name} killed after {killed.seconds:.2f} s, "
        f"{f'inside a write: {left}' if left else 'between writes'} [{home.name}]"
    )


def round_of_kills(round_: Round, reference: Reference, folder: pathlib.Path) -> Outcome:
    """Kills of one command, each in a folder of its own, and its end after each."""
    outcome, rng = Outcome(), round_.random()
    these = [command for command in COMMANDS if command.kind == round_.kind]
    for number, inside in enumerate(aims(round_)):
        command = these[(number + round_.number) % len(these)]
        for attempt in range(TRIES):
            home = folder / f"{number}-{attempt}"
            if one_kill(command, aim(rng, inside, reference.seen[command.name]), reference, home, outcome):
                break
    return outcome


def one_kill(command: Command, at: Aim, reference: Reference, home: pathlib.Path, outcome: Outcome) -> bool:
    """Kills a command, looks at what it left and runs it to its end; whether it could be killed."""
    writes = watch.Writes(home)
    started = commands.start(
        command.line(reference.made), home, home.with_name(f"{home.name}-killed"), reference.environment
    )
    killed = watch.kill(started.process, writes, at, reference.seen[command.name], command.home(reference.made))
    if killed is None:
        outcome.counts["missed"] += 1
        check_end(command, started, home, False, reference, outcome)
        return False
    count(outcome, command, killed, home)
    run_again(command, home, check_reading(command, home, reference, outcome), reference, outcome)
    return True


def run_again(command: Command, home: pathlib.Path, complete: bool, reference: Reference, outcome: Outcome):
    """Runs a command to its end where it was disturbed; counts an end that equals the undisturbed one."""
    again = commands.start(
        command.line(reference.made), home, home.with_name(f"{home.name}-again"), reference.environment
    )
    outcome.counts["ended_equal"] += check_end(command, again, home, complete, reference, outcome)


def check_end(
    command: Command,
    ended: commands.Started,
    home: pathlib.Path,
    complete: bool,
    reference: Reference,
    outcome: Outcome,
) -> bool:
    """Checks that a command ends as an undisturbed one does; it may refuse to overwrite complete output."""
    status, where = ended.finish(), f"{command.name} in {home}, {ended.printed.name}"
    if status not in (0, 2) or commands.has_traceback(ended.stderr()):
        outcome.fault("crashes", f"{where}: status {status}: {ended.last_line()}")
        return False
    if status and not complete:
        outcome.fault("unreadable", f"{where}: {ended.last_line()}")
        return False
    contents = readers.CONTENTS[command.name]
    difference = same(contents(home / command.out), contents(command.home(reference.made) / command.out))
    if difference:
        outcome.fault("unequal", f"{where}: {difference}")
    return not difference


def check_reading(command: Command, home: pathlib.Path, reference: Reference, outcome: Outcome) -> bool:
    """Checks that the files of a killed command read as the complete output, or as complete parts of it where these
    are of use, or are refused in one line.

    Returns True if all of the output is there.
    """
    read, folder = readers.READERS[command.name], home / command.out
    whole = read(command.home(reference.made) / command.out)
    try:
        found: Contents = {}
        refused = readers.refusal(lambda: found.update(read(folder)))
    except Exception as error:
        outcome.fault(
            "crashes",
            f"{command.name} killed in {home}: reading raised {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}",
        )
        return False
    if refused is not None:
        outcome.lines.append(f"  reads as: {refused[:160]}")
        return False
    expected = {name: whole[name] for name in found if name in whole} if command.name in readers.IN_PARTS else whole
    difference = same(found, expected)
    if difference:
        outcome.fault("unequal", f"{command.name} killed in {home}: what is read: {difference}")
    return found.keys() == whole.keys() and not difference
