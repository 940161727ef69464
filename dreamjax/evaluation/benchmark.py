"""All that is known of a benchmark: its questions, the prompts around them, its score, the published figures."""

import dataclasses
from collections.abc import Callable, Mapping

from etils import epath

from dreamjax.errors import ConfigError
from dreamjax.evaluation.predictions import Exported, Score
from dreamjax.evaluation.prompts import PROFILES, PromptTemplate
from dreamjax.evaluation.question import Question
from dreamjax.evaluation.ranking import Ranking

Figures = Mapping[str, Mapping[str, float]]
"""{metric: {model: figure}} under the names of our metrics, in percent where they are shares."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark. Its functions take the arguments named beside them; with a `count`, its first questions alone."""

    name: str
    score: Callable[..., Score]  # (predictions, data, count=None)
    questions: Callable[..., list[Question]] | None = None  # (data, count=None), for benchmarks answered in free text
    rankings: Callable[..., list[Ranking]] | None = None  # (data, count=None), for benchmarks answered by likelihood
    export: Callable[[epath.PathLike, epath.PathLike, epath.Path], Exported] | None = None  # (predictions, data, out)
    prompts: Mapping[str, PromptTemplate] = dataclasses.field(default_factory=dict)  # by profile
    paper: Figures = dataclasses.field(default_factory=dict)  # of DreamLLM, ICLR 2024; "+ SFT" adds LLaVA-1.5's data
    paper_few_shot: Mapping[int, Figures] = dataclasses.field(default_factory=dict)  # by the number of examples

    def prompt(self, profile: str) -> PromptTemplate:
        """The prompt template of a profile. Raises ConfigError, naming the profiles that the benchmark has."""
        if profile not in PROFILES:
            raise ConfigError(f"--profile: {profile!r} is unknown; there are {', '.join(PROFILES)}")
        if profile not in self.prompts:
            raise ConfigError(f"--profile: {self.name} has no profile {profile!r}, only {', '.join(self.prompts)}")
        return self.prompts[profile]

    def published(self, shots: int = 0) -> Figures:
        """The paper's figures with so many examples in context; empty where it has none."""
        return self.paper_few_shot.get(shots, {}) if shots else self.paper
