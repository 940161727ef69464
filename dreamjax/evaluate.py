"""Measures a model, or a file of predictions.

    python -m dreamjax.evaluate --model=DIR --task=shapes --out=DIR [--count=N] python -m dreamjax.evaluate --model=DIR
    --task=NAME[,NAME] --data=DIR --out=DIR [--profile=official] [--shots=4 --examples=rices] python -m
    dreamjax.evaluate score --task=textvqa --predictions=FILE --data=DIR [--out=DIR]

Tasks of a model: shapes or toy (the embedded generator; needs no data), storybook (a folder of picture stories), and
    about pictures    coco, nocaps, image2paragraph, vqav2, okvqa, textvqa, vizwiz, gqa, scienceqa, mme, mmbench, mmvet,
                      pope
    language          piqa, siqa, hellaswag, winogrande, boolq, mmlu
    drawn pictures    coco_fid, lncoco_fid, instructmmc4_fid (FID, KID, precision and recall, CLIP score; --inception
                      names the weights)
    documents         study (a kit for people to judge written and real documents, and measures of them)
--data has a benchmark's own files, in a folder of the task's name or by themselves, and its pictures below (or
--images).
Predictions are written as they come to OUT/TASK/predictions.jsonl: started again, a run goes on where it stopped.
OUT/report.html shows the figures of all tasks, beside the paper's, and a sample of what was asked and said.

`score` takes the predictions of any model: JSONL with question_id and text (LLaVA's answer files), or a benchmark's own
files; --data is the benchmark's own file or folder of questions and answers. Tasks of `score`: textvqa, vqav2, okvqa,
vizwiz, scienceqa, gqa, mme, mmbench, mmvet (grades of its grader), pope, coco, nocaps, image2paragraph, captions (plain
text, a caption a line), and those of language; fid compares a folder of pictures with an npz or another folder
(--features as above); study counts a kit's judgements. With --out the file for a benchmark's server or grader is
written there as well.

The last line of stdout is the result as JSON, {"task": .., "metrics": {..}, ..}; shares in metrics are in percent.
"""

import contextlib
import functools
import json
import math
import sys

from absl import flags
from etils import epath

from dreamjax import cli
from dreamjax.config import MeshConfig
from dreamjax.config.validation import require_seed
from dreamjax.errors import ConfigError, SourceError
from dreamjax.filesystem import atomic

MODEL = flags.DEFINE_string("model", None, "Training workdir or model folder.")
TASK = flags.DEFINE_string("task", None, "One or more of the tasks above, parted by commas.")
DATA = flags.DEFINE_string("data", "", "Folder (or file) of the task's data, where it needs one.")
OUT = flags.DEFINE_string(
    "out", None, "Folder for predictions, pictures and the page; of score: for the server's file."
)
COUNT = flags.DEFINE_integer(
    "count",
    None,
    "Only the first so many questions (of each category); of shapes documents, of storybook captions.",
    lower_bound=1,
)
WHICH = flags.DEFINE_string("which", "last", "Checkpoint of a workdir: last | best (by held-back loss).")
flags.declare_key_flag("verify_checksums")
PREDICTIONS = flags.DEFINE_string("predictions", None, "Of score: file of predictions.")
PROFILE = flags.DEFINE_string(
    "profile", "clean", "How questions are put: clean | official (the strings of DreamLLM's own evaluation)."
)
SHOTS = flags.DEFINE_integer("shots", 0, "Examples with their answers before each question.", lower_bound=0)
EXAMPLES = flags.DEFINE_string(
    "examples", "random", "Which examples: random | rices (those with the nearest pictures)."
)
SHOTS_FROM = flags.DEFINE_string(
    "shots_from", "", "Data of the examples, such as a training split; nothing: the task's own questions."
)
FEATURES = flags.DEFINE_string(
    "features",
    "inception",
    "Of drawn pictures: inception | clip | package.module:function (list of Pillow images -> [n, d]).",
)
INCEPTION = flags.DEFINE_string(
    "inception", "", "pytorch-fid's file of Inception weights, pt_inception-2015-12-05-6726825d.pth."
)
REFERENCE = flags.DEFINE_string(
    "reference",
    "",
    "What drawn pictures are compared with: an npz with mu and sigma, or a folder; nothing: the task's own.",
)
BASELINE = flags.DEFINE_string(
    "baseline", "", "Folder of a Stable Diffusion (diffusers) that draws the same with its own text encoder."
)
CLIP = flags.DEFINE_string(
    "clip", "", "Folder of the CLIP (both towers) that ranks and measures drawn pictures; nothing: the model's own."
)
IMAGES = flags.DEFINE_string("images", "", "Folder of the pictures, where they are not below the data.")
SEED = flags.DEFINE_integer("seed", 0, "Draws the examples; 0 to 4294967295.")
BATCH = flags.DEFINE_integer("batch_size", 16, "Questions answered at once.", lower_bound=1)
MESH = flags.DEFINE_list(
    "mesh", ["1", "-1", "1"], "Devices along data, fsdp, tensor; one may be -1, which takes what is left."
)


def main() -> int:
    """Runs tasks with a model."""
    _require(MODEL, TASK, OUT)
    require_seed("--seed", SEED.value)
    own = {
        "shapes": functools.partial(shapes_task, "shapes"),
        "toy": functools.partial(shapes_task, "toy"),
        "storybook": storybook_task,
    }
    names = list(dict.fromkeys(TASK.value.split(",")))
    asked = [name for name in names if name not in own]
    if asked:
        _check(asked, own)
    out = epath.Path(OUT.value)
    with _mesh() as mesh:
        from dreamjax.api import DreamLLM  # scoring needs no model

        model = DreamLLM.load(MODEL.value, WHICH.value, mesh, cli.VERIFY.value)
        out.mkdir(parents=True, exist_ok=True)
        found = run_tasks(model, names, own, out)
    print(json.dumps(found[names[0]] if len(names) == 1 else {"tasks": found}))
    return 0


def _how():
    from dreamjax.evaluation.tasks import How

    return How(
        PROFILE.value,
        SHOTS.value,
        EXAMPLES.value,
        SHOTS_FROM.value,
        IMAGES.value,
        COUNT.value,
        SEED.value,
        BATCH.value,
        _measures(),
    )


def _measures():
    from dreamjax.evaluation.image_runner import Measures

    return Measures(FEATURES.value, INCEPTION.value, REFERENCE.value, BASELINE.value, CLIP.value)


def _check(names: list[str], own: dict):
    """Raises ConfigError for what cannot be run, before anything is loaded."""
    from dreamjax.evaluation import tasks

    for name in names:
        if name not in tasks.RUNNABLE:
            raise ConfigError(f"--task: {name!r} is unknown; there are {', '.join((*own, *tasks.RUNNABLE))}")
        tasks.check(name, _how())
    _require(DATA)


@contextlib.contextmanager
def _mesh():
    """The mesh of all devices while it holds; None for a single device."""
    import jax

    from dreamjax.parallel.mesh import make_mesh

    if jax.device_count() == 1:
        yield None
        return
    if len(MESH.value) != 3 or not all(size.lstrip("-").isdecimal() for size in MESH.value):
        raise ConfigError(f"--mesh: {','.join(MESH.value)!r} is not three numbers: data, fsdp, tensor")
    mesh = make_mesh(MeshConfig(*map(int, MESH.value)))
    with jax.set_mesh(mesh):
        yield mesh


def run_tasks(model, names: list[str], own: dict, out: epath.Path) -> dict:
    """Runs tasks one after the other, prints their tables, writes results.json and then report.html.

    {task: what goes to the last line}.
    """
    from dreamjax.evaluation import report

    results, found = [], {}
    for name in names:
        result, words, figures = (own.get(name) or functools.partial(benchmark_task, name))(model, out)
        results.append(result)
        metrics, counts = (result.score.metrics, result.score.counts) if result.score else ({}, {})
        page = {"html": str(out / "report.html"), "report": str(out / "report.html")}
        found[name] = page | _plain({"task": name, "metrics": metrics, "counts": counts} | figures)
        write_results(out, found)
        _warn(f"{name}: {warning}" for warning in (result.score.warnings if result.score else ()))
        _print(words)
        if result.export:
            exported = result.export()
            _warn(
                f"{name}: {warning}"
                for warning in exported.warnings
                if not result.score or warning not in result.score.warnings
            )
            found[name]["exported"] = str(exported.path)
            write_results(out, found)
        atomic.write_text(out / "report.html", report.render("Evaluation by DreamJAX", results), "backslashreplace")
    return found


def write_results(out: epath.Path, found: dict):
    """results.json, before anything that shows the same figures: what goes wrong there costs no figure."""
    atomic.write_text(out / "results.json", json.dumps(found, indent=1, allow_nan=False) + "\n")


def benchmark_task(name: str, model, out: epath.Path) -> tuple:
    """(what to show, its table, what else goes to the last line) of a benchmark."""
    from dreamjax.evaluation import report, tasks

    result = tasks.run(model, name, tasks.data_of(name, DATA.value), out, _how(), _whose())
    more = (
        {"paper": result.paper}
        | ({"measured": result.measured} if result.measured else {})
        | ({"note": result.note} if result.note else {})
    )
    return result, report.format_summary(result), more | result.files


def _whose() -> dict:
    """Which model it is, as predictions remember it."""
    from dreamjax.training import checkpoint

    folder = checkpoint.open_folder(MODEL.value)
    return {
        "model": str(folder),
        "checkpoint": checkpoint.step_of(folder, WHICH.value) if (folder / "checkpoints").exists() else None,
    }


def _plain(figures):
    """With nothing in place of NaN and infinity, which are no JSON."""
    if isinstance(figures, dict):
        return {name: _plain(value) for name, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [_plain(value) for value in figures]
    return None if isinstance(figures, float) and not math.isfinite(figures) else figures


def shapes_task(name: str, model, out: epath.Path) -> tuple:
    """`benchmark_task` of the embedded generator."""
    from dreamjax.evaluation.benchmarks import shapes
    from dreamjax.training.train_logger import train_seconds

    seconds = train_seconds(epath.Path(MODEL.value))  # tells a run that was trained anew in its folder
    results, items = shapes.evaluate(
        model, out, _whose() | {"task": "shapes", "train_seconds": seconds}, COUNT.value or 512
    )
    files = {"items": str(out / "items.jsonl"), "html": str(out / "stories.html")}
    return (
        shapes.result(name, results, items, files),
        shapes.format_summary(results),
        results | {"train_seconds": seconds} | files,
    )


def storybook_task(model, out: epath.Path) -> tuple:
    """`benchmark_task` of a folder of picture stories."""
    from dreamjax.evaluation.benchmarks import storybook, storybook_captions
    from dreamjax.evaluation.predictions import Score
    from dreamjax.evaluation.report import Result
    from dreamjax.training.train_logger import losses_of

    if not DATA.value:
        raise ConfigError("--data: is missing; the folder with stories.jsonl")
    data = epath.Path(DATA.value)
    results, stories = storybook.evaluate(model, data, out)
    _print(storybook.format_summary(results))
    told = storybook_captions.evaluate(model, data, out, _whose(), COUNT.value)
    figures = results | told
    score = Score(
        {key: value for key, value in figures.items() if isinstance(value, float)},
        {key: value for key, value in figures.items() if isinstance(value, int)},
    )
    shown = [*stories, *storybook_captions.shown(model, data, out, 4)]
    result = Result("storybook", score, {}, {}, shown, how="stories that were not trained on")
    return result, storybook_captions.format_summary(told), figures | {"training": losses_of(epath.Path(MODEL.value))}


def score() -> int:
    """Scores a file of predictions."""
    from dreamjax.evaluation.benchmarks.registry import TASKS

    _require(TASK, PREDICTIONS, DATA)
    require_seed("--seed", SEED.value)
    if TASK.value == "fid":
        return _distance()
    if TASK.value == "study":
        return _tally()
    if TASK.value not in TASKS:
        raise ConfigError(f"--task: {TASK.value!r} is unknown; there are {', '.join((*TASKS, 'fid', 'study'))}")
    task = TASKS[TASK.value]
    if OUT.value is None:
        found = task.score(PREDICTIONS.value, DATA.value)
        return _print_score(found.metrics, found.counts, found.warnings, {})
    if task.export is None:
        raise ConfigError(f"--out: {TASK.value} has no server or grader to write a file for")
    try:
        found, reason = task.score(PREDICTIONS.value, DATA.value), ""
    except SourceError as error:  # a test split, or answers that a grader has not seen
        found, reason = None, str(error)
    out = epath.Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    exported = task.export(PREDICTIONS.value, DATA.value, out)
    written = {"exported": str(exported.path)}
    if found:
        return _print_score(found.metrics, found.counts, dict.fromkeys((*found.warnings, *exported.warnings)), written)
    _warn(exported.warnings)
    print(f"dreamjax.evaluate: not scored: {reason}", file=sys.stderr)
    print(json.dumps({"task": TASK.value, "metrics": {}} | written))
    return 0


def _distance() -> int:
    """Compares the pictures of two folders, or of one with the statistics of an npz."""
    from dreamjax.evaluation.metrics import features, frechet

    if FEATURES.value == "clip":
        raise ConfigError("--features: clip is of a model; here inception or package.module:function")
    extractor = features.extractor(FEATURES.value, INCEPTION.value)
    real, drawn = features.reference(DATA.value, extractor), features.reference(PREDICTIONS.value, extractor)
    if isinstance(drawn, frechet.Statistics):
        raise ConfigError(f"--predictions: {PREDICTIONS.value}: must be a folder of pictures")
    metrics, warnings = features.compare(real, drawn, extractor.name)
    return _print_score(metrics, {"pictures": len(drawn)}, warnings, {})


def _tally() -> int:
    """Counts what people judged."""
    from dreamjax.evaluation import human_study

    found = human_study.tally(PREDICTIONS.value, DATA.value)
    return _print_score(found.metrics, found.counts, found.warnings, {"paper": human_study.PAPER})


def _print_score(metrics: dict, counts: dict, warnings, written: dict) -> int:
    """The figures as a table and, on the last line, as JSON; warnings on stderr."""
    _warn(warnings)
    from dreamjax.evaluation.report import format_counts

    _print("\n".join([*(f"{name:32s} {value:9.4f}" for name, value in metrics.items()), format_counts(counts)]))
    print(json.dumps({"task": TASK.value, "metrics": _plain(metrics), "counts": counts} | written))
    return 0


def _print(words: str, file=None):
    """Prints what may hold names of others: half a surrogate pair, which no terminal takes, is escaped."""
    print(words.encode("utf-8", "backslashreplace").decode(), file=file, flush=True)


def _warn(warnings):
    for warning in warnings:
        _print(f"dreamjax.evaluate: warning: {warning}", sys.stderr)


def _require(*wanted: flags.FlagHolder):
    for flag in wanted:
        if not flag.value:
            raise ConfigError(f"--{flag.name}: is missing")


if __name__ == "__main__":
    commands = {"score": score}
    name = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""
    if name and name not in commands:
        print(
            f"dreamjax.evaluate: the command is {', '.join(commands)} or none, not {name!r}; see --help",
            file=sys.stderr,
        )
        sys.exit(2)
    cli.run("dreamjax.evaluate", commands.get(name, main))
