"""The documents of each group of a run: planned block by block when asked for, a pure function of (lengths, seed,
epoch).

An epoch's order is split into blocks, and each block is packed by itself; its plan needs the lengths of its own
documents alone. Groups are numbered through all blocks and epochs, so all that is kept of what came before is how many
there were.
"""

import bisect
import functools
import itertools
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dreamjax.data.pipeline.lengths import Lengths, shown
from dreamjax.data.pipeline.mixture import Mixture
from dreamjax.data.pipeline.packing import pack
from dreamjax.data.pipeline.task_view import directions
from dreamjax.document.batch import Shape

BLOCK = 8192  # documents packed together: enough that a block's last rows do not matter


class PackedExample(NamedTuple):
    """A document of a group: its place in the source, which showing this is, and its row."""

    source: int
    document: int  # its number in the source
    repeat: int  # full passes over the source before this one
    again: int  # of them within this epoch
    direction: float  # in [0, 1), sampled by (seed, repeat, document): the side of a pair
    row: int
    lengths: tuple[int, int, int]  # tokens, input and target images


class Plan:
    """The groups of all epochs, by number."""

    def __init__(self, mixture: Mixture, lengths: Sequence[Lengths], shape: Shape, ends: Sequence[int] = ()):
        self.mixture, self.lengths, self.shape = mixture, tuple(lengths), shape
        self.first = np.concatenate([[0], np.cumsum(mixture.counts)])  # the number of each source's first document
        self.blocks = -(-len(mixture) // BLOCK)  # of one epoch
        self.ends = list(ends)  # groups up to the end of each block that was ever asked for or passed
        self.lock = threading.Lock()

    def __reduce__(self):
        return Plan, (self.mixture, self.lengths, self.shape, tuple(self.ends))

    @functools.lru_cache(maxsize=8)
    def block(self, number: int) -> tuple[tuple[PackedExample, ...], ...]:
        """The groups of a block; blocks are numbered through all epochs."""
        epoch, place = divmod(number, self.blocks)
        showings = self.mixture.showings(epoch, place * BLOCK, min((place + 1) * BLOCK, len(self.mixture)))
        sampled = directions(self.mixture.seed, showings.repeat, self.first[showings.source] + showings.document)
        lengths = np.zeros((len(sampled), 3), np.int32)
        for source, entries in enumerate(self.lengths):
            of_source = showings.source == source
            lengths[of_source] = shown(entries[showings.document[of_source]], sampled[of_source])
        packed = pack(lengths, self.shape, np.random.default_rng([self.mixture.seed, epoch, place]))
        columns = (showings.source, showings.document, showings.repeat, showings.again, sampled)
        chosen = (column[packed.documents].tolist() for column in columns)
        rows, sizes = packed.rows.tolist(), map(tuple, lengths[packed.documents].tolist())
        examples = [PackedExample(*values) for values in zip(*chosen, rows, sizes, strict=True)]
        return tuple(tuple(examples[start:stop]) for start, stop in itertools.pairwise(packed.offsets))

    def group(self, number: int) -> tuple[PackedExample, ...]:
        """The documents of a group, in the order in which they stand in their rows."""
        while self.count_block(number):
            pass
        block = bisect.bisect_right(self.ends, number)
        return self.block(block)[number - (self.ends[block - 1] if block else 0)]

    def has(self, number: int) -> bool:
        """True if the first epoch has a group of this number."""
        while len(self.ends) < self.blocks and self.count_block(number):
            pass
        return self.blocks > 0 and number < self.ends[min(len(self.ends), self.blocks) - 1]

    def restore(self, ends: Sequence[int]):
        """Goes on from the `ends` of an earlier plan of the same documents, where they reach further."""
        with self.lock:
            if len(ends) > len(self.ends):
                self.ends = list(ends)

    @property
    def counted(self) -> int:
        """Groups of the blocks that were counted."""
        return self.ends[-1] if self.ends else 0

    def count_block(self, number: int) -> bool:
        """Counts the groups of one more block; False, and nothing done, where that of group `number` is counted."""
        block = len(self.ends)
        if number < self.counted:
            return False
        groups = len(self.block(block))
        with self.lock:
            if len(self.ends) == block:  # no other thread was faster
                self.ends.append(self.counted + groups)
        return True

    def fill(self, blocks: int = 16) -> dict[str, float]:
        """Share of tokens and of picture slots in packed rows that are real, over the first blocks.

        1 for slots that there are none of.
        """
        groups = [group for number in range(min(blocks, self.blocks)) for group in self.block(number)]
        used = np.array([example.lengths for group in groups for example in group], np.int64).reshape(-1, 3).sum(axis=0)
        capacity = np.array([self.shape.rows * self.shape.length, self.shape.inputs, self.shape.targets]) * max(
            len(groups), 1
        )
        return {
            name: float(u / c) if c else 1.0
            for name, u, c in zip(("tokens", "input_slots", "target_slots"), used, capacity, strict=True)
        }
