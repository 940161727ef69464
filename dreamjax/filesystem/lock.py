"""One writer for a folder: a second one is refused while the first is alive, and one that was killed is not in the way.

lock.json in the folder says who holds it. On one machine the kernel's lock on that file decides (flock); it ends with
the process, however that ends. Not every network file system passes such locks on, and a bucket has none, so the holder
also writes the file anew every few seconds: one that has stopped to do so is dead, which takes no clock that two
machines share. A holder that was taken for dead, because it hung, finds the other's name there and ends.

In a bucket, and on a file system without such locks, two that start within the same seconds both begin; one of them
ends at its next heartbeat.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import pathlib
import platform
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from etils import epath

from dreamjax.errors import ConfigError, RunStopped

FILE = "lock.json"
HEARTBEAT = 15.0  # seconds between two
SILENT = 60.0  # seconds without one after which the holder counts as dead


@dataclasses.dataclass
class Lock:
    """A folder that this process holds, as long as `check` does not raise."""

    path: epath.Path
    descriptor: int | None  # of the open file, which the kernel's lock is on; None in a bucket
    holder: dict  # what the file says
    ended: threading.Event = dataclasses.field(default_factory=threading.Event)
    lost_to: dict | None = None

    def check(self):
        """RunStopped where another process has taken the folder."""
        if self.lost_to is not None:
            raise RunStopped(
                f"{self.path.parent}: was taken over by {format_summary(self.lost_to)}; this one, which was "
                f"silent for {SILENT:.0f} s or more, ends"
            )

    def beat(self):
        """Shows that this process is alive, unless another has taken its place."""
        holder = _read(self.path)
        if holder and holder.get("token") != self.holder["token"]:
            self.lost_to = holder
            return
        self._write()

    def _write(self):
        self.holder["heartbeats"] += 1
        text = json.dumps(self.holder).encode() + b"\n"
        if self.descriptor is None:
            self.path.write_bytes(text)
        else:  # in place: it is this file that the kernel's lock is on
            os.pwrite(self.descriptor, text, 0)
            os.fsync(self.descriptor)

    def release(self):
        """Leaves the folder as if nobody had been there; what cannot be removed counts as dead soon."""
        self.ended.set()
        with contextlib.suppress(OSError):
            if (_read(self.path) or self.holder).get("token") == self.holder["token"]:
                self.path.unlink(missing_ok=True)
        if self.descriptor is not None:
            os.close(self.descriptor)


@contextlib.contextmanager
def held(folder: str | os.PathLike, flag: str) -> Iterator[Callable[[], None]]:
    """The folder, which `flag` names, for this process alone; ConfigError where another one that is alive holds it.

    What it gives is to be called now and then: it raises RunStopped when another process has taken the folder, as may
    happen to one that hung.
    """
    lock = take(epath.Path(folder), flag)
    threading.Thread(target=_keep, args=(lock,), daemon=True, name="lock").start()
    try:
        yield lock.check
    finally:
        lock.release()


def take(folder: epath.Path, flag: str) -> Lock:
    """Takes the folder; `held` adds the heartbeats and gives it back."""
    path = folder / FILE
    folder.mkdir(parents=True, exist_ok=True)
    alone, descriptor = (False, None) if "://" in os.fspath(folder) else _lock_file(path, flag)
    before = _read(path)
    if before is not None and not (alone and before.get("machine") == _machine()):
        _wait_for_heartbeat(path, before, flag)
    since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    holder = {
        "host": platform.node(),
        "process": os.getpid(),
        "since": since,
        "machine": _machine(),
        "token": uuid.uuid4().hex,
        "heartbeats": 0,
    }
    if descriptor is not None:
        os.ftruncate(descriptor, 0)
    lock = Lock(path, descriptor, holder)
    lock._write()
    return lock


def format_summary(holder: dict) -> str:
    """The holder of a folder, for a person."""
    return (
        f"process {holder.get('process', '?')} on {holder.get('host', 'another host')} since {holder.get('since', '?')}"
    )


def _lock_file(path: epath.Path, flag: str) -> tuple[bool, int]:
    """(whether the kernel keeps others of this machine away, descriptor of the open file).

    ConfigError where another process has it.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ConfigError(_refusal(path, _read(path) or {}, flag)) from None
        except OSError:  # a file system without locks
            return False, descriptor
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return True, descriptor
        os.close(descriptor)  # of one that its holder removed in this moment


def _wait_for_heartbeat(path: epath.Path, before: dict, flag: str):
    """Returns when the holder is silent for long enough, or gone; ConfigError at its next heartbeat."""
    print(
        f"{path}: {format_summary(before)} holds the folder; waits {SILENT:.0f} s for a sign of life",
        file=sys.stderr,
        flush=True,
    )
    limit = time.monotonic() + SILENT
    while time.monotonic() < limit:
        time.sleep(min(1.0, SILENT / 10))
        holder = _read(path)
        if holder is None:
            return
        if holder != before:
            raise ConfigError(_refusal(path, holder, flag))


def _refusal(path: epath.Path, holder: dict, flag: str) -> str:
    return (
        f"{flag}: {path.parent} is in use by {format_summary(holder)}; stop that one, wait for its end, or name "
        "another folder "
        f"(if that host is dead, it counts as such {SILENT:.0f} s after its last sign of life; or delete {path})"
    )


def _read(path: epath.Path) -> dict | None:
    """Reads a lock file; None where nobody holds it, {} where it cannot be understood."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    if not text.strip(b"\0 \n"):
        return None
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _keep(lock: Lock):
    """Heartbeats until the end; a disk or network that fails in between costs no more than some of them."""
    while not lock.ended.wait(HEARTBEAT):
        with contextlib.suppress(Exception):
            lock.beat()


def _machine() -> str:
    """The machine since it was booted: the same for all that its kernel runs, containers too."""
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else platform.node()
