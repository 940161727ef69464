"""Measures a model: python -m dreamjax.evaluate --model=DIR --task=shapes --out=DIR [--count=N]

Tasks: shapes (the embedded generator; needs no data), storybook (a folder of picture stories, --data=DIR).
The last line of stdout is the result as JSON.
"""

import json

from absl import flags
from etils import epath

from dreamjax import cli
from dreamjax.api import DreamLLM
from dreamjax.evaluation import shapes, storybook
from dreamjax.schema import ConfigError
from dreamjax.training.metrics import train_seconds

MODEL = flags.DEFINE_string("model", None, "Training workdir or model folder.")
TASK = flags.DEFINE_string("task", None, "shapes | storybook")
DATA = flags.DEFINE_string("data", "", "Folder of the task's data, where it needs one.")
OUT = flags.DEFINE_string("out", None, "Folder for predictions, pictures and the page.")
COUNT = flags.DEFINE_integer("count", 512, "Documents per part of a task.")
WHICH = flags.DEFINE_string("which", "last", "Checkpoint of a workdir: last | best (by held-back loss).")


def main() -> int:
    for flag in (MODEL, TASK, OUT):
        if flag.value is None:
            raise ConfigError(f"--{flag.name}: is missing")
    tasks = {"shapes": shapes_task, "storybook": storybook_task}
    if TASK.value not in tasks:
        raise ConfigError(f"--task: {TASK.value!r} is unknown; there are {', '.join(tasks)}")
    out = epath.Path(OUT.value)
    model = DreamLLM.load(MODEL.value, WHICH.value)
    out.mkdir(parents=True, exist_ok=True)
    print(json.dumps(tasks[TASK.value](model, out)))
    return 0


def shapes_task(model: DreamLLM, out: epath.Path) -> dict:
    results = shapes.evaluate(model, out, COUNT.value)
    print(shapes.in_words(results), flush=True)
    return results | {"train_seconds": train_seconds(epath.Path(MODEL.value)), "items": str(out / "items.jsonl"), "html": str(out / "stories.html")}


def storybook_task(model: DreamLLM, out: epath.Path) -> dict:
    if not DATA.value:
        raise ConfigError("--data: is missing; the folder with stories.jsonl")
    results = storybook.evaluate(model, epath.Path(DATA.value), out)
    print(storybook.in_words(results), flush=True)
    return results


if __name__ == "__main__":
    cli.run("dreamjax.evaluate", main)
