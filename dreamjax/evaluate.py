"""Measures a model, or a file of predictions.

    python -m dreamjax.evaluate --model=DIR --task=shapes --out=DIR [--count=N]
    python -m dreamjax.evaluate score --task=textvqa --predictions=FILE --data=DIR [--out=DIR]

Tasks of a model: shapes (the embedded generator; needs no data), storybook (a folder of picture stories, --data=DIR).

`score` takes the predictions of any model: JSONL with question_id and text (LLaVA's answer files), or a benchmark's own
files; --data is the benchmark's own file or folder of questions and answers. Tasks of `score`: textvqa, vqav2, okvqa, vizwiz,
scienceqa, gqa, mme, mmbench, mmvet (grades of its grader), pope, coco, nocaps, image2paragraph, captions (plain text, a
caption a line). With --out the file for a benchmark's server or grader is written there as well.

The last line of stdout is the result as JSON; shares are in percent in what `score` prints.
"""

import json
import math
import sys

from absl import flags
from etils import epath

from dreamjax import cli
from dreamjax.data.sources import SourceError
from dreamjax.schema import ConfigError

MODEL = flags.DEFINE_string("model", None, "Training workdir or model folder.")
TASK = flags.DEFINE_string("task", None, "shapes | storybook; of score: textvqa, pope and others, see above.")
DATA = flags.DEFINE_string("data", "", "Folder (or file) of the task's data, where it needs one.")
OUT = flags.DEFINE_string("out", None, "Folder for predictions, pictures and the page; of score: for the server's file.")
COUNT = flags.DEFINE_integer("count", 512, "Documents per part of a task.")
WHICH = flags.DEFINE_string("which", "last", "Checkpoint of a workdir: last | best (by held-back loss).")
PREDICTIONS = flags.DEFINE_string("predictions", None, "Of score: file of predictions.")


def main() -> int:
    """Runs a task with a model."""
    from dreamjax.api import DreamLLM  # scoring needs no model

    _require(MODEL, TASK, OUT)
    tasks = {"shapes": shapes_task, "storybook": storybook_task}
    if TASK.value not in tasks:
        raise ConfigError(f"--task: {TASK.value!r} is unknown; there are {', '.join(tasks)}")
    out = epath.Path(OUT.value)
    model = DreamLLM.load(MODEL.value, WHICH.value)
    out.mkdir(parents=True, exist_ok=True)
    print(json.dumps(tasks[TASK.value](model, out)))
    return 0


def shapes_task(model, out: epath.Path) -> dict:
    from dreamjax.evaluation import shapes
    from dreamjax.training.metrics import train_seconds

    results = shapes.evaluate(model, out, COUNT.value)
    print(shapes.in_words(results), flush=True)
    return results | {"train_seconds": train_seconds(epath.Path(MODEL.value)), "items": str(out / "items.jsonl"), "html": str(out / "stories.html")}


def storybook_task(model, out: epath.Path) -> dict:
    from dreamjax.evaluation import storybook

    if not DATA.value:
        raise ConfigError("--data: is missing; the folder with stories.jsonl")
    results = storybook.evaluate(model, epath.Path(DATA.value), out)
    print(storybook.in_words(results), flush=True)
    return results


def score() -> int:
    """Scores a file of predictions."""
    from dreamjax.evaluation.tasks import TASKS

    _require(TASK, PREDICTIONS, DATA)
    if TASK.value not in TASKS:
        raise ConfigError(f"--task: {TASK.value!r} is unknown; there are {', '.join(TASKS)}")
    task, written = TASKS[TASK.value], {}
    if OUT.value is not None:
        if task.export is None:
            raise ConfigError(f"--out: {TASK.value} has no server or grader to write a file for")
        out = epath.Path(OUT.value)
        out.mkdir(parents=True, exist_ok=True)
        written = {"exported": str(task.export(PREDICTIONS.value, DATA.value, out))}
    try:
        found = task.score(PREDICTIONS.value, DATA.value)
    except SourceError as error:
        if not written:
            raise
        print(f"dreamjax.evaluate: not scored: {error}", file=sys.stderr)
        print(json.dumps({"task": TASK.value, "metrics": {}} | written))
        return 0
    for warning in found.warnings:
        print(f"dreamjax.evaluate: warning: {warning}", file=sys.stderr)
    print("\n".join(f"{name:32s} {value:9.4f}" for name, value in found.metrics.items()))
    metrics = {name: None if math.isnan(value) else value for name, value in found.metrics.items()}
    print(json.dumps({"task": TASK.value, "metrics": metrics, "counts": found.counts} | written))
    return 0


def _require(*wanted: flags.FlagHolder):
    for flag in wanted:
        if not flag.value:
            raise ConfigError(f"--{flag.name}: is missing")


if __name__ == "__main__":
    commands = {"score": score}
    name = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""
    if name and name not in commands:
        print(f"dreamjax.evaluate: the command is {', '.join(commands)} or none, not {name!r}; see --help", file=sys.stderr)
        sys.exit(2)
    cli.run("dreamjax.evaluate", commands.get(name, main))
