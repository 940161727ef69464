"""Measures a model, or scores a file of predictions.

    python -m dreamjax.evaluate --model=DIR --task=shapes --out=DIR [--count=N]
    python -m dreamjax.evaluate --model=DIR --task=NAME[,NAME] --data=DIR --out=DIR [--profile=official]
        [--shots=4 --examples=rices]
    python -m dreamjax.evaluate score --task=textvqa --predictions=FILE --data=DIR [--out=DIR]

Tasks of a model: shapes or toy (the embedded generator; needs no data), storybook (a folder of picture stories), and
    about images      coco, nocaps, image2paragraph, vqav2, okvqa, textvqa, vizwiz, gqa, scienceqa, mme, mmbench, mmvet,
                      pope
    language          piqa, siqa, hellaswag, winogrande, boolq, mmlu
    generated images  coco_fid, lncoco_fid, instructmmc4_fid (FID, KID, precision and recall, CLIP score; --inception
                      names the weights)
    documents         study (a kit for people to judge generated and real documents, and measures of them)
--data has a benchmark's own files, in a folder of the task's name or by themselves, and its images below (or
--images).
Predictions are stored as they come in OUT/TASK/predictions.jsonl: started again, a run goes on where it stopped.
OUT/report.html shows the metrics of all tasks, beside the paper's, and a sample of questions with their answers.

`score` takes the predictions of any model: JSONL with question_id and text (LLaVA's answer files), or a benchmark's own
files; --data is the benchmark's own file or folder of questions and answers. Tasks of `score`: textvqa, vqav2, okvqa,
vizwiz, scienceqa, gqa, mme, mmbench, mmvet (grades of its grader), pope, coco, nocaps, image2paragraph, captions (plain
text, a caption a line), and those of language; fid compares a folder of images with an npz or another folder
(--features as above); study counts a kit's judgements. With --out the file for a benchmark's server or grader is
written there as well.

The last line of stdout is the result as JSON, {"task": .., "metrics": {..}, ..}; shares in metrics are in percent.
"""

import contextlib
import dataclasses
import functools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from absl import flags
from etils import epath

from dreamjax import cli
from dreamjax.config import MeshConfig
from dreamjax.config.validation import require_seed
from dreamjax.errors import ConfigError, SourceError
from dreamjax.evaluation.predictions import Score
from dreamjax.evaluation.report import format_counts
from dreamjax.evaluation.results import Figures, Outcome, Task, finite_or_none, print_escaped, print_warnings, run_tasks

if TYPE_CHECKING:  # a score needs no model, and so no JAX
    from jax.sharding import Mesh

    from dreamjax.api import DreamLLM
    from dreamjax.evaluation.settings import EvaluationSettings

MODEL = flags.DEFINE_string("model", None, "Training workdir or model folder.")
TASK = flags.DEFINE_string("task", None, "One or more of the tasks above, parted by commas.")
DATA = flags.DEFINE_string("data", "", "Folder (or file) of the task's data, where it needs one.")
OUT = flags.DEFINE_string(
    "out", None, "Folder for predictions, images and the report; of score: for the server's file."
)
COUNT = flags.DEFINE_integer(
    "count",
    None,
    "Only the first so many questions (of each category); of shapes documents, of storybook captions.",
    lower_bound=1,
)
WHICH = flags.DEFINE_string("which", "last", "Checkpoint of a workdir: last | best (by held-out loss).")
flags.declare_key_flag("verify_checksums")
PREDICTIONS = flags.DEFINE_string("predictions", None, "Of score: file of predictions.")
PROFILE = flags.DEFINE_string(
    "profile", "clean", "Prompts around questions: clean | official (the strings of DreamLLM's own evaluation)."
)
SHOTS = flags.DEFINE_integer("shots", 0, "Examples with their answers before each question.", lower_bound=0)
EXAMPLES = flags.DEFINE_string("examples", "random", "Which examples: random | rices (those with the nearest images).")
SHOTS_FROM = flags.DEFINE_string(
    "shots_from", "", "Data of the examples, such as a training split; nothing: the task's own questions."
)
FEATURES = flags.DEFINE_string(
    "features",
    "inception",
    "Features of generated images: inception | clip | package.module:function (list of Pillow images -> [n, d]).",
)
INCEPTION = flags.DEFINE_string(
    "inception", "", "pytorch-fid's file of Inception weights, pt_inception-2015-12-05-6726825d.pth."
)
REFERENCE = flags.DEFINE_string(
    "reference",
    "",
    "Reference of generated images: an npz with mu and sigma, or a folder; nothing: the task's own.",
)
BASELINE = flags.DEFINE_string(
    "baseline", "", "Folder of a Stable Diffusion (diffusers) that generates the same images with its own text encoder."
)
CLIP = flags.DEFINE_string(
    "clip", "", "Folder of the CLIP (both towers) that ranks and measures generated images; nothing: the model's own."
)
IMAGES = flags.DEFINE_string("images", "", "Folder of the images, if they are not below the data.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the examples; 0 to 4294967295.")
BATCH = flags.DEFINE_integer("batch_size", 16, "Questions answered at once.", lower_bound=1)
MESH = flags.DEFINE_list(
    "mesh", ["1", "-1", "1"], "Devices along data, fsdp, tensor; one may be -1, which takes what is left."
)


def main() -> int:
    """Runs tasks with a model."""
    _require(MODEL, TASK, OUT)
    require_seed("--seed", SEED.value)
    own: dict[str, Task] = {
        "shapes": functools.partial(shapes_task, "shapes"),
        "toy": functools.partial(shapes_task, "toy"),
        "storybook": storybook_task,
    }
    names = list(dict.fromkeys(_value(TASK).split(",")))
    benchmarks = [name for name in names if name not in own]
    if benchmarks:
        _check(benchmarks, list(own))
    out = epath.Path(_value(OUT))
    with _mesh() as mesh:
        from dreamjax.api import DreamLLM  # scoring needs no model

        model = DreamLLM.load(_value(MODEL), _value(WHICH), mesh, cli.VERIFY.value)
        out.mkdir(parents=True, exist_ok=True)
        tasks = {name: own.get(name) or functools.partial(benchmark_task, name) for name in names}
        figures = run_tasks(model, tasks, out, _model_id())
    print(json.dumps(figures[names[0]] if len(names) == 1 else {"tasks": figures}))
    return 0


def _settings() -> "EvaluationSettings":
    from dreamjax.evaluation.settings import EvaluationSettings, ImageMeasures

    return EvaluationSettings(
        profile=PROFILE.value,
        shots=SHOTS.value,
        examples=EXAMPLES.value,
        shots_from=SHOTS_FROM.value,
        images=IMAGES.value,
        count=COUNT.value,
        seed=SEED.value,
        batch_size=BATCH.value,
        measures=ImageMeasures(FEATURES.value, INCEPTION.value, REFERENCE.value, BASELINE.value, CLIP.value),
    )


def _check(names: Sequence[str], own: Sequence[str]) -> None:
    """Raises ConfigError for tasks that cannot be run, before anything is loaded."""
    from dreamjax.evaluation import tasks

    for name in names:
        if name not in tasks.RUNNABLE:
            raise ConfigError(f"--task: {name!r} is unknown; there are {', '.join((*own, *tasks.RUNNABLE))}")
        tasks.check(name, _settings())
    _require(DATA)


@contextlib.contextmanager
def _mesh() -> "Iterator[Mesh | None]":
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


def _model_id() -> dict[str, Any]:
    """The model and its checkpoint, as predictions and the report name them."""
    from dreamjax.training import checkpoint

    folder = checkpoint.open_folder(_value(MODEL))
    has_checkpoints = (folder / "checkpoints").exists()
    return {
        "model": str(folder),
        "checkpoint": checkpoint.step_of(folder, _value(WHICH)) if has_checkpoints else None,
    }


# ----------------------------------------------------------------------------------------------------------------------
# Tasks


def benchmark_task(name: str, model: "DreamLLM", out: epath.Path) -> Outcome:
    """A benchmark of evaluation/tasks."""
    from dreamjax.evaluation import report, tasks

    result = tasks.run(model, name, tasks.data_of(name, DATA.value), out, _settings(), _model_id())
    figures: Figures = {"paper": result.paper}
    if result.measured:
        figures["measured"] = result.measured
    if result.note:
        figures["note"] = result.note
    return Outcome(result, report.format_summary(result), figures | dict(result.files))


def shapes_task(name: str, model: "DreamLLM", out: epath.Path) -> Outcome:
    """The embedded generator."""
    from dreamjax.evaluation.benchmarks import shapes
    from dreamjax.training.train_logger import train_seconds

    seconds = train_seconds(epath.Path(_value(MODEL)))  # tells a run that was trained anew in its folder
    settings = _model_id() | {"task": "shapes", "train_seconds": seconds}
    results, items = shapes.evaluate(model, out, settings, COUNT.value or 512)
    files = {"items": str(out / "items.jsonl"), "html": str(out / "stories.html")}
    figures = results | {"train_seconds": seconds} | files
    return Outcome(shapes.result(name, results, items, files), shapes.format_summary(results), figures)


def storybook_task(model: "DreamLLM", out: epath.Path) -> Outcome:
    """A folder of picture stories."""
    from dreamjax.evaluation.benchmarks import storybook, storybook_captions
    from dreamjax.evaluation.report import Result
    from dreamjax.training.train_logger import losses_of

    if not DATA.value:
        raise ConfigError("--data: is missing; the folder with stories.jsonl")
    data = epath.Path(DATA.value)
    results, samples = storybook.evaluate(model, data, out)
    print_escaped(storybook.format_summary(results))
    captions = storybook_captions.evaluate(model, data, out, _model_id(), COUNT.value)
    results |= captions
    score = Score(
        {key: value for key, value in results.items() if isinstance(value, float)},
        {key: value for key, value in results.items() if isinstance(value, int)},
    )
    samples = [*samples, *storybook_captions.samples(model, data, out, 4)]
    result = Result("storybook", score, samples=samples, setting="held-out stories")
    figures = results | {"training": losses_of(epath.Path(_value(MODEL)))}
    return Outcome(result, storybook_captions.format_summary(captions), figures)


# ----------------------------------------------------------------------------------------------------------------------
# Scores of predictions


def score() -> int:
    """Scores a file of predictions."""
    from dreamjax.evaluation.benchmarks.registry import BENCHMARKS

    _require(TASK, PREDICTIONS, DATA)
    require_seed("--seed", SEED.value)
    name, predictions, data = _value(TASK), _value(PREDICTIONS), DATA.value
    if name == "fid":
        return _distance()
    if name == "study":
        return _tally()
    if name not in BENCHMARKS:
        raise ConfigError(f"--task: {name!r} is unknown; there are {', '.join((*BENCHMARKS, 'fid', 'study'))}")
    benchmark = BENCHMARKS[name]
    if OUT.value is None:
        return _print_score(benchmark.score(predictions, data))
    if benchmark.export is None:
        raise ConfigError(f"--out: {name} has no server or grader to write a file for")
    scored: Score | None = None
    reason = ""
    try:
        scored = benchmark.score(predictions, data)
    except SourceError as error:  # a test split, or answers that a grader has not seen
        reason = str(error)
    out = epath.Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    exported = benchmark.export(predictions, data, out)
    files = {"exported": str(exported.path)}
    if scored:
        warnings = tuple(dict.fromkeys((*scored.warnings, *exported.warnings)))
        return _print_score(dataclasses.replace(scored, warnings=warnings), files)
    print_warnings(exported.warnings)
    print(f"dreamjax.evaluate: not scored: {reason}", file=sys.stderr)
    print(json.dumps({"task": name, "metrics": {}} | files))
    return 0


def _distance() -> int:
    """Compares the images of two folders, or of one with the statistics of an npz."""
    from dreamjax.evaluation.metrics import features, frechet

    if FEATURES.value == "clip":
        raise ConfigError("--features: clip is of a model; here inception or package.module:function")
    extractor = features.extractor(FEATURES.value, INCEPTION.value)
    real = features.reference(DATA.value, extractor)
    generated = features.reference(_value(PREDICTIONS), extractor)
    if isinstance(generated, frechet.Statistics):
        raise ConfigError(f"--predictions: {PREDICTIONS.value}: must be a folder of pictures")
    metrics, warnings = features.compare(real, generated, extractor.name)
    return _print_score(Score(metrics, {"images": len(generated)}, warnings))


def _tally() -> int:
    """Counts people's judgements."""
    from dreamjax.evaluation import human_study, human_study_tally

    return _print_score(human_study_tally.tally(_value(PREDICTIONS), DATA.value), {"paper": human_study.PAPER})


def _print_score(scored: Score, figures: Mapping[str, Any] = MappingProxyType({})) -> int:
    """The metrics as a table and, on the last line, as JSON with more `figures`; warnings on stderr."""
    print_warnings(scored.warnings)
    table = [f"{name:32s} {value:9.4f}" for name, value in scored.metrics.items()]
    print_escaped("\n".join([*table, format_counts(scored.counts)]))
    metrics = {"task": TASK.value, "metrics": finite_or_none(scored.metrics), "counts": scored.counts}
    print(json.dumps({**metrics, **figures}))
    return 0


def _require(*required: flags.FlagHolder) -> None:
    for flag in required:
        if not flag.value:
            raise ConfigError(f"--{flag.name}: is missing")


def _value(flag: flags.FlagHolder) -> str:
    """The value of a flag without a default, which `_require` has seen."""
    return str(flag.value)


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
