"""Pictures on their way into a batch: decoded and resized here, or as frozen encoders made of them before."""

import dataclasses

import numpy as np
import PIL.Image

from dreamjax import images
from dreamjax.data.encoded import Picture
from dreamjax.document import Document, Image
from dreamjax.rows import Row


@dataclasses.dataclass
class Opened:
    """A picture as pixels; sides are those that the encoder and the decoder take."""

    image: Image
    encoder_size: int
    decoder_size: int
    draft: bool
    pixels: PIL.Image.Image | None = None

    def open(self, seen: bool, dreamed: bool):
        """Decodes it, once. Raises BadImage."""
        if self.pixels is None:
            side = max(self.encoder_size * seen, self.decoder_size * dreamed)
            self.pixels = self.image.pil(draft=2 * side if self.draft else 0)

    def seen(self) -> np.ndarray:
        """uint8 [h, w, 3]."""
        return images.for_encoder(self.pixels, self.encoder_size)

    def dreamed(self, flip: bool) -> np.ndarray:
        """uint8 [H, W, 3]."""
        return images.for_decoder(self.pixels, self.decoder_size, flip)


@dataclasses.dataclass
class Stored:
    """A picture as frozen encoders made of it."""

    image: Image
    encoded: Picture | None

    def open(self, seen: bool, dreamed: bool):
        """Nothing to do; raises BadImage where there was nothing to encode."""
        if self.encoded is None:
            raise images.BadImage(
                "a picture did not open when pictures were encoded", "image did not open when encoded"
            )

    def seen(self) -> np.ndarray:
        """[P, CLIP width]."""
        return self.encoded.features

    def dreamed(self, flip: bool) -> np.ndarray:
        """float32 [S, S, 2 channels]."""
        return self.encoded.moments[int(flip)]


def broken_parts(
    document: Document, row: Row, pictures: dict[int, Opened | Stored]
) -> list[tuple[int, images.BadImage]]:
    """Opens the pictures of a row that are not open yet.

    The numbers of the parts that do not open, in order, and why.
    """
    seen, dreamed = ({part for _, part in placed} for placed in (row.seen, row.dreamed))
    broken = []
    for part in sorted(seen | dreamed):
        try:
            pictures[id(document.parts[part])].open(part in seen, part in dreamed)
        except images.BadImage as error:
            broken.append((part, error))
    return broken
