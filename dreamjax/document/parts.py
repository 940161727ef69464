"""The parts of a document: text and images, each with its marks."""

import base64
import dataclasses
import os
import reprlib

import numpy as np
import PIL.Image

from dreamjax.config.aliases import renamed
from dreamjax.document import image_io

ROLES = ("system", "user", "assistant")
_PNG_URI = "data:image/png;base64,"


@renamed({"learned": "supervised"})
@dataclasses.dataclass(frozen=True)
class Text:
    """A stretch of text; `supervised` says whether it is a target of the language loss."""

    text: str
    supervised: bool = True
    role: str | None = None  # one of ROLES, or None outside conversations

    def __post_init__(self):
        if not isinstance(self.text, str):
            raise TypeError(f"a text is a str, not {type(self.text).__name__}")
        _check_role(self.role)


@renamed({"seen": "is_input", "dreamed": "is_target"})
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Image:
    """A picture: a Pillow image, a uint8 [height, width, 3] array, the bytes of an encoded file, a path, or an
    image_io.EncodedFile.

    Nothing is opened before `pil` is called, and nothing is kept: a document of a thousand files is small.
    """

    source: image_io.Source
    is_input: bool = True  # the encoder shows it to what follows
    is_target: bool = True  # it is a target of the denoising loss
    role: str | None = None

    def __post_init__(self):
        if not is_image_source(self.source) and not isinstance(self.source, str):
            raise TypeError(f"a picture is a Pillow image, an array, bytes or a path, not {type(self.source).__name__}")
        _check_role(self.role)

    def __repr__(self) -> str:
        """One short line, without pixels or bytes."""
        marks = "".join(f", {name}=False" for name in ("is_input", "is_target") if not getattr(self, name))
        role = f", role={self.role!r}" if self.role else ""
        return f"Image({_source_summary(self.source)}{marks}{role})"

    def pil(self, draft: int = 0) -> PIL.Image.Image:
        """The picture as upright RGB on white (`image_io.open_rgb`, which explains `draft`); raises BadImage."""
        return image_io.open_rgb(self.source, draft)


Part = Text | Image


def _check_role(role: str | None):
    if role is not None and role not in ROLES:
        raise ValueError(f"role: {role!r} is none of {', '.join(ROLES)}")


def _source_summary(source: image_io.Source) -> str:
    if isinstance(source, bytes):
        return f"<{len(source):,d} bytes>"
    if isinstance(source, np.ndarray):
        return f"<{source.dtype} {list(source.shape)}>"
    if isinstance(source, PIL.Image.Image):
        return f"<{source.width} x {source.height} {source.mode}>"
    return repr(str(source))


def is_image_source(item) -> bool:
    return isinstance(item, (PIL.Image.Image, np.ndarray, bytes, os.PathLike, image_io.EncodedFile))


def describe(item) -> str:
    return f"{reprlib.repr(item)} ({type(item).__name__})"


def data_uri(image: PIL.Image.Image) -> str:
    return _PNG_URI + base64.b64encode(image_io.to_png(image)).decode("ascii")
