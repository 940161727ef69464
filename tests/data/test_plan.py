"""The plan of a run, block by block.

All of every epoch, each block from its own lengths alone, the same after any journey.
"""

import pickle
import tracemalloc
from unittest import mock

import numpy as np
import pytest

from dreamjax.data.pipeline import plan as plan_module
from dreamjax.data.pipeline.lengths import PAIR, Lengths
from dreamjax.data.pipeline.mixture import Mixture
from dreamjax.data.pipeline.plan import Plan
from dreamjax.data.pipeline.task_view import directions
from dreamjax.document.batch import Shape

SHAPE = Shape(1, 2, 40, 6, 6, 1, 1)


@pytest.fixture(autouse=True)
def small_blocks():
    with mock.patch.object(plan_module, "BLOCK", 32):
        yield


def entries(count, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(1, 20, count), rng.integers(0, 3, count), rng.integers(0, 3, count)], axis=1).astype(
        np.int32
    )


def made(seed=0, counts=(150, 40), sizes=None):
    lengths = [Lengths(entries(count, source)) for source, count in enumerate(counts)]
    return Plan(Mixture(counts, sizes or counts, seed), lengths, SHAPE)


def epoch_of(plan, start=0):
    groups, number = [], start
    while plan.has(number) if not start else len(groups) < start:
        groups.append(plan.group(number))
        number += 1
    return groups


def test_an_epoch_shows_every_document_once_where_its_lengths_fit():
    plan = made()
    groups = epoch_of(plan)
    members = [member for group in groups for member in group]
    assert sorted((m.source, m.document) for m in members) == [(0, i) for i in range(150)] + [(1, i) for i in range(40)]
    assert all(
        m.lengths == tuple(entries((150, 40)[m.source], m.source)[m.document].tolist())
        and (m.repeat, m.again) == (0, 0)
        for m in members
    )
    for group in groups:
        assert sum(m.lengths[1] for m in group) <= 6 and sum(m.lengths[2] for m in group) <= 6
        assert all(sum(m.lengths[0] for m in group if m.row == row) <= 40 for row in range(2))
    later = [plan.group(len(groups) + k) for k in range(len(groups))]
    assert {m.repeat for m in later[0]} == {1} and later != groups


def test_the_same_after_any_journey():
    straight, groups = made(), len(epoch_of(made()))
    wanted = [0, 3, groups - 1, groups, 2 * groups + 5]
    expected = [straight.group(number) for number in wanted]
    assert [made().group(number) for number in wanted] == expected
    assert [straight.group(number) for number in reversed(wanted)] == expected[::-1]
    moved = pickle.loads(pickle.dumps(straight))
    assert moved.ends == straight.ends and [moved.group(number) for number in wanted] == expected
    assert made(seed=1).group(0) != expected[0]


def test_a_block_reads_its_own_lengths_alone():
    """So that the plan of a hundred million documents needs the memory of one block."""

    class Watched(Lengths):
        def __getitem__(self, indices):
            read.append(len(indices))
            return super().__getitem__(indices)

    read = []
    plan = Plan(Mixture((1000,), (1000,), 0), [Watched(entries(1000))], SHAPE)
    plan.block(20)
    assert read == [32]
    plan.group(0)
    assert read == [32, 32]  # nor is more planned than what comes before


def test_pairs_take_the_side_that_is_drawn():
    pairs = np.array([(20, PAIR, 7)] * 30 + [(0, PAIR, 7)] * 10, np.int32)  # the last ten do not fit when comprehended
    plan = Plan(Mixture((40,), (40,), 5), [Lengths(pairs)], SHAPE)
    members = {m.document: m for group in epoch_of(plan) for m in group}
    drawn = directions(5, np.zeros(40, np.int64), np.arange(40))
    for document in range(40):
        if drawn[document] < 0.5:
            assert members[document].lengths == (7, 0, 1) and members[document].direction == drawn[document]
        elif document < 30:
            assert members[document].lengths == (20, 1, 0)
        else:
            assert document not in members


def test_fill_is_the_share_that_is_real():
    plan = made()
    groups = epoch_of(plan)
    tokens, inputs, targets = np.sum([m.lengths for group in groups for m in group], axis=0) / len(groups)
    assert list(plan.fill(blocks=99).values()) == pytest.approx([tokens / 80, inputs / 6, targets / 6])
    assert plan.fill(blocks=1)["tokens"] > 0.5
    nothing = Plan(Mixture((0,), (0,), 0), [Lengths(np.zeros((0, 3), np.int32))], SHAPE._replace(inputs=0))
    assert nothing.fill() == {"tokens": 0.0, "input_slots": 1.0, "target_slots": 0.0} and not nothing.has(0)


def test_documents_of_an_epoch_that_do_not_fit_leave_no_gap():
    lengths = entries(100)
    lengths[::2] = 0
    plan = Plan(Mixture((100,), (100,), 0), [Lengths(lengths)], SHAPE)
    assert sorted(m.document for group in epoch_of(plan) for m in group) == list(range(1, 100, 2))
    assert all(plan.group(number) for number in range(40))


def test_a_plan_holds_a_block_and_not_its_documents():
    """Ten million documents: beside their lengths, which may lie in a mapped file, next to nothing."""
    count = 10_000_000
    few = entries(1000)
    lengths = Lengths(np.broadcast_to(few[:1], (count, 3)))
    plan = Plan(Mixture((count,), (count,), 0), [lengths], SHAPE)
    tracemalloc.start()
    assert plan.group(0) and plan.group(5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
