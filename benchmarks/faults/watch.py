"""Kills a command at a moment of its work: any, or inside a write, which is seen by the names that unfinished files and
folders have.

A process is looked at from outside, every millisecond, and gets SIGKILL, as from `kill -9`, the system's out-of-memory
killer or a lost machine. Whether it was in the middle of a write is read from what it left, not from what was aimed at.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import re
import signal
import subprocess
import time

UNFINISHED = re.compile(
    r"\.(tmp|partial|partial_save|orbax-checkpoint-tmp)$"
)  # dreamjax/filesystem/atomic.py's, an index pass's, Orbax's
LOOK_EVERY = 0.001  # seconds


@dataclasses.dataclass(frozen=True)
class Aim:
    """When to kill.

    A share of a write after it began, or a time after the folder was changed; both once some writes or changes have
    passed.
    """

    inside: bool  # a write
    share: float = 0.0  # of a write
    seconds: float = 0.0
    passing: int = 0  # writes, or changes of names and sizes


@dataclasses.dataclass(frozen=True)
class Kill:
    """One kill: when, counted from the start, and the unfinished files and folders that it left."""

    seconds: float
    left: tuple[str, ...]

    @property
    def inside(self) -> bool:
        return bool(self.left)


@dataclasses.dataclass
class Watched:
    """Observations of an undisturbed command: its time in its folder, and the times of its writes."""

    begins: float = 0.0  # seconds from its start to the first change in the folder
    ends: float = 0.0
    writes: dict[str, float] = dataclasses.field(default_factory=dict)  # shortest seconds by kind
    count: int = 0
    changes: int = 0  # of names and sizes

    def length(self, name: str) -> float:
        """Seconds that a write of this kind takes; a moment where none was seen."""
        return self.writes.get(kind_of(name), 2 * LOOK_EVERY)


def kind_of(name: str) -> str:
    """A name without what differs from write to write."""
    return re.sub(r"[0-9a-f]{8,}|\d+", "#", name)


def unfinished(folder: str | os.PathLike) -> set[str]:
    """The files and folders below a folder, by their relative names, that bear the name of something unfinished.

    Not what lies in these.
    """
    found = set()

    def search(path: str, prefix: str):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as entries:  # gone meanwhile
            for entry in entries:
                name = prefix + entry.name
                if UNFINISHED.search(entry.name):
                    found.add(name)
                elif entry.is_dir(follow_symlinks=False) and not is_whole_checkpoint(prefix, entry.name):
                    search(entry.path, f"{name}/")

    search(os.fspath(folder), "")
    return found


def is_whole_checkpoint(prefix: str, name: str) -> bool:
    """True if a folder gets its name when it is complete, so that looking into it finds nothing."""
    return prefix.endswith("checkpoints/") and name.isdecimal()


def torn(folder: pathlib.Path, whole: pathlib.Path) -> set[str]:
    """The files below `folder` that hold a beginning of what they hold in `whole`.

    Of files of lines, those that end with half a line.
    """
    found = set()
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file() and (whole / name).is_file():
            ours, theirs = path.read_bytes(), (whole / name).read_bytes()
            half = (
                ours[-1:] not in (b"", b"\n")
                if path.suffix == ".jsonl"
                else len(ours) < len(theirs) and theirs.startswith(ours)
            )
            found |= {name} if half else set()
    return found


def look(folder: pathlib.Path) -> frozenset:
    """The state of a folder that writes change: names, and sizes of files."""
    found = set()
    for path, folders, files in os.walk(folder):
        folders[:] = [
            name for name in folders if not UNFINISHED.search(name) and not is_whole_checkpoint(f"{path}/", name)
        ]
        found |= {(path, name) for name in folders}
        for name in files:
            with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                found.add((path, name, os.lstat(os.path.join(path, name)).st_size))
    return frozenset(found)


def watched(process: subprocess.Popen, folder: pathlib.Path, began: float) -> Watched:
    """Follows a command to its end."""
    seen, before, since = Watched(), look(folder), {}
    while process.poll() is None:
        now, names, known = time.monotonic() - began, unfinished(folder), before
        before = look(folder)
        seen.changes += before != known
        if not seen.begins and (names or seen.changes):
            seen.begins = now
        for name in names - since.keys():
            seen.count += 1
            since[name] = now
        for name in since.keys() - names:
            kind = kind_of(name)
            seen.writes[kind] = min(seen.writes.get(kind, math.inf), now - since.pop(name))
        time.sleep(LOOK_EVERY)
    seen.ends = time.monotonic() - began
    return seen


class Writes:
    """The unfinished files and folders of a folder, as they come.

    What was there before the process, and stays, is of an earlier kill.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder, self.known, self.seen = folder, unfinished(folder), look(folder)
        self.stale = set(self.known)

    def new(self) -> set[str]:
        """Those that were not there when it was last asked."""
        names = unfinished(self.folder)
        new = names - self.known
        self.known, self.stale = names, self.stale & names
        return new

    def changed(self) -> bool:
        """True if names or sizes have changed since the last call."""
        before, self.seen = self.seen, look(self.folder)
        return self.seen != before

    def left(self) -> set[str]:
        """Those of the process that has just ended."""
        self.new()
        return self.known - self.stale


def kill(
    process: subprocess.Popen, writes: Writes, aim: Aim, usual: Watched, whole: pathlib.Path, limit: float = 300
) -> Kill | None:
    """Kills a command as aimed; None where it ended before.

    `writes` is of the folder with what it writes and nothing else that changes, from before its start; `whole` holds
    what an undisturbed command has written.
    """
    began, passed = time.monotonic(), 0
    until = began + limit
    while process.poll() is None and time.monotonic() < until:
        new = writes.new()
        passed += len(new) if aim.inside else writes.changed()
        if passed > aim.passing and (new or not aim.inside):
            time.sleep(aim.share * usual.length(min(new)) if aim.inside else aim.seconds)
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(LOOK_EVERY)
    seconds = time.monotonic() - began
    process.wait(limit)
    end_group(process)
    if process.returncode != -signal.SIGKILL:
        return None
    return Kill(seconds, tuple(sorted(writes.left() | torn(writes.folder, whole))))


def end_group(process: subprocess.Popen, seconds: float = 10):
    """Waits for what a killed command has started, which ends by itself, and ends it where it does not."""
    until = time.monotonic() + seconds
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < until:
            os.killpg(process.pid, 0)
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
