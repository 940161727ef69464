"""From sources to Batches by number, decoded ahead of time by threads or processes.

Batch k of a run is a pure function of (sources, configuration, k): any number of hosts, threads and worker processes
sees the same global batches, and a run resumes from a count of batches.
"""

import dataclasses
import functools
import hashlib
import io
import sys
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from etils import epath

from dreamjax import progress
from dreamjax.config import RunConfig, SourceConfig
from dreamjax.data.features.stored import EncodedImages, open_encoded
from dreamjax.data.pipeline.image_slots import PrecomputedImage, RawImage, broken_parts
from dreamjax.data.pipeline.lengths import PAIR, Measured, SourceCounts, measure_all
from dreamjax.data.pipeline.mixture import make_mixture
from dreamjax.data.pipeline.packing import VERSION
from dreamjax.data.pipeline.plan import PackedExample, Plan
from dreamjax.data.pipeline.task_view import SIDES, view
from dreamjax.data.registry import open_source
from dreamjax.data.source import Source
from dreamjax.document import Document, Image
from dreamjax.document.batch import Batch, empty_batch, place, shape_of
from dreamjax.document.tokenize import Limits, Slots, TokenSequence, tokenize_document
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import BadRecord, SourceError, gist
from dreamjax.filesystem import atomic


def _digest(told: tuple) -> str:
    """24 hex digits of settings, with the names of version 0.1, so that what was measured and trained then counts."""
    names = repr(told).replace("inputs=", "seen=").replace("targets=", "dreamed=")
    return hashlib.sha256(names.encode()).hexdigest()[:24]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A batch with what the host wants to know of it."""

    batch: Batch
    documents: tuple[str, ...]  # their ids
    skipped: tuple[BadRecord, ...]  # records that were left out, or that lost a picture


@dataclasses.dataclass(frozen=True)
class Reader:
    """A source and how its documents become rows; a call measures one document (data/lengths.py)."""

    source: Source
    config: SourceConfig
    tokenizer: Tokenizer
    slots: Slots
    template: str
    limits: Limits
    encoded: EncodedImages | None = None

    @property
    def key(self) -> str:
        """Another one whenever a row may have another length."""
        told = (
            self.source.fingerprint,
            self.tokenizer,
            self.tokenizer.model,
            self.slots,
            self.template,
            self.limits,
            self.config.mode,
        )
        return _digest(told)

    def row(self, document: Document, limits: Limits | None = None) -> TokenSequence:
        """The row of a document as the mode shows it."""
        return tokenize_document(
            document, self.tokenizer, self.slots, self.template, limits or self.limits, labels=self.config.labels
        )

    def __call__(self, index: int) -> Measured:
        if self.config.eval_share and split_of(self.source.key(index), self.config.eval_share) != self.config.split:
            return Measured(apart=True)
        try:
            document = self.source[index]
        except BadRecord as error:
            return Measured(broken=error)
        if document.kind == "pair" and self.config.mode == "joint":
            rows = [self.row(view(document, side, 0.0)) for side in SIDES]
            (comprehended, *_), (created, *_) = (_entry(row, pair=True) for row in rows)
            return Measured(
                (comprehended, PAIR, created) if comprehended or created else (0, 0, 0),
                rows[0].truncated or rows[1].truncated,
            )
        row = self.row(view(document, self.config.mode, 0.0))
        return Measured(_entry(row, document.kind == "pair"), row.truncated, left_out=len(document.left_out))


def _entry(row: TokenSequence, pair: bool) -> tuple[int, int, int]:
    """What a row takes; 0 tokens where it teaches no more than a lone </s>, or is a pair without its picture."""
    learnable = row.loss_mask[:-1].any() or row.targets
    usable = learnable and (not pair or row.inputs or row.targets)
    return (len(row.tokens), len(row.inputs), len(row.targets)) if usable else (0, 0, 0)


def split_of(key: str, eval_share: float) -> str:
    """The split of all documents with this key."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return "eval" if int.from_bytes(digest, "big") < eval_share * 2**64 else "train"


class Loader:
    """Batches of the given sources by number. It can be pickled, for worker processes.

    The documents' lengths are kept in `folder`, where one is given, and read from there the next time; `host` is this
    host's number among those that share it.
    """

    def __init__(
        self,
        config: RunConfig,
        sources: Sequence[SourceConfig],
        tokenizer: Tokenizer,
        folder: epath.Path | None = None,
        host: int = 0,
    ):
        self.folder, self.host = folder, host
        self.config, self.shape = config, shape_of(config, encoded=any(source.encoded for source in sources))
        limits = Limits(self.shape.length, self.shape.inputs, self.shape.targets)
        self.readers = []
        for source in sources:
            opened = open_source(source, config.seed)
            encoded = (
                open_encoded(source.encoded, opened.fingerprint, self.shape.encoded, source.cache)
                if source.encoded
                else None
            )
            self.readers.append(
                Reader(opened, source, tokenizer, Slots.of(config.model), config.data.template, limits, encoded)
            )
        counts = [len(reader.source) for reader in self.readers]
        measured = [
            measure_all(reader, count, reader.key, folder, config.data.workers, host)
            for reader, count in zip(self.readers, counts, strict=True)
        ]
        self.found = sum((found for _, found in measured), SourceCounts())
        self.skipped = tuple(record for reader in self.readers for record in reader.source.skipped) + self.found.named
        if not self.found.tokens:
            where = ", ".join(f"{source.format}:{source.path} ({source.split})" for source in sources)
            raise SourceError(
                f"{where}: no document fits rows of {self.shape.length} tokens with {self.shape.inputs} "
                f"input images and {self.shape.targets} target images"
            )
        self.plan = Plan(make_mixture(sources, counts, config.seed), [lengths for lengths, _ in measured], self.shape)

    @property
    def documents(self) -> int:
        """How many there are in all sources, those of other splits aside."""
        return int(self.plan.first[-1]) - self.found.apart

    @property
    def fingerprint(self) -> str:
        """Another one whenever a batch may be another."""
        told = (
            [(reader.key, reader.config.labels) for reader in self.readers],
            self.plan.mixture,
            self.shape,
            self.config.data.flip,
            self.config.data.draft,
            VERSION,
        )
        return _digest(told)

    @property
    def encoders(self) -> set[str]:
        """Checksums of the encoders whose results stand in the batches; none where they run in the step."""
        return {reader.encoded.encoders for reader in self.readers if reader.encoded}

    @property
    def unnamed(self) -> int:
        """Broken records besides those of `skipped`, which would be too many."""
        return self.found.broken - len(self.found.named)

    def format_summary(self) -> str:
        """What there is to read, for a person."""
        share, broken = self.plan.fill(), len(self.skipped) + self.unnamed
        left_out = (
            f", {self.found.left_out:,d} images left out (missing, not downloaded, unlike their text)"
            if self.found.left_out
            else ""
        )
        return (
            f"data          {self.documents:,d} documents, {self.found.tokens:,d} tokens; "
            f"{self.found.truncated} cut, {broken} broken{left_out}\n"
            f"packed        real: {share['tokens']:.1%} of tokens, {share['input_slots']:.1%} of seen and "
            f"{share['target_slots']:.1%} of dreamed slots"
        )

    def has(self, number: int) -> bool:
        """Whether batch `number` has a group of the first epoch."""
        return self.plan.has(number * self.config.groups)

    def load(self, number: int, own: Sequence[int] | None = None, endless: bool = True) -> Loaded:
        """The groups `own` (this host's.

        None: all) of batch `number`; epochs follow each other without a gap, or groups past the first epoch are empty.
        """
        own = range(self.config.groups) if own is None else own
        batch = empty_batch(self.shape._replace(groups=len(own)))
        documents, skipped = [], []
        for g, group in enumerate(own):
            wanted = number * self.config.groups + group
            if not endless and not self.plan.has(wanted):
                break
            for member in self.plan.group(wanted):
                self._place(batch, g, member, documents, skipped)
        return Loaded(batch, tuple(documents), tuple(skipped))

    def _place(self, batch: Batch, g: int, member: PackedExample, documents: list[str], skipped: list[BadRecord]):
        """Puts a document into its row; one with a picture that does not open goes without it, or is left out."""
        reader = self.readers[member.source]
        index = int(self.plan.first[member.source]) + member.document
        try:
            document = view(reader.source[member.document], reader.config.mode, member.direction)
        except BadRecord as error:
            skipped.append(error)
            return
        name, row = document.id or str(index), reader.row(document)
        if (len(row.tokens), len(row.inputs), len(row.targets)) != member.lengths:
            raise SourceError(
                f"{name}: is another document than when lengths were measured; delete {reader.key}.* in "
                "the folder of lengths"
            )
        mirror = np.random.default_rng([self.config.seed, member.repeat, index]).random(len(row.targets)) < (
            0.5 if self.config.data.flip else 0
        )
        flips = {id(document.parts[part]): bool(flip) for (_, part), flip in zip(row.targets, mirror, strict=True)}
        images = self._images(reader, member.document, document)
        while broken := broken_parts(document, row, images):
            skipped += [BadRecord(name, error.reason, str(error)) for _, error in broken]
            count = sum(isinstance(part, Image) for part in document.parts)
            if count == len(broken) or any(part.role for part in document.parts):
                return  # a pair without its picture, an answer about a picture that is not there
            for part, _ in reversed(broken):
                document = document.without(part)
            row = reader.row(document, Limits(*member.lengths))  # no more than was planned

        def part_of(placed):
            return [document.parts[part] for _, part in placed]

        inputs = [images[id(part)].inputs() for part in part_of(row.inputs)]
        targets = [images[id(part)].targets(flips.get(id(part), False)) for part in part_of(row.targets)]
        place(batch, g, member.row, row, inputs, targets, draw=(index + member.again * int(self.plan.first[-1])) * 256)
        documents.append(name)

    def _images(self, reader: Reader, number: int, document: Document) -> dict[int, RawImage | PrecomputedImage]:
        """The pictures of a document by the identity of their parts, none of them opened yet."""
        parts = [part for part in document.parts if isinstance(part, Image)]
        if reader.encoded is not None:
            return {
                id(part): PrecomputedImage(part, one)
                for part, one in zip(parts, reader.encoded.images(number, len(parts)), strict=True)
            }
        clip, size = self.config.model.clip, self.config.model.decoder_size if self.config.model.unet else 0
        return {
            id(part): RawImage(part, clip.image_size if clip else 0, size, self.config.data.draft) for part in parts
        }

    def _count_groups(self, number: int):
        """Counts the groups up to `number`.

        A run that is resumed again and again counts on from where it was, by a file in the folder of lengths.
        """
        file = self.folder / f"{self.fingerprint}.groups.npz" if self.folder is not None else None
        if file is not None and file.exists():
            try:
                with np.load(io.BytesIO(file.read_bytes())) as stored:
                    self.plan.ends = stored["ends"].astype(np.int64).tolist()
            except Exception as error:  # numpy and zip have no error in common for what is damaged
                print(f"{file}: damaged ({gist(error)}), counted anew", file=sys.stderr, flush=True)
        known = len(self.plan.ends)
        with progress.bar(number, "group", "counting what was trained on", self.plan.counted, delay=3) as bar:
            while self.plan.count_block(number):
                bar.update(min(self.plan.counted, number) - bar.n)
        if file is not None and len(self.plan.ends) >= known + 16:  # fewer are counted in no time
            counted = io.BytesIO()
            np.savez(counted, ends=np.array(self.plan.ends, np.int64))  # a zip, which holds a checksum
            atomic.write_bytes(file, counted.getvalue())

    def batches(
        self, start: int, stop: int, own: Sequence[int] | None = None, endless: bool = True
    ) -> Iterator[Loaded]:
        """Batches start .. stop - 1 in order, made ahead of time by threads, of this process or of worker processes."""
        load = functools.partial(self.load, own=own, endless=endless)
        if endless and start < stop:
            self._count_groups(start * self.config.groups)  # here, not in every worker
        data = self.config.data
        options = grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=2 * data.threads)
        ahead = grain.MapDataset.range(start, stop).map(load).to_iter_dataset(options)
        if data.workers:
            ahead = ahead.mp_prefetch(grain.MultiprocessingOptions(num_workers=data.workers))
        made = iter(ahead)
        try:
            yield from made
        finally:
            made.close()
