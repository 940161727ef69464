"""Examples in context: questions with their answers that come before the one asked, at random or by RICES.

RICES (Yang et al. 2022; Alayrac et al. 2022) takes those whose pictures are nearest in CLIP's features, the nearest one
last, right before the question. The features are of the model's own encoder: the class token of its last state, after
the post norm.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.api import DreamLLM
from dreamjax.document import Image, image_io
from dreamjax.errors import ConfigError, SourceError
from dreamjax.evaluation.questions import Question
from dreamjax.models import clip
from dreamjax.models.dreamllm import Model
from dreamjax.progress import bar

METHODS = ("random", "rices")


def at_random(pool: Sequence[Question], shots: int, seed: int = 0) -> Callable[[Question], list[Question]]:
    """`shots` examples for each question, drawn by the seed and the question alone.

    Never one of the question's own picture.
    """
    pool = usable(pool, shots)

    def choose(question: Question) -> list[Question]:
        rng = np.random.default_rng([seed, zlib.crc32("\0".join(question.key).encode())])
        order = rng.permutation(len(pool))
        return _others(question, (pool[i] for i in order), shots)

    return choose


def by_images(
    pool: Sequence[Question], shots: int, features: Mapping[str | bytes, np.ndarray]
) -> Callable[[Question], list[Question]]:
    """`shots` examples for each question by RICES, given a unit feature [d] for each picture's name.

    Equally near ones in the pool's order.
    """
    pool = usable(pool, shots)
    matrix = np.stack([features[example.images[0]] for example in pool])

    def choose(question: Question) -> list[Question]:
        order = np.argsort(-(matrix @ features[question.images[0]]), kind="stable")
        return _others(question, (pool[i] for i in order), shots)[::-1]

    return choose


def usable(pool: Sequence[Question], shots: int) -> list[Question]:
    """The examples that have an answer and one picture; raises SourceError where there are not more than `shots`."""
    pool = [example for example in pool if example.answer and len(example.images) == 1]
    if len(pool) <= shots:
        raise SourceError(
            f"--shots: {shots} examples of {len(pool)} questions that have an answer and a picture; "
            "--shots_from names other data"
        )
    return pool


def _others(question: Question, ordered, shots: int) -> list[Question]:
    found = []
    for example in ordered:
        if not set(example.images) & set(question.images):
            found.append(example)
            if len(found) == shots:
                break
    return found


def image_features(
    model: DreamLLM, images: Mapping[str | bytes, Image], batch_size: int = 32
) -> dict[str | bytes, np.ndarray]:
    """{name: unit feature [d] float32} of all pictures."""
    if model.config.clip is None:
        raise ConfigError("--examples: rices needs a model with a picture encoder")
    size, names, found = model.config.clip.image_size, list(images), {}
    with bar(len(names), "picture", "features") as progress:
        for start in range(0, len(names), batch_size):
            now = names[start : start + batch_size]
            pixels = np.zeros((batch_size, size, size, 3), np.uint8)
            for i, name in enumerate(now):
                pixels[i] = image_io.for_encoder(images[name].pil(), size)
            found |= dict(zip(now, np.asarray(unit_features(model.model, pixels)), strict=False))
            progress.update(len(now))
    return found


@jax.jit
def unit_features(model: Model, images: jax.Array) -> jax.Array:
    """uint8 pictures [B, h, w, 3] -> the encoder's class token after its last norm, of length 1, [B, d] float32."""
    pixels = clip.normalise(images, model.clip.config, model.dtype)
    features = model.apply("clip", pixels, method="pooled").astype(jnp.float32)
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)
