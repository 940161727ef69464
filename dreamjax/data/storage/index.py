"""Index of the records of many files: built once, file by file in parallel, stored on disk, and mapped into memory.

A record is one or several members, each a range of bytes in its file. The result of scanning one file is stored under
the file's version, so that an interrupted scan goes on where it was, and only files that changed are scanned again. All
that together is one folder of plain arrays, 20 bytes a member and 16 and its name a record; processes share it through
the page cache. It has checksums: what a failed disk or another program has damaged or deleted is named in one line, and
made anew.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import pathlib
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tqdm

from dreamjax.data.storage import files, processes
from dreamjax.data.storage.unpack import Cache
from dreamjax.errors import BadRecord, SourceError, Unreadable, gist
from dreamjax.filesystem import atomic

VERSION = 2  # of the layout on disk
LONGEST = 2**30  # bytes of one member; a record is read as a whole
CHECKSUMS = "checksums.json"
PARALLEL = 64 * 2**20  # bytes of files from which on processes are worth their start


@dataclasses.dataclass
class Scan:
    """The records of one file. Records are numbered from 0, in the order of the file."""

    offsets: list[int] = dataclasses.field(default_factory=list)  # of each member, in bytes
    sizes: list[int] = dataclasses.field(default_factory=list)
    kinds: list[str] = dataclasses.field(default_factory=list)  # such as a member's extension
    ends: list[int] = dataclasses.field(default_factory=list)  # one past the last member of each record
    names: list[str] = dataclasses.field(default_factory=list)  # of each record within the file
    skipped: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)  # name, reason, detail
    stored: str = ""  # the file that the ranges are of, where it is not the scanned one

    def add(self, name: str, members: Iterable[tuple[int, int, str]]):
        """One more record of members (offset, size, kind)."""
        for offset, size, kind in members:
            self.offsets.append(offset)
            self.sizes.append(size)
            self.kinds.append(kind)
        self.ends.append(len(self.offsets))
        self.names.append(name)


@dataclasses.dataclass(frozen=True)
class ByteRange:
    """A range of bytes of a file; `name` is what messages call it. Has what image_io.EncodedFile asks for."""

    file: str
    offset: int
    size: int
    name: str
    file_version: str

    def read_bytes(self) -> bytes:
        """The bytes; raises Unreadable."""
        if self.size > LONGEST:
            raise Unreadable(f"{self.file}: {self.size:,d} bytes, a member may have {LONGEST:,d}", "record too large")
        return files.read_range(self.file, self.offset, self.size, self.file_version)

    def __str__(self) -> str:
        return self.name


class Index:
    """The records of all files, opened from the folder it is kept in. Cheap to pickle; safe from many threads."""

    def __init__(self, folder: str):
        self.folder = folder
        facts = json.loads(pathlib.Path(folder, "index.json").read_text(encoding="utf-8"))
        self.files: list[dict] = facts["files"]  # name, stored, stamp
        self.kinds: list[str] = facts["kinds"]
        self.skipped = tuple(BadRecord(*entry) for entry in facts["skipped"])
        self.fingerprint = os.path.basename(folder)
        arrays = {name: _map(os.path.join(folder, f"{name}.npy")) for name in ARRAYS}
        self._offsets, self._sizes, self._kind_numbers = arrays["offsets"], arrays["sizes"], arrays["kinds"]
        self._member_ends, self._name_ends, self._names = arrays["member_ends"], arrays["name_ends"], arrays["names"]
        self._file_ends = np.array(arrays["file_ends"])

    def __reduce__(self):
        return Index, (self.folder,)

    def __len__(self) -> int:
        return len(self._member_ends)

    def place(self, index: int) -> tuple[int, int]:
        """The number of the record's file, and its own number there."""
        if not 0 <= index < len(self):
            raise IndexError(f"there are records 0 to {len(self) - 1}, not {index}")
        file = int(np.searchsorted(self._file_ends, index, side="right"))
        return file, index - (int(self._file_ends[file - 1]) if file else 0)

    def name(self, index: int) -> str:
        """The record's name: its file's, and its own within it."""
        return self._name(index, self.place(index)[0])

    def key(self, index: int) -> str:
        """The name without the folder, so that files which were moved keep their splits."""
        return f"{os.path.basename(self.files[self.place(index)[0]]['name'])}:{self._own_name(index)}"

    def _name(self, index: int, file: int) -> str:
        return f"{self.files[file]['name']}:{self._own_name(index)}"

    def _own_name(self, index: int) -> str:
        start, stop = _span(self._name_ends, index)
        return bytes(self._names[start:stop]).decode("utf-8", "surrogateescape")

    def members(self, index: int) -> dict[str, ByteRange]:
        """The record's members by kind."""
        number = self.place(index)[0]
        file, name = self.files[number], self._name(index, number)
        start, stop = _span(self._member_ends, index)
        ranges = {}
        for offset, size, kind in zip(
            self._offsets[start:stop].tolist(),
            self._sizes[start:stop].tolist(),
            self._kind_numbers[start:stop].tolist(),
            strict=True,
        ):
            kind = self.kinds[kind]
            ranges[kind] = ByteRange(file["stored"], offset, size, f"{name}.{kind}" if kind else name, file["stamp"])
        return ranges


ARRAYS = {
    "offsets": np.int64,
    "sizes": np.int64,
    "kinds": np.int32,
    "member_ends": np.int64,
    "name_ends": np.int64,
    "names": np.uint8,
    "file_ends": np.int64,
}


def _map(path: str) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r").view(np.ndarray)  # whose items are reached in less time than a memmap's
    except ValueError:  # an array without elements cannot be mapped
        return np.load(path)


def _checksums(folder: str) -> dict[str, int]:
    """The checksum of each file of an index."""
    checksums = {}
    for name in ("index.json", *(f"{name}.npy" for name in ARRAYS)):
        checksums[name] = 0
        with open(os.path.join(folder, name), "rb") as file:
            while block := file.read(2**22):
                checksums[name] = zlib.crc32(block, checksums[name])
    return checksums


def _span(ends: np.ndarray, index: int) -> tuple[int, int]:
    return (int(ends[index - 1]) if index else 0), int(ends[index])


# ----------------------------------------------------------------------------------------------------------------------
# Building


def open_index(
    paths: Sequence[str], scan: Callable[[str, Cache], Scan], cache: Cache = Cache(), label: str = "records"
) -> Index:
    """The index of the files, made where it is not kept already.

    `scan(path, cache)` scans one file, a function of a module; it may unpack the file into the cache. Files that are
    missing or not readable at all are left out and listed in `skipped`; SourceError where no record is left.
    """
    file_versions, skipped = {}, []
    for path in paths:
        try:
            file_versions[path] = files.file_version(path)
        except Unreadable as error:
            skipped.append((path, error.reason, ""))
    if not file_versions:
        raise _nothing(paths, BadRecord(*skipped[0]))
    cache = dataclasses.replace(cache, folder=cache_folder(cache.folder))
    settings = json.dumps(
        [
            VERSION,
            f"{scan.__module__}.{scan.__qualname__}",
            list(file_versions.items()),
            skipped,
            cache.max_growth,
            cache.max_unpacked,
        ]
    )
    folder = os.path.join(cache.folder, hashlib.sha256(settings.encode()).hexdigest()[:32])
    index = _kept(folder) if os.path.exists(folder) else None
    if index is None:
        pieces = _scan_all(file_versions, scan, cache, label)
        _combine(file_versions, pieces, skipped, folder)
        index = Index(folder)
    if not len(index):
        raise _nothing(paths, *index.skipped[:1])
    return index


def _nothing(paths: Sequence[str], *why: BadRecord) -> SourceError:
    named = ", ".join(paths[:2]) + " ..." * (len(paths) > 2)
    return SourceError(": ".join([f"{named}: there is no record to read", *map(str, why)]))


def _kept(folder: str) -> Index | None:
    """The index that lies in a folder; None, and the folder moved out of the way, where it is not what was written."""
    try:
        if _checksums(folder) != json.loads(pathlib.Path(folder, CHECKSUMS).read_bytes()):
            raise ValueError("its files are not what was written")
        index = Index(folder)
        for file in index.files:
            if file["stored"] != file["name"] and files.file_version(file["stored"]) != file["stamp"]:
                raise ValueError(f"{file['stored']}, which was unpacked for it, has changed")
        return index
    except (OSError, ValueError, RecursionError) as error:
        print(f"{folder}: the index is damaged ({gist(error)}); it is made anew", file=sys.stderr)
    aside = atomic.temporary_name(folder)
    with contextlib.suppress(FileNotFoundError):  # another process was first
        os.rename(folder, aside)  # at once, so that nobody finds half of it
    shutil.rmtree(aside, ignore_errors=True)
    return None


def cache_folder(chosen: str = "") -> str:
    """A folder for what is made of the data, such as indexes.

    The one wanted, or else the user's cache; never, unless it is wanted, one among the data.
    """
    folder = chosen or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "dreamjax")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise SourceError(
            f"{folder}: cannot be made ({error.strerror}); give a folder for indexes as the source's `cache`"
        ) from None
    if not os.access(folder, os.W_OK):
        raise SourceError(f"{folder}: cannot be written; give a folder for indexes as the source's `cache`")
    return folder


def _scan_all(file_versions: dict[str, str], scan, cache: Cache, label: str) -> list[str]:
    """The file of what each scan found."""
    settings = [VERSION, scan.__qualname__, cache.max_growth, cache.max_unpacked]
    names = [hashlib.sha256(json.dumps([*settings, *item]).encode()).hexdigest()[:32] for item in file_versions.items()]
    pieces = [os.path.join(cache.folder, f"scan-{name}.npz") for name in names]
    missing = [(path, piece) for path, piece in zip(file_versions, pieces, strict=True) if not _is_whole(piece)]
    size = sum(int(file_versions[path].partition("-")[0]) for path, _ in missing)
    workers = min(os.cpu_count() or 1, len(missing))
    task = functools.partial(_scan_one, scan=scan, cache=cache)
    with tqdm.tqdm(total=len(missing), desc=f"indexing {label}", unit="file", disable=None if missing else True) as bar:
        if workers < 2 or size < PARALLEL or multiprocessing.current_process().daemon:
            for item in missing:
                task(item)
                bar.update()
            return pieces
        with processes.pool(workers) as pool:
            for _ in concurrent.futures.as_completed([pool.submit(task, item) for item in missing]):
                bar.update()
    return pieces


def _is_whole(piece: str) -> bool:
    """True if the result of a scan is there and can be read, with the file that it may have unpacked."""
    if not os.path.exists(piece):
        return False
    try:
        with np.load(piece) as scanned:
            facts = json.loads(scanned["facts"].tobytes())
            for name in ARRAYS:
                scanned[name]  # whose checksum is looked at in reading it
        if files.file_version(facts["stored"]) == facts["stamp"]:
            return True
        reason = f"{facts['stored']} has changed"
    except Exception as error:  # numpy, zip and JSON raise almost anything for bytes that are not theirs
        reason = gist(error)
    print(f"{piece}: what a scan found is damaged ({reason}); its file is scanned again", file=sys.stderr)
    return False


def _scan_one(item: tuple[str, str], scan, cache: Cache):
    path, piece = item
    try:
        scanned = scan(path, cache)
    except OSError as error:
        scanned = Scan(skipped=[(path, getattr(error, "reason", "file cannot be read"), str(error))])
    kinds = sorted(set(scanned.kinds))
    numbers = {kind: number for number, kind in enumerate(kinds)}
    names = [name.encode("utf-8", "surrogateescape") for name in scanned.names]
    stored = scanned.stored or path
    facts = {"kinds": kinds, "skipped": scanned.skipped, "stored": stored, "stamp": files.file_version(stored)}
    arrays = {
        "offsets": scanned.offsets,
        "sizes": scanned.sizes,
        "kinds": [numbers[kind] for kind in scanned.kinds],
        "member_ends": scanned.ends,
        "name_ends": np.cumsum([len(name) for name in names]),
        "names": np.frombuffer(b"".join(names), np.uint8),
        "file_ends": [len(scanned.ends)],
    }
    typed = {name: np.asarray(array, ARRAYS[name]) for name, array in arrays.items()}
    with files.atomic_file(piece) as file:
        facts_array = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        np.savez(file, facts=facts_array, **typed)  # type: ignore[arg-type]  # the stub takes any ** for allow_pickle


def _combine(file_versions: dict[str, str], pieces: list[str], skipped: list, folder: str):
    """Writes the arrays of all files behind each other; ends go on counting, kinds get common numbers."""
    entries, sizes = [], dict.fromkeys(ARRAYS, 0)
    kinds: dict[str, int] = {}
    for (path, file_version), piece in zip(file_versions.items(), pieces, strict=True):
        with np.load(piece) as scanned:
            facts = json.loads(scanned["facts"].tobytes())
            for name in ARRAYS:
                sizes[name] += len(scanned[name])
        for kind in facts["kinds"]:
            kinds.setdefault(kind, len(kinds))
        skipped = skipped + facts["skipped"]
        entries.append(
            {
                "name": path,
                "stored": facts["stored"],
                "stamp": facts["stamp"] if facts["stored"] != path else file_version,
            }
        )
    with atomic.folder(folder) as building:
        arrays = {
            name: _empty(os.path.join(building, f"{name}.npy"), dtype, sizes[name]) for name, dtype in ARRAYS.items()
        }
        at = dict.fromkeys(ARRAYS, 0)
        for piece in pieces:
            with np.load(piece) as scanned:
                local = json.loads(scanned["facts"].tobytes())["kinds"]
                common = np.array([kinds[kind] for kind in local], np.int32)
                # How far each kind of ends has counted before this file.
                before = {"member_ends": at["offsets"], "name_ends": at["names"], "file_ends": at["member_ends"]}
                for name in ARRAYS:
                    part = scanned[name]
                    part = common[part] if name == "kinds" else part + before.get(name, 0)
                    arrays[name][at[name] : at[name] + len(part)] = part
                    at[name] += len(part)
        arrays.clear()  # which writes them
        facts = {"files": entries, "kinds": list(kinds), "skipped": skipped}
        pathlib.Path(building, "index.json").write_text(json.dumps(facts), encoding="utf-8")
        pathlib.Path(building, CHECKSUMS).write_text(json.dumps(_checksums(building)), encoding="utf-8")


def _empty(path: str, dtype: type, size: int) -> np.ndarray:
    """An array of a file, to be filled; one without elements cannot be mapped."""
    if size:
        return np.lib.format.open_memmap(path, "w+", dtype, (size,))
    np.save(path, np.zeros(0, dtype))
    return np.zeros(0, dtype)
