"""Weights of a diffusers module as the nested parameters of ours, by name.

What the parity tests of U-Net and VAE stand on.
"""

import re

import jax
import numpy as np
import torch
from flax import traverse_util


def randomize(module: torch.nn.Module, seed: int = 0, scale: float = 1.0) -> torch.nn.Module:
    """Every parameter drawn anew, so that no scale is 1 and no bias 0.

    A small `scale` makes the norms' epsilons matter.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(scale * noise / parameter[0].numel() ** 0.5)
            elif "norm" in name:
                parameter.copy_(0.2 * noise + name.endswith("weight"))
            else:
                parameter.copy_(0.2 * scale * noise)
    return module.eval()


def to_params(state_dict: dict, shapes: dict) -> dict:
    """Torch's `state_dict` as nested parameters.

    Raises where a tensor has no leaf in `shapes`, a leaf no tensor, or two shapes differ.
    """
    flat = {}
    for name, tensor in state_dict.items():
        *path, leaf = re.sub(r"\.(\d+)", r"_\1", name).split(".")
        array = tensor.detach().numpy()
        if leaf == "weight":
            leaf = "scale" if array.ndim == 1 else "kernel"
            axes = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[array.ndim]  # conv [out, in, h, w] -> [h, w, in, out]
            array = np.ascontiguousarray(array.transpose(axes))
        key = (*path, leaf)
        assert key not in flat, f"two tensors for {key}"
        flat[key] = array
    wanted = {key: leaf.shape for key, leaf in traverse_util.flatten_dict(shapes).items()}
    got = {key: array.shape for key, array in flat.items()}
    assert got == wanted, f"differing: {sorted(set(got.items()) ^ set(wanted.items()))[:6]}"
    return traverse_util.unflatten_dict(flat)


def relative_error(ours: jax.Array, theirs: torch.Tensor | np.ndarray) -> float:
    """Norm of the difference over the norm of `theirs`.

    A torch feature map [B, D, S, S] is turned to channels-last first.
    """
    if isinstance(theirs, torch.Tensor):
        theirs = theirs.detach().numpy()
        theirs = theirs.transpose(0, 2, 3, 1) if theirs.ndim == 4 else theirs
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape, f"{ours.shape} against {theirs.shape}"
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
