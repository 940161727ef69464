"""Distances of distributions against closed forms."""

import numpy as np
import pytest

from dreamjax.evaluation.metrics import frechet
from dreamjax.evaluation.metrics.frechet import Statistics


def test_means_0_and_1_with_unit_covariance_in_2048_dimensions():
    identity = np.eye(2048)
    assert frechet.frechet_distance(Statistics(np.zeros(2048), identity), Statistics(np.ones(2048), identity)) == 2048.0


def test_diagonal_gaussians():
    rng = np.random.default_rng(0)
    means, variances = rng.normal(size=(2, 64)), rng.uniform(0, 9, (2, 64))
    variances[0, :20] = 0
    expected = np.square(means[0] - means[1]).sum() + np.square(np.sqrt(variances[0]) - np.sqrt(variances[1])).sum()
    a, b = (Statistics(mean, np.diag(variance)) for mean, variance in zip(means, variances, strict=True))
    assert frechet.frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    rotation = np.linalg.qr(rng.normal(size=(64, 64)))[0]
    turned = [Statistics(rotation @ s.mean, rotation @ s.covariance @ rotation.T) for s in (a, b)]
    assert frechet.frechet_distance(*turned) == pytest.approx(expected, rel=1e-9)


def test_fewer_images_than_dimensions():
    """Of n pictures tr (C_a C_b)^(1/2) is the nuclear norm of the n by n products of their centred features, by n -
    1.
    """
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 10, 200)) + rng.normal(size=200)
    first, second = (features - features.mean(0) for features in (a, b))
    root = np.linalg.svd(first @ second.T, compute_uv=False).sum() / 9
    expected = (
        np.square(a.mean(0) - b.mean(0)).sum() + (np.square(first).sum() + np.square(second).sum()) / 9 - 2 * root
    )
    assert frechet.frechet_distance(frechet.statistics(a), frechet.statistics(b)) == pytest.approx(expected, rel=1e-9)
    assert frechet.frechet_distance(frechet.statistics(a), frechet.statistics(a)) == pytest.approx(0, abs=1e-9)


def test_statistics_are_those_of_numpy_and_wrong_features_are_refused():
    features = np.random.default_rng(2).normal(size=(50, 3)).astype(np.float32)
    found = frechet.statistics(features)
    assert found.covariance.dtype == np.float64
    np.testing.assert_allclose(found.covariance, np.cov(features.T.astype(np.float64)), rtol=1e-12)
    for wrong in (features[:1], features[0]):
        with pytest.raises(ValueError, match="features must be"):
            frechet.statistics(wrong)
    with pytest.raises(ValueError, match="of 3 and of 2 numbers"):
        frechet.frechet_distance(found, frechet.statistics(features[:, :2]))


def test_kernel_distance():
    rng = np.random.default_rng(3)
    x, y, far = rng.normal(size=(40, 4)), rng.normal(size=(30, 4)), rng.normal(size=(30, 4)) + 1

    # One subset of all features, by the definition.
    def k(a, b):
        return (np.dot(a, b) / 4 + 1) ** 3

    n = 30
    chosen = np.random.default_rng(0)
    first, second = x[chosen.choice(40, n, replace=False)], far[chosen.choice(30, n, replace=False)]

    def within(s):
        return sum(k(s[i], s[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))

    expected = within(first) + within(second) - 2 * np.mean([[k(a, b) for b in second] for a in first])
    assert frechet.kernel_distance(x, far, subsets=1, size=n)[0] == pytest.approx(expected, rel=1e-9)
    same, spread = frechet.kernel_distance(x, y, subsets=50, size=20)
    assert abs(same) < 3 * spread and frechet.kernel_distance(x, far)[0] > 10 * abs(same)


def test_precision_and_recall():
    """Real features in two clusters; drawn ones in one of them only, and some nowhere."""
    rng = np.random.default_rng(4)
    left, right = rng.normal(size=(100, 2)), rng.normal(size=(100, 2)) + 50
    drawn = np.concatenate([rng.normal(size=(90, 2)) * 0.5, np.linspace([500, 500], [900, 900], 10)])
    precision, recall = frechet.precision_recall(np.concatenate([left, right]), drawn, block=64)
    assert 0.85 <= precision <= 0.9 and 0.2 < recall <= 0.5
    assert frechet.precision_recall(left, left) == (1.0, 1.0)
    with pytest.raises(ValueError, match="have no 3-th neighbour"):
        frechet.precision_recall(left[:3], left)
