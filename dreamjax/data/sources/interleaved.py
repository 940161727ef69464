"""Interleaved web documents as their published JSON has them, placed as the official data builder places them.

MMC4 (arXiv:2304.06939): `text_list`, sentences; `image_info`, one entry for each picture: `image_name`, `matched_text_index`
(the sentence that it goes with), `matched_sim` (its CLIP similarity to that sentence). OBELICS (arXiv:2306.16527): `texts` and
`images`, two lists of one length, of which at each place one is null.
"""

import base64
import binascii
from collections.abc import Callable, Iterable, Sequence

from dreamjax import images
from dreamjax.data.sources.records import Unusable, require
from dreamjax.document import Image, Part, Text

MIN_SIMILARITY = 0.25  # of MMC4's pictures, as the paper has it

Find = Callable[[str, int], images.Source | None]  # a picture by its name and its number in the record; None where there is none


def place(texts: Sequence[str], pictures: Iterable[tuple[int, Image]]) -> tuple[Part, ...]:
    """Sentences and (index of a sentence, picture) as parts: each picture stands behind its sentence.

    Sentences between two pictures become one text, stripped and joined by single spaces. Pictures of one sentence keep
    their order.
    """
    parts, done = [], 0
    for index, picture in sorted(pictures, key=lambda pair: pair[0]):
        if index >= done:
            parts += _joined(texts[done : index + 1])
            done = index + 1
        parts.append(picture)
    return (*parts, *_joined(texts[done:]))


def _joined(texts: Sequence[str]) -> list[Text]:
    words = " ".join(filter(None, map(str.strip, texts)))
    return [Text(words)] if words else []


def mmc4_parts(record: dict, find: Find, min_similarity: float | None = None) -> tuple[Part, ...]:
    """Parts of a record of MMC4; pictures that are not similar enough, or that there is no file of, are left out. Raises Unusable."""
    least = MIN_SIMILARITY if min_similarity is None else min_similarity
    texts = require(record, "text_list", list, of=str)
    pictures = []
    for number, info in enumerate(require(record, "image_info", list, of=dict)):
        where = f"image_info[{number}]."
        index = require(info, "matched_text_index", int, where)
        if not 0 <= index < len(texts):
            raise Unusable("bad index", f"{where}matched_text_index is {index}, of {len(texts)} sentences")
        if least > 0 and require(info, "matched_sim", float, where) < least:
            continue
        source = _inline(info, where) or find(info.get("image_name") or "", number)
        if source is not None:
            pictures.append((index, Image(source)))
    return place(texts, pictures)


def _inline(info: dict, where: str) -> bytes | None:
    """A picture that lies in the JSON itself, as some converters of MMC4 put it there."""
    payload = info.get("image_base64")
    if not payload:
        return None
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise Unusable("bad base64", f"{where}image_base64: {error}") from None


def obelics_parts(record: dict, find: Find) -> tuple[Part, ...]:
    """Parts of a record of OBELICS, in order; pictures that there is no file of are left out. Raises Unusable."""
    texts, names = require(record, "texts", list), require(record, "images", list)
    if len(texts) != len(names):
        raise Unusable("bad index", f"{len(texts)} texts for {len(names)} images")
    parts, words = [], []
    for number, (text, name) in enumerate(zip(texts, names)):
        if text is not None and name is not None:
            raise Unusable("bad index", f"texts[{number}] and images[{number}] are both there")
        if text is not None:
            words.append(require({"texts": text}, "texts", str))
        elif name is not None and (source := find(name, number)) is not None:
            parts += [*_joined(words), Image(source)]
            words = []
    return (*parts, *_joined(words))
