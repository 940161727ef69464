"""Says what a drawn picture of the shapes data shows, exactly: the nearest of all pictures that the generator can make.

The generator's pictures form a finite set, so no trained judge is needed. A picture that lies far from all of them shows
nothing recognisable and counts as wrong.
"""

import dataclasses

import numpy as np
import PIL.Image

from dreamjax.data.sources.shapes import PAPER, all_pictures

# RMS over pixels and channels, in units of 0..255. Gaussian noise of sigma 20, which leaves a shape plain to see, puts a
# picture at 15 to 18.5; blank paper lies at 33, and 86 % of the even blends of two pictures lie beyond 22.
REJECTION_DISTANCE = 22.0


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What a picture shows (None three times: nothing recognisable), and its RMS distance from the nearest true picture."""

    colour: str | None
    shape: str | None
    place: str | None
    distance: float


def judge(pictures: np.ndarray) -> list[Judgement]:
    """Judges uint8 pictures [n, h, w, 3]; other sizes than the generator's 16 pixels are resized to it by area."""
    pictures = np.asarray(pictures)
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
        raise ValueError(f"pictures must be uint8 [n, h, w, 3], not {pictures.dtype} {list(pictures.shape)}")
    if not len(pictures):
        return []
    templates, labels = all_pictures()
    size = templates.shape[1:3]
    if pictures.shape[1:3] != size:
        pictures = np.stack([PIL.Image.fromarray(p).resize(size[::-1], PIL.Image.Resampling.BOX) for p in pictures])
    drawn, known = _flat(pictures), _flat(templates)
    # |drawn - known|^2 without |drawn|^2, which is the same for every template.
    nearest = (np.square(known).sum(1) - 2 * drawn @ known.T).argmin(1)
    judgements = []
    for picture, i in zip(drawn, nearest):
        distance = float(np.sqrt(np.square(picture - known[i]).mean()))
        what = labels[i] if distance <= REJECTION_DISTANCE else (None, None, None)
        judgements.append(Judgement(*what, distance))
    return judgements


def _flat(pictures: np.ndarray) -> np.ndarray:
    """float32 [n, h * w * 3], counted from the paper so that most entries are small."""
    return (pictures.astype(np.float32) - np.float32(PAPER)).reshape(len(pictures), -1)
