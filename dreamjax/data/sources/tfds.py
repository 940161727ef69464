"""Datasets of TensorFlow Datasets in ArrayRecord files, read at random and without tensorflow, and a builder that makes
them.

PATH is the folder of a built version, such as data/dreamjax_documents/1.0.0, with the name of a split behind it unless
that is `train`. Read are datasets of `build`, and pairs: a feature `image` and a text (`text`, `caption`, or the first
of `captions/text`).
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow_datasets as tfds

from dreamjax.config import SourceConfig
from dreamjax.data.source import Source
from dreamjax.data.sources.array_record import decode, encode, key_of
from dreamjax.data.sources.records import BOM, Unusable, bad_record, texts_of
from dreamjax.document import Document, Image, Text
from dreamjax.errors import BadImage, BadRecord, SourceError, gist

TEXT_KEYS = ("text", "caption", "captions/text")


@dataclasses.dataclass(frozen=True)
class Tfds:
    """The examples of one split."""

    path: str  # of the version's folder
    part: str  # the split's own name
    text_key: str = ""
    image_key: str = ""

    @property
    def skipped(self) -> tuple[BadRecord, ...]:
        """None: examples are looked at when they are asked for."""
        return ()

    def __post_init__(self):
        if not 0 < len(self._examples):
            raise SourceError(f"{self.path}: the split {self.part} is empty")

    @functools.cached_property
    def _examples(self) -> Sequence[dict]:
        try:
            builder = tfds.builder_from_directory(self.path)
            decoders = {
                key: tfds.decode.SkipDecoding()
                for key, feature in builder.info.features.items()
                if isinstance(feature, tfds.features.Image)
            }
            return builder.as_data_source(self.part, decoders=decoders)
        except Exception as error:  # whatever is wrong with the folder, its files or their format
            raise SourceError(f"{self.path}: cannot be read as a dataset of tfds: {gist(error)}") from None

    def __reduce__(self):
        return Tfds, (self.path, self.part, self.text_key, self.image_key)

    @property
    def fingerprint(self) -> str:
        """A hash of the dataset's description, which holds the sizes of its files, and the settings."""
        with open(os.path.join(self.path, "dataset_info.json"), "rb") as file:
            facts = json.dumps([self.part, self.text_key, self.image_key])
            return f"tfds-{hashlib.sha256(file.read() + facts.encode()).hexdigest()[:32]}"

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Document:
        name = self._name(index)
        try:
            with bad_record(name):
                document = _document(self._examples[index], self.text_key, self.image_key)
        except BadRecord:
            raise
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise BadRecord(name, "damaged record", str(error)) from None
        return dataclasses.replace(document, id=document.id or name)

    def key(self, index: int) -> str:
        """The key that a document was built with, or else the split and the number in it."""
        name = self._name(index)
        with contextlib.suppress(
            RuntimeError, ValueError, KeyError, TypeError, Unusable
        ):  # which reading the document says
            if key := key_of(self._examples[index].get("document", b"")):
                return key
        return os.path.basename(name)

    def _name(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"there are examples 0 to {len(self) - 1}, not {index}")
        return f"{self.path}/{self.part}:{index}"

    def texts(self) -> Iterable[str]:
        """All text."""
        return texts_of(self)


def _document(example: dict, text_key: str, image_key: str) -> Document:
    if "document" in example:
        return decode(example["document"])
    value = next(
        (feature for key in ((text_key,) if text_key else TEXT_KEYS) if (feature := _lookup(example, key)) is not None),
        None,
    )
    while isinstance(value, (list, tuple, np.ndarray)) and np.ndim(value):
        value = value[0] if len(value) else None
    if value is None:
        raise Unusable("missing key", f"{text_key or ' or '.join(TEXT_KEYS)}; there are {', '.join(example)}")
    text = (value.decode(errors="replace") if isinstance(value, bytes) else str(value)).replace(BOM, "").strip()
    image = _lookup(example, image_key or "image")
    if not text:
        raise Unusable("no text")
    if image is None:
        if image_key:
            raise Unusable("missing key", f"{image_key}; there are {', '.join(example)}")
        return Document((Text(text),))
    if not isinstance(image, bytes | np.ndarray):  # a name of a file is none: datasets hold their pictures
        raise Unusable("wrong type", f"{image_key or 'image'} is {type(image).__name__}, no picture")
    return Document((Image(image), Text(text)), kind="pair")


def _lookup(example, path: str):
    """The value under keys parted by slashes."""
    for key in path.split("/"):
        if not isinstance(example, dict) or key not in example:
            return None
        example = example[key]
    return example


def open_tfds(config: SourceConfig, seed: int = 0) -> Tfds:
    """The examples of a split, see above. Raises SourceError."""
    folder, part = os.path.split(config.path.rstrip("/"))
    if os.path.exists(os.path.join(config.path, "dataset_info.json")):
        return Tfds(config.path, "train", config.text_key, config.image_key)
    if os.path.exists(os.path.join(folder, "dataset_info.json")):
        return Tfds(folder, part, config.text_key, config.image_key)
    raise SourceError(
        f"{config.path}: holds no dataset_info.json; give the folder of a built version, and behind it the split"
    )


# ----------------------------------------------------------------------------------------------------------------------
# Building


class DreamjaxDocuments(tfds.core.GeneratorBasedBuilder):
    """Documents with their pictures' encoded files, one record each as in the format array_record."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, sources: dict[str, Source], **options):
        self.sources = sources
        super().__init__(file_format="array_record", **options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Interleaved documents.",
            features=tfds.features.FeaturesDict({"document": tfds.features.Tensor(shape=(), dtype=np.object_)}),
        )

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(source) for name, source in self.sources.items()}

    def _generate_examples(self, source: Source):
        for index in range(len(source)):
            try:
                yield index, {"document": encode(source[index], source.key(index))}
            except (BadRecord, BadImage):
                continue


def build(sources: dict[str, Source], data_dir: str) -> str:
    """Builds a dataset with a split for each source.

    Returns the folder of its version. Records that cannot be used are left out.
    """
    builder = DreamjaxDocuments(sources=sources, data_dir=data_dir)
    builder.download_and_prepare()
    return str(builder.data_path)
