"""Tasks one after the other: their tables, results.json and report.html."""

import dataclasses
import datetime
import json
import math
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from etils import epath

from dreamjax.evaluation import report
from dreamjax.filesystem import atomic

if TYPE_CHECKING:  # a score needs no model, and so no JAX
    from dreamjax.api import DreamLLM

Figures = dict[str, Any]
"""Values for the last line of stdout and results.json."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a task, its table for the terminal, and more values for results.json."""

    result: report.Result
    summary: str
    figures: Figures


Task = Callable[["DreamLLM", epath.Path], Outcome]
"""(model, folder for its files) -> its outcome."""


def run_tasks(
    model: "DreamLLM", tasks: Mapping[str, Task], out: epath.Path, model_id: Mapping[str, Any]
) -> dict[str, Figures]:
    """Runs tasks one after the other, prints their tables, writes results.json and then report.html.

    {task: its values for the last line}. `model_id` stands on the page.
    """
    results, figures = [], {}
    details = [f"{name} {value}" for name, value in model_id.items() if value is not None]
    details.append(datetime.date.today().isoformat())
    for name, task in tasks.items():
        outcome = task(model, out)
        result, score = outcome.result, outcome.result.score
        results.append(result)
        page = {"html": str(out / "report.html"), "report": str(out / "report.html")}
        metrics = {"task": name, "metrics": score.metrics if score else {}, "counts": score.counts if score else {}}
        figures[name] = page | finite_or_none(metrics | outcome.figures)
        write_results(out, figures)
        warnings = score.warnings if score else ()
        print_warnings(f"{name}: {warning}" for warning in warnings)
        print_escaped(outcome.summary)
        if result.export:
            exported = result.export()
            print_warnings(f"{name}: {warning}" for warning in exported.warnings if warning not in warnings)
            figures[name]["exported"] = str(exported.path)
            write_results(out, figures)
        page_text = report.render("Evaluation by DreamJAX", results, details)
        atomic.write_text(out / "report.html", page_text, "backslashreplace")
    return figures


def write_results(out: epath.Path, figures: Mapping[str, Figures]) -> None:
    """results.json, before anything that shows the same figures: a fault there costs none of them."""
    atomic.write_text(out / "results.json", json.dumps(figures, indent=1, allow_nan=False) + "\n")


def finite_or_none(figures: Any) -> Any:
    """The same with None in place of NaN and infinity, which are no JSON."""
    if isinstance(figures, dict):
        return {name: finite_or_none(value) for name, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [finite_or_none(value) for value in figures]
    return None if isinstance(figures, float) and not math.isfinite(figures) else figures


def print_escaped(text: str, file: typing.TextIO | None = None) -> None:
    """Prints text that may hold half a surrogate pair, which no terminal takes; it is escaped."""
    print(text.encode("utf-8", "backslashreplace").decode(), file=file, flush=True)


def print_warnings(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print_escaped(f"dreamjax.evaluate: warning: {warning}", sys.stderr)
