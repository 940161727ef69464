"""Hostile inputs for every reader: python -m benchmarks.hostile [--seed=0] [--count=1000] [--minutes=0] [--only=TEXT]

Makes small valid inputs hostile, by known attacks and by mutation from a seed (benchmarks/attacks), and reads them as a
run would: each record is opened, its pictures are read, and the document is written as `prepare` writes it. Counted are
records that were refused with a name and a reason, crashes (any other exception, more than 20 s of CPU time or 3 GiB,
or a valid record beside hostile ones that was not read), and escapes: a byte from outside the given folders in a
document. What went wrong is printed with the --seed and --round that repeat it. The last line of stdout is JSON; ends
with 1 where anything went wrong.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import pathlib
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator

from benchmarks.attacks import archives, json_records, models, tables
from benchmarks.attacks.case import Case
from benchmarks.attacks.world import CANARY, CANARY_COLOUR, World, make_world
from dreamjax.cli import MENDABLE
from dreamjax.data.prepare.filters import Filters, keep
from dreamjax.data.registry import open_source
from dreamjax.data.sources.array_record import encode
from dreamjax.data.sources.records import Unusable
from dreamjax.document import Image
from dreamjax.errors import BadImage, BadRecord

MAKERS = (
    json_records.lines,
    json_records.whole_list,
    json_records.coco,
    json_records.odd_files,
    archives.tar_attack,
    archives.tar_mutated,
    archives.zip_attack,
    archives.packed_attack,
    tables.array_record,
    tables.parquet,
    tables.index,
    models.story,
    models.settings,
    models.foreign,
)
SECONDS = 20  # of CPU time that a case may take
WAITING = 300  # seconds that it may take in all
MOST = 60  # records that are read of one input
MEMORY = 3 * 2**30  # bytes that it may take more


class TimeIsUp(BaseException):
    """A case took too long."""


@dataclasses.dataclass
class Counts:
    """Counts of the inputs' outcomes."""

    hostile_records: int = 0
    refused: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # by reason
    crashes: list[str] = dataclasses.field(default_factory=list)
    escapes: list[str] = dataclasses.field(default_factory=list)

    def to_json(self) -> dict:
        """The last line."""
        return {
            "hostile_records": self.hostile_records,
            "refused": self.refused.total(),
            "crashes": len(self.crashes),
            "escapes": len(self.escapes),
        }


def run(seed: int, count: int, minutes: float = 0, only: str = "", first: int = 0, last: int | None = None) -> Counts:
    """Reads hostile inputs until `count` records were read or `minutes` have passed (0.

    No limit), the rounds from `first` on.
    """
    counts, until = Counts(), time.monotonic() + 60 * minutes if minutes else float("inf")
    with tempfile.TemporaryDirectory(prefix="hostile-") as root:
        world, number = make_world(pathlib.Path(root)), first
        while counts.hostile_records < count and time.monotonic() < until and (last is None or number <= last):
            one_round(world, seed, number, only, counts)
            number += 1
    return counts


def one_round(world: World, seed: int, number: int, only: str, counts: Counts):
    """Makes one input and reads it."""
    rng = random.Random(f"{seed}-{number}")
    world.clear()
    make = [maker for maker in MAKERS if only in f"{maker.__module__}.{maker.__name__}"][
        number % sum(only in f"{m.__module__}.{m.__name__}" for m in MAKERS)
    ]
    case = make(rng, world)
    where = f"{case.name} (--seed={seed} --round={number}{f' --only={only}' if only else ''})"
    before = counts.hostile_records
    try:
        with limited():
            _read_source(case, counts, where) if case.source else _read_other(case, counts, where)
    except MENDABLE as error:
        counts.refused[f"{type(error).__name__}"] += 1  # which dreamjax.cli prints on one line
    except (Exception, TimeIsUp) as error:
        counts.crashes.append(f"{where}: {_gist(error)}")
    counts.hostile_records = max(counts.hostile_records, before + 1)


def _read_source(case: Case, counts: Counts, where: str):
    source = open_source(case.source)
    counts.hostile_records += len(source.skipped)
    for record in source.skipped:
        counts.refused[record.reason] += 1
        _check_message(record, counts, where)
    survivors = {number % len(source) for number in case.survivors}
    for number in (
        range(len(source)) if len(source) <= MOST else (*range(MOST // 2), *range(len(source) - MOST // 2, len(source)))
    ):
        counts.hostile_records += 1
        try:
            source.key(number)
            document = source[number]
            is_out = escaped(document)
            if case.pairs and not any(isinstance(part, Image) for part in document.parts):
                counts.crashes.append(f"{where}: record {number} is a pair that lost its picture, and was read as text")
            kept, left_out = keep(document, Filters())
            if is_out or CANARY.encode() in encode(kept, source.key(number)):
                counts.escapes.append(f"{where}: record {number}")
            counts.refused.update(error.reason for error in left_out)
            continue
        except (BadRecord, BadImage) as error:
            reason = error.reason
            _check_message(error, counts, f"{where}: record {number}")
        except Unusable as error:
            reason = error.args[0]
        except Exception as error:  # a crash is what this looks for
            counts.crashes.append(f"{where}: record {number}: {_gist(error)}")
            continue
        counts.refused[reason] += 1
        if number in survivors:
            counts.crashes.append(f"{where}: the valid record {number} was not read: {reason}")


def _read_other(case: Case, counts: Counts, where: str):
    counts.hostile_records += 1
    if CANARY.encode() in case.read():
        counts.escapes.append(where)


def escaped(document) -> bool:
    """True if a document holds anything from outside."""
    if CANARY in document.text:
        return True
    for part in document.parts:
        if isinstance(part, Image):
            with contextlib.suppress(BadImage, OSError):
                if part.pil().resize((1, 1)).getpixel((0, 0)) == CANARY_COLOUR:
                    return True
    return False


def _check_message(error: Exception, counts: Counts, where: str):
    """Checks that a message is one printable line."""
    message = str(error)
    if "\n" in message or not message.isprintable() or len(message) > 3000:
        counts.crashes.append(f"{where}: no line to print: {ascii(message[:200])} ({len(message)} characters)")


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Limits of time and memory. In the main thread alone, as signals are."""

    def stop(*_):
        raise TimeIsUp(f"more than {SECONDS} s of CPU time, or {WAITING} s in all")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    timers = ((signal.ITIMER_PROF, signal.SIGPROF, SECONDS), (signal.ITIMER_REAL, signal.SIGALRM, WAITING))
    handlers = [signal.signal(name, stop) for _, name, _ in timers]
    try:
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
        for timer, _, seconds in timers:
            signal.setitimer(timer, seconds)
        yield
    finally:
        for (timer, name, _), handler in zip(timers, handlers, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(name, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _gist(error: BaseException) -> str:
    """The error, and the last place in the package that it came through."""
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if "/dreamjax/" in frame.filename]
    where = (
        f" at {places[-1].filename.rpartition('/dreamjax/')[2]}:{places[-1].lineno} {places[-1].name}" if places else ""
    )
    return f"{type(error).__name__}: {ascii(' '.join(str(error).split())[:200])}{where}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000, help="records to read")
    parser.add_argument("--minutes", type=float, default=0, help="0: until the count is reached")
    parser.add_argument("--only", default="", help="part of a maker's name, such as archives or tables.parquet")
    parser.add_argument("--round", type=int, default=None, help="this one alone")
    given = parser.parse_args()
    rounds = (0, None) if given.round is None else (given.round, given.round)
    counts = run(given.seed, given.count, given.minutes, given.only, *rounds)
    for line in (*counts.crashes, *(f"escape: {line}" for line in counts.escapes)):
        print(line)
    for reason, number in counts.refused.most_common():
        print(f"refused: {number:6,d} {reason}", file=sys.stderr)
    print(json.dumps(counts.to_json()))
    return 1 if counts.crashes or counts.escapes else 0


if __name__ == "__main__":
    sys.exit(main())
