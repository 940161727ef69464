"""Which documents share a row, and which rows a group: a pure function of their lengths.

Packing is two-dimensional: a row holds L tokens, and the R rows of a group share N seen and M dreamed slots. Rows are
filled by best fit, longest document first; then rows with many pictures are put together with rows with few.
"""

from typing import NamedTuple

import numpy as np

from dreamjax.batch import Shape


class Packed(NamedTuple):
    """Groups of documents: group g holds documents[offsets[g] : offsets[g + 1]], each in its row of the group."""

    documents: np.ndarray  # [n] int32, positions in what was packed
    rows: np.ndarray  # [n] int32
    offsets: np.ndarray  # [groups + 1] int64


def pack(lengths: np.ndarray, shape: Shape, rng: np.random.Generator) -> Packed:
    """Packs documents of [n, 3] int32 lengths (tokens, seen, dreamed); one with 0 tokens is left out. Groups come in random order.

    Each document must fit a group by itself: the caller has cut those that do not.
    """
    documents = np.flatnonzero(lengths[:, 0] > 0)
    documents = documents[np.argsort(-lengths[documents, 0], kind="stable")].astype(np.int32)
    row_of, pictures = _fill_rows(lengths[documents], shape)
    group_of, place = _deal(pictures, shape)
    rank = rng.permutation(len(set(group_of)))  # longest documents come first, but must not all be trained on first
    group_of, place = rank[np.array(group_of, np.int64)], np.array(place, np.int32)
    groups = group_of[row_of]
    by_group = np.argsort(groups, kind="stable")
    return Packed(documents[by_group], place[row_of][by_group], np.searchsorted(groups[by_group], np.arange(len(rank) + 1)))


def _fill_rows(lengths: np.ndarray, shape: Shape) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """([n] row of each document, (seen, dreamed) of each row): each document goes to the fullest row that still takes it.

    Rows wait in stacks by their free tokens; the bits of `waiting` say which stacks are not empty, so that the best one is
    found by a shift and a look at the lowest bit. A row without slots for what is still to come waits no more.
    """
    needed = np.minimum.accumulate(lengths[::-1, 1:], axis=0)[::-1].tolist()  # the fewest pictures of this and later documents
    stacks, waiting = [[] for _ in range(shape.length + 1)], 0
    slots: list[tuple[int, int]] = []  # left in each row
    row_of = np.empty(len(lengths), np.int64)
    for i, (tokens, seen, dreamed) in enumerate(lengths.tolist()):
        row, free, candidates = -1, shape.length, waiting >> tokens
        while candidates and row < 0:
            free = tokens + (candidates & -candidates).bit_length() - 1
            stack = stacks[free]
            for k in range(len(stack) - 1, -1, -1):
                if slots[stack[k]][0] >= seen and slots[stack[k]][1] >= dreamed:
                    row = stack.pop(k)
                    break
            if not stack:
                waiting ^= 1 << free
            candidates &= candidates - 1
        if row < 0:
            row, free = len(slots), shape.length
            slots.append((shape.seen, shape.dreamed))
        row_of[i] = row
        slots[row] = left = (slots[row][0] - seen, slots[row][1] - dreamed)
        free -= tokens
        if free and left[0] >= needed[i][0] and left[1] >= needed[i][1]:
            stacks[free].append(row)
            waiting |= 1 << free
    return row_of, [(shape.seen - seen, shape.dreamed - dreamed) for seen, dreamed in slots]


def _deal(pictures: list[tuple[int, int]], shape: Shape) -> tuple[list[int], list[int]]:
    """(group of each row, its place there): rows with the most pictures first, each to the group that it fills least."""
    if shape.rows == 1:
        return list(range(len(pictures))), [0] * len(pictures)
    slots = np.maximum([shape.seen, shape.dreamed], 1)
    shares = np.array(pictures, np.float64).reshape(-1, 2) / slots
    count = max(-(-len(pictures) // shape.rows), *np.ceil(shares.sum(axis=0)).astype(int).tolist())  # groups that there must be
    load = np.zeros((2, len(pictures) + count))  # shares of each group's slots that are taken
    taken = np.zeros(len(pictures) + count, np.int64)
    group_of, place = [0] * len(pictures), [0] * len(pictures)
    for row in np.argsort(-shares.max(axis=1, initial=0), kind="stable").tolist():
        after = np.maximum(load[0, :count] + shares[row, 0], load[1, :count] + shares[row, 1])
        after[taken[:count] == shape.rows] = np.inf
        group = int(after.argmin()) if count else 0
        if not count or after[group] > 1 + 1e-9:
            group, count = count, count + 1
        load[:, group] += shares[row]
        group_of[row], place[row] = group, int(taken[group])
        taken[group] += 1
    numbers = {group: number for number, group in enumerate(np.flatnonzero(taken).tolist())}  # without groups that no row went to
    return [numbers[group] for group in group_of], place
