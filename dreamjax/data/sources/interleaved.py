"""Interleaved web documents as their published JSON has them, placed as the official data builder places them.

MMC4 (arXiv:2304.06939): `text_list`, sentences; `image_info`, one entry for each picture: `image_name`,
`matched_text_index` (the sentence that it goes with), `matched_sim` (its CLIP similarity to that sentence). OBELICS
(arXiv:2306.16527): `texts` and `images`, two lists of one length, of which at each place one is null.
"""

import base64
from collections.abc import Callable, Iterable, Sequence

from dreamjax.data.sources.records import Unusable, is_similar, optional, require, texts_at
from dreamjax.document import Document, Image, Part, Text, image_io
from dreamjax.errors import BadImage

MIN_SIMILARITY = 0.25  # of MMC4's pictures, as the paper has it

Find = Callable[
    [str, int], image_io.Source
]  # a picture by its name and its number in the record; raises BadImage where there is none


def place(texts: Sequence[str], images: Iterable[tuple[int, Image]]) -> tuple[Part, ...]:
    """Sentences and (index of a sentence, picture) as parts: each picture stands behind its sentence.

    Sentences between two pictures become one text, stripped and joined by single spaces. Pictures of one sentence keep
    their order.
    """
    parts: list[Part] = []
    done = 0
    for index, image in sorted(images, key=lambda pair: pair[0]):
        if index >= done:
            parts += _joined(texts[done : index + 1])
            done = index + 1
        parts.append(image)
    return (*parts, *_joined(texts[done:]))


def _joined(texts: Sequence[str]) -> list[Text]:
    words = " ".join(filter(None, map(str.strip, texts)))
    return [Text(words)] if words else []


def mmc4_document(record: dict, find: Find, min_similarity: float | None = None) -> Document:
    """The Document of a record of MMC4, without the pictures that are not similar enough or that there is no file of.

    Raises Unusable.
    """
    least = MIN_SIMILARITY if min_similarity is None else min_similarity
    texts = texts_at(record, "text_list")
    images, left_out = [], []
    for number, info in enumerate(require(record, "image_info", list, of=dict)):
        prefix = f"image_info[{number}]."
        index = require(info, "matched_text_index", int, prefix)
        if not 0 <= index < len(texts):
            raise Unusable("bad index", f"{prefix}matched_text_index is {index}, of {len(texts)} sentences")
        try:
            if least > 0 and not is_similar(info, "matched_sim", least, prefix):
                raise BadImage(f"{prefix}matched_sim is {info['matched_sim']}", "low similarity")
            images.append(
                (index, Image(_inline(info, prefix) or find(optional(info, "image_name", str, "", prefix), number)))
            )
        except BadImage as error:
            left_out.append(error)
    return Document(place(texts, images), left_out=tuple(left_out))


def _inline(info: dict, prefix: str) -> bytes | None:
    """A picture that lies in the JSON itself, as some converters of MMC4 put it there."""
    try:
        return base64.b64decode(optional(info, "image_base64", str, "", prefix), validate=True) or None
    except ValueError as error:
        raise Unusable("bad base64", f"{prefix}image_base64: {error}") from None


def obelics_document(record: dict, find: Find) -> Document:
    """The Document of a record of OBELICS, in order, without the pictures that there is no file of. Raises Unusable."""
    texts, names = texts_at(record, "texts", of=str | None), require(record, "images", list, of=str | None)
    if len(texts) != len(names):
        raise Unusable("bad index", f"{len(texts)} texts for {len(names)} images")
    parts: list[Part] = []
    words: list[str] = []
    left_out = []
    for number, (text, name) in enumerate(zip(texts, names, strict=True)):
        if text is not None and name is not None:
            raise Unusable("bad index", f"texts[{number}] and images[{number}] are both there")
        if text is not None:
            words.append(text)
        elif name is not None:
            try:
                image = Image(find(name, number))
            except BadImage as error:
                left_out.append(error)
                continue
            parts += [*_joined(words), image]
            words = []
    return Document((*parts, *_joined(words)), left_out=tuple(left_out))
