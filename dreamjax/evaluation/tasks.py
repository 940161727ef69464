"""One table of the benchmarks: how each is scored, and what is written for those whose scorer is elsewhere."""

import dataclasses
import functools
from collections.abc import Callable

from etils import epath

from dreamjax.evaluation import captions, gqa, mmbench, mme, mmvet, pope, scienceqa, vqa
from dreamjax.evaluation.answers import Score


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark. `score` takes (predictions, data); `export` takes (predictions, data, out) and returns the file it wrote."""

    score: Callable[[epath.PathLike, epath.PathLike], Score]
    export: Callable[[epath.PathLike, epath.PathLike, epath.Path], epath.Path] | None = None


def _vqa(name: str) -> Task:
    return Task(functools.partial(vqa.score, name), functools.partial(vqa.export, name))


TASKS: dict[str, Task] = {
    **{name: Task(functools.partial(captions.score, name)) for name in captions.TASKS},
    **{name: _vqa(name) for name in vqa.TASKS},
    "scienceqa": Task(scienceqa.score),
    "gqa": Task(gqa.score, lambda predictions, data, out: gqa.export(predictions, out)),
    "mme": Task(mme.score),
    "mmbench": Task(mmbench.score, mmbench.export),
    "mmvet": Task(mmvet.score, mmvet.export),
    "pope": Task(pope.score),
}
