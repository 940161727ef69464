"""pytorch-fid's file of weights (pt_inception-2015-12-05-6726825d.pth) as parameters of models/inception.py.

Each convolution there is NAME.conv.weight with a batch normalisation NAME.bn, which is folded into it: in evaluation it
only multiplies and adds, with the variance raised by 0.001.
"""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dreamjax.convert.tensors import open_file
from dreamjax.errors import ConfigError
from dreamjax.models.inception import Inception

EPSILON = 0.001
IGNORED = ("fc.", "AuxLogits.")  # the classifier, and torchvision's auxiliary one
NORM = ("weight", "bias", "running_mean", "running_var")


def load(file: str | os.PathLike) -> dict:
    """The network's parameters, float32; ConfigError names a tensor that is missing or unknown."""
    file = pathlib.Path(file)
    if not file.is_file():
        raise ConfigError(f"{file}: no such file")
    tensors = open_file(file)
    unused = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(IGNORED) and not name.endswith("num_batches_tracked")
    }
    shapes = jax.eval_shape(lambda: Inception().init(jax.random.key(0), jnp.zeros((1, 75, 75, 3))))["params"]
    params: dict[tuple[str, ...], np.ndarray] = {}
    for path, shape in traverse_util.flatten_dict(shapes).items():
        if path[-1] == "kernel":
            params |= {
                path[:-1] + (leaf,): value
                for leaf, value in _convolution(".".join(path[:-1]), shape.shape, unused, file).items()
            }
    if unused:
        raise ConfigError(
            f"{file}: {len(unused)} tensors fit nowhere in Inception-v3, the first is {next(iter(unused))}"
        )
    return traverse_util.unflatten_dict(params)


def _convolution(name: str, shape: tuple[int, ...], tensors: dict, file: pathlib.Path) -> dict[str, np.ndarray]:
    """Kernel [h, w, in, out] and bias [out] of one convolution; removes the tensors that it reads from `tensors`."""
    height, width, inputs, outputs = shape
    expected = {f"{name}.conv.weight": (outputs, inputs, height, width)} | {
        f"{name}.bn.{part}": (outputs,) for part in NORM
    }
    arrays = []
    for key, torch_shape in expected.items():
        if key not in tensors:
            raise ConfigError(
                f"{file}: has no {key} {torch_shape}: is no file of Inception-v3's weights as pytorch-fid has them"
            )
        tensor = tensors.pop(key)
        if tensor.shape != torch_shape:
            raise ConfigError(f"{file}: {key} is {tensor.shape}, must be {torch_shape}")
        arrays.append(np.asarray(tensor.read((slice(None),) * len(torch_shape)), np.float64))
    kernel, scale, bias, mean, variance = arrays
    scale = scale / np.sqrt(variance + EPSILON)
    return {
        "kernel": (kernel.transpose(2, 3, 1, 0) * scale).astype(np.float32),
        "bias": (bias - mean * scale).astype(np.float32),
    }
