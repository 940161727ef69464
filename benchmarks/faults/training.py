"""Rounds of training.

A run is killed and resumed, and what it saves is compared, array by array, with what its undisturbed twin saved.
"""

import pathlib
import signal
import time

from benchmarks.faults import commands, readers, watch
from benchmarks.faults.campaign import Outcome, Round
from benchmarks.faults.commands import TRAIN
from benchmarks.faults.compare import same
from benchmarks.faults.kills import TRIES, aims, count
from benchmarks.faults.reference import Reference
from benchmarks.faults.watch import Aim

WRITES = 12  # of a run are let pass at most before it is killed, so that one twin serves several kills
PAUSE = 0.5  # seconds after that, at most, of a kill that is not aimed at a write: a few steps and saves


def train_round(round_: Round, reference: Reference, folder: pathlib.Path) -> Outcome:
    """One run, killed again and again and resumed each time, compared with its twin at every step that it saves.

    At last it is asked to stop.
    """
    outcome, rng = Outcome(), round_.random()
    run = Run(reference, folder / "0", outcome)
    for inside in aims(round_):
        for _ in range(TRIES):
            if run.killed(
                Aim(inside, rng.random(), rng.random() * PAUSE, rng.randrange(WRITES if inside else 3 * WRITES))
            ):
                break
    run.stopped()
    return outcome


def stop_when_saved(started: commands.Started, run: pathlib.Path):
    """Waits for a checkpoint that is newer than those of a run, and sends SIGTERM."""
    saved, limit = readers.newest(run), time.monotonic() + commands.LIMIT
    while started.process.poll() is None and readers.newest(run) == saved and time.monotonic() < limit:
        time.sleep(0.01)
    if started.process.poll() is None:
        started.process.send_signal(signal.SIGTERM)


class Run:
    """A run that is disturbed, and its twin that is not."""

    def __init__(self, reference: Reference, home: pathlib.Path, outcome: Outcome, command: commands.Command = TRAIN):
        self.reference, self.home, self.outcome = reference, home, outcome
        self.twin = command.home(reference.made) / command.out
        self.saved: int | None = None
        self.open = 0  # kills after which nothing was saved yet that could be compared
        self.lives = 0

    def start(self) -> commands.Started:
        self.lives += 1
        return commands.start(
            TRAIN.line(self.reference.made),
            self.home,
            self.home.with_name(f"life-{self.lives}"),
            self.reference.environment,
        )

    def killed(self, at: Aim) -> bool:
        """Resumes the run and kills it; whether it could be killed."""
        writes = watch.Writes(self.home)
        started = self.start()
        killed = watch.kill(
            started.process, writes, at, self.reference.seen[TRAIN.name], TRAIN.home(self.reference.made)
        )
        if killed is None:
            self.outcome.counts["missed"] += 1
            self.ended(started)
            return False
        count(self.outcome, TRAIN, killed, self.home)
        self.compare(f"after kill {self.lives}")
        self.open += 1
        return True

    def stopped(self):
        """Resumes the run, asks it to stop as soon as it has saved, and compares what it saved then."""
        started = self.start()
        stop_when_saved(started, self.home / TRAIN.out)
        self.ended(started)

    def ended(self, started: commands.Started):
        """Waits for the end, which must be a good one, and compares."""
        status = started.finish()
        where = f"train in {self.home}, {started.printed.name}"
        if status not in (0, 2) or commands.has_traceback(started.stderr()):
            self.outcome.fault("crashes", f"{where}: status {status}: {started.last_line()}")
        elif status:
            self.outcome.fault("unreadable", f"{where}: {started.last_line()}")
        self.compare(f"at the end of {started.printed.name}")

    def compare(self, when: str):
        """Reads the newest checkpoint as every reader does, and compares it and the metrics with the twin's."""
        run, where = self.home / TRAIN.out, f"train in {self.home}, {when}"
        try:
            step = readers.last_step(run)
            if step is None:
                self._expect_nothing(run, where)
                return
            differences = self._differences(run, step)
        except Exception as error:  # mendable or not: a whole checkpoint was there
            self.outcome.fault(
                "crashes", f"{where}: reading raised {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            )
            return
        for difference in differences:
            self.outcome.fault("unequal", f"{where}, step {step}: {difference}")
        if self.saved is not None and step < self.saved:
            self.outcome.fault(
                "unreadable", f"{where}: the newest checkpoint is of step {step}, and step {self.saved} was whole"
            )
        if step > (self.saved or 0):
            self.outcome.counts["resumed_bit_equal"] += 0 if differences else self.open
            self.open = 0
        self.saved = step

    def _expect_nothing(self, run: pathlib.Path, where: str):
        refused = readers.refusal(lambda: readers.model(run))
        if refused is None or self.saved is not None:
            self.outcome.fault(
                "unreadable", f"{where}: step {self.saved} was whole, and now there is no checkpoint ({refused})"
            )

    def _differences(self, run: pathlib.Path, step: int) -> list[str]:
        theirs = readers.state(self.twin, step)
        found = [same(readers.state(run, step), theirs)]
        used = readers.weights(run)
        average = {
            name.removeprefix("average/"): value for name, value in theirs.items() if name.startswith("average/")
        }
        frozen = {name.removeprefix("frozen/"): value for name, value in theirs.items() if name.startswith("frozen/")}
        found.append(same(used, average | frozen))
        if readers.metrics(run, step) != readers.metrics(self.twin, step):
            found.append("metrics.jsonl differs")
        return [difference for difference in found if difference]
