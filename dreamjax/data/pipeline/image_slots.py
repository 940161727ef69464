"""Pictures on their way into a batch: decoded and resized here, or as frozen encoders made of them before."""

import dataclasses

import numpy as np
import PIL.Image

from dreamjax.data.features.stored import EncodedImage
from dreamjax.document import Document, Image, image_io
from dreamjax.document.tokenize import TokenSequence
from dreamjax.errors import BadImage


@dataclasses.dataclass
class RawImage:
    """A picture as pixels; sides are those that the encoder and the decoder take."""

    image: Image
    encoder_size: int
    decoder_size: int
    draft: bool
    pixels: PIL.Image.Image | None = None

    def open(self, inputs: bool, targets: bool):
        """Decodes it, once. Raises BadImage."""
        if self.pixels is None:
            side = max(self.encoder_size * inputs, self.decoder_size * targets)
            self.pixels = self.image.pil(draft=2 * side if self.draft else 0)

    def inputs(self) -> np.ndarray:
        """uint8 [h, w, 3]."""
        return image_io.for_encoder(self.pixels, self.encoder_size)

    def targets(self, flip: bool) -> np.ndarray:
        """uint8 [H, W, 3]."""
        return image_io.for_decoder(self.pixels, self.decoder_size, flip)


@dataclasses.dataclass
class PrecomputedImage:
    """A picture as frozen encoders made of it."""

    image: Image
    encoded: EncodedImage | None

    def open(self, inputs: bool, targets: bool):
        """Nothing to do; raises BadImage where there was nothing to encode."""
        if self.encoded is None:
            raise BadImage("a picture did not open when pictures were encoded", "image did not open when encoded")

    def inputs(self) -> np.ndarray:
        """[P, CLIP width]."""
        return self.encoded.features

    def targets(self, flip: bool) -> np.ndarray:
        """float32 [S, S, 2 channels]."""
        return self.encoded.moments[int(flip)]


def broken_parts(
    document: Document, row: TokenSequence, images: dict[int, RawImage | PrecomputedImage]
) -> list[tuple[int, BadImage]]:
    """Opens the pictures of a row that are not open yet.

    The numbers of the parts that do not open, in order, and why.
    """
    inputs, targets = ({part for _, part in placed} for placed in (row.inputs, row.targets))
    broken = []
    for part in sorted(inputs | targets):
        try:
            images[id(document.parts[part])].open(part in inputs, part in targets)
        except BadImage as error:
            broken.append((part, error))
    return broken
