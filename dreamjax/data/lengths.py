"""How long every document of a source is as a row: found once by an index pass, kept in a file, and read where it is needed.

The file is an .npy of [n, 3] int32: tokens, seen and dreamed pictures of each document; 0 tokens where nothing of it can be
trained on. A pair, whose side is drawn anew each time it is shown, has (tokens comprehended, PAIR, tokens created). Beside
it lies a .json of what was cut and what is broken.
"""

import dataclasses
import io
import json
import os
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath

from dreamjax import progress
from dreamjax.data import processes
from dreamjax.data.sources import BadRecord

PAIR = -1
CHUNK = 1024  # documents between two writes
NAMED = 1000  # broken records that are kept by name; all are counted
MANY = 50_000  # documents for which worker processes are worth their start


@dataclasses.dataclass(frozen=True)
class Measured:
    """One document: its entry, whether it lost something to a limit, is of another split, or cannot be read and why."""

    entry: tuple[int, int, int] = (0, 0, 0)
    cut: bool = False
    apart: bool = False
    broken: BadRecord | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """What an index pass says of all documents together."""

    tokens: int = 0
    cut: int = 0
    apart: int = 0
    broken: int = 0
    named: tuple[BadRecord, ...] = ()  # the first NAMED of the broken

    def __add__(self, other: "Found") -> "Found":
        sums = (getattr(self, name) + getattr(other, name) for name in ("tokens", "cut", "apart", "broken"))
        return Found(*sums, (self.named + other.named)[:NAMED])

    def to_json(self) -> dict:
        """A dict fit for JSON."""
        return dataclasses.asdict(dataclasses.replace(self, named=())) | {"named": [record.args for record in self.named]}

    @classmethod
    def from_json(cls, values: dict) -> "Found":
        """The inverse of `to_json`."""
        return cls(**values | {"named": tuple(BadRecord(*args) for args in values["named"])})


class Lengths:
    """The entries of one source: `lengths[indices]` is [n, 3] int32. Those of a file are mapped, not read, and travel as its path."""

    def __init__(self, stored: np.ndarray | str):
        self.stored = stored
        self.entries = np.load(stored, mmap_mode="r") if isinstance(stored, str) else stored

    def __reduce__(self):
        return Lengths, (self.stored,)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, indices) -> np.ndarray:
        return np.asarray(self.entries[indices])


def shown(entries: np.ndarray, coins: np.ndarray) -> np.ndarray:
    """[n, 3] entries as what a showing takes; of pairs the side that their [n] coins draw (data/modes.py)."""
    comprehended = coins >= 0.5
    sides = np.stack([np.where(comprehended, entries[:, 0], entries[:, 2]), comprehended, ~comprehended], axis=1)
    return np.where(entries[:, 1:2] == PAIR, sides, entries).astype(np.int32)


def measure_all(
    measure: Callable[[int], Measured], count: int, key: str, folder: epath.Path | None = None, workers: int = 0, host: int = 0
) -> tuple[Lengths, Found]:
    """The entries of `count` documents: those that lie in the folder under the key, or else of an index pass, which stores them.

    `measure` is a pure function of the index; it must travel to worker processes, which many documents are given to. What an
    interrupted pass has found stays on a local disk, and the next one goes on from there. `host` keeps hosts apart that
    share the folder. Without a folder nothing is stored.
    """
    local = folder is not None and "://" not in os.fspath(folder)
    if folder is not None and (folder / f"{key}.json").exists():
        found = Found.from_json(json.loads((folder / f"{key}.json").read_text()))
        return Lengths(os.fspath(folder / f"{key}.npy") if local else np.load(io.BytesIO((folder / f"{key}.npy").read_bytes()))), found
    if not local:
        entries, found = np.zeros((count, 3), np.int32), Found()
        for start, chunk, more in _measured(measure, 0, count, workers):
            entries[start : start + len(chunk)] = chunk
            found += more
        if folder is not None:
            file = io.BytesIO()
            np.save(file, entries)
            (folder / f"{key}.npy").write_bytes(file.getvalue())
            (folder / f"{key}.json").write_text(json.dumps(found.to_json()))
        return Lengths(entries), found
    found = _measure_to_disk(measure, count, folder / f"{key}.{host}.npy.partial", workers)
    os.replace(folder / f"{key}.{host}.npy.partial", folder / f"{key}.npy")
    (folder / f"{key}.{host}.json.partial").write_text(json.dumps(found.to_json()))
    os.replace(folder / f"{key}.{host}.json.partial", folder / f"{key}.json")
    return Lengths(os.fspath(folder / f"{key}.npy")), found


def _measure_to_disk(measure: Callable[[int], Measured], count: int, path: epath.Path, workers: int) -> Found:
    """Writes the entries to a local file. A log beside it says how far they go, one line for each chunk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.with_name(f"{path.name}.log")
    lines = [json.loads(line) for line in log.read_text().split("\n")[:-1]] if log.exists() and path.exists() else []
    if not lines:
        log.write_text("")
    found, done = sum((Found.from_json(line["found"]) for line in lines), Found()), lines[-1]["done"] if lines else 0
    if not count:  # which cannot be mapped
        with open(path, "wb") as file:
            np.save(file, np.zeros((0, 3), np.int32))
        log.unlink()
        return found
    entries = np.lib.format.open_memmap(os.fspath(path), mode="r+" if lines else "w+", dtype=np.int32, shape=(count, 3))
    with open(log, "a") as file:
        for start, chunk, more in _measured(measure, done, count, workers):
            entries[start : start + len(chunk)] = chunk
            entries.flush()
            found += more
            file.write(json.dumps({"done": start + len(chunk), "found": more.to_json()}) + "\n")
            file.flush()
    log.unlink()
    return found


def _measured(measure: Callable[[int], Measured], done: int, count: int, workers: int) -> Iterator[tuple[int, np.ndarray, Found]]:
    """(first index, entries, what was found) of chunk after chunk, with a progress bar where it takes its time."""
    starts = range(done, count, CHUNK)
    ranges = [range(start, min(start + CHUNK, count)) for start in starts]
    with progress.bar(count, "document", "lengths", done, delay=3) as bar:
        if workers and count - done >= MANY:
            with processes.pool(workers, _keep, measure) as pool:
                for chunk, (entries, found) in zip(ranges, pool.map(_measure_kept, ranges)):
                    bar.update(len(chunk))
                    yield chunk.start, entries, found
            return
        for chunk in ranges:
            entries, found = _measure_chunk(measure, chunk)
            bar.update(len(chunk))
            yield chunk.start, entries, found


def _measure_chunk(measure: Callable[[int], Measured], chunk: range) -> tuple[np.ndarray, Found]:
    measured = [measure(index) for index in chunk]
    entries = np.array([one.entry for one in measured], np.int32)
    broken = tuple(one.broken for one in measured if one.broken)
    tokens, cut, apart = int(entries[:, 0].sum()), sum(one.cut for one in measured), sum(one.apart for one in measured)
    return entries, Found(tokens, cut, apart, len(broken), broken[:NAMED])


def _keep(measure: Callable[[int], Measured]):
    """In a worker process: what all its chunks are measured by."""
    global _kept
    _kept = measure


def _measure_kept(chunk: range) -> tuple[np.ndarray, Found]:
    return _measure_chunk(_kept, chunk)
