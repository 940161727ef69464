"""The plan of an epoch against brute force: nothing lost, nothing over, a pure function of its arguments."""

import collections
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamjax.batch import Shape, shape_of
from dreamjax.data import packing
from dreamjax.data.packing import fill, plan
from dreamjax.data.sources.shapes import Shapes
from dreamjax.rows import Limits, Slots, build_row

shapes = st.builds(
    lambda rows, length, seen, dreamed: Shape(1, rows, length, seen, dreamed, 1, 1),
    st.integers(1, 3), st.integers(4, 40), st.integers(0, 4), st.integers(0, 4),
)


@st.composite
def shapes_and_lengths(draw):
    """A shape and documents that fit it one by one; some are left out."""
    shape = draw(shapes)
    tokens = st.just(0) | st.integers(1, shape.length)
    document = st.tuples(tokens, st.integers(0, shape.seen), st.integers(0, shape.dreamed))
    documents = draw(st.lists(document, max_size=40))
    return shape, np.array(documents, np.int32).reshape(-1, 3)


def shape_like(rows, length, seen=0, dreamed=0):
    return Shape(1, rows, length, seen, dreamed, 1, 1)


def lengths_of(*tokens):
    return np.array([(n, 0, 0) for n in tokens], np.int32)


def groups_of(made):
    return [made.group(g) for g in range(len(made))]


@settings(deadline=None, derandomize=True, max_examples=200)
@given(shapes_and_lengths(), st.integers(0, 3), st.integers(0, 3), st.sampled_from([3, 10, packing.BLOCK]))
def test_every_document_once_and_no_capacity_exceeded(case, seed, epoch, block):
    shape, lengths = case
    with mock.patch.object(packing, "BLOCK", block):
        made = plan(lengths, shape, seed, epoch)
    placed = [document for group in groups_of(made) for _, document in group]
    assert sorted(placed) == np.flatnonzero(lengths[:, 0]).tolist()
    used = np.zeros(3, int)
    for group in groups_of(made):
        assert group, "an empty group trains on nothing"
        rows, seen, dreamed = collections.Counter(), 0, 0
        for row, document in group:
            rows[row] += lengths[document, 0]
            seen, dreamed = seen + lengths[document, 1], dreamed + lengths[document, 2]
        assert all(0 <= row < shape.rows and tokens <= shape.length for row, tokens in rows.items())
        assert seen <= shape.seen and dreamed <= shape.dreamed
        used += [rows.total(), seen, dreamed]
    capacities = np.array([shape.rows * shape.length, shape.seen, shape.dreamed]) * max(len(made), 1)
    expected = [u / c if c else 1.0 for u, c in zip(used, capacities)]
    assert list(fill(made, lengths, shape).values()) == pytest.approx(expected)


def test_a_pure_function_of_lengths_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(1, 20, (300, 3)).astype(np.int32) % [20, 3, 3] + [1, 0, 0]
    shape = shape_like(2, 40, seen=6, dreamed=6)
    again = lambda seed, epoch: groups_of(plan(lengths.copy(), shape, seed, epoch))
    assert again(0, 0) == again(0, 0)
    assert len({str(again(seed, epoch)) for seed in range(2) for epoch in range(2)}) == 4
    company = lambda groups: {frozenset(document for _, document in group) for group in groups}
    with mock.patch.object(packing, "BLOCK", 50):  # documents meet others in each epoch, not only in another order
        assert len(company(again(0, 0)) & company(again(0, 1))) < 20


def test_the_fullest_row_that_still_fits():
    assert len(plan(lengths_of(6, 5, 5, 4), shape_like(1, 10), 0, 0)) == 2  # 6 + 4, 5 + 5
    assert len(plan(lengths_of(7, 5, 3, 3, 2), shape_like(1, 10), 0, 0)) == 2  # 7 + 3, 5 + 3 + 2
    (group,) = groups_of(plan(lengths_of(6, 5, 5, 4), shape_like(2, 10), 0, 0))
    assert sorted(row for row, _ in group) == [0, 0, 1, 1]


def test_slots_are_shared_by_the_rows_of_a_group():
    lengths = np.array([(5, 2, 0)] * 4, np.int32)
    assert len(plan(lengths, shape_like(4, 5, seen=8), 0, 0)) == 1
    assert len(plan(lengths, shape_like(4, 5, seen=4), 0, 0)) == 2
    assert len(plan(lengths, shape_like(4, 5, seen=7), 0, 0)) == 2  # three in one, one in the other
    assert len(plan(lengths, shape_like(1, 20, seen=2), 0, 0)) == 4


def test_groups_are_shuffled():
    """Packed longest first, but the long documents must not all come at the beginning."""
    lengths = lengths_of(*range(51, 100))
    order = [lengths[group[0][1], 0] for group in groups_of(plan(lengths, shape_like(1, 100), 0, 0))]
    assert sorted(order, reverse=True) != order and abs(np.corrcoef(order, range(len(order)))[0, 1]) < 0.5


def test_nothing_to_pack():
    made = plan(lengths_of(0, 0), shape_like(1, 10), 0, 0)
    assert len(made) == 0 and fill(made, lengths_of(0, 0), shape_like(1, 10)) == {"tokens": 0.0, "seen_slots": 1.0, "dreamed_slots": 1.0}


def test_most_tokens_of_the_default_run_are_real(quickstart, shapes_tokenizer):
    shape = shape_of(quickstart)
    build = lambda document: build_row(document, shapes_tokenizer, Slots.of(quickstart.model), limits=Limits(shape.length, shape.seen, shape.dreamed))
    rows = [build(document) for document in (Shapes(length=1500)[i] for i in range(1500))]
    assert not any(row.cut for row in rows)
    lengths = np.array([(len(row.tokens), len(row.seen), len(row.dreamed)) for row in rows], np.int32)
    assert fill(plan(lengths, shape, 0, 0), lengths, shape)["tokens"] >= 0.7
