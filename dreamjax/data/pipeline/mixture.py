"""The order of an epoch's documents: several sources by size or weight, each position a pure function of the seed.

An epoch shows sizes[i] documents of source i. A source whose size is its number of documents is shown once an epoch;
others go on in the next epoch where they stopped in this one, in a new order each time round. Orders are seeded
permutations; of many documents they are computed position by position, so that they take no memory.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from grain.experimental import index_shuffle

from dreamjax.config import SourceConfig
from dreamjax.errors import ConfigError

# Things whose permutation is held as an array; grain's index_shuffle takes milliseconds a position for a handful.
FEW = 2**17
ROUNDS = 4  # of its Feistel network


class Showings(NamedTuple):
    """n documents in order: [n] arrays."""

    source: np.ndarray  # int64, which source
    document: np.ndarray  # int64, its number within the source
    repeat: np.ndarray  # int64, full passes over the source before this one
    again: np.ndarray  # int64, of them within this epoch


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The order of all epochs; `counts` and `sizes` have one entry per source."""

    counts: tuple[int, ...]  # documents that it has
    sizes: tuple[int, ...]  # documents that an epoch shows of it
    seed: int

    def __len__(self) -> int:
        """Showings of one epoch."""
        return sum(self.sizes)

    def showings(self, epoch: int, start: int, stop: int) -> Showings:
        """Positions start .. stop - 1 of an epoch."""
        order = _permuted(np.arange(start, stop), len(self), self.seed, epoch)
        ends = np.cumsum(self.sizes)
        source = np.searchsorted(ends, order, side="right")
        counts, sizes = (np.maximum(values, 1)[source] for values in (self.counts, self.sizes))
        repeat, document = np.divmod(epoch * sizes + order - (ends[source] - sizes), counts)
        for number, round_ in {*zip(source[counts != sizes].tolist(), repeat[counts != sizes].tolist(), strict=True)}:
            of_round = (source == number) & (repeat == round_)
            document[of_round] = _permuted(document[of_round], self.counts[number], self.seed, round_, number)
        return Showings(source, document, repeat, repeat - epoch * sizes // counts)


def _permuted(positions: np.ndarray, count: int, *key: int) -> np.ndarray:
    """The [n] places of positions after a permutation of `count` things, sampled by the key."""
    if count <= FEW:
        return _permutation(count, key)[positions].astype(np.int64)
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    return np.array([index_shuffle(position, count - 1, seed, ROUNDS) for position in positions.tolist()], np.int64)


@functools.lru_cache(maxsize=16)
def _permutation(count: int, key: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(key).permutation(count).astype(np.int32)


def make_mixture(sources: Sequence[SourceConfig], counts: Sequence[int], seed: int) -> Mixture:
    """The mixture that the configuration asks for; ConfigError names what does not fit together.

    With weights, an epoch shows as many documents as there are, shared out by weight.
    """
    weights = [source.weight for source in sources]
    if any(weights):
        if not all(weights) or any(source.size for source in sources):
            raise ConfigError("data.train: weights are for all sources or none, and not beside sizes")
        shares = np.array(weights) / sum(weights)
        return Mixture(
            tuple(counts),
            tuple(int(n) if c else 0 for n, c in zip(np.rint(shares * sum(counts)), counts, strict=True)),
            seed,
        )
    return Mixture(
        tuple(counts),
        tuple((source.size or count) if count else 0 for source, count in zip(sources, counts, strict=True)),
        seed,
    )
