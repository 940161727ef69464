"""The generator of hostile inputs.

It reads through the real readers, and sees an escape and a crash where there is one.
"""

import json

from benchmarks import hostile
from benchmarks.attacks.case import Case
from dreamjax.config import SourceConfig


def test_a_few_of_every_kind_neither_crash_nor_escape():
    counts = hostile.run(seed=7, count=10**9, last=len(hostile.MAKERS) - 1)
    assert (counts.crashes, counts.escapes) == ([], []) and counts.hostile_records > 60 and counts.refused.total() > 10


def test_what_escapes_or_crashes_is_seen(monkeypatch):
    def reaching(rng, world):
        (world.case / "a.jsonl").write_text(json.dumps({"image": str(world.outside / "canary.png"), "caption": "x"}))
        return Case(
            "reaching", SourceConfig("pairs", str(world.case / "a.jsonl"), images=str(world.images), allow_outside=True)
        )

    def crashing(rng, world):
        return Case("crashing", read=lambda: 1 // 0)

    monkeypatch.setattr(hostile, "MAKERS", (reaching, crashing))
    counts = hostile.run(seed=0, count=2)
    assert counts.escapes == ["reaching (--seed=0 --round=0): record 0"]
    assert len(counts.crashes) == 1 and counts.crashes[0].startswith("crashing (--seed=0 --round=1): ZeroDivisionError")
