"""Images on their way into a batch: decoded and resized here, or as frozen encoders made of them before."""

import dataclasses

import numpy as np
import PIL.Image

from dreamjax.data.features.stored import EncodedImage
from dreamjax.document import Image, image_io
from dreamjax.document.tokenize import TokenSequence
from dreamjax.errors import BadImage


@dataclasses.dataclass
class RawImage:
    """An image to be decoded; sizes are the sides in pixels that the encoder and the decoder take."""

    image: Image
    encoder_size: int
    decoder_size: int
    draft: bool
    mirrored: bool = False  # as a target
    pixels: PIL.Image.Image | None = None

    def open(self, is_input: bool, is_target: bool):
        """Decodes it, once, at a size that suffices for its slots. Raises BadImage."""
        if self.pixels is None:
            side = max(self.encoder_size * is_input, self.decoder_size * is_target)
            self.pixels = self.image.pil(draft=2 * side if self.draft else 0)

    def input(self) -> np.ndarray:
        """uint8 [h, w, 3] of the opened image."""
        return image_io.for_encoder(self._opened, self.encoder_size)

    def target(self) -> np.ndarray:
        """uint8 [H, W, 3] of the opened image."""
        return image_io.for_decoder(self._opened, self.decoder_size, self.mirrored)

    @property
    def _opened(self) -> PIL.Image.Image:
        assert self.pixels is not None, "open() comes first"
        return self.pixels


@dataclasses.dataclass
class PrecomputedImage:
    """An image as frozen encoders made of it; None of one that did not open then."""

    encoded: EncodedImage | None
    mirrored: bool = False  # as a target

    def open(self, is_input: bool, is_target: bool):
        """Raises BadImage where there was nothing to encode."""
        if self.encoded is None:
            raise BadImage("a picture did not open when pictures were encoded", "image did not open when encoded")

    def input(self) -> np.ndarray:
        """[P, CLIP width]."""
        assert self.encoded is not None and self.encoded.features is not None
        return self.encoded.features

    def target(self) -> np.ndarray:
        """float32 [S, S, 2 channels]."""
        assert self.encoded is not None and self.encoded.moments is not None
        return self.encoded.moments[int(self.mirrored)]


ImageSlots = dict[int, RawImage | PrecomputedImage]  # by the number of the part


def open_images(sequence: TokenSequence, images: ImageSlots) -> dict[int, BadImage]:
    """Opens the images of a sequence that are not open yet; {number of the part: why it does not open}, in order."""
    inputs, targets = ({part for _, part in placed} for placed in (sequence.inputs, sequence.targets))
    broken = {}
    for part in sorted(inputs | targets):
        try:
            images[part].open(part in inputs, part in targets)
        except BadImage as error:
            broken[part] = error
    return broken


def without(images: ImageSlots, removed: int) -> ImageSlots:
    """The images after a part was removed from their document."""
    return {part - (part > removed): image for part, image in images.items() if part != removed}
