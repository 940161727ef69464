"""How full packed rows are: at least 95 % of tokens and 80 % of slots on simulated corpora and on real stories."""

import os
import pathlib

import numpy as np
import pytest

from benchmarks import packing_fill
from dreamjax.document.tokenizer import Tokenizer

DATA = pathlib.Path(os.environ.get("DREAMJAX_DATA", pathlib.Path(__file__).parents[2] / "../shared/data"))


def assert_full(case):
    shape = packing_fill.suited(case)
    filled = packing_fill.measure(case, shape)
    assert filled.tokens >= 0.95, (case.name, filled)
    assert all(
        share >= 0.8 for share, slots in ((filled.inputs, shape.inputs), (filled.targets, shape.targets)) if slots
    ), (case.name, shape, filled)
    assert filled.tokens > 1.5 * filled.padded_tokens


@pytest.mark.parametrize("case", packing_fill.simulated(16_384), ids=lambda case: case.name)
def test_simulated_corpora(case):
    assert_full(case)


@pytest.mark.parametrize("case, shape", packing_fill.of_the_paper(16_384), ids=lambda one: getattr(one, "name", ""))
def test_the_experiments_have_slots_for_what_their_rows_hold(case, shape):
    assert packing_fill.measure(case, shape).tokens > 0.9
    fewer = shape._replace(inputs=shape.inputs // 2, targets=shape.targets // 2)
    assert packing_fill.measure(case, fewer).tokens < 0.6


def test_the_simulation_is_mmc4s():
    """Its published means, before anything is cut."""
    lengths = packing_fill.mmc4_lengths(4000, tokens=1.0)  # pictures alone
    assert lengths[:, 1].max() == (packing_fill.LENGTH - 2) // packing_fill.PICTURE
    text = packing_fill.mmc4_lengths(4000, images=1.0)
    assert abs(text[:, 0].mean() - 2 - packing_fill.PICTURE * text[:, 1].mean() - 2400 / 7.3) < 25


@pytest.mark.skipif(not (DATA / "storybook").exists(), reason=f"{DATA} has no storybook; set DREAMJAX_DATA")
def test_real_stories_with_their_pages():
    tokenizer = Tokenizer.from_model(DATA / "tokenizers" / "llama_tokenizer.model")
    for case in packing_fill.real(DATA / "storybook", tokenizer):
        if case.name != "stories, 7B":
            assert_full(case)
            continue
        tokens = case.lengths[0][:, 0]  # nearly each is longer than half a row, and so are rows of its own
        filled = packing_fill.measure(case, packing_fill.suited(case))
        groups = np.ceil((tokens > case.length / 2).sum() / case.rows)
        assert filled.tokens == pytest.approx(tokens.sum() / (groups * case.rows * case.length))
