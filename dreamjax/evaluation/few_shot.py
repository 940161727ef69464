"""Examples in context: questions with their answers before the one asked, at random or by RICES.

RICES (Yang et al. 2022; Alayrac et al. 2022) takes those whose images are nearest in CLIP's features, the nearest one
last, right before the question. The features are of the model's own encoder: the class token of its last state, after
the post norm.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.api import DreamLLM
from dreamjax.document import Image, image_io
from dreamjax.errors import ConfigError, SourceError
from dreamjax.evaluation.question import Question
from dreamjax.evaluation.run_files import batched
from dreamjax.models import clip
from dreamjax.models.dreamllm import Model
from dreamjax.progress import bar

METHODS = ("random", "rices")


def at_random(pool: Sequence[Question], shots: int, seed: int = 0) -> Callable[[Question], list[Question]]:
    """A function to `shots` examples for a question, sampled by the seed and the question alone.

    Never one of the question's own image.
    """
    pool = usable(pool, shots)

    def choose(question: Question) -> list[Question]:
        rng = np.random.default_rng([seed, zlib.crc32("\0".join(question.key).encode())])
        order = rng.permutation(len(pool))
        return _of_other_images(question, (pool[i] for i in order), shots)

    return choose


def by_images(
    pool: Sequence[Question], shots: int, features: Mapping[str | bytes, np.ndarray]
) -> Callable[[Question], list[Question]]:
    """A function to `shots` examples for a question by RICES, given a unit feature [d] for each image's name.

    Equally near ones come in the pool's order.
    """
    pool = usable(pool, shots)
    matrix = np.stack([features[example.images[0]] for example in pool])

    def choose(question: Question) -> list[Question]:
        order = np.argsort(-(matrix @ features[question.images[0]]), kind="stable")
        return _of_other_images(question, (pool[i] for i in order), shots)[::-1]

    return choose


def usable(pool: Sequence[Question], shots: int) -> list[Question]:
    """The examples that have an answer and one image; raises SourceError if there are not more than `shots`."""
    pool = [example for example in pool if example.answer and len(example.images) == 1]
    if len(pool) <= shots:
        raise SourceError(
            f"--shots: {shots} examples of {len(pool)} questions that have an answer and a picture; "
            "--shots_from names other data"
        )
    return pool


def _of_other_images(question: Question, ordered: Iterable[Question], shots: int) -> list[Question]:
    """The first `shots` examples about other images than the question's."""
    examples = []
    for example in ordered:
        if not set(example.images) & set(question.images):
            examples.append(example)
            if len(examples) == shots:
                break
    return examples


def image_features(
    model: DreamLLM, images: Mapping[str | bytes, Image], batch_size: int = 32
) -> dict[str | bytes, np.ndarray]:
    """{name: unit feature [d] float32} of all images."""
    config = model.config.clip
    if config is None:
        raise ConfigError("--examples: rices needs a model with a picture encoder")
    features: dict[str | bytes, np.ndarray] = {}
    with bar(len(images), "picture", "features") as progress:
        for names in batched(list(images), batch_size):
            pixels = np.zeros((batch_size, config.image_size, config.image_size, 3), np.uint8)
            for i, name in enumerate(names):
                pixels[i] = image_io.for_encoder(images[name].pil(), config.image_size)
            features |= dict(zip(names, np.asarray(unit_features(model.model, pixels)), strict=False))
            progress.update(len(names))
    return features


@jax.jit
def unit_features(model: Model, images: jax.Array) -> jax.Array:
    """uint8 images [B, h, w, 3] -> the encoder's class token after its last norm, of length 1, [B, d] float32."""
    pixels = clip.normalise(images, model.clip.config, model.dtype)
    features = model.apply("clip", pixels, method="pooled").astype(jnp.float32)
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)
