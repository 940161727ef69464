"""Rounds of two hosts that train one run.

One of them is killed, the other must end in time with one line, and both together go on.
"""

import pathlib
import signal
import subprocess

from benchmarks.faults import commands, watch
from benchmarks.faults.campaign import Outcome, Round
from benchmarks.faults.commands import TWO_HOSTS
from benchmarks.faults.reference import Reference
from benchmarks.faults.training import PAUSE, WRITES, Run, stop_when_saved
from benchmarks.faults.watch import Aim
from dreamjax.parallel import relay

WITHIN = 60  # seconds in which the other has to end; --heartbeat is far below
BOTH = (0, 1)
ENDS = (2, -signal.SIGABRT)  # by its own line, or where the runtime ends the process, whose stderr is then one line too


def hosts_round(round_: Round, reference: Reference, folder: pathlib.Path) -> Outcome:
    """Kills host 0 once and host 1 once, one of them inside a write, and resumes both after each."""
    outcome, rng = Outcome(), round_.random()
    run = Run(reference, folder / "0", outcome, TWO_HOSTS)
    first = rng.choice(BOTH)
    for victim, inside in ((first, True), (1 - first, False)):
        lose(run, victim, Aim(inside, rng.random(), rng.random() * PAUSE, rng.randrange(WRITES)))
    hosts = launch(run)
    stop_when_saved(hosts[rng.choice(BOTH)], run.home / TWO_HOSTS.out)
    for host in hosts:
        run.ended(host)
    return outcome


def launch(run: Run) -> list[commands.Started]:
    run.lives += 1
    line = TWO_HOSTS.line(run.reference.made)
    return commands.start_hosts(line, run.home, run.home.with_name(f"life-{run.lives}"), run.reference.environment)


def lose(run: Run, victim: int, at: Aim):
    """Kills a host; what the other does then, and what both have left."""
    writes = watch.Writes(run.home)
    hosts = launch(run)
    killed = watch.kill(
        hosts[victim].process, writes, at, run.reference.seen[TWO_HOSTS.name], TWO_HOSTS.home(run.reference.made)
    )
    other = hosts[1 - victim]
    if killed is None:
        run.outcome.counts["missed"] += 1
        run.ended(other)
        return
    run.outcome.counts["hosts_killed"] += 1
    left = f"inside a write: {', '.join(killed.left[:2])}" if killed.left else "between writes"
    run.outcome.lines.append(f"host {victim} killed after {killed.seconds:.2f} s, {left}")
    where = f"host {1 - victim} in {run.home}, {other.printed.name}"
    try:
        status = other.process.wait(WITHIN)
    except subprocess.TimeoutExpired:
        other.process.kill()
        run.outcome.fault("crashes", f"{where}: still runs {WITHIN} s after the other was killed")
    else:
        if status not in ENDS or commands.has_traceback(other.stderr()) or relay.LOST not in other.last_line():
            run.outcome.fault("crashes", f"{where}: status {status}: {other.last_line()}")
        run.outcome.lines.append(f"  host {1 - victim} ends with {status}: {other.last_line()[:200]}")
    run.compare(f"after {other.printed.name}")
    run.open += 1
