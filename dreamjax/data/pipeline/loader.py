"""Batches of a run by number, made ahead of time by threads or processes.

Batch k is a pure function of (sources, configuration, k): any number of hosts, threads and worker processes sees the
same global batches, and a run resumes from a count of batches. A document's way: source -> view -> tokens (reader) ->
its place in a group (plan) -> arrays (batcher).
"""

import functools
from collections.abc import Iterator, Sequence

import grain
from etils import epath

from dreamjax.config import RunConfig, SourceConfig
from dreamjax.data.features.stored import open_encoded
from dreamjax.data.pipeline.batcher import Batcher, Loaded
from dreamjax.data.pipeline.group_counts import count_groups
from dreamjax.data.pipeline.lengths import SourceCounts, measure_all
from dreamjax.data.pipeline.mixture import make_mixture
from dreamjax.data.pipeline.packing import VERSION
from dreamjax.data.pipeline.plan import Plan
from dreamjax.data.pipeline.reader import Reader, digest
from dreamjax.data.registry import open_source
from dreamjax.document.batch import Shape, shape_of
from dreamjax.document.tokenize import Limits, Slots
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import SourceError


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
        self.config, self.folder = config, folder
        self.shape = shape_of(config, encoded=any(source.encoded for source in sources))
        self.readers = tuple(_open_reader(config, source, tokenizer, self.shape) for source in sources)
        counts = [len(reader.source) for reader in self.readers]
        measured = [
            measure_all(reader.measure, count, reader.key, folder, config.data.workers, host)
            for reader, count in zip(self.readers, counts, strict=True)
        ]
        self.counts = sum((counts for _, counts in measured), SourceCounts())
        self.skipped = tuple(record for reader in self.readers for record in reader.source.skipped) + self.counts.named
        if not self.counts.tokens:
            names = ", ".join(f"{source.format}:{source.path} ({source.split})" for source in sources)
            raise SourceError(
                f"{names}: no document fits rows of {self.shape.length} tokens with {self.shape.inputs} "
                f"input images and {self.shape.targets} target images"
            )
        self.plan = Plan(make_mixture(sources, counts, config.seed), [lengths for lengths, _ in measured], self.shape)
        self.batcher = Batcher(config, self.shape, self.readers, tuple(self.plan.first.tolist()))

    @property
    def documents(self) -> int:
        """Number of documents in all sources, without those of other splits."""
        return int(self.plan.first[-1]) - self.counts.other_split

    @property
    def fingerprint(self) -> str:
        """A digest that changes whenever a batch may be another."""
        readers = [(reader.key, reader.config.labels) for reader in self.readers]
        return digest((readers, self.plan.mixture, self.shape, self.config.data.flip, self.config.data.draft, VERSION))

    @property
    def encoders(self) -> set[str]:
        """Checksums of the encoders whose results stand in the batches; none where they run in the step."""
        return {reader.encoded.encoders for reader in self.readers if reader.encoded}

    @property
    def unnamed(self) -> int:
        """Broken records besides those of `skipped`, which would be too many."""
        return self.counts.broken - len(self.counts.named)

    def format_summary(self) -> str:
        """Documents, tokens and how full rows are, for a person."""
        share, broken = self.plan.fill(), len(self.skipped) + self.unnamed
        left_out = (
            f", {self.counts.left_out:,d} images left out (missing, not downloaded, unlike their text)"
            if self.counts.left_out
            else ""
        )
        return (
            f"data          {self.documents:,d} documents, {self.counts.tokens:,d} tokens; "
            f"{self.counts.truncated} truncated, {broken} broken{left_out}\n"
            f"packed        real: {share['tokens']:.1%} of tokens, {share['input_slots']:.1%} of input and "
            f"{share['target_slots']:.1%} of target slots"
        )

    def has(self, number: int) -> bool:
        """True if batch `number` has a group of the first epoch."""
        return self.plan.has(number * self.config.groups)

    def load(self, number: int, own: Sequence[int] | None = None) -> Loaded:
        """The groups `own` (this host's; None: all) of batch `number`; epochs follow each other without a gap."""
        return self.batcher.batch([self.plan.group(group) for group in self._groups(number, own)])

    def load_first_epoch(self, number: int, own: Sequence[int] | None = None) -> Loaded:
        """As `load`, with groups past the first epoch empty: of held-out documents each is seen once."""
        groups = self._groups(number, own)
        return self.batcher.batch([self.plan.group(group) if self.plan.has(group) else () for group in groups])

    def _groups(self, number: int, own: Sequence[int] | None) -> list[int]:
        """Numbers of the groups of a batch, through all batches."""
        return [number * self.config.groups + group for group in (range(self.config.groups) if own is None else own)]

    def batches(self, start: int, stop: int, own: Sequence[int] | None = None) -> Iterator[Loaded]:
        """Batches start .. stop - 1 in order, made ahead of time by threads, of this process or of worker processes."""
        if start < stop:  # here, not in every worker
            file = self.folder / f"{self.fingerprint}.groups.npz" if self.folder is not None else None
            count_groups(self.plan, start * self.config.groups, file)
        data = self.config.data
        options = grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=2 * data.threads)
        load = functools.partial(self.load, own=own)
        ahead = grain.MapDataset.range(start, stop).map(load).to_iter_dataset(options)
        if data.workers:
            ahead = ahead.mp_prefetch(grain.MultiprocessingOptions(num_workers=data.workers))
        loaded = iter(ahead)
        try:
            yield from loaded
        finally:
            loaded.close()


def _open_reader(config: RunConfig, source: SourceConfig, tokenizer: Tokenizer, shape: Shape) -> Reader:
    opened, encoded = open_source(source, config.seed), None
    if source.encoded and shape.encoded:
        encoded = open_encoded(source.encoded, opened.fingerprint, shape.encoded, source.cache)
    limits = Limits(shape.length, shape.inputs, shape.targets)
    return Reader(opened, source, tokenizer, Slots.of(config.model), config.data.template, limits, encoded)
