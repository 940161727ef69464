"""Keeping the best of several pictures: CLIP's text and picture towers say how well each fits its text (the paper draws eight)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image

Scorer = Callable[[Sequence[PIL.Image.Image], Sequence[str]], np.ndarray]
"""Pictures and as many texts -> float32 [n]: how well picture i fits text i, more is better."""


class Ranked(NamedTuple):
    """The candidates of one prompt, best first, and their scores."""

    pictures: list[PIL.Image.Image]
    scores: np.ndarray


def rank(pictures: Sequence[PIL.Image.Image], texts: Sequence[str], score: Scorer) -> list[Ranked]:
    """Orders len(pictures) / len(texts) candidates of each text, given text by text."""
    each = len(pictures) // len(texts)
    scores = np.asarray(score(pictures, [text for text in texts for _ in range(each)]), np.float32).reshape(len(texts), each)
    order = np.argsort(-scores, axis=1, kind="stable")
    return [Ranked([pictures[each * i + k] for k in order[i]], scores[i, order[i]]) for i in range(len(texts))]


def marked(ranked: Sequence[Ranked], keep: int) -> list[PIL.Image.Image]:
    """The `keep` best pictures of each prompt; a picture's own score stands in `info["score"]`, all of its prompt's in `info["scores"]`."""
    best = []
    for candidates in ranked:
        for picture, score in list(zip(candidates.pictures, candidates.scores))[:keep]:
            picture.info |= {"score": float(score), "scores": candidates.scores.tolist()}
            best.append(picture)
    return best
