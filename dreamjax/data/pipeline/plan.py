"""Which documents each group of a run holds: planned block by block when asked for, a pure function of (lengths, seed,
epoch).

An epoch's order is cut into blocks, and each block is packed by itself; its plan needs the lengths of its own documents
alone. Groups are numbered through all blocks and epochs, so all that is kept of what came before is how many there
were.
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
    """A document of a group: where it lies, which showing this is, and where it goes."""

    source: int
    document: int  # its number in the source
    repeat: int  # how often the source has been shown whole before
    again: int  # how often within this epoch
    direction: float  # in [0, 1), drawn by (seed, repeat, document): the side of a pair
    row: int
    lengths: tuple[int, int, int]  # tokens, seen and dreamed pictures


class Plan:
    """The groups of all epochs, by number."""

    def __init__(self, mixture: Mixture, lengths: Sequence[Lengths], shape: Shape):
        self.mixture, self.lengths, self.shape = mixture, tuple(lengths), shape
        self.first = np.concatenate([[0], np.cumsum(mixture.counts)])  # the number of each source's first document
        self.blocks = -(-len(mixture) // BLOCK)  # of one epoch
        self.ends: list[int] = []  # groups up to the end of each block that was ever asked for or passed
        self.lock = threading.Lock()

    def __reduce__(self):
        return _replanned, (self.mixture, self.lengths, self.shape, self.ends)

    @functools.lru_cache(maxsize=8)
    def block(self, number: int) -> tuple[tuple[PackedExample, ...], ...]:
        """The groups of a block; blocks are numbered through all epochs."""
        epoch, place = divmod(number, self.blocks)
        showings = self.mixture.showings(epoch, place * BLOCK, min((place + 1) * BLOCK, len(self.mixture)))
        drawn = directions(self.mixture.seed, showings.repeat, self.first[showings.source] + showings.document)
        lengths = np.zeros((len(drawn), 3), np.int32)
        for source, entries in enumerate(self.lengths):
            mine = showings.source == source
            lengths[mine] = shown(entries[showings.document[mine]], drawn[mine])
        packed = pack(lengths, self.shape, np.random.default_rng([self.mixture.seed, epoch, place]))
        columns = (showings.source, showings.document, showings.repeat, showings.again, drawn)
        chosen = (column[packed.documents].tolist() for column in columns)
        members = [
            PackedExample(*one, row, tuple(size))
            for *one, row, size in zip(*chosen, packed.rows.tolist(), lengths[packed.documents].tolist(), strict=True)
        ]
        return tuple(tuple(members[start:stop]) for start, stop in itertools.pairwise(packed.offsets))

    def group(self, number: int) -> tuple[PackedExample, ...]:
        """The documents of a group, in the order in which they stand in their rows."""
        while self.count_block(number):
            pass
        block = bisect.bisect_right(self.ends, number)
        return self.block(block)[number - (self.ends[block - 1] if block else 0)]

    def has(self, number: int) -> bool:
        """Whether the first epoch has a group of this number."""
        while len(self.ends) < self.blocks and self.count_block(number):
            pass
        return self.blocks > 0 and number < self.ends[min(len(self.ends), self.blocks) - 1]

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
        used = np.array([member.lengths for group in groups for member in group], np.int64).reshape(-1, 3).sum(axis=0)
        capacity = np.array([self.shape.rows * self.shape.length, self.shape.inputs, self.shape.targets]) * max(
            len(groups), 1
        )
        return {
            name: float(u / c) if c else 1.0
            for name, u, c in zip(("tokens", "input_slots", "target_slots"), used, capacity, strict=True)
        }


def _replanned(mixture: Mixture, lengths: Sequence[Lengths], shape: Shape, ends: list[int]) -> Plan:
    plan = Plan(mixture, lengths, shape)
    plan.ends = list(ends)
    return plan
