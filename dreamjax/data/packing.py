"""Which documents share a row: a plan that is a pure function of (lengths, seed, epoch).

Packing is two-dimensional: a row holds L tokens, and the R rows of a group share N seen and M dreamed slots. Documents are
permuted, cut into blocks, and each block is packed by best fit, longest first; the groups of a block are then shuffled.
"""

import dataclasses

import numpy as np

from dreamjax.batch import Shape

BLOCK = 2048  # documents packed together: enough that a block's last rows do not matter


@dataclasses.dataclass(frozen=True)
class Plan:
    """Groups of one epoch: group g holds documents[offsets[g] : offsets[g + 1]], each in its row of the group."""

    documents: np.ndarray  # [n] int32
    rows: np.ndarray  # [n] int16
    offsets: np.ndarray  # [groups + 1] int64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def group(self, number: int) -> list[tuple[int, int]]:
        """(row, document) of each document of a group, in the order in which they stand in their rows."""
        span = slice(self.offsets[number], self.offsets[number + 1])
        return list(zip(self.rows[span].tolist(), self.documents[span].tolist()))


def plan(lengths: np.ndarray, shape: Shape, seed: int, epoch: int) -> Plan:
    """Packs documents of [n, 3] int32 lengths (tokens, seen, dreamed); one with 0 tokens is left out.

    Each document must fit a group by itself: the caller has cut those that do not.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(lengths)).astype(np.int32)
    order = order[lengths[order, 0] > 0]
    blocks = [
        _pack_block(order[start : start + BLOCK], lengths, shape, np.random.default_rng([seed, epoch, start]))
        for start in range(0, len(order), BLOCK)
    ]
    groups = [group for block in blocks for group in block]
    documents = np.array([document for group in groups for _, document in group], np.int32)
    rows = np.array([row for group in groups for row, _ in group], np.int16)
    offsets = np.concatenate([[0], np.cumsum([len(group) for group in groups])]).astype(np.int64)
    return Plan(documents, rows, offsets)


def _pack_block(documents: np.ndarray, lengths: np.ndarray, shape: Shape, rng: np.random.Generator) -> list[list[tuple[int, int]]]:
    """Best-fit decreasing: each document goes to the fullest row that still takes it in a group with enough slots."""
    free = np.zeros((len(documents), shape.rows), np.int32)  # tokens left per row of each open group
    slots = np.zeros((len(documents), 2), np.int32)  # seen and dreamed slots left
    groups: list[list[tuple[int, int]]] = []
    for document in documents[np.argsort(-lengths[documents, 0], kind="stable")]:
        tokens, *pictures = lengths[document]
        count = len(groups)
        left = free[:count] - tokens
        fits = (left >= 0) & np.all(slots[:count] >= pictures, axis=1, keepdims=True)
        if fits.any():
            group, row = np.unravel_index(np.argmin(np.where(fits, left, shape.length + 1)), left.shape)
        else:
            group, row = count, 0
            free[group], slots[group] = shape.length, (shape.seen, shape.dreamed)
            groups.append([])
        free[group, row] -= tokens
        slots[group] -= pictures
        groups[group].append((int(row), int(document)))
    return [groups[i] for i in rng.permutation(len(groups))]


def fill(plan: Plan, lengths: np.ndarray, shape: Shape) -> dict[str, float]:
    """Share of tokens and of picture slots in the packed rows that are real; 1 for slots that there are none of."""
    used = lengths[plan.documents].sum(axis=0, dtype=np.int64)
    capacity = np.array([shape.rows * shape.length, shape.seen, shape.dreamed]) * max(len(plan), 1)
    return {name: float(u / c) if c else 1.0 for name, u, c in zip(("tokens", "seen_slots", "dreamed_slots"), used, capacity)}
