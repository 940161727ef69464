"""One table of the benchmarks.

How files become questions, how predictions are scored, what is written where the scorer is elsewhere.
"""

import dataclasses
import functools
from collections.abc import Callable

from etils import epath

from dreamjax.evaluation import questions
from dreamjax.evaluation.benchmarks import captions, gqa, language, mmbench, mme, mmvet, pope, scienceqa, vqa
from dreamjax.evaluation.predictions import Exported, Score
from dreamjax.evaluation.questions import Question


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark, its functions with the arguments named here.

    With a `count`, only its first so many questions are meant.
    """

    score: Callable[..., Score]  # (predictions, data, count=None)
    questions: Callable[..., list[Question]] | None = None  # (data, count=None); None: there is nothing to ask a model
    export: Callable[[epath.PathLike, epath.PathLike, epath.Path], Exported] | None = None  # (predictions, data, out)


def _captions(name: str) -> Task:
    return Task(functools.partial(captions.score, name), functools.partial(questions.of_captions, name))


def _vqa(name: str) -> Task:
    return Task(
        functools.partial(vqa.score, name),
        functools.partial(questions.of_vqa, name),
        functools.partial(vqa.export, name),
    )


TASKS: dict[str, Task] = {
    **{name: _captions(name) for name in captions.TASKS if name != "captions"},
    "captions": Task(functools.partial(captions.score, "captions")),
    **{name: _vqa(name) for name in vqa.TASKS},
    "scienceqa": Task(scienceqa.score, questions.of_scienceqa),
    "gqa": Task(gqa.score, questions.of_gqa, gqa.export),
    "mme": Task(mme.score, questions.of_mme),
    "mmbench": Task(mmbench.score, questions.of_mmbench, mmbench.export),
    "mmvet": Task(mmvet.score, questions.of_mmvet, mmvet.export),
    "pope": Task(pope.score, questions.of_pope),
    **{
        name: Task(functools.partial(language.score, name)) for name in language.LOADERS
    },  # ranked, not asked: likelihood_runner
}
