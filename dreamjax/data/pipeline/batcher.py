"""From planned groups to Batches: documents are read and tokenised, their images opened, and each put into its row."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dreamjax.config import RunConfig
from dreamjax.data.pipeline.image_slots import ImageSlots, PrecomputedImage, RawImage, open_images, without
from dreamjax.data.pipeline.plan import PackedExample
from dreamjax.data.pipeline.reader import Reader, TokenizedDocument
from dreamjax.document import Document, Image
from dreamjax.document.batch import Batch, Shape, empty_batch, place
from dreamjax.document.tokenize import Limits
from dreamjax.errors import BadImage, BadRecord, SourceError

DRAWS = 256  # random draws set aside for the target images of one document


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A batch with what the host wants to know of it."""

    batch: Batch
    documents: tuple[str, ...]  # their ids
    skipped: tuple[BadRecord, ...]  # records that were left out, or that lost an image


@dataclasses.dataclass(frozen=True)
class Batcher:
    """Fills batches from the readers of a run. It can be pickled."""

    config: RunConfig
    shape: Shape
    readers: tuple[Reader, ...]
    first: tuple[int, ...]  # number of each source's first document in all sources, and of all documents at the end

    def batch(self, groups: Sequence[Sequence[PackedExample]]) -> Loaded:
        """The batch of these groups, of which the last may be empty."""
        batch = empty_batch(self.shape._replace(groups=len(groups)))
        documents: list[str] = []
        skipped: list[BadRecord] = []
        for g, group in enumerate(groups):
            for packed in group:
                name = self._place(batch, g, packed, skipped)
                documents += [name] if name is not None else []
        return Loaded(batch, tuple(documents), tuple(skipped))

    def _place(self, batch: Batch, g: int, packed: PackedExample, skipped: list[BadRecord]) -> str | None:
        """Puts a document into its row; its name, or None where it had to be left out."""
        reader, number = self.readers[packed.source], self.first[packed.source] + packed.document
        try:
            tokenized = reader.read(packed.document, packed.direction)
        except BadRecord as error:
            skipped.append(error)
            return None
        name = tokenized.document.id or str(number)
        if tokenized.lengths != packed.lengths:
            raise SourceError(
                f"{name}: is another document than when lengths were measured; delete {reader.key}.* in "
                "the folder of lengths"
            )
        images = self._images(reader, packed, tokenized)
        opened, images, errors = _open(reader, tokenized, images, Limits(*packed.lengths))
        skipped += [BadRecord(name, error.reason, str(error)) for error in errors]
        if opened is None:
            return None
        inputs = [images[part].input() for _, part in opened.sequence.inputs]
        targets = [images[part].target() for _, part in opened.sequence.targets]
        draw = (number + packed.again * self.first[-1]) * DRAWS
        place(batch, (g, packed.row), opened.sequence, inputs, targets, draw)
        return name

    def _images(self, reader: Reader, packed: PackedExample, tokenized: TokenizedDocument) -> ImageSlots:
        """The images of a document, none of them opened yet; which targets are mirrored is drawn by (seed, repeat,
        document).
        """
        parts = {number: part for number, part in enumerate(tokenized.document.parts) if isinstance(part, Image)}
        targets = [part for _, part in tokenized.sequence.targets]
        rng = np.random.default_rng([self.config.seed, packed.repeat, self.first[packed.source] + packed.document])
        drawn = rng.random(len(targets)) < (0.5 if self.config.data.flip else 0)
        mirrored = {part for part, flip in zip(targets, drawn, strict=True) if flip}
        if reader.encoded is not None:
            encoded = reader.encoded.images(packed.document, len(parts))
            return {part: PrecomputedImage(e, part in mirrored) for part, e in zip(parts, encoded, strict=True)}
        model, draft = self.config.model, self.config.data.draft
        sizes = model.clip.image_size if model.clip else 0, model.decoder_size if model.unet else 0
        return {part: RawImage(image, *sizes, draft, part in mirrored) for part, image in parts.items()}


def _open(
    reader: Reader, tokenized: TokenizedDocument, images: ImageSlots, planned: Limits
) -> tuple[TokenizedDocument | None, ImageSlots, list[BadImage]]:
    """The document without the images that do not open, the images left, all opened, and the errors.

    A document that lost an image is tokenised again within what was planned for it; None in its place where it cannot
    do without.
    """
    errors: list[BadImage] = []
    while broken := open_images(tokenized.sequence, images):
        errors += broken.values()
        document = tokenized.document
        if not _can_lose(document, len(broken)):
            return None, images, errors
        for part in reversed(broken):
            document, images = document.without(part), without(images, part)
        tokenized = reader.tokenize(document, planned)
    return tokenized, images, errors


def _can_lose(document: Document, count: int) -> bool:
    """False of a pair without its image, and of an answer about an image that is not there."""
    images = sum(isinstance(part, Image) for part in document.parts)
    return count < images and not any(part.role for part in document.parts)
