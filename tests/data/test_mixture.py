"""The order of epochs: every document as often as it should be, whatever the sizes, at any position by itself."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamjax.config import SourceConfig
from dreamjax.data.pipeline import mixture as mixture_module
from dreamjax.data.pipeline.mixture import Mixture, make_mixture
from dreamjax.errors import ConfigError


def shown(mixture, epoch):
    """[(source, document, repeat, again)] of an epoch."""
    return list(zip(*(column.tolist() for column in mixture.showings(epoch, 0, len(mixture))), strict=True))


sources = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 30)), min_size=1, max_size=4)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(sources, st.integers(0, 5))
def test_each_source_is_shown_evenly_and_by_its_size(sources, seed):
    counts, sizes = zip(*sources, strict=True)
    mixture = Mixture(counts, sizes, seed)
    total = collections.Counter()
    for epoch in range(3):
        order = shown(mixture, epoch)
        assert collections.Counter(source for source, *_ in order) == {i: size for i, size in enumerate(sizes) if size}
        total.update((source, document, repeat) for source, document, repeat, _ in order)
        for source, count in enumerate(
            counts
        ):  # within a source, no document is shown again before all the others were
            times = collections.Counter(document for where, document, *_ in order if where == source)
            assert not times or max(times.values()) <= -(-sizes[source] // count) + 1
        assert all(again >= 0 for *_, again in order)
        assert len({(source, document, again) for source, document, _, again in order}) == len(order)
    assert set(total.values()) <= {1}  # (document, repeat) names a showing
    for source, (count, size) in enumerate(sources):
        whole = 3 * size // count
        assert all((source, document, repeat) in total for document in range(count) for repeat in range(whole))


@pytest.mark.parametrize("few", [mixture_module.FEW, 10])
def test_any_position_by_itself(few, monkeypatch):
    monkeypatch.setattr(mixture_module, "FEW", few)
    mixture = Mixture((50, 7, 20), (50, 30, 5), 3)
    whole = mixture.showings(2, 0, len(mixture))
    for start, stop in ((0, 1), (13, 40), (84, 85)):
        assert all(
            np.array_equal(part, column[start:stop])
            for part, column in zip(mixture.showings(2, start, stop), whole, strict=True)
        )


def test_orders_of_many_documents_are_permutations_too(monkeypatch):
    monkeypatch.setattr(mixture_module, "FEW", 1000)
    orders = [Mixture((5000, 3000), (4000, 3000), 0).showings(epoch, 0, 7000) for epoch in range(2)]
    for order in orders:
        assert len({*zip(order.source.tolist(), order.document.tolist(), order.again.tolist(), strict=True)}) == 7000
        assert abs(np.corrcoef(order.document[order.source == 0], range(4000))[0, 1]) < 0.05
    first = [set(order.document[(order.source == 0) & (order.repeat == 0)].tolist()) for order in orders]
    assert len(first[0]) == 4000 and first[0] | first[1] == set(range(5000)) and not first[0] & first[1]


def test_epochs_and_seeds_have_their_own_order():
    orders = {
        tuple(document for _, document, *_ in shown(Mixture((40,), (40,), seed), epoch))
        for seed in range(2)
        for epoch in range(3)
    }
    assert len(orders) == 6 and all(sorted(order) == list(range(40)) for order in orders)
    order = shown(Mixture((2000,), (2000,), 0), 0)
    documents = [document for _, document, *_ in order]
    assert abs(np.corrcoef(documents, range(2000))[0, 1]) < 0.06
    assert np.mean(np.diff(documents) == 1) < 0.01


def test_sizes_and_weights():
    def sizes(*sources):
        return make_mixture([SourceConfig("shapes", **source) for source in sources], (100, 300), 0).sizes

    assert sizes({}, {}) == (100, 300)
    assert sizes({"size": 10}, {}) == (10, 300) and sizes({}, {"size": 900}) == (100, 900)
    assert sizes({"weight": 1.0}, {"weight": 1.0}) == (200, 200) and sizes({"weight": 0.3}, {"weight": 0.1}) == (
        300,
        100,
    )
    for wrong in (({"weight": 1.0}, {}), ({"weight": 1.0}, {"weight": 1.0, "size": 5})):
        with pytest.raises(ConfigError, match="weights are for all sources or none, and not beside sizes"):
            sizes(*wrong)
