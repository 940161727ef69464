"""A model on one task from files to metrics: questions, examples, predictions, score, and samples for the report."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

from etils import epath

from dreamjax.api import DreamLLM
from dreamjax.document import Document, Text
from dreamjax.errors import ConfigError, SourceError
from dreamjax.evaluation import few_shot, human_study, image_runner, likelihood_runner, runner
from dreamjax.evaluation.benchmark import Benchmark
from dreamjax.evaluation.benchmarks import image_generation
from dreamjax.evaluation.benchmarks.registry import BENCHMARKS
from dreamjax.evaluation.files import parse_digits
from dreamjax.evaluation.image_folder import ImageFolder
from dreamjax.evaluation.question import Question
from dreamjax.evaluation.ranking import Ranking
from dreamjax.evaluation.report import Result, Sample, evenly_spread
from dreamjax.evaluation.run_files import read_rows
from dreamjax.evaluation.settings import EvaluationSettings

RUNNABLE = (
    *(name for name, benchmark in BENCHMARKS.items() if benchmark.questions or benchmark.rankings),
    *image_generation.TASKS,
    "study",
)


def check(task: str, settings: EvaluationSettings) -> None:
    """Raises ConfigError if a task cannot be run so; to be called before the model is loaded."""
    if task not in RUNNABLE:
        raise ConfigError(f"--task: {task!r} is unknown; there are {', '.join(RUNNABLE)}")
    benchmark = BENCHMARKS.get(task)
    if benchmark and benchmark.questions:
        benchmark.prompt(settings.profile)
        return
    if settings.shots:
        own = "has its own number of examples" if benchmark else "has no examples"
        raise ConfigError(f"--shots: {task} {own}; leave it away")
    if not benchmark:
        if task != "study":
            image_generation.settings_of(settings.profile, task)
        settings.measures.check()


def run(
    model: DreamLLM,
    task: str,
    data: epath.PathLike,
    out: epath.Path,
    settings: EvaluationSettings,
    model_id: Mapping[str, object],
) -> Result:
    """Makes the predictions that out/TASK lacks and scores all; `model_id` says which model and checkpoint it is."""
    benchmark = BENCHMARKS.get(task)
    stored = {**model_id, "task": task, "data": str(data)}
    if benchmark is None:
        run_task = human_study.run if task == "study" else image_runner.run
        return run_task(model, task, data, out / task, settings, stored)
    if benchmark.rankings:
        return _rank(model, benchmark, data, out, settings, stored)
    return _ask(model, benchmark, data, out, settings, stored)


def _ask(
    model: DreamLLM,
    benchmark: Benchmark,
    data: epath.PathLike,
    out: epath.Path,
    settings: EvaluationSettings,
    stored: dict,
) -> Result:
    assert benchmark.questions
    template = benchmark.prompt(settings.profile)
    questions = benchmark.questions(data, settings.count)
    pool = benchmark.questions(settings.shots_from or data) if settings.shots else []
    images = ImageFolder(settings.images or data).require(
        name for question in (*questions, *pool) for name in question.images
    )
    job = runner.Job(questions, images, template)
    if settings.shots:
        if settings.examples == "rices":
            features = few_shot.image_features(model, images)
            job = dataclasses.replace(job, examples=few_shot.by_images(pool, settings.shots, features))
        else:
            job = dataclasses.replace(job, examples=few_shot.at_random(pool, settings.shots, settings.seed))
    stored |= {name: getattr(settings, name) for name in ("profile", "shots", "examples", "shots_from", "seed")}
    path, dropped = runner.predict(model, job, out / benchmark.name, stored, settings.batch_size, benchmark.name)
    rows = {tuple(map(str, row["key"])): row for row in read_rows(path)}
    result = Result(
        benchmark.name,
        paper=benchmark.published(settings.shots),
        files={"predictions": str(path)},
        samples=[_sample(job, question, rows[question.key]) for question in evenly_spread(questions)],
        setting=settings.describe(),
    )
    if benchmark.export and settings.count is None:
        result = dataclasses.replace(result, export=functools.partial(benchmark.export, path, data, out))
    return _scored(result, lambda: benchmark.score(path, data, settings.count), dropped)


def _sample(job: runner.Job, question: Question, row: dict) -> Sample:
    prompt = job.prompt(question, job.template, job.examples(question))
    return Sample(question.id, prompt, row["text"], row["raw"], question.references)


def _rank(
    model: DreamLLM,
    benchmark: Benchmark,
    data: epath.PathLike,
    out: epath.Path,
    settings: EvaluationSettings,
    stored: dict,
) -> Result:
    assert benchmark.rankings
    rankings = benchmark.rankings(data, settings.count)
    path, dropped = likelihood_runner.predict(
        model, rankings, out / benchmark.name, stored, settings.batch_size, benchmark.name
    )
    rows = {row["question_id"]: row for row in read_rows(path)}
    result = Result(
        benchmark.name,
        paper=benchmark.published(),
        files={"predictions": str(path)},
        samples=[_ranked_sample(ranking, rows[ranking.id]["text"]) for ranking in evenly_spread(rankings)],
        setting=f"first {settings.count} of a subject" if settings.count else "",
    )
    return _scored(result, lambda: benchmark.score(path, data, settings.count), dropped)


def _ranked_sample(ranking: Ranking, prediction: str) -> Sample:
    """The prompt with the likeliest ending, or with the prediction itself if that is no number of an ending."""
    chosen = parse_digits(prediction)
    context, ending = ranking.contexts[0], prediction
    if chosen is not None and chosen < len(ranking.endings):
        context, ending = ranking.contexts[chosen], ranking.endings[chosen]
    prompt = Document((Text(ranking.heading + "".join(ranking.examples) + context),))
    reference = f"{ranking.endings[ranking.right].strip()} (choice {ranking.right})"
    return Sample(ranking.id, prompt, ending.strip(), references=(reference,))


def _scored(result: Result, score: Callable, dropped: int) -> Result:
    """The result with its score, or with the reason for none; `dropped` examples were left out of prompts."""
    try:
        scored = score()
    except SourceError as error:  # a test split, or grades that come from elsewhere
        return dataclasses.replace(result, note=str(error))
    if dropped:
        warning = f"{dropped} examples were left out of prompts that the model's context does not hold"
        scored = dataclasses.replace(scored, warnings=(*scored.warnings, warning))
    return dataclasses.replace(result, score=scored)


def data_of(task: str, data: str) -> epath.Path:
    """The data of a task: the folder of its name in `data` where there is one, else `data` itself."""
    folder = epath.Path(data)
    return folder / task if (folder / task).is_dir() else folder
