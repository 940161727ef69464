"""Distances of generated from real images in the features of a network: Fréchet (FID), KID, precision and recall.

All in float64 on arrays [n, d] of features. FID: Heusel et al. 2017; KID: Binkowski et al. 2018; precision and recall:
Kynkäänniemi et al. 2019. Published FID figures are of pytorch-fid's Inception network.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

NEIGHBOURS = 3  # of precision and recall


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Mean [d] and covariance [d, d] of features."""

    mean: np.ndarray
    covariance: np.ndarray


def statistics(features: np.ndarray) -> Statistics:
    """Mean and (unbiased) covariance of features [n, d], n at least 2; raises ValueError."""
    features = _checked(features)
    return Statistics(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric: the
    root of C_a C_b itself, which is not, gets small complex eigenvalues that would have to be mended.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {a.mean.size} and of {b.mean.size} numbers cannot be compared")
    difference = np.asarray(a.mean, np.float64) - np.asarray(b.mean, np.float64)
    values, vectors = np.linalg.eigh(np.asarray(a.covariance, np.float64))
    root = (vectors * np.sqrt(_without_noise(values))) @ vectors.T
    roots = np.sqrt(_without_noise(np.linalg.eigvalsh(root @ b.covariance @ root)))
    distance = difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * roots.sum()
    return max(float(distance), 0.0)


def _without_noise(values: np.ndarray) -> np.ndarray:
    """Eigenvalues with those that are 0 but for rounding as 0.

    Fewer images than dimensions leave many, and a root makes them large.
    """
    return np.where(values > len(values) * np.finfo(np.float64).eps * values.max(), values, 0.0)


def kernel_distance(
    real: np.ndarray, generated: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """KID: mean and standard deviation, over random subsets, of the unbiased squared MMD with the kernel
    (x y / d + 1)^3.
    """
    real, generated = _checked(real), _checked(generated)
    size = min(size, len(real), len(generated))
    rng = np.random.default_rng(seed)

    def subset(features: np.ndarray) -> np.ndarray:
        return features[rng.choice(len(features), size, replace=False)]

    distances = [_squared_mmd(subset(real), subset(generated)) for _ in range(subsets)]
    return float(np.mean(distances)), float(np.std(distances))


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def off_diagonal_mean(k: np.ndarray) -> float:
        return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

    return float(off_diagonal_mean(kernel(x, x)) + off_diagonal_mean(kernel(y, y)) - 2 * kernel(x, y).mean())


def precision_recall(
    real: np.ndarray, generated: np.ndarray, neighbours: int = NEIGHBOURS, block: int = 1024
) -> tuple[float, float]:
    """Shares of generated features among the real ones, and of real ones among the generated.

    A feature is among others if it lies within the distance of one of them to its own `neighbours`-th nearest.
    """
    real, generated = _checked(real), _checked(generated)
    return _share_among(generated, real, neighbours, block), _share_among(real, generated, neighbours, block)


def _share_among(features: np.ndarray, others: np.ndarray, neighbours: int, block: int) -> float:
    if len(others) <= neighbours:
        raise ValueError(f"{len(others)} features have no {neighbours}-th neighbour")
    radii = np.concatenate(
        [np.partition(part, neighbours, axis=1)[:, neighbours] for part in _distances(others, others, block)]
    )
    return float(np.concatenate([(part <= radii).any(1) for part in _distances(features, others, block)]).mean())


def _distances(a: np.ndarray, b: np.ndarray, block: int) -> Iterator[np.ndarray]:
    """Squared distances [at most `block`, len(b)], block by block of a."""
    squares = np.square(b).sum(1)
    for start in range(0, len(a), block):
        part = a[start : start + block]
        yield np.maximum(np.square(part).sum(1)[:, None] + squares - 2 * part @ b.T, 0)


def _checked(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features must be [n, d] with n at least 2, not {list(features.shape)}")
    return features
