"""Documents as training shows them: images as inputs, targets or both, and of a pair one direction at a time.

A pair is a Document of that kind: one image and its caption, in any order, whatever their marks. To comprehend it, the
image is the input and then the caption supervised; to create it, the caption is read and then the image is the target.
"""

import dataclasses

import numpy as np

from dreamjax.document import Document, Image, Text

SIDES = ("comprehension_only", "creation_only")  # of a pair; a direction of 0.5 or more shows the first


def view(document: Document, mode: str, direction: float) -> Document:
    """The document as the mode shows it; `direction` in [0, 1) decides the side of a pair in joint mode.

    Without a pair, joint leaves the marks as they are, comprehension_only has no target, and creation_only no input
    that is also a target. Conversations are best left joint, as the official code does.
    """
    if document.kind == "pair":
        return _side(document, mode if mode in SIDES else SIDES[direction < 0.5])
    if mode == "joint":
        return document
    parts = (_mark(part, mode) if isinstance(part, Image) else part for part in document.parts)
    return dataclasses.replace(document, parts=tuple(parts))


def _side(document: Document, side: str) -> Document:
    comprehend = side == "comprehension_only"
    images = tuple(
        dataclasses.replace(part, is_input=comprehend, is_target=not comprehend)
        for part in document.parts
        if isinstance(part, Image)
    )
    texts = tuple(dataclasses.replace(part, supervised=comprehend) for part in document.parts if isinstance(part, Text))
    return dataclasses.replace(document, parts=images + texts if comprehend else texts + images, kind="")


def _mark(image: Image, mode: str) -> Image:
    if mode == "comprehension_only":
        return dataclasses.replace(image, is_target=False)
    return dataclasses.replace(image, is_input=image.is_input and not image.is_target)


def directions(seed: int, showings: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each (showing, document).

    The same whatever else is asked for. Arrays [n] of integers -> [n] float64.
    """
    with np.errstate(over="ignore"):
        mixed = np.asarray(indices).astype(np.uint64)
        for key in (np.asarray(showings).astype(np.uint64), np.array(seed % 2**64, np.uint64)):
            mixed = _mix(mixed ^ _mix(key + np.uint64(0x9E3779B97F4A7C15)))
    return (mixed >> np.uint64(11)) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit of the result depends on every bit of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
