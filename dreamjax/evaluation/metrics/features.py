"""Features of images, for the distances in frechet.py; and the similarity of image and text by CLIP.

inception            2,048 numbers of the Inception network, with pytorch-fid's weights, as in published FID figures
clip                 the class token of a CLIP image encoder, the measured model's own or that of another folder
package.module:name  a function of yours: a list of Pillow images -> an array [n, d]
"""

import dataclasses
import importlib
import pathlib
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from etils import epath

from dreamjax.api import DreamLLM
from dreamjax.document import clip_tokenizer, image_io
from dreamjax.errors import ConfigError, SourceError, gist
from dreamjax.evaluation import few_shot
from dreamjax.evaluation.image_folder import image_files
from dreamjax.evaluation.metrics import frechet
from dreamjax.models import inception
from dreamjax.models.dreamllm import Model
from dreamjax.progress import bar
from dreamjax.sampling import rerank

BATCH = 32
WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A name, and a function from at most BATCH images to their features [n, d]."""

    name: str
    of: Callable[[Sequence[PIL.Image.Image]], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Towers:
    """CLIP's two towers with the text's tokenizer."""

    model: Model
    tokenizer: object

    def scorer(self) -> rerank.Scorer:
        return rerank.clip_scorer(self.model, self.tokenizer)

    def similarity(self, images: Sequence[PIL.Image.Image], texts: Sequence[str]) -> np.ndarray:
        """100 times the cosine of each image and its text, [n]."""
        return 100 * self.scorer()(images, texts) / np.exp(np.asarray(self.model.params["clip_text"]["logit_scale"]))


# ----------------------------------------------------------------------------------------------------------------------
# Extractors


def check(features: str, weights: str):
    """Raises ConfigError if the extractor of that name cannot be made, before anything is generated."""
    if features == "inception":
        if not weights:
            raise ConfigError(
                "--inception: is missing: FID is measured in the features of pytorch-fid's Inception "
                f"network; download {WEIGHTS} from that project "
                "and name the file, or choose --features=clip or --features=package.module:function, "
                "which give figures of their own"
            )
        if not pathlib.Path(weights).is_file():
            raise ConfigError(f"--inception: {weights}: no such file")
    elif features != "clip":
        _function(features)


def extractor(features: str, weights: str, model: DreamLLM | None = None) -> Extractor:
    """The extractor of a name (above); `clip` is the encoder of `model`. Raises ConfigError."""
    check(features, weights)
    if features == "inception":
        return _inception(weights)
    if features == "clip":
        if model is None or model.config.clip is None:
            raise ConfigError("--features: clip needs a model with a picture encoder")
        return Extractor("clip", lambda images: _filled(images, lambda filled: _clip_features(model, filled)))
    function = _function(features)
    return Extractor(features, lambda images: _checked(features, np.asarray(function(list(images))), len(images)))


def _inception(weights: str) -> Extractor:
    from dreamjax.convert.formats.inception import load  # may need torch

    params = jax.device_put(load(weights))

    def network(images: Sequence[PIL.Image.Image]) -> np.ndarray:
        return np.asarray(
            inception.features(params, jnp.stack([inception.prepare(np.asarray(image)) for image in images]))
        )

    return Extractor("inception", lambda images: _filled(images, network))


def _clip_features(model: DreamLLM, images: Sequence[PIL.Image.Image]) -> np.ndarray:
    size = model.model.clip.config.image_size
    return np.asarray(
        few_shot.unit_features(model.model, np.stack([image_io.for_encoder(image, size) for image in images]))
    )


def _filled(images: Sequence[PIL.Image.Image], network: Callable) -> np.ndarray:
    """The features of a batch that is filled up to a power of two, so that few sizes are compiled."""
    size = 1 << (len(images) - 1).bit_length()
    return network([*images, *[images[-1]] * (size - len(images))])[: len(images)]


def _function(name: str) -> Callable:
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f"--features: {name!r} is none of inception, clip, package.module:function")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--features: {name}: {error}") from None


def _checked(name: str, features: np.ndarray, count: int) -> np.ndarray:
    if features.ndim != 2 or len(features) != count:
        raise ConfigError(
            f"--features: {name} gave an array {list(features.shape)} for {count} pictures, needs [{count}, d]"
        )
    return features


def collect(extractor: Extractor, images: Iterable[PIL.Image.Image], total: int, desc: str) -> np.ndarray:
    """Features [total, d] of images, which are opened as they come."""
    features: list[np.ndarray] = []
    waiting: list[PIL.Image.Image] = []
    with bar(total, "picture", desc) as progress:
        for image in images:
            waiting.append(image)
            if len(waiting) == BATCH:
                features.append(extractor.of(waiting))
                progress.update(len(waiting))
                waiting = []
        if waiting:
            features.append(extractor.of(waiting))
            progress.update(len(waiting))
    return np.concatenate(features)


# ----------------------------------------------------------------------------------------------------------------------
# Comparison


def load_statistics(path: epath.PathLike) -> frechet.Statistics:
    """Mean and covariance out of an npz with mu and sigma, as pytorch-fid writes it; raises SourceError."""
    path = epath.Path(path)
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            mean, covariance = np.asarray(arrays["mu"], np.float64), np.asarray(arrays["sigma"], np.float64)
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except (KeyError, ValueError, OSError, EOFError) as error:
        raise SourceError(f"{path}: is no npz with mu and sigma: {gist(error)}") from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise SourceError(
            f"{path}: mu is {list(mean.shape)} and sigma {list(covariance.shape)}, must be [d] and [d, d]"
        )
    return frechet.Statistics(mean, covariance)


def reference(path: epath.PathLike, extractor: Extractor, side: int | None = None) -> frechet.Statistics | np.ndarray:
    """The statistics of an npz, or features of the images below a folder, cropped to `side` if it is given."""
    if epath.Path(path).suffix == ".npz":
        return load_statistics(path)
    folder = epath.Path(path)
    files = [folder / name for name in image_files(folder)]
    if not files:
        raise SourceError(f"{folder}: {'holds no pictures' if folder.is_dir() else 'no such folder of pictures'}")
    opened = (square(image_io.open_rgb(file), side) if side else image_io.open_rgb(file) for file in files)
    return collect(extractor, opened, len(files), "real pictures")


def square(image: PIL.Image.Image, side: int) -> PIL.Image.Image:
    """The middle square of the image with its shorter side at `side` (bilinear)."""
    return PIL.Image.fromarray(image_io.for_decoder(image, side))


def compare(
    real: frechet.Statistics | np.ndarray, generated: np.ndarray, extractor: str
) -> tuple[dict[str, float], tuple[str, ...]]:
    """(metrics, warnings) of generated features [n, d] against real ones or their statistics.

    `fid` (`frechet` in other features than Inception's), and against features also `kid_x1000` and, in percent,
    `precision` and `recall`.
    """
    is_fid = extractor == "inception"
    counts = [len(generated)]
    if not isinstance(real, frechet.Statistics):
        counts.append(len(real))
    width = len(real.mean) if isinstance(real, frechet.Statistics) else real.shape[1]
    if width != generated.shape[1]:
        raise SourceError(f"the reference has {width} features, and {extractor} gives {generated.shape[1]}")
    if min(counts) < 2:
        raise SourceError(f"a distance needs two pictures on both sides; {len(generated)} are drawn")
    statistics = real if isinstance(real, frechet.Statistics) else frechet.statistics(real)
    distance = frechet.frechet_distance(statistics, frechet.statistics(generated))
    metrics, warnings = {"fid" if is_fid else "frechet": distance}, []
    if not is_fid:
        warnings.append(f"the features are of {extractor}: the distances are not those of published tables")
    if min(counts) <= width:
        warnings.append(
            f"{min(counts)} pictures for {width} features: the covariance is not of full rank, and the distance is far "
            "above that of many pictures"
        )
    if not isinstance(real, frechet.Statistics):
        metrics["kid_x1000"] = 1000 * frechet.kernel_distance(real, generated)[0]
        if min(counts) > frechet.NEIGHBOURS:
            precision, recall = frechet.precision_recall(real, generated)
            metrics |= {"precision": 100 * precision, "recall": 100 * recall}
    return metrics, tuple(warnings)


# ----------------------------------------------------------------------------------------------------------------------
# Images and texts


def towers(model: DreamLLM | None, folder: str = "") -> Towers | None:
    """CLIP of a folder (transformers' CLIPModel), else the model's own; None if that has no text tower."""
    if folder:
        from dreamjax.convert import assemble, importer  # may need torch

        plan = importer.make_plan([folder], parts=("clip", "clip_text"))
        location = plan.sources[0].clip_tokenizers.get("clip_text")
        if plan.model.clip is None or plan.model.clip_text is None or location is None:
            raise ConfigError(f"--clip: {folder} is not both towers of CLIP with vocab.json and merges.txt")
        return Towers(Model(plan.model, assemble.materialise(plan.leaves)), clip_tokenizer.load(location))
    if model is None or model.config.clip is None or model.config.clip_text is None or not model.clip_tokenizer:
        return None
    return Towers(model.model, clip_tokenizer.load(model.clip_tokenizer))
