"""A model on one benchmark from files to figures: questions, examples, predictions, score, what the page shows."""

import dataclasses
import functools

from etils import epath

from dreamjax.api import DreamLLM
from dreamjax.document import Document, Text
from dreamjax.errors import ConfigError, SourceError
from dreamjax.evaluation import few_shot, human_study, image_runner, likelihood_runner, paper, runner
from dreamjax.evaluation.benchmarks import image_generation, language
from dreamjax.evaluation.benchmarks.registry import TASKS
from dreamjax.evaluation.files import whole_number
from dreamjax.evaluation.image_runner import Measures
from dreamjax.evaluation.prompts import profile_of
from dreamjax.evaluation.questions import ImageFolder
from dreamjax.evaluation.report import Result, Shown, sample

RUNNABLE = (
    *(name for name, task in TASKS.items() if task.questions or name in language.LOADERS),
    *image_generation.TASKS,
    "study",
)


@dataclasses.dataclass(frozen=True)
class How:
    """How to run a benchmark."""

    profile: str = "clean"
    shots: int = 0
    examples: str = "random"  # few_shot.METHODS
    shots_from: str = ""  # data of the examples; nothing: the task's own
    images: str = ""  # folder of the pictures; nothing: the data's
    count: int | None = None
    seed: int = 0
    batch_size: int = 16
    measures: Measures = Measures()  # of drawn pictures

    def __post_init__(self):
        if self.examples not in few_shot.METHODS:
            raise ConfigError(f"--examples: {self.examples!r} is none of {', '.join(few_shot.METHODS)}")


def check(task: str, how: How):
    """Raises ConfigError where a task cannot be run so; to be called before the model is loaded."""
    if task not in RUNNABLE:
        raise ConfigError(f"--task: {task!r} is unknown; there are {', '.join(RUNNABLE)}")
    if task in language.LOADERS:
        if how.shots:
            raise ConfigError(f"--shots: {task} has its own number of examples; leave it away")
    elif task in (*image_generation.TASKS, "study"):
        if how.shots:
            raise ConfigError(f"--shots: {task} has no examples; leave it away")
        if task != "study":
            image_generation.manner_of(how.profile, task)
        how.measures.check()
    else:
        profile_of(how.profile, task)


def run(model: DreamLLM, task: str, data: epath.PathLike, out: epath.Path, how: How, settings: dict) -> Result:
    """Predictions (those that out/TASK lacks), their score, and what to show; `settings` say which model it is."""
    if task in image_generation.TASKS:
        return image_runner.run(model, task, data, out, how, settings)
    if task == "study":
        return human_study.run(model, data, out, how, settings)
    return (_rank if task in language.LOADERS else _ask)(
        model, task, data, out / task, how, settings | {"task": task, "data": str(data)}
    )


def _ask(model: DreamLLM, task: str, data: epath.PathLike, out: epath.Path, how: How, settings: dict) -> Result:
    profile, table = profile_of(how.profile, task), TASKS[task]
    questions = table.questions(data, how.count)
    pool = (table.questions(how.shots_from) if how.shots_from else table.questions(data)) if how.shots else []
    images = ImageFolder(how.images or data).require([*questions, *pool])
    job = runner.Job(questions, images, profile)
    if how.shots:
        chosen = few_shot.at_random(pool, how.shots, how.seed)
        if how.examples == "rices":
            chosen = few_shot.by_images(pool, how.shots, few_shot.image_features(model, images))
        job = dataclasses.replace(job, examples=chosen)
    asked = {name: getattr(how, name) for name in ("profile", "shots", "examples", "shots_from", "seed")}
    path, dropped = runner.predict(model, job, out, settings | asked, how.batch_size, task)
    texts = {tuple(map(str, row["key"])): row for row in runner.resume(path)}
    shown = []
    for question in sample(questions):
        row = texts[question.key]
        shown.append(
            Shown(
                question.id,
                job.prompt(question, profile, job.examples(question)),
                row["text"],
                row["raw"],
                question.references,
            )
        )
    words = [
        f"profile {how.profile}",
        f"{how.shots} examples in context ({how.examples})" if how.shots else "",
        f"first {how.count}" if how.count else "",
    ]
    result = Result(
        task,
        None,
        paper.figures(task, how.shots),
        {"predictions": str(path)},
        shown,
        how=", ".join(filter(None, words)),
    )
    if table.export and how.count is None:
        result = dataclasses.replace(result, export=functools.partial(table.export, path, data, out))
    return _scored(result, table.score, path, data, how.count, dropped)


def _rank(model: DreamLLM, task: str, data: epath.PathLike, out: epath.Path, how: How, settings: dict) -> Result:
    rankings = language.load(task, data, how.count)
    path, dropped = likelihood_runner.predict(model, rankings, out, settings, how.batch_size, task)
    rows = {row["question_id"]: row for row in runner.resume(path)}
    shown = []
    for ranking in sample(rankings):
        said = rows[ranking.id]["text"]
        chosen = whole_number(said)
        context, ending = (
            (ranking.contexts[0], said)
            if chosen is None or chosen >= len(ranking.endings)
            else (ranking.contexts[chosen], ranking.endings[chosen])
        )
        prompt = Document((Text(ranking.heading + "".join(ranking.examples) + context),))
        shown.append(
            Shown(
                ranking.id,
                prompt,
                ending.strip(),
                references=(f"{ranking.endings[ranking.right].strip()} (choice {ranking.right})",),
            )
        )
    result = Result(
        task,
        None,
        paper.figures(task),
        {"predictions": str(path)},
        shown,
        how=f"first {how.count} of a subject" if how.count else "",
    )
    return _scored(result, TASKS[task].score, path, data, how.count, dropped)


def _scored(result: Result, scorer, path: epath.Path, data: epath.PathLike, count: int | None, dropped: int) -> Result:
    try:
        score = scorer(path, data, count)
    except SourceError as error:  # a test split, or grades that come from elsewhere
        return dataclasses.replace(result, note=str(error))
    if dropped:
        score = dataclasses.replace(
            score,
            warnings=(
                *score.warnings,
                f"{dropped} examples were left out of prompts that the model's context does not hold",
            ),
        )
    return dataclasses.replace(result, score=score)


def data_of(task: str, data: str) -> epath.Path:
    """The data of a task: the folder of its name in `data` where there is one, else `data` itself."""
    folder = epath.Path(data)
    return folder / task if (folder / task).is_dir() else folder
