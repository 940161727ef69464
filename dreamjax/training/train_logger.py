"""What a run says of itself while it goes: metrics.jsonl, TensorBoard events, a progress bar, and when to stop."""

import collections
import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import jax
import numpy as np
from etils import epath

from dreamjax import progress
from dreamjax.config import RunConfig
from dreamjax.errors import RunStopped
from dreamjax.filesystem import atomic

FILE = "metrics.jsonl"
ENOUGH = 1000  # documents shown before their share of broken ones says anything


class MetricsLog:
    """Appends one JSON object per logged step; on resume, what is newer than the restored step is cut off."""

    def __init__(self, workdir: epath.Path, restored_step: int):
        self.path = workdir / FILE
        kept = [line for line in read_metrics(workdir) if line["step"] <= restored_step]
        atomic.write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.seconds = kept[-1]["elapsed"] if kept else 0.0
        self.local = "://" not in str(workdir)
        self.events = EventLog(workdir, restored_step + 1) if self.local else None

    def write(self, values: dict):
        line = json.dumps(values) + "\n"
        if self.local:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)
            self.events.write(values)
        else:  # object stores cannot append
            self.path.write_text(self.path.read_text() + line)

    def close(self):
        if self.events:
            self.events.close()


class EventLog:
    """The same numbers for TensorBoard.

    It writes where it is called, without a thread: one that met a full disk would stop the run for ever.
    """

    def __init__(self, workdir: epath.Path, first_step: int):
        with _torch_hidden():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.proto.summary_pb2 import Summary
        self.writer, self.event, self.summary = EventsWriter(str(workdir / "events")), Event, Summary
        self._add(
            step=first_step, session_log=SessionLog(status=SessionLog.START)
        )  # TensorBoard forgets what a killed run has said of this step and later ones

    def write(self, values: dict):
        scalars = [
            self.summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if name != "step" and value is not None
        ]
        self._add(step=values["step"], summary=self.summary(value=scalars))

    def _add(self, **what):
        self.writer.write_event(self.event(wall_time=time.time(), **what))
        self.writer.flush()

    def close(self):
        self.writer.close()


@contextlib.contextmanager
def _torch_hidden() -> Iterator[None]:
    """Imports as if there were no torch.

    Where there is, tensorboardX takes it in, longer than all else here takes, and scalars never use it.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None
    try:
        yield
    finally:
        if hidden:
            del sys.modules["torch"]


def read_metrics(workdir: epath.Path) -> list[dict]:
    """The lines of a run's metrics.jsonl, each with `step` and `elapsed`; none without the file.

    Lines that a failed disk or another program has damaged are left out, and named in one line on stderr. Half of a
    line at the end is what a killed run leaves, and no damage.
    """
    path = workdir / FILE
    if not path.exists():
        return []
    *whole, tail = path.read_bytes().split(b"\n")
    lines = [_line(text) for text in whole]
    damaged = [str(number) for number, line in enumerate(lines, 1) if line is None]
    if damaged:
        some = ", ".join(damaged[:5]) + (f" and {len(damaged) - 5} more" if len(damaged) > 5 else "")
        print(
            f"{path}: line{'s' if len(damaged) > 1 else ''} {some} of {len(whole)} damaged, left out",
            file=sys.stderr,
            flush=True,
        )
    return [line for line in (*lines, _line(tail)) if line is not None]


def _line(text: bytes) -> dict | None:
    """A line of metrics.jsonl; None for what is none."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_one = (
        isinstance(values, dict) and type(values.get("step")) is int and type(values.get("elapsed")) in (int, float)
    )
    return (
        values if is_one and abs(values["elapsed"]) <= sys.float_info.max else None
    )  # not isfinite, which fails on longer ints


class Broken(Protocol):
    """A record that was left out, or lost a picture; its str is one line that names it."""

    reason: str  # a fixed phrase to count by


class TrainLogger:
    """Follows a run one step behind the device, so that the host never waits for the step it has just sent off.

    Of several hosts one is `first`: it alone writes and shows how far the run is. The others name only the records that
    they meet.
    """

    def __init__(
        self,
        config: RunConfig,
        workdir: epath.Path,
        start: int,
        records: int,
        broken: Sequence[Broken],
        unnamed: int = 0,
        first: bool = True,
    ):
        self.config, self.records, self.unnamed = config, records, unnamed  # unnamed: broken ones besides those given
        self.log = MetricsLog(workdir, start) if first else None
        self.bar = progress.bar(config.total_steps, "step", "training", start, disable=not first)
        self.began, self.before = time.monotonic(), self.log.seconds if self.log else 0.0
        self.last_log, self.tokens = self.began, 0
        self.broken: dict[str, str] = {}  # reason of each
        self.known, self.shown = (
            len(set(map(str, broken))),
            0,
        )  # broken ones from before the first step; documents since
        self.pending = None
        self.heldout: dict = {}
        self.note: dict = {}  # what the next line says besides
        self.stopping = False  # some host was asked to stop, when the step that was last settled went off
        self.count_broken(broken, told=not first)

    def seconds(self) -> float:
        """Seconds of training so far, earlier parts of the run included."""
        return self.before + time.monotonic() - self.began

    def after_dispatch(self, step: int, metrics: dict, documents: tuple[str, ...], broken: Sequence[Broken]):
        """To be called once `step` is on its way; looks at the one before."""
        self.settle()
        self.pending = (step, metrics, documents)
        self.shown += len(documents)
        self.count_broken(broken)

    def count_broken(self, broken: Sequence[Broken], told: bool = False):
        """Says, unless it is told elsewhere, which records were left out, once each.

        RunStopped, with a count by reason, where they are too large a share.
        """
        for record in broken:
            if str(record) not in self.broken:
                self.broken[str(record)] = record.reason
                if not told:
                    self.bar.write(f"skipped {record}", file=sys.stderr)
        count = len(self.broken) + self.unnamed
        met, share = len(self.broken) - self.known, self.config.data.max_bad_share  # met: on the way, by this host
        if count > share * (self.records + count):
            self._stop(f"{count} of {self.records} records are broken")
        elif met > most_by_chance(share, self.shown + met):
            self._stop(f"{met} records were broken among the {self.shown + met} that were shown so far")

    def _stop(self, what: str):
        reasons = collections.Counter(self.broken.values()).most_common()
        raise RunStopped(
            f"{what}, more than config.data.max_bad_share = {self.config.data.max_bad_share:.2%}: "
            f"{', '.join(f'{number} {reason}' for reason, number in reasons)}; the first: "
            f"{min(self.broken, default='')}"
        )

    def settle(self):
        """Waits for the pending step, checks it, and logs it when it is due."""
        if self.pending is None:
            return
        step, metrics, documents = self.pending
        self.pending = None
        metrics = {name: np.asarray(value).item() for name, value in jax.device_get(metrics).items()}
        finite, self.stopping = metrics.pop("finite"), metrics.pop("stop")
        if not finite and not self.config.skip_nonfinite:
            raise RunStopped(
                f"step {step}: loss {metrics['loss']}, grad_norm {metrics['grad_norm']}; documents: "
                f"{', '.join(documents)}. "
                "The weights are as before that step; --config.skip_nonfinite=True leaves such batches out"
            )
        self.tokens += metrics["tokens"]
        self.bar.update()
        if self.log and (
            step % self.config.log_every == 0 or self.heldout or self.note or step == self.config.total_steps
        ):
            now = time.monotonic()
            metrics |= {"tokens_per_second": self.tokens / (now - self.last_log), "elapsed": self.seconds()}
            self.last_log, self.tokens = now, 0
            self.log.write({"step": step} | metrics | ({} if finite else {"skipped": True}) | self.heldout | self.note)
            self.heldout, self.note = {}, {}
            self.bar.set_postfix(
                {"loss": f"{metrics['loss']:.3f}", "tokens/s": f"{metrics['tokens_per_second']:,.0f}"}, refresh=False
            )

    def close(self):
        """Ends the bar and the logs."""
        self.bar.close()
        if self.log:
            self.log.close()


def most_by_chance(share: float, shown: int) -> float:
    """The most broken ones among so many documents that a set with this share of them may show.

    Three standard deviations above the mean.
    """
    expected = share * max(shown, ENOUGH)
    return expected + 3 * math.sqrt(expected * (1 - share))


def losses_of(workdir: epath.Path, lines: int = 10) -> dict:
    """How a workdir's losses fell.

    Means of the first and the last `lines` logged steps, and held-back losses by step; empty without metrics.
    """
    names = ("lm_loss", "image_loss")
    logged = [line for line in read_metrics(workdir) if all(type(line.get(name)) in (int, float) for name in names)]
    if not logged:
        return {}

    def mean(some):
        return {name: sum(line[name] for line in some) / len(some) for name in names}

    heldout = {
        line["step"]: {name: value for name, value in line.items() if name.startswith("eval_")}
        for line in logged
        if "eval_loss" in line
    }
    return {"first": mean(logged[:lines]), "last": mean(logged[-lines:]), "held_back": heldout}


def train_seconds(workdir: epath.Path) -> float | None:
    """Seconds of training that a workdir's metrics record; None for a folder without metrics."""
    logged = read_metrics(workdir)
    return logged[-1]["elapsed"] if logged else None
