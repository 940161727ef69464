"""Lengths of all documents of a source as sequences: measured once by an index pass, stored in a file, and read where
they are needed.

The file is an .npy of [n, 3] int32: tokens, input and target images of each document; 0 tokens where nothing of it can
be trained on. A pair, whose direction is sampled anew each time it is shown, has (tokens comprehended, PAIR, tokens
created). Beside it lies a .json of SourceCounts, with a checksum of the entries; it is written last. Files that a
failed disk or another program has damaged are measured anew.
"""

import dataclasses
import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath

from dreamjax import progress
from dreamjax.config.aliases import current_names, renamed
from dreamjax.data.storage import processes
from dreamjax.errors import BadRecord, gist
from dreamjax.filesystem import atomic

PAIR = -1
CHUNK = 1024  # documents between two writes
NAMED = 1000  # broken records that are kept by name; all are counted
MANY = 50_000  # documents for which worker processes are worth their start


@dataclasses.dataclass(frozen=True)
class Measured:
    """One document: its entry, and why it has none or lost something."""

    entry: tuple[int, int, int] = (0, 0, 0)
    truncated: bool = False
    other_split: bool = False
    broken: BadRecord | None = None
    left_out: int = 0  # images that its source could not give


@renamed({"cut": "truncated", "apart": "other_split"})
@dataclasses.dataclass(frozen=True)
class SourceCounts:
    """Sums over the documents of a source, by an index pass."""

    tokens: int = 0
    truncated: int = 0
    other_split: int = 0
    broken: int = 0
    named: tuple[BadRecord, ...] = ()  # the first NAMED of the broken
    left_out: int = 0

    def __add__(self, other: "SourceCounts") -> "SourceCounts":
        names = ("tokens", "truncated", "other_split", "broken", "left_out")
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return SourceCounts(**sums, named=(self.named + other.named)[:NAMED])

    def to_json(self) -> dict:
        """A dict fit for JSON."""
        return dataclasses.asdict(dataclasses.replace(self, named=())) | {
            "named": [record.args for record in self.named]
        }

    @classmethod
    def from_json(cls, values: dict) -> "SourceCounts":
        """The inverse of `to_json`; ValueError, TypeError or KeyError for what is none."""
        values = current_names(cls, values)
        if not all(type(value) is int for name, value in values.items() if name != "named"):
            raise ValueError(f"counts are no numbers: {values}")
        return cls(**values | {"named": tuple(BadRecord(*map(str, args)) for args in values["named"])})


class Lengths:
    """The entries of one source.

    `lengths[indices]` is [n, 3] int32. Those of a file are mapped, not read, and travel as its path.
    """

    def __init__(self, stored: np.ndarray | str):
        self.stored = stored
        self.entries = np.lib.format.open_memmap(stored, mode="r") if isinstance(stored, str) else stored

    def __reduce__(self):
        return Lengths, (self.stored,)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, indices) -> np.ndarray:
        return np.asarray(self.entries[indices])


def shown(entries: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """[n, 3] lengths of a showing from [n, 3] entries: of pairs the side that their [n] directions say."""
    comprehended = directions >= 0.5
    sides = np.stack([np.where(comprehended, entries[:, 0], entries[:, 2]), comprehended, ~comprehended], axis=1)
    return np.where(entries[:, 1:2] == PAIR, sides, entries).astype(np.int32)


def measure_all(
    measure: Callable[[int], Measured],
    count: int,
    key: str,
    folder: epath.Path | None = None,
    workers: int = 0,
    host: int = 0,
) -> tuple[Lengths, SourceCounts]:
    """The entries of `count` documents: those that lie in the folder under the key, or else of an index pass, which
    stores them.

    `measure` is a pure function of the index; it must travel to worker processes, which many documents are given to.
    What an interrupted pass has measured stays on a local disk, and the next one goes on from there. `host` keeps hosts
    apart that share the folder. Without a folder nothing is stored.
    """
    if folder is None:
        return _measure_in_memory(measure, count, workers)
    local = "://" not in os.fspath(folder)
    if (folder / f"{key}.json").exists():
        try:
            return _read(folder, key, count, local)
        except Exception as error:  # json and numpy have no error in common for what is damaged
            print(f"{folder / key}.*: damaged ({gist(error)}), measured anew", file=sys.stderr, flush=True)
    if local:
        counts = _measure_to_disk(measure, count, folder / f"{key}.{host}.npy.partial", workers)
        os.replace(folder / f"{key}.{host}.npy.partial", folder / f"{key}.npy")
        lengths = Lengths(os.fspath(folder / f"{key}.npy"))
    else:
        lengths, counts = _measure_in_memory(measure, count, workers)
        file = io.BytesIO()
        np.save(file, lengths.entries)
        atomic.write_bytes(folder / f"{key}.npy", file.getvalue())
    atomic.write_text(folder / f"{key}.json", json.dumps(counts.to_json() | {"checksum": checksum(lengths.entries)}))
    return lengths, counts


def _read(folder: epath.Path, key: str, count: int, local: bool) -> tuple[Lengths, SourceCounts]:
    """Reads lengths that `measure_all` has stored; raises ValueError, or another error, where they are damaged."""
    values = json.loads((folder / f"{key}.json").read_text())
    known = values.pop("checksum", None)  # files of earlier versions have none
    counts = SourceCounts.from_json(values)
    entries = folder / f"{key}.npy"
    lengths = Lengths(os.fspath(entries) if local else np.lib.format.read_array(io.BytesIO(entries.read_bytes())))
    if (lengths.entries.shape, lengths.entries.dtype) != ((count, 3), np.int32):
        raise ValueError(f"holds {lengths.entries.dtype} of shape {lengths.entries.shape}, not int32 of {(count, 3)}")
    if known not in (None, checksum(lengths.entries)):
        raise ValueError("checksum differs")
    return lengths, counts


def checksum(entries: np.ndarray) -> int:
    """CRC-32 of [n, 3] entries, read a part at a time."""
    value = 0
    for start in range(0, len(entries), 2**20):
        value = zlib.crc32(np.ascontiguousarray(entries[start : start + 2**20]).data, value)
    return value


def _measure_in_memory(measure: Callable[[int], Measured], count: int, workers: int) -> tuple[Lengths, SourceCounts]:
    entries, counts = np.zeros((count, 3), np.int32), SourceCounts()
    for start, chunk, more in _measured(measure, 0, count, workers):
        entries[start : start + len(chunk)] = chunk
        counts += more
    return Lengths(entries), counts


def _measure_to_disk(measure: Callable[[int], Measured], count: int, path: epath.Path, workers: int) -> SourceCounts:
    """Writes the entries to a local file. A log beside it says how far they go, one line for each chunk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.with_name(f"{path.name}.log")
    chunks = _interrupted(path, log, count)
    atomic.write_text(log, "".join(json.dumps(chunk) + "\n" for chunk in chunks))
    counts, done = (
        sum((_counts_of(chunk) for chunk in chunks), SourceCounts()),
        chunks[-1]["done"] if chunks else 0,
    )
    if not count:  # which cannot be mapped
        with open(path, "wb") as file:
            np.save(file, np.zeros((0, 3), np.int32))
        log.unlink()
        return counts
    entries = np.lib.format.open_memmap(
        os.fspath(path), mode="r+" if chunks else "w+", dtype=np.int32, shape=(count, 3)
    )
    with open(log, "a") as file:
        for start, chunk, more in _measured(measure, done, count, workers):
            entries[start : start + len(chunk)] = chunk
            entries.flush()
            counts += more
            file.write(
                json.dumps({"done": start + len(chunk), "counts": more.to_json(), "checksum": checksum(chunk)}) + "\n"
            )
            file.flush()
    log.unlink()
    return counts


def _interrupted(path: epath.Path, log: epath.Path, count: int) -> list[dict]:
    """The lines of the log of a pass that was interrupted, up to the first that is damaged or whose entries are."""
    if not (log.exists() and path.exists()):
        return []
    chunks, done = [], 0
    try:
        entries = Lengths(os.fspath(path)).entries
        for text in log.read_bytes().split(b"\n")[:-1]:
            chunk = json.loads(text)
            _counts_of(chunk)
            if (
                entries.shape != (count, 3)
                or chunk["done"] != min(done + CHUNK, count)
                or chunk["checksum"] != checksum(entries[done : chunk["done"]])
            ):
                break
            done = chunk["done"]
            chunks.append(chunk)
    except Exception:  # as in measure_all; what follows is measured again
        pass
    return chunks


def _counts_of(chunk: dict) -> SourceCounts:
    return SourceCounts.from_json(chunk["counts" if "counts" in chunk else "found"])  # version 0.1 wrote the latter


def _measured(
    measure: Callable[[int], Measured], done: int, count: int, workers: int
) -> Iterator[tuple[int, np.ndarray, SourceCounts]]:
    """(first index, entries, counts) of chunk after chunk, with a progress bar where it takes its time."""
    starts = range(done, count, CHUNK)
    ranges = [range(start, min(start + CHUNK, count)) for start in starts]
    with progress.bar(count, "document", "lengths", done, delay=3) as bar:
        if workers and count - done >= MANY:
            with processes.pool(workers, _set_measure, measure) as pool:
                for chunk, (entries, counts) in zip(ranges, pool.map(_measure_by_worker, ranges), strict=True):
                    bar.update(len(chunk))
                    yield chunk.start, entries, counts
            return
        for chunk in ranges:
            entries, counts = _measure_chunk(measure, chunk)
            bar.update(len(chunk))
            yield chunk.start, entries, counts


def _measure_chunk(measure: Callable[[int], Measured], chunk: range) -> tuple[np.ndarray, SourceCounts]:
    documents = [measure(index) for index in chunk]
    entries = np.array([document.entry for document in documents], np.int32)
    broken = tuple(document.broken for document in documents if document.broken)
    counts = SourceCounts(
        tokens=int(entries[:, 0].sum()),
        truncated=sum(document.truncated for document in documents),
        other_split=sum(document.other_split for document in documents),
        broken=len(broken),
        named=broken[:NAMED],
        left_out=sum(document.left_out for document in documents),
    )
    return entries, counts


_measure: Callable[[int], Measured]  # of a worker process


def _set_measure(measure: Callable[[int], Measured]):
    global _measure
    _measure = measure


def _measure_by_worker(chunk: range) -> tuple[np.ndarray, SourceCounts]:
    return _measure_chunk(_measure, chunk)
