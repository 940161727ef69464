"""Documents that share a row, and rows that share a group: a pure function of their lengths.

Packing is two-dimensional: a row holds L tokens, and the R rows of a group share N input and M target slots. Rows are
filled, longest document first; then rows with many images are put together with rows with few. Rows are filled in two
ways, of which none is always the better, and the fewer groups are kept: by best fit, which does well with short
documents, and each for the least slack (Gupta and Ho 1999), which does well with long ones.
"""

from typing import NamedTuple

import numpy as np

from dreamjax.document.batch import Shape

VERSION = 2  # another one whenever the same documents are packed otherwise
TRIES, CLOSE, LOOKED_AT = 128, 256, 8  # of the search for the least slack, see _fullest


class Packed(NamedTuple):
    """Groups of documents: group g holds documents[offsets[g] : offsets[g + 1]], each in its row of the group."""

    documents: np.ndarray  # [n] int32, positions in what was packed
    rows: np.ndarray  # [n] int32
    offsets: np.ndarray  # [groups + 1] int64


def pack(lengths: np.ndarray, shape: Shape, rng: np.random.Generator) -> Packed:
    """Packs documents of [n, 3] int32 lengths (tokens, input images, target images); one with 0 tokens is left out.
    Groups come in random order.

    Each document must fit a group by itself: the caller has truncated those that do not.
    """
    documents = np.flatnonzero(lengths[:, 0] > 0)
    documents = documents[np.argsort(-lengths[documents, 0], kind="stable")].astype(np.int32)
    filled = [fill(lengths[documents], shape) for fill in (_by_best_fit, _by_least_slack)]
    grouped = [_group_rows(images, shape) for _, images in filled]
    better = int(len(set(grouped[1][0])) < len(set(grouped[0][0])))
    (row_of, _), (group_of_row, place_of_row) = filled[better], grouped[better]
    # Longest documents come first, but must not all be trained on first.
    rank = rng.permutation(len(set(group_of_row)))
    groups = rank[np.array(group_of_row, np.int64)][row_of]
    by_group = np.argsort(groups, kind="stable")
    rows = np.array(place_of_row, np.int32)[row_of][by_group]
    return Packed(documents[by_group], rows, np.searchsorted(groups[by_group], np.arange(len(rank) + 1)))


class _Room(NamedTuple):
    """Tokens and slots that are left in a row."""

    tokens: int
    inputs: int
    targets: int

    def holds(self, document: "_Room") -> bool:
        return document.tokens <= self.tokens and document.inputs <= self.inputs and document.targets <= self.targets

    def minus(self, document: "_Room") -> "_Room":
        tokens, inputs, targets = document
        return _Room(self.tokens - tokens, self.inputs - inputs, self.targets - targets)


class _Stacks:
    """Numbers in stacks by a size from 0 to `most`; the bits of `sizes` say which stacks are not empty, so that the
    next size up or down is found by a shift and a look at one bit.
    """

    def __init__(self, most: int):
        self.stacks: list[list[int]] = [[] for _ in range(most + 1)]
        self.sizes = 0

    def push(self, size: int, number: int):
        self.stacks[size].append(number)
        self.sizes |= 1 << size

    def remove(self, size: int, number: int):
        stack = self.stacks[size]
        if stack[-1] == number:  # nearly always
            stack.pop()
        else:
            stack.remove(number)
        if not stack:
            self.sizes ^= 1 << size

    def largest(self, most: int) -> int:
        """The largest size up to `most` that something has; -1 where nothing does."""
        return (self.sizes & ((2 << most) - 1)).bit_length() - 1

    def smallest(self, least: int) -> int:
        """The smallest size from `least` on that something has; -1 where nothing does."""
        larger = self.sizes >> least
        return least + (larger & -larger).bit_length() - 1 if larger else -1


def _by_best_fit(lengths: np.ndarray, shape: Shape) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """([n] row of each document, (input, target) images of each row): each document goes to the fullest row that still
    takes it.

    Open rows lie in stacks by their free tokens; one without slots for what is still to come is closed.
    """
    documents = [_Room(*document) for document in lengths.tolist()]
    least = np.minimum.accumulate(lengths[::-1, 1:], axis=0)[::-1].tolist()  # images of this and later documents
    open_rows = _Stacks(shape.length)
    rooms: list[_Room] = []
    row_of = np.empty(len(documents), np.int64)
    for i, document in enumerate(documents):
        row = _fullest_row(open_rows, rooms, document)
        if row is None:
            row = len(rooms)
            rooms.append(_Room(shape.length, shape.inputs, shape.targets))
        else:
            open_rows.remove(rooms[row].tokens, row)
        rooms[row] = room = rooms[row].minus(document)
        row_of[i] = row
        if room.tokens and room.inputs >= least[i][0] and room.targets >= least[i][1]:
            open_rows.push(room.tokens, row)
    return row_of, [(shape.inputs - room.inputs, shape.targets - room.targets) for room in rooms]


def _fullest_row(open_rows: _Stacks, rooms: list[_Room], document: _Room) -> int | None:
    """The open row with the fewest free tokens that holds the document, of several the one opened or filled last."""
    free = document.tokens - 1
    while (free := open_rows.smallest(free + 1)) >= 0:
        for row in reversed(open_rows.stacks[free]):
            if rooms[row].holds(document):
                return row
    return None


def _by_least_slack(lengths: np.ndarray, shape: Shape) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """As `_by_best_fit`: row after row takes the longest document that is left, and with it those that fill the rest of
    the row best.
    """
    documents = [_Room(*document) for document in lengths.tolist()]
    waiting = _Stacks(shape.length)
    for i in reversed(range(len(documents))):
        waiting.push(documents[i].tokens, i)
    row_of = np.empty(len(documents), np.int64)
    images: list[tuple[int, int]] = []
    while waiting.sizes:
        longest = waiting.stacks[waiting.largest(shape.length)][-1]
        waiting.remove(documents[longest].tokens, longest)
        room = _Room(shape.length, shape.inputs, shape.targets).minus(documents[longest])
        others = _fullest(documents, waiting, room, shape.length // CLOSE)
        for i in others:
            waiting.remove(documents[i].tokens, i)
        row = [longest, *others]
        row_of[row] = len(images)
        images.append((sum(documents[i].inputs for i in row), sum(documents[i].targets for i in row)))
    return row_of, images


def _fullest(documents: list[_Room], waiting: _Stacks, room: _Room, close: int) -> list[int]:
    """The waiting documents that leave the least of a row's room.

    They are searched for depth first, longest first, in TRIES steps at most, until no more than `close` tokens are
    left; of documents of one length LOOKED_AT are looked at.
    """
    path: list[tuple[int, _Room]] = []  # documents in the row, each with the room before it
    best: list[int] = []
    slack = longest = room.tokens
    for _ in range(TRIES):
        if slack <= close:
            break
        longest = waiting.largest(min(longest, room.tokens))
        if longest <= 0:
            if not path:
                break
            last, room = path.pop()  # nothing more fits: something shorter in the place of the last
            longest = documents[last].tokens - 1
            continue
        taken = {i for i, _ in path}
        candidates = waiting.stacks[longest][: -LOOKED_AT - 1 : -1]
        fitting = next((i for i in candidates if i not in taken and room.holds(documents[i])), None)
        if fitting is None:
            longest -= 1
            continue
        path.append((fitting, room))
        room = room.minus(documents[fitting])
        if room.tokens < slack:
            slack, best = room.tokens, [i for i, _ in path]
    return best


def _group_rows(images: list[tuple[int, int]], shape: Shape) -> tuple[list[int], list[int]]:
    """(group of each row, its place there).

    Rows with the most images first, each to the group that it fills least.
    """
    if shape.rows == 1:
        return list(range(len(images))), [0] * len(images)
    slots = np.maximum([shape.inputs, shape.targets], 1)
    shares = np.array(images, np.float64).reshape(-1, 2) / slots
    # The fewest groups that there can be.
    count = max(-(-len(images) // shape.rows), *np.ceil(shares.sum(axis=0)).astype(int).tolist())
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
    numbers = {group: number for number, group in enumerate(np.flatnonzero(taken).tolist())}  # without empty groups
    return [numbers[group] for group in group_of], place
