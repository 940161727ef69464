"""Which documents share a row, and which rows a group: a pure function of their lengths.

Packing is two-dimensional: a row holds L tokens, and the R rows of a group share N seen and M dreamed slots. Rows are
filled, longest document first; then rows with many pictures are put together with rows with few. Rows are filled in two
ways, of which none is always the better, and the fewer groups are kept: by best fit, which does well with short
documents, and each for the least slack (Gupta and Ho 1999), which does well with long ones.
"""

from typing import NamedTuple

import numpy as np

from dreamjax.document.batch import Shape

VERSION = 2  # another one whenever the same documents are packed otherwise
TRIES, CLOSE, LOOKED_AT = 128, 256, 8  # of the search for the least slack


class Packed(NamedTuple):
    """Groups of documents: group g holds documents[offsets[g] : offsets[g + 1]], each in its row of the group."""

    documents: np.ndarray  # [n] int32, positions in what was packed
    rows: np.ndarray  # [n] int32
    offsets: np.ndarray  # [groups + 1] int64


def pack(lengths: np.ndarray, shape: Shape, rng: np.random.Generator) -> Packed:
    """Packs documents of [n, 3] int32 lengths (tokens, seen, dreamed); one with 0 tokens is left out. Groups come in
    random order.

    Each document must fit a group by itself: the caller has cut those that do not.
    """
    documents = np.flatnonzero(lengths[:, 0] > 0)
    documents = documents[np.argsort(-lengths[documents, 0], kind="stable")].astype(np.int32)
    filled = [fill(lengths[documents], shape) for fill in (_by_best_fit, _by_least_slack)]
    dealt = [_deal(images, shape) for _, images in filled]
    better = int(len(set(dealt[1][0])) < len(set(dealt[0][0])))
    (row_of, _), (group_of, place) = filled[better], dealt[better]
    rank = rng.permutation(len(set(group_of)))  # longest documents come first, but must not all be trained on first
    group_of, place = rank[np.array(group_of, np.int64)], np.array(place, np.int32)
    groups = group_of[row_of]
    by_group = np.argsort(groups, kind="stable")
    return Packed(
        documents[by_group], place[row_of][by_group], np.searchsorted(groups[by_group], np.arange(len(rank) + 1))
    )


def _by_best_fit(lengths: np.ndarray, shape: Shape) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """([n] row of each document, (seen, dreamed) of each row): each document goes to the fullest row that still takes
    it.

    Rows wait in stacks by their free tokens; the bits of `waiting` say which stacks are not empty, so that the best one
    is found by a shift and a look at the lowest bit. A row without slots for what is still to come waits no more.
    """
    needed = np.minimum.accumulate(lengths[::-1, 1:], axis=0)[
        ::-1
    ].tolist()  # the fewest pictures of this and later documents
    stacks, waiting = [[] for _ in range(shape.length + 1)], 0
    slots: list[tuple[int, int]] = []  # left in each row
    row_of = np.empty(len(lengths), np.int64)
    for i, (tokens, inputs, targets) in enumerate(lengths.tolist()):
        row, free, candidates = -1, shape.length, waiting >> tokens
        while candidates and row < 0:
            free = tokens + (candidates & -candidates).bit_length() - 1
            stack = stacks[free]
            for k in range(len(stack) - 1, -1, -1):
                if slots[stack[k]][0] >= inputs and slots[stack[k]][1] >= targets:
                    row = stack.pop(k)
                    break
            if not stack:
                waiting ^= 1 << free
            candidates &= candidates - 1
        if row < 0:
            row, free = len(slots), shape.length
            slots.append((shape.inputs, shape.targets))
        row_of[i] = row
        slots[row] = left = (slots[row][0] - inputs, slots[row][1] - targets)
        free -= tokens
        if free and left[0] >= needed[i][0] and left[1] >= needed[i][1]:
            stacks[free].append(row)
            waiting |= 1 << free
    return row_of, [(shape.inputs - inputs, shape.targets - targets) for inputs, targets in slots]


def _by_least_slack(lengths: np.ndarray, shape: Shape) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """As `_by_best_fit`: row after row takes the longest document that is left, and with it those that fill the rest of
    the row best.

    They are searched for depth first, longest first, in TRIES steps at most, until all but one in CLOSE of the tokens
    is real. Documents of one length wait in a stack, of which the top few are looked at; the bits of `waiting` say
    which are not empty.
    """
    documents = lengths.tolist()
    stacks, waiting = [[] for _ in range(shape.length + 1)], 0
    for i in reversed(range(len(documents))):
        stacks[documents[i][0]].append(i)
        waiting |= 1 << documents[i][0]
    up_to = [(2 << tokens) - 1 for tokens in range(shape.length + 1)]
    row_of, images = np.empty(len(documents), np.int64), []

    def take(i: int):
        nonlocal waiting
        tokens = documents[i][0]
        stacks[tokens].remove(i)
        if not stacks[tokens]:
            waiting ^= 1 << tokens
        row_of[i] = len(images)

    while waiting:
        start = stacks[waiting.bit_length() - 1][-1]
        free, inputs, targets = (
            whole - taken
            for whole, taken in zip((shape.length, shape.inputs, shape.targets), documents[start], strict=True)
        )  # left in the row
        take(start)
        path, before, best, slack, tokens = [], [], [], free, free
        for _ in range(TRIES):
            if slack <= shape.length // CLOSE:
                break
            tokens = (waiting & up_to[min(tokens, free)]).bit_length() - 1  # the longest that still fits
            if tokens > 0:
                found = next(
                    (
                        i
                        for i in stacks[tokens][: -LOOKED_AT - 1 : -1]
                        if documents[i][1] <= inputs and documents[i][2] <= targets and i not in path
                    ),
                    None,
                )
                if found is None:
                    tokens -= 1
                    continue
                path.append(found)
                before.append((tokens, free, inputs, targets))
                free, inputs, targets = free - tokens, inputs - documents[found][1], targets - documents[found][2]
                if free < slack:
                    slack, best = free, list(path)
            elif path:  # nothing more fits: something shorter in the place of the last
                path.pop()
                tokens, free, inputs, targets = before.pop()
                tokens -= 1
            else:
                break
        for i in best:
            take(i)
        images.append(tuple(sum(documents[i][kind] for i in (start, *best)) for kind in (1, 2)))
    return row_of, images


def _deal(images: list[tuple[int, int]], shape: Shape) -> tuple[list[int], list[int]]:
    """(group of each row, its place there).

    Rows with the most pictures first, each to the group that it fills least.
    """
    if shape.rows == 1:
        return list(range(len(images))), [0] * len(images)
    slots = np.maximum([shape.inputs, shape.targets], 1)
    shares = np.array(images, np.float64).reshape(-1, 2) / slots
    count = max(
        -(-len(images) // shape.rows), *np.ceil(shares.sum(axis=0)).astype(int).tolist()
    )  # groups that there must be
    load = np.zeros((2, len(images) + count))  # shares of each group's slots that are taken
    taken = np.zeros(len(images) + count, np.int64)
    group_of, place = [0] * len(images), [0] * len(images)
    for row in np.argsort(-shares.max(axis=1, initial=0), kind="stable").tolist():
        after = np.maximum(load[0, :count] + shares[row, 0], load[1, :count] + shares[row, 1])
        after[taken[:count] == shape.rows] = np.inf
        group = int(after.argmin()) if count else 0
        if not count or after[group] > 1 + 1e-9:
            group, count = count, count + 1
        load[:, group] += shares[row]
        group_of[row], place[row] = group, int(taken[group])
        taken[group] += 1
    numbers = {
        group: number for number, group in enumerate(np.flatnonzero(taken).tolist())
    }  # without groups that no row went to
    return [numbers[group] for group in group_of], place
