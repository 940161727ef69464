"""The logs of a run: metrics.jsonl, TensorBoard events, a progress bar; and its stop on broken records or losses."""

import collections
import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, Protocol

import jax
import numpy as np
from etils import epath

from dreamjax import progress
from dreamjax.config import RunConfig
from dreamjax.errors import RunStopped
from dreamjax.filesystem import atomic

FILE = "metrics.jsonl"
MIN_DOCUMENTS = 1000  # before the share of broken ones is meaningful


class MetricsLog:
    """Appends one JSON object per logged step; on resume, lines after the restored step are removed."""

    def __init__(self, workdir: epath.Path, restored_step: int):
        self.path = workdir / FILE
        lines = [line for line in read_metrics(workdir) if line["step"] <= restored_step]
        atomic.write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))
        self.seconds = lines[-1]["elapsed"] if lines else 0.0
        self.events = EventLog(workdir, restored_step + 1) if "://" not in str(workdir) else None

    def write(self, values: dict) -> None:
        line = json.dumps(values) + "\n"
        if self.events:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)
            self.events.write(values)
        else:  # object stores cannot append
            self.path.write_text(self.path.read_text() + line)

    def close(self) -> None:
        if self.events:
            self.events.close()


class EventLog:
    """The same numbers for TensorBoard, written without a thread: one that meets a full disk would block the run."""

    def __init__(self, workdir: epath.Path, first_step: int):
        with _torch_hidden():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.proto.summary_pb2 import Summary
        self.writer, self.event, self.summary = EventsWriter(str(workdir / "events")), Event, Summary
        # TensorBoard then drops a killed run's events from this step on.
        self._add(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, values: dict) -> None:
        scalars = [
            self.summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if name != "step" and value is not None
        ]
        self._add(step=values["step"], summary=self.summary(value=scalars))

    def _add(self, **fields: Any) -> None:
        self.writer.write_event(self.event(wall_time=time.time(), **fields))
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


@contextlib.contextmanager
def _torch_hidden() -> Iterator[None]:
    """Hides torch from imports: tensorboardX would import it, which takes long, and scalars do not use it."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]  # None is how Python marks a module as absent
    try:
        yield
    finally:
        if hidden:
            del sys.modules["torch"]


def read_metrics(workdir: epath.Path) -> list[dict]:
    """The lines of a run's metrics.jsonl, each with `step` and `elapsed`; none without the file.

    Damaged lines are skipped, and named in one line on stderr. An incomplete last line is what a killed run leaves, and
    counts as no damage.
    """
    path = workdir / FILE
    if not path.exists():
        return []
    *complete, tail = path.read_bytes().split(b"\n")
    lines = [_line(text) for text in complete]
    damaged = [str(number) for number, line in enumerate(lines, 1) if line is None]
    if damaged:
        first_numbers = ", ".join(damaged[:5]) + (f" and {len(damaged) - 5} more" if len(damaged) > 5 else "")
        print(
            f"{path}: line{'s' if len(damaged) > 1 else ''} {first_numbers} of {len(complete)} damaged, left out",
            file=sys.stderr,
            flush=True,
        )
    return [line for line in (*lines, _line(tail)) if line is not None]


def _line(text: bytes) -> dict | None:
    """A line of metrics.jsonl; None where it is malformed."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    valid = isinstance(values, dict) and type(values.get("step")) is int and type(values.get("elapsed")) in (int, float)
    # Not isfinite, which fails on longer ints.
    return values if valid and abs(values["elapsed"]) <= sys.float_info.max else None


class Broken(Protocol):
    """A record that was skipped, or lost an image; its str is one line with its name."""

    reason: str  # a fixed phrase to count by


@dataclasses.dataclass(frozen=True)
class RecordCounts:
    """The records of a run's data, before its first step."""

    records: int
    broken: Sequence[Broken] = ()  # of these, with names
    unnamed: int = 0  # broken ones besides


class TrainLogger:
    """Logs a run one step behind the device, so that the host never waits for the step that it has just dispatched.

    Of several hosts one `writes`: it alone writes metrics and shows progress; the others name only their own broken
    records. `note` goes into the first line of metrics.
    """

    def __init__(
        self,
        config: RunConfig,
        workdir: epath.Path,
        start: int,
        counts: RecordCounts,
        *,
        writes: bool = True,
        note: Mapping[str, Any] | None = None,
    ):
        self.config, self.counts = config, counts
        self.log = MetricsLog(workdir, start) if writes else None
        self.bar = progress.bar(config.total_steps, "step", "training", start, disable=not writes)
        self.start_time, self.seconds_before = time.monotonic(), self.log.seconds if self.log else 0.0
        self.last_log, self.tokens = self.start_time, 0
        self.broken: dict[str, str] = {}  # reason of each
        self.broken_before = len(set(map(str, counts.broken)))  # the first step
        self.documents = 0  # since the first step
        self.pending: tuple[int, dict, tuple[str, ...]] | None = None
        self.heldout: dict = {}
        self.note = dict(note or {})
        self.stopping = False  # True once a host was asked to stop, as of the last settled step
        self.count_broken(counts.broken, is_named=not writes)

    def seconds(self) -> float:
        """Seconds of training so far, earlier parts of the run included."""
        return self.seconds_before + time.monotonic() - self.start_time

    def after_dispatch(self, step: int, metrics: dict, documents: tuple[str, ...], broken: Sequence[Broken]) -> None:
        """To be called once `step` is dispatched; settles the one before."""
        self.settle()
        self.pending = (step, metrics, documents)
        self.documents += len(documents)
        self.count_broken(broken)

    def count_broken(self, broken: Sequence[Broken], is_named: bool = False) -> None:
        """Names each skipped record once, unless `is_named`; RunStopped with a count by reason for too many."""
        for record in broken:
            if str(record) not in self.broken:
                self.broken[str(record)] = record.reason
                if not is_named:
                    self.bar.write(f"skipped {record}", file=sys.stderr)
        count = len(self.broken) + self.counts.unnamed
        met, share = (
            len(self.broken) - self.broken_before,
            self.config.data.max_bad_share,
        )  # since the first step, by this host
        if count > share * (self.counts.records + count):
            self._stop(f"{count} of {self.counts.records} records are broken")
        elif met > most_by_chance(share, self.documents + met):
            self._stop(f"{met} records were broken among the {self.documents + met} that were shown so far")

    def _stop(self, problem: str) -> NoReturn:
        reasons = collections.Counter(self.broken.values()).most_common()
        raise RunStopped(
            f"{problem}, more than config.data.max_bad_share = {self.config.data.max_bad_share:.2%}: "
            f"{', '.join(f'{number} {reason}' for reason, number in reasons)}; the first: "
            f"{min(self.broken, default='')}"
        )

    def settle(self) -> None:
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
                "The weights are as before that step; --config.skip_nonfinite=True skips such batches"
            )
        self.tokens += metrics["tokens"]
        self.bar.update()
        if self.log and (
            step % self.config.log_every == 0 or self.heldout or self.note or step == self.config.total_steps
        ):
            clock = time.monotonic()
            metrics |= {"tokens_per_second": self.tokens / (clock - self.last_log), "elapsed": self.seconds()}
            self.last_log, self.tokens = clock, 0
            self.log.write({"step": step} | metrics | ({} if finite else {"skipped": True}) | self.heldout | self.note)
            self.heldout, self.note = {}, {}
            self.bar.set_postfix(
                {"loss": f"{metrics['loss']:.3f}", "tokens/s": f"{metrics['tokens_per_second']:,.0f}"}, refresh=False
            )

    def add_heldout(self, losses: dict) -> None:
        """Adds held-out losses to the next line of metrics."""
        self.heldout = losses

    def close(self) -> None:
        """Ends the bar and the logs."""
        self.bar.close()
        if self.log:
            self.log.close()


def most_by_chance(share: float, documents: int) -> float:
    """The most broken ones to expect among `documents` at this share: three standard deviations above the mean."""
    expected = share * max(documents, MIN_DOCUMENTS)
    return expected + 3 * math.sqrt(expected * (1 - share))


def losses_of(workdir: epath.Path, lines: int = 10) -> dict:
    """The course of a workdir's losses: means of the first and the last `lines` logged steps, held-out losses by step.

    Empty without metrics.
    """
    names = ("lm_loss", "image_loss")
    logged = [line for line in read_metrics(workdir) if all(type(line.get(name)) in (int, float) for name in names)]
    if not logged:
        return {}

    def mean(entries: list[dict]):
        return {name: sum(line[name] for line in entries) / len(entries) for name in names}

    heldout = {
        line["step"]: {name: value for name, value in line.items() if name.startswith("eval_")}
        for line in logged
        if "eval_loss" in line
    }
    return {"first": mean(logged[:lines]), "last": mean(logged[-lines:]), "held_out": heldout}


def train_seconds(workdir: epath.Path) -> float | None:
    """Seconds of training that a workdir's metrics record; None for a folder without metrics."""
    logged = read_metrics(workdir)
    return logged[-1]["elapsed"] if logged else None
