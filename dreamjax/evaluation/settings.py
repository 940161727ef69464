"""The options of an evaluation, as the command line has them."""

import dataclasses

from etils import epath

from dreamjax.errors import ConfigError
from dreamjax.evaluation import few_shot
from dreamjax.evaluation.metrics import features


@dataclasses.dataclass(frozen=True)
class ImageMeasures:
    """The features in which generated images are compared, and with what."""

    features: str = "inception"  # metrics/features.py names them
    inception: str = ""  # file of weights
    reference: str = ""  # npz or folder; "": the task's own real images
    baseline: str = ""  # folder of a Stable Diffusion that generates the same
    clip: str = ""  # folder of the CLIP that ranks and measures; "": the model's own towers

    def check(self) -> None:
        """Raises ConfigError before anything is loaded or generated."""
        features.check(self.features, self.inception)
        for name in ("reference", "baseline", "clip"):
            path = getattr(self, name)
            if path and not epath.Path(path).exists():
                raise ConfigError(f"--{name}: {path}: no such file or folder")


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """The settings by which a task is run."""

    profile: str = "clean"
    shots: int = 0
    examples: str = "random"  # few_shot.METHODS
    shots_from: str = ""  # data of the examples; "": the task's own
    images: str = ""  # folder of the images; "": the data's
    count: int | None = None
    seed: int = 0
    batch_size: int = 16
    measures: ImageMeasures = ImageMeasures()

    def __post_init__(self) -> None:
        if self.examples not in few_shot.METHODS:
            raise ConfigError(f"--examples: {self.examples!r} is none of {', '.join(few_shot.METHODS)}")

    def describe(self) -> str:
        """The profile, examples and count, for people."""
        parts = [f"profile {self.profile}"]
        if self.shots:
            parts.append(f"{self.shots} examples in context ({self.examples})")
        if self.count:
            parts.append(f"first {self.count}")
        return ", ".join(parts)
