"""Rounds of hostile records: benchmarks/hostile.py in a process of its own, so that no record can end the campaign."""

import json
import pathlib
import sys

from benchmarks.faults import commands
from benchmarks.faults.campaign import Outcome, Round
from benchmarks.faults.reference import Reference

RECORDS = 4000  # a round


def hostile_round(round_: Round, reference: Reference, folder: pathlib.Path) -> Outcome:
    """Reads hostile records made from the round's seed."""
    outcome = Outcome()
    line = [sys.executable, "-m", "benchmarks.hostile", f"--seed={round_.seed}", f"--count={RECORDS}"]
    started = commands.start(line, folder, folder / "hostile", reference.environment)
    status = started.finish()
    printed = started.printed.with_suffix(".stdout").read_text(errors="replace").strip().splitlines()
    if status not in (0, 1) or not printed:
        outcome.fault("crashes", f"seed {round_.seed}: status {status}: {started.last_line()}")
        return outcome
    facts = json.loads(printed[-1])
    outcome.counts["hostile_records"] += facts["hostile_records"]
    outcome.counts["refused"] += facts["refused"]
    for kind in ("crashes", "escapes"):
        outcome.counts[kind] += facts[kind]
    if status:
        outcome.faults += [line[:500] for line in printed[:-1]]
    return outcome
