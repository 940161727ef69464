"""Keeping the best of several pictures.

CLIP's text and picture towers say how well each fits its text (the paper draws eight).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
import PIL.Image

from dreamjax.document import clip_tokenizer, image_io
from dreamjax.errors import ConfigError
from dreamjax.models.clip import normalise
from dreamjax.models.dreamllm import Model
from dreamjax.sampling.finite import NOTE, NotFinite

BATCH = 8  # pictures that are scored at once

Scorer = Callable[[Sequence[PIL.Image.Image], Sequence[str]], np.ndarray]
"""Pictures and as many texts -> float32 [n]: how well picture i fits text i, more is better."""


class Ranked(NamedTuple):
    """The candidates of one prompt, best first, and their scores."""

    images: list[PIL.Image.Image]
    scores: np.ndarray


def rank(images: Sequence[PIL.Image.Image], texts: Sequence[str], score: Scorer) -> list[Ranked]:
    """Orders len(pictures) / len(texts) candidates of each text, given text by text."""
    each = len(images) // len(texts)
    scores = np.asarray(score(images, [text for text in texts for _ in range(each)]), np.float32).reshape(
        len(texts), each
    )
    if not np.isfinite(scores).all():
        raise NotFinite(
            f"rank: {NOTE}the score of candidate {tuple(map(int, np.argwhere(~np.isfinite(scores))[0]))} "
            "(prompt, picture, from 0)"
        )
    order = np.argsort(-scores, axis=1, kind="stable")
    return [Ranked([images[each * i + k] for k in order[i]], scores[i, order[i]]) for i in range(len(texts))]


def marked(ranked: Sequence[Ranked], keep: int) -> list[PIL.Image.Image]:
    """The `keep` best pictures of each prompt.

    A picture's own score stands in `info["score"]`, all of its prompt's in `info["scores"]`.
    """
    best = []
    for candidates in ranked:
        for image, score in list(zip(candidates.images, candidates.scores, strict=True))[:keep]:
            image.info |= {"score": float(score), "scores": candidates.scores.tolist()}
            best.append(image)
    return best


def clip_scorer(model: Model, tokenizer) -> Scorer:
    """CLIP's own score, the cosine of picture and text times its learned scale.

    `tokenizer` is that of the text tower (clip_tokenizer.load).
    """
    if model.config.clip is None or model.config.clip_text is None or tokenizer is None:
        raise ConfigError(
            "rank: needs CLIP's picture encoder and its text tower with projections and tokenizer; this model lacks one"
        )

    def score(images: Sequence[PIL.Image.Image], texts: Sequence[str]) -> np.ndarray:
        pixels = np.stack([image_io.for_encoder(image, model.clip.config.image_size) for image in images])
        tokens = clip_tokenizer.encode(tokenizer, texts, model.clip_text.config.positions)
        scores = []
        for start in range(0, len(pixels), BATCH):
            batch = np.arange(start, start + BATCH).clip(max=len(pixels) - 1)  # the last batch is filled up
            scores.append(np.asarray(_fit(model, pixels[batch], tokens[batch]))[: len(pixels) - start])
        return np.concatenate(scores)

    return score


@jax.jit
def _fit(model: Model, pixels: jax.Array, tokens: jax.Array) -> jax.Array:
    """uint8 pictures [B, h, w, 3] and tokens [B, L] -> how well they fit, pair by pair, [B] float32."""
    pooled = model.apply("clip", normalise(pixels, model.clip.config, model.dtype), method="pooled")
    return model.apply("clip_text", tokens, pooled, method="scores").diagonal()
