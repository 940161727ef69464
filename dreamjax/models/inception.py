"""The Inception-v3 network whose last average pool is the feature of published FID figures.

It is the network of 2015 that pytorch-fid (`FIDInceptionV3`) computes: torchvision's Inception-v3 (Szegedy et al. 2016)
but for average pools that leave their padding out of the mean, and a maximum in the place of the last block's average
pool. Modules have torchvision's names. Batch normalisation has fixed statistics, so it is part of each convolution's
kernel and bias.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array

SIDE = 299  # pixels of the pictures that it was trained on
WIDTH = 2048  # features


class Conv(NamedTuple):
    """A convolution with its bias and a ReLU; padded so that stride 1 keeps the size, or not at all."""

    name: str
    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


def _reduce(name: str, features: int) -> Conv:
    return Conv(name, features, (3, 3), 2, "VALID")


def _mean(x: Array) -> Array:
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _max(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), (1, 1), "SAME")


def _halve(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


# A block is branches side by side. A branch is steps in a row: a Conv, a pool, or a tuple of Convs side by side again.


def _a(pooled: int) -> tuple:
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))),
        (_mean, Conv("branch_pool", pooled)),
    )


def _c(width: int) -> tuple:
    row, column = (1, 7), (7, 1)
    return (
        (Conv("branch1x1", 192),),
        (Conv("branch7x7_1", width), Conv("branch7x7_2", width, row), Conv("branch7x7_3", 192, column)),
        (
            Conv("branch7x7dbl_1", width), Conv("branch7x7dbl_2", width, column), Conv("branch7x7dbl_3", width, row),
            Conv("branch7x7dbl_4", width, column), Conv("branch7x7dbl_5", 192, row),
        ),
        (_mean, Conv("branch_pool", 192)),
    )  # fmt: skip


def _e(pool) -> tuple:
    row, column = (1, 3), (3, 1)
    return (
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384), (Conv("branch3x3_2a", 384, row), Conv("branch3x3_2b", 384, column))),
        (
            Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, (3, 3)),
            (Conv("branch3x3dbl_3a", 384, row), Conv("branch3x3dbl_3b", 384, column)),
        ),
        (pool, Conv("branch_pool", 192)),
    )  # fmt: skip


STEM = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    Conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    _halve,
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
    _halve,
)
BLOCKS = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": (
        (_reduce("branch3x3", 384),),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), _reduce("branch3x3dbl_3", 96)),
        (_halve,),
    ),
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": (
        (Conv("branch3x3_1", 192), _reduce("branch3x3_2", 320)),
        (
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            _reduce("branch7x7x3_4", 192),
        ),
        (_halve,),
    ),
    "Mixed_7b": _e(_mean),
    "Mixed_7c": _e(_max),
}


class Inception(nn.Module):
    """Float pictures [B, h, w, 3] in [-1, 1], of SIDE pixels or any others from 75 on -> features [B, WIDTH]."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = _run(STEM, x)
        for name, branches in BLOCKS.items():
            x = _Block(branches, name=name)(x)
        return x.mean((1, 2))


class _Block(nn.Module):
    branches: tuple

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return jnp.concatenate([_run(branch, x) for branch in self.branches], axis=-1)


def _run(steps: tuple, x: Array) -> Array:
    for step in steps:
        if isinstance(step, Conv):
            x = _convolve(step, x)
        else:
            x = jnp.concatenate([_convolve(conv, x) for conv in step], axis=-1) if isinstance(step, tuple) else step(x)
    return x


def _convolve(conv: Conv, x: Array) -> Array:
    return nn.relu(nn.Conv(conv.features, conv.kernel, conv.stride, conv.padding, name=conv.name)(x))


@jax.jit
def prepare(image: Array) -> Array:
    """A uint8 picture [h, w, 3] as pytorch-fid gives it to the network.

    Bilinear to SIDE without smoothing, in [-1, 1].
    """
    x = image.astype(jnp.float32) / 255
    return 2 * jax.image.resize(x, (SIDE, SIDE, 3), "bilinear", antialias=False) - 1


@jax.jit
def features(params: dict, images: Array) -> Array:
    """Prepared pictures [B, SIDE, SIDE, 3] -> [B, WIDTH] float32."""
    output = Inception().apply({"params": params}, images)
    assert isinstance(output, jax.Array)
    return output
