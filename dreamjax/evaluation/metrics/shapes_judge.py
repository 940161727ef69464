"""Recognises the shape and colour in an image of the shapes data: the nearest of all candidates at all places.

The generator's renderer makes every candidate, so no trained judge is needed: each shape, colour and size, centred at
every half pixel at which it lies in the image (a model may put a shape where no true image has it). An image that is
far from all of them shows nothing recognisable and counts as wrong.
"""

import dataclasses
import functools
import itertools

import numpy as np
import PIL.Image

from dreamjax.data.sources.shapes import COLOURS, INKS, OFFSETS, PAPER, RADII, SHAPES, coverage

# RMS over pixels and channels, in units of 0..255. Gaussian noise of sigma 20, which leaves a shape plain to see, puts
# an image at 15 to 18.5; blank paper lies at 33, and 86 % of the even blends of two images lie beyond 22.
REJECTION_DISTANCE = 22.0
SIZE = 16  # pixels; the generator's own
REACH = 5.0  # pixels from the middle at which a shape may be centred: true ones lie up to 4 away


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Colour, shape and place in an image (None: nothing recognisable), and its RMS distance from the nearest true
    image.
    """

    colour: str | None
    shape: str | None
    place: str | None
    distance: float


def judge(images: np.ndarray) -> list[Judgement]:
    """Judges uint8 images [n, h, w, 3]; other sizes than the generator's 16 pixels are resized to it by area."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"pictures must be uint8 [n, h, w, 3], not {images.dtype} {list(images.shape)}")
    if not len(images):
        return []
    if images.shape[1:3] != (SIZE, SIZE):
        images = np.stack(
            [np.asarray(PIL.Image.fromarray(image).resize((SIZE, SIZE), PIL.Image.Resampling.BOX)) for image in images]
        )
    known, labels = _candidates()
    flat = _flat(images)
    # |flat - known|^2 without |flat|^2, which is the same for every candidate.
    nearest = (np.square(known).sum(1) - 2 * flat @ known.T).argmin(1)
    judgements = []
    for image, i in zip(flat, nearest, strict=True):
        distance = float(np.sqrt(np.square(image - known[i]).mean()))
        colour, shape, place = labels[i] if distance <= REJECTION_DISTANCE else (None, None, None)
        judgements.append(Judgement(colour, shape, place, distance))
    return judgements


@functools.cache
def _candidates() -> tuple[np.ndarray, tuple[tuple[str, str, str], ...]]:
    """float32 [n, SIZE * SIZE * 3], counted from the paper, and n labels (colour, shape, nearest place)."""
    reach = np.arange(-REACH, REACH + 0.5, 0.5)
    images, labels = [], []
    for shape, x, y, scale in itertools.product(SHAPES, reach, reach, range(len(RADII))):
        covered = coverage(shape, (8 + x, 8 + y), RADII[scale], SIZE) / np.float32(255)
        place = min(OFFSETS, key=lambda name: np.hypot(x - OFFSETS[name][0], y - OFFSETS[name][1]))
        for colour in COLOURS:
            images.append(
                np.rint(covered * (np.asarray(INKS[colour], np.float32) - np.asarray(PAPER, np.float32))).ravel()
            )
            labels.append((colour, shape, place))
    return np.stack(images), tuple(labels)


def _flat(images: np.ndarray) -> np.ndarray:
    """float32 [n, h * w * 3], counted from the paper so that most entries are small."""
    return (images.astype(np.float32) - np.asarray(PAPER, np.float32)).reshape(len(images), -1)
