"""The comparison of a page's own condition with another story's."""

import numpy as np
import pytest

from dreamjax.evaluation.benchmarks import storybook


def test_each_page_is_paired_with_another_storys():
    stories = [0, 0, 1, 1, 1, 2]
    other = storybook.another_story(stories)
    assert all(stories[a] != stories[b] for a, b in enumerate(other))
    assert other == storybook.another_story(stories)


def test_the_difference_is_paired_and_in_standard_errors():
    rng = np.random.default_rng(0)
    own = rng.uniform(0, 10, (40, storybook.TIMESTEPS))  # pages differ far more than conditions do
    gain = rng.normal(0.1, 0.05, (40, 1))
    found = storybook.compare(own, own + gain, np.repeat(np.arange(10), 4))
    assert found["difference"] == pytest.approx(gain.mean())
    assert found["standard_errors"] == pytest.approx(gain.mean() / (gain.std(ddof=1) / np.sqrt(40)))
    by_story = gain.reshape(10, 4).mean(1)
    assert found["standard_errors_by_story"] == pytest.approx(by_story.mean() / (by_story.std(ddof=1) / np.sqrt(10)))
    same = storybook.compare(own, own[::-1], np.repeat(np.arange(10), 4))
    assert abs(same["standard_errors"]) < 2  # unrelated losses show no difference
