"""Filters of documents and images: rules on images' sizes and on captions, applied once by `prepare`.

An image that fails leaves an interleaved document, whose text stays as it is; it takes with it a pair or a
conversation, which mean nothing without it.
"""

import dataclasses
import re

from dreamjax.config.aliases import renamed
from dreamjax.config.validation import require, require_positive
from dreamjax.data.sources.records import BOM, Unusable
from dreamjax.document import Document, Image, Part, Text, image_io
from dreamjax.errors import BadImage

# Why a record is left out that is not broken: the user's settings want others. A picture may be too small for these or
# for any use.
WANTED_OTHERWISE = frozenset({
    "low similarity", "image too small", "image too long", "too few pictures", "unwanted word",
    "caption too short", "caption too long", "address in the caption", "caption not ASCII",
})  # fmt: skip
_URL = re.compile(r"(?i)\b(?:https?://|www\.)|\b[a-z0-9-]+\.(?:com|net|org)\b")
_WORD = re.compile(r"\w+")


@renamed({"min_pictures": "min_images"})
@dataclasses.dataclass(frozen=True)
class Filters:
    """Limits for images and captions. 0 switches a limit off; captions are those of pairs."""

    min_side: int = 0  # pixels of a picture's shorter side
    max_aspect: float = 0.0  # longer side by shorter side
    decode: bool = True  # each picture must decode as a whole, not only have a readable header
    min_images: int = 0  # per document
    min_characters: int = 0  # of a caption
    max_characters: int = 0
    urls: bool = True  # whether a caption may hold an address
    non_ascii: bool = True  # whether a caption may hold other than ASCII characters
    words: tuple[str, ...] = ()  # lower case; none of them may be in the text of any document

    def __post_init__(self):
        require_positive(self, "min_side", "max_aspect", "min_images", "min_characters", "max_characters", or_zero=True)
        require(not 0 < self.max_aspect < 1, "max_aspect", f"is at least 1, or 0 for no limit, is {self.max_aspect}")


def read_words(text: str) -> tuple[str, ...]:
    """Words from a file: one a line, in lower case."""
    return tuple(sorted({line.strip().lower() for line in text.replace(BOM, "").splitlines() if line.strip()}))


def keep(document: Document, filters: Filters) -> tuple[Document, list[BadImage]]:
    """The document with its pictures read in, and why pictures were left out of it, here or by its source.

    Raises Unusable where the document is not to be kept, BadImage where that is for a picture.
    """
    _check_text(document, filters)
    parts: list[Part] = []
    left_out = list(document.left_out)
    needed = document.kind == "pair" or any(part.role for part in document.parts)
    for part in document.parts:
        if isinstance(part, Text):
            parts.append(part)
            continue
        try:
            parts.append(dataclasses.replace(part, source=_checked(part, filters)))
        except BadImage as error:
            if needed:
                raise
            left_out.append(error)
    images = sum(isinstance(part, Image) for part in parts)
    if images < filters.min_images:
        raise Unusable("too few pictures", f"{images} of {filters.min_images}")
    if not parts:
        raise Unusable("empty", "no picture of it can be used")
    return dataclasses.replace(document, parts=tuple(_joined(parts))), left_out


def _joined(parts: list[Part]) -> list[Part]:
    """Texts that a picture parted, and part no longer, as one."""
    joined: list[Part] = []
    for part in parts:
        if (
            joined
            and isinstance(part, Text)
            and isinstance(joined[-1], Text)
            and (part.role, part.supervised) == (joined[-1].role, joined[-1].supervised)
            and not part.role
        ):
            joined[-1] = dataclasses.replace(part, text=f"{joined[-1].text} {part.text}")
        else:
            joined.append(part)
    return joined


def _check_text(document: Document, filters: Filters):
    if filters.words:
        unwanted = set(_WORD.findall(document.text.lower())).intersection(filters.words)
        if unwanted:
            raise Unusable("unwanted word", sorted(unwanted)[0])
    if document.kind != "pair":
        return
    caption = document.text
    if len(caption) < filters.min_characters:
        raise Unusable("caption too short", f"{len(caption)} characters")
    if filters.max_characters and len(caption) > filters.max_characters:
        raise Unusable("caption too long", f"{len(caption)} characters")
    if not filters.urls and (address := _URL.search(caption)):
        raise Unusable("address in the caption", address[0])
    if not filters.non_ascii and not caption.isascii():
        raise Unusable("caption not ASCII")


def _checked(part: Image, filters: Filters) -> bytes:
    data = image_io.file_bytes(part.source)
    short, long = sorted(image_io.size_of(data))
    name = part.source if not isinstance(part.source, bytes) else "picture"
    if short < filters.min_side:
        raise BadImage(f"{name}: shorter side of {short} pixels, needs {filters.min_side}", "image too small")
    if filters.max_aspect and long > filters.max_aspect * short:
        raise BadImage(f"{name}: {long} by {short} pixels, more than {filters.max_aspect} to 1", "image too long")
    if filters.decode:
        image_io.open_rgb(
            data, draft=1
        )  # at an eighth of its size, where it is a JPEG: all its data are read nevertheless
    return data
