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
LEFT = ("fc.", "AuxLogits.")  # the classifier, and what torchvision's own network has beside
NORM = ("weight", "bias", "running_mean", "running_var")


def load(file: str | os.PathLike) -> dict:
    """The network's parameters, float32; ConfigError names what the file lacks, and what it has that fits nowhere."""
    file = pathlib.Path(file)
    if not file.is_file():
        raise ConfigError(f"{file}: no such file")
    tensors = open_file(file)
    read = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(LEFT) and not name.endswith("num_batches_tracked")
    }
    shapes = jax.eval_shape(lambda: Inception().init(jax.random.key(0), jnp.zeros((1, 75, 75, 3))))["params"]
    params = {}
    for path, shape in traverse_util.flatten_dict(shapes).items():
        if path[-1] == "kernel":
            params |= {
                path[:-1] + (leaf,): value
                for leaf, value in _convolution(".".join(path[:-1]), shape.shape, read, file).items()
            }
    if read:
        raise ConfigError(f"{file}: {len(read)} tensors fit nowhere in Inception-v3, the first is {next(iter(read))}")
    return traverse_util.unflatten_dict(params)


def _convolution(name: str, shape: tuple[int, ...], tensors: dict, file: pathlib.Path) -> dict[str, np.ndarray]:
    """Kernel [h, w, in, out] and bias [out] of one convolution; what is read is taken out of `tensors`."""
    height, width, given, made = shape
    wanted = {f"{name}.conv.weight": (made, given, height, width)} | {f"{name}.bn.{part}": (made,) for part in NORM}
    arrays = []
    for key, theirs in wanted.items():
        if key not in tensors:
            raise ConfigError(
                f"{file}: has no {key} {theirs}: is no file of Inception-v3's weights as pytorch-fid has them"
            )
        tensor = tensors.pop(key)
        if tensor.shape != theirs:
            raise ConfigError(f"{file}: {key} is {tensor.shape}, must be {theirs}")
        arrays.append(np.asarray(tensor.read((slice(None),) * len(theirs)), np.float64))
    kernel, scale, bias, mean, variance = arrays
    scale = scale / np.sqrt(variance + EPSILON)
    return {
        "kernel": (kernel.transpose(2, 3, 1, 0) * scale).astype(np.float32),
        "bias": (bias - mean * scale).astype(np.float32),
    }
