"""From sources to Batches: an index pass, a plan for each epoch, and batches by number, decoded ahead by threads.

Batch k of a run is a pure function of (sources, configuration, k): any number of hosts sees the same global batch, and a
run resumes from a count of batches.
"""

import bisect
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from dreamjax import images
from dreamjax.batch import Batch, empty_batch, place, shape_of
from dreamjax.config import RunConfig, SourceConfig
from dreamjax.data.packing import Plan, fill, plan
from dreamjax.data.sources import SourceError, open_source
from dreamjax.document import Document
from dreamjax.rows import Limits, Row, Slots, build_row
from dreamjax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A batch with what the host wants to know of it."""

    batch: Batch
    documents: tuple[str, ...]  # their ids
    skipped: tuple[str, ...]  # records left out, each with its reason


class Concatenation:
    """Several sources as one; document i is a pure function of i."""

    def __init__(self, sources: Sequence):
        self.sources = sources
        self.ends = np.cumsum([len(source) for source in sources]).tolist()

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Document:
        which = bisect.bisect_right(self.ends, index)
        return self.sources[which][index - (self.ends[which - 1] if which else 0)]


class Loader:
    """Batches of the given sources by number."""

    def __init__(self, config: RunConfig, sources: Sequence[SourceConfig], tokenizer: Tokenizer):
        self.config, self.tokenizer = config, tokenizer
        self.slots = Slots.of(config.model)
        self.shape = shape_of(config)
        opened = [open_source(source, config.seed) for source in sources]
        self.skipped = tuple(str(reason) for source in opened for reason in source.skipped)
        self.source = Concatenation(opened)
        self.lengths, self.cut = self._index()
        if not self.lengths[:, 0].any():
            where = ", ".join(f"{source.format}:{source.path} ({source.split})" for source in sources)
            raise SourceError(f"{where}: no document fits rows of {self.shape.length} tokens with {self.shape.seen} seen and {self.shape.dreamed} dreamed pictures")

    def _row(self, document: Document) -> Row:
        limits = Limits(self.shape.length, self.shape.seen, self.shape.dreamed)
        return build_row(document, self.tokenizer, self.slots, self.config.data.template, limits)

    def _index(self) -> tuple[np.ndarray, int]:
        """[n, 3] int32 lengths (tokens, seen, dreamed), 0 tokens where nothing of a document fits, and how many were cut."""
        lengths, cut = np.zeros((len(self.source), 3), np.int32), 0
        for i in range(len(self.source)):
            row = self._row(self.source[i])
            cut += row.cut
            if row.learned[:-1].any() or row.dreamed:  # more than a lone </s>
                lengths[i] = len(row.tokens), len(row.seen), len(row.dreamed)
        return lengths, cut

    @functools.lru_cache(maxsize=2)
    def plan(self, epoch: int) -> Plan:
        """The packing of one epoch."""
        return plan(self.lengths, self.shape, self.config.seed, epoch)

    def fill(self) -> dict[str, float]:
        """Share of tokens and slots of the first epoch that are real."""
        return fill(self.plan(0), self.lengths, self.shape)

    def in_words(self) -> str:
        """What there is to read, for a person."""
        share = self.fill()
        tokens, _, dreamed = self.lengths.sum(axis=0, dtype=np.int64)
        return (
            f"data          {len(self.source):,d} documents, {tokens:,d} tokens, {dreamed:,d} dreamed pictures; {self.cut} cut, {len(self.skipped)} broken\n"
            f"packed        real: {share['tokens']:.1%} of tokens, {share['seen_slots']:.1%} of seen and {share['dreamed_slots']:.1%} of dreamed slots"
        )

    def epoch_batches(self) -> int:
        """Batches of the first epoch, the last one perhaps partly empty."""
        return -(-len(self.plan(0)) // self.config.groups)

    def load(self, number: int, hosts: int = 1, host: int = 0, endless: bool = True) -> Loaded:
        """This host's share of the groups of batch `number`; epochs follow each other without a gap, or groups past the first epoch are empty."""
        groups = self.config.groups // hosts
        batch = empty_batch(self.shape._replace(groups=groups))
        documents, skipped = [], []
        for g in range(groups):
            wanted = number * self.config.groups + host * groups + g
            if not endless and wanted >= len(self.plan(0)):
                break
            epoch, group = self._epoch_of(wanted)
            self._fill_group(batch, g, epoch, self.plan(epoch).group(group), documents, skipped)
        return Loaded(batch, tuple(documents), tuple(skipped))

    def _epoch_of(self, group: int) -> tuple[int, int]:
        epoch = 0
        while group >= (count := self._groups(epoch)):
            group, epoch = group - count, epoch + 1
        return epoch, group

    @functools.cache
    def _groups(self, epoch: int) -> int:
        """Groups of one epoch; kept when its plan no longer is, since every later group is counted from them."""
        return len(self.plan(epoch))

    def _fill_group(self, batch: Batch, g: int, epoch: int, members: list[tuple[int, int]], documents: list[str], skipped: list[str]):
        for r, index in members:
            document = self.source[index]
            row = self._row(document)
            try:
                seen, dreamed = self._pictures(document, row, epoch, index)
            except images.BadImage as error:
                skipped.append(f"{document.id or index}: {error}")
                continue
            place(batch, g, r, row, seen, dreamed, draw=index * 256)
            documents.append(document.id or str(index))

    def _pictures(self, document: Document, row: Row, epoch: int, index: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        model = self.config.model
        opened = {part: document.parts[part].pil() for part in {part for _, part in row.seen + row.dreamed}}
        mirror = np.random.default_rng([self.config.seed, epoch, index]).random(len(row.dreamed)) < (0.5 if self.config.data.flip else 0)
        seen = [images.for_encoder(opened[part], model.clip.image_size) for _, part in row.seen]
        dreamed = [images.for_decoder(opened[part], model.decoder_size, flip) for (_, part), flip in zip(row.dreamed, mirror)]
        return seen, dreamed

    def batches(self, start: int, stop: int, hosts: int = 1, host: int = 0, endless: bool = True) -> Iterator[Loaded]:
        """Batches start .. stop - 1 in order, made ahead of time by threads."""
        load = functools.partial(self.load, hosts=hosts, host=host, endless=endless)
        options = grain.ReadOptions(num_threads=self.config.data.threads, prefetch_buffer_size=2 * self.config.data.threads)
        return iter(grain.MapDataset.range(start, stop).map(load).to_iter_dataset(options))
