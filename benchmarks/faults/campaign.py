"""The bookkeeping.

Which round comes next, what all rounds have found, and the file that lets an interrupted campaign go on.
"""

import collections
import dataclasses
import json
import pathlib
import random
from collections.abc import Collection, Mapping

from dreamjax.filesystem import atomic

STATE = "campaign.json"
KILLED = ("train", "prepare", "evaluate", "import", "export")
FAULTS = ("unreadable", "unequal", "crashes", "escapes")  # what no round may find
OTHERS = ("damage", "full disk", "hosts", "hostile")


@dataclasses.dataclass(frozen=True)
class Round:
    """The plan of one round.

    All of it follows from `kind`, `seed` and how many of its kills are still to be inside a write.
    """

    number: int
    kind: str
    seed: int
    inside: int = 0

    def random(self) -> random.Random:
        return random.Random(self.seed)


@dataclasses.dataclass
class Outcome:
    """The result of one round: numbers to add up, a line for each command, and a line for each fault."""

    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    lines: list[str] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)

    def fault(self, kind: str, what: str):
        """Counts a fault and keeps its description."""
        assert kind in FAULTS
        self.counts[kind] += 1
        self.faults.append(f"{kind}: {what}")


@dataclasses.dataclass
class Campaign:
    """All rounds so far. `started` counts also those that were interrupted, whose numbers are not used again."""

    seed: int
    started: int = 0
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    faults: list[str] = dataclasses.field(default_factory=list)

    def next_round(self, kinds: Collection[str]) -> Round:
        """The round to do now.

        Of kills, one of the command that has had fewest; behind every five of these one of another kind.
        """
        number, self.started = self.started, self.started + 1
        killed, others = [kind for kind in KILLED if kind in kinds], [kind for kind in OTHERS if kind in kinds]
        turn = others if others and (number % 6 == 5 or not killed) else killed
        kind = min(turn, key=lambda name: self.counts[f"begun {name}"])
        self.counts[f"begun {kind}"] += 1
        return Round(number, kind, random.Random(f"{self.seed} {number}").randrange(2**32), self._owed(kind))

    def _owed(self, kind: str) -> int:
        """Kills inside a write that the half of them still lacks."""
        return max(0, self.counts[f"kills {kind}"] - 2 * self.counts[f"inside {kind}"])

    def add(self, done: Round, outcome: Outcome):
        self.counts["rounds"] += 1
        self.counts[f"rounds {done.kind}"] += 1
        self.counts.update(outcome.counts)
        self.faults += [f"round {done.number} ({done.kind}, seed {done.seed}): {fault}" for fault in outcome.faults]

    def facts(self) -> dict:
        """The last line: what was done and what was lost."""

        def each(what):
            return {name: self.counts[f"{what} {name}"] for name in KILLED}

        plain = (
            "resumed_bit_equal",
            "ended_equal",
            "unreadable",
            "unequal",
            "hostile_records",
            "crashes",
            "escapes",
            "missed",
            "disks_full",
            "damaged",
            "hosts_killed",
        )
        return {
            "rounds": self.counts["rounds"],
            "kills": sum(each("kills").values()),
            "kills_inside_a_write": sum(each("inside").values()),
            **{name: self.counts[name] for name in plain},
            "kills_by_command": each("kills"),
            "inside_by_command": each("inside"),
            "rounds_of_others": {name: self.counts[f"rounds {name}"] for name in OTHERS},
            "seed": self.seed,
        }

    def pace(self, lanes: int) -> str:
        """The measured time of kills and rounds, and that of 200 kills."""
        done = {
            name: self.counts[f"seconds {name}"] / self.counts[f"kills {name}"]
            for name in KILLED
            if self.counts[f"kills {name}"]
        }
        others = {
            name: self.counts[f"seconds {name}"] / self.counts[f"rounds {name}"]
            for name in OTHERS
            if self.counts[f"rounds {name}"]
        }
        told = [f"{name} {seconds:.0f} s a kill" for name, seconds in done.items()] + [
            f"{name} {seconds:.0f} s a round" for name, seconds in others.items()
        ]
        if len(done) == len(KILLED):
            told.append(
                f"200 kills by themselves take {200 / len(KILLED) * sum(done.values()) / lanes / 60:.0f} "
                f"minutes in {lanes} lanes"
            )
        return "; ".join(told)

    def save(self, folder: pathlib.Path):
        atomic.write_text(folder / STATE, json.dumps(vars(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: pathlib.Path) -> "Campaign":
        values = json.loads((folder / STATE).read_text())
        return cls(**values | {"counts": collections.Counter(values["counts"])})


def sums(counts: Mapping[str, int]) -> str:
    """Numbers for a person: those that are not 0."""
    return ", ".join(f"{value} {name}" for name, value in counts.items() if value)
