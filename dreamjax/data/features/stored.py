"""Encoder outputs of a source's images, stored in ArrayRecord files: one record a document, in the source's order.

A record is the byte 1, one byte for each image of the document (0: it does not open), and for each that opens its CLIP
features and twice its moments, of the image and of its mirror image. encoded.json names the source and the encoders; it
is written last.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
from array_record.python import array_record_module

from dreamjax.data.sources.array_record import WRITER_OPTIONS
from dreamjax.data.storage import files
from dreamjax.data.storage.index import cache_folder
from dreamjax.document.batch import Encoded
from dreamjax.errors import SourceError

CARD = "encoded.json"
VERSION = 1
PER_FILE = 1000  # documents
AGAIN = f"delete the damaged file and {CARD}, then python -m dreamjax.precompute writes what is missing"


class EncodedImage(NamedTuple):
    """One image as the encoders see it; a part is None where the model lacks the encoder."""

    features: np.ndarray | None  # [P, CLIP width]
    moments: np.ndarray | None  # [2, S, S, 2 channels] float32: of the image and of its mirror image


def encode(images: Sequence[EncodedImage | None]) -> bytes:
    """The record of a document's images, None for one that does not open."""
    blobs = [part.tobytes() for image in images if image is not None for part in image if part is not None]
    return bytes([VERSION, *(image is not None for image in images)]) + b"".join(blobs)


def decode(record: bytes, count: int, layout: Encoded) -> list[EncodedImage | None]:
    """The inverse of `encode` for a document of `count` images. Raises ValueError."""
    at, images = 1 + count, []
    if record[0] != VERSION:
        raise ValueError(f"is of version {record[0]}, not {VERSION}")
    for sound in record[1:at]:
        parts = []
        for shape, dtype in (
            (layout.features, layout.dtype),
            ((2, *layout.moments) if layout.moments else (), "float32"),
        ):
            size = math.prod(shape) * np.dtype(dtype).itemsize if shape and sound else 0
            parts.append(np.frombuffer(record, dtype, math.prod(shape), at).reshape(shape) if size else None)
            at += size
        images.append(EncodedImage(*parts) if sound else None)
    if at != len(record):
        raise ValueError(f"{len(record)} bytes for {count} pictures")
    return images


@dataclasses.dataclass(frozen=True)
class EncodedImages:
    """An open folder. It can be pickled."""

    records: grain.sources.ArrayRecordDataSource
    layout: Encoded
    encoders: str  # checksum of their parameters
    folder: str

    def images(self, index: int, count: int) -> list[EncodedImage | None]:
        """The images of document `index`, which has `count`."""
        try:
            return decode(self.records[index], count, self.layout)
        except (
            RuntimeError,
            ValueError,
            IndexError,
        ) as error:  # what ArrayRecord raises for damaged bytes, and `decode`
            raise SourceError(f"{self.folder}: document {index} is damaged ({error}); {AGAIN}") from None


def card_of(fingerprint: str, layout: Encoded, encoders: str, documents: int) -> dict:
    """The card of a folder, fit for JSON: source, encoders, number of documents and layout."""
    return json.loads(
        json.dumps({"source": fingerprint, "encoders": encoders, "documents": documents, "layout": layout._asdict()})
    )


def open_encoded(folder: str, fingerprint: str, layout: Encoded, cache: str = "") -> EncodedImages:
    """The folder's images; SourceError where they are not of this source and of encoders of these sizes.

    Those in a bucket are copied into the cache folder first.
    """
    path = files.join(folder, CARD)
    if not files.exists(path):
        raise SourceError(f"{folder}: has no {CARD}; python -m dreamjax.precompute writes it")
    card = _read_card(path)
    expected = card_of(fingerprint, layout, card["encoders"], card["documents"])
    if differs := [key for key in expected if card[key] != expected[key]]:
        raise SourceError(
            f"{folder}: is of another {' and '.join(differs)} than this run's; write it anew with python "
            "-m dreamjax.precompute"
        )
    names = [_file(folder, number, card["documents"]) for number in range(-(-card["documents"] // PER_FILE))]
    cache = cache_folder(cache) if files.is_remote(path) else ""
    try:
        records = grain.sources.ArrayRecordDataSource([files.fetched(name, cache) for name in names])
    except (RuntimeError, OSError) as error:
        broken = next((name for name in names if not files.exists(name)), folder)
        raise SourceError(f"{broken}: is damaged or missing ({error}); {AGAIN}") from None
    return EncodedImages(records, layout, card["encoders"], folder)


def _read_card(path: str) -> dict:
    try:
        card = json.loads(files.read_bytes(path))
        if not (
            isinstance(card["encoders"], str) and type(card["documents"]) is int and {"source", "layout"} <= set(card)
        ):
            raise ValueError("is no card of encoded pictures")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise SourceError(f"{path}: is damaged ({error}); {AGAIN}") from None
    return card


def write_encoded(folder: str, card: dict, documents: Callable[[range], Iterator[Sequence[EncodedImage | None]]]):
    """Writes the files that are not there yet, each whole or absent, and then the card.

    `documents` yields the images of a range of them.
    """
    files.make_folder(folder)
    finished, begun = files.join(folder, CARD), files.join(folder, f"{CARD}.begun")
    if any(_read_card(path) != card for path in (finished, begun) if files.exists(path)):
        raise SourceError(
            f"{folder}: holds what was made of another source or by other encoders; delete it to write it anew"
        )
    if files.exists(finished):
        return
    with files.atomic_file(begun) as file:
        file.write(json.dumps(card).encode())
    for number in range(-(-card["documents"] // PER_FILE)):
        name = _file(folder, number, card["documents"])
        if files.exists(name):
            continue
        with files.atomic_path(name) as temporary:
            writer = array_record_module.ArrayRecordWriter(temporary, WRITER_OPTIONS)
            for images in documents(range(number * PER_FILE, min((number + 1) * PER_FILE, card["documents"]))):
                writer.write(encode(images))
            writer.close()
    with files.atomic_file(finished) as file:
        file.write(json.dumps(card).encode())
    files.remove(begun)


def _file(folder: str, number: int, documents: int) -> str:
    return files.join(folder, f"encoded-{number:05d}-of-{-(-documents // PER_FILE):05d}.array_record")
