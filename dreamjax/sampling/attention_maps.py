"""Attention maps of dream queries: the U-Net's cross-attention of latent positions (the paper's Fig. 6).

Maps are averaged over time steps and heads; every query has one for each side at which the U-Net attends. The weights
are computed again from what enters the attention layers, so that the model itself needs no way to give them out.
"""

import functools
import math
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from etils import epath
from flax.traverse_util import flatten_dict

from dreamjax.diffusion import samplers
from dreamjax.document import image_io
from dreamjax.models.dreamllm import Model
from dreamjax.sampling import denoise
from dreamjax.sampling.denoise import Conditions, Noise
from dreamjax.sampling.options import Options

Array = jax.Array

TILE = 96  # pixels of one query's map in the figure
MARGIN = 4


class AttentionMaps(NamedTuple):
    """An image and the attention maps of each dream query, {(h, w) of the feature maps: [Q, h, w] float32}."""

    image: PIL.Image.Image
    maps: dict[tuple[int, int], np.ndarray]

    def save(self, folder: str | os.PathLike):
        """Writes picture.png, attention_maps.npz, with an array "HxW" for each side, and attention_maps.png, the
        figure of their mean.
        """
        path = epath.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / "picture.png").write_bytes(image_io.to_png(self.image))
        (path / "attention_maps.png").write_bytes(image_io.to_png(figure(self.image, mean_of(self.maps))))
        with (path / "attention_maps.npz").open("wb") as file:
            arrays: dict[str, Any] = {f"{height}x{width}": maps for (height, width), maps in self.maps.items()}
            np.savez(file, **arrays)


def mean_of(maps: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
    """The mean over all sides, [Q, h, w] at the largest, to which the others are stretched."""
    height, width = max(maps)

    def stretch(values):
        return np.asarray(PIL.Image.fromarray(values).resize((width, height), PIL.Image.Resampling.BILINEAR))

    return np.mean(
        [[stretch(values) for values in side_maps.astype(np.float32)] for side_maps in maps.values()], axis=0
    )


def attention_maps(
    model: Model, conditions: Conditions, keys: Array, options: Options
) -> tuple[Array, dict[tuple[int, int], np.ndarray]]:
    """Denoise images and average their cross-attention: (latents [B, h, w, C], {(h, w): maps [B, Q, h, w] float32}).

    At every position a map says which share of the attention the query has, so that the maps of all queries sum to 1.
    Layers of the same side are averaged.
    """
    shape, plan = denoise.latent_shape(model.config, options), denoise.denoising_plan(model.config, options)
    progress = samplers.begin(denoise.first_noise(keys, shape))
    guided = options.guidance_scale > 1
    context = denoise.contexts(model, conditions if guided else Conditions(conditions.hidden, None))
    total: dict = {}
    for step in range(options.num_steps):
        maps = _maps_at(model, context[-1], progress.x, plan.sampler.timestep[step])
        total = {name: total.get(name, 0) + np.asarray(value) for name, value in maps.items()}
        progress = denoise.denoise(model, context, progress, plan, Noise(keys), (jnp.int32(step), jnp.int32(step + 1)))
    by_side: dict = {}
    for name, value in total.items():
        by_side.setdefault(_side(model, shape, name), []).append(value / options.num_steps)
    averaged = {side: np.mean(values, axis=0) for side, values in by_side.items()}
    return progress.x, {side: maps.transpose(0, 2, 1).reshape(len(maps), -1, *side) for side, maps in averaged.items()}


@jax.jit
def _maps_at(model: Model, context: Array, x: Array, timestep: Array) -> Mapping[str, Array]:
    """{name of a cross-attention layer: [B, positions, Q] weights, averaged over heads} at one timestep."""
    timesteps = jnp.full(len(x), timestep)

    def is_query(module, method):
        return method == "__call__" and module.name == "to_q" and module.path[-2] == "attn2"

    variables = {"params": model.params["unet"]}
    _, captured = model.unet.apply(variables, x, timesteps, context, capture_intermediates=is_query)
    maps = {}
    for path, (queries,) in flatten_dict(captured["intermediates"]).items():
        layer = path[:-2]  # .../attn2, then to_q and __call__
        weights = functools.reduce(lambda tree, key: tree[key], layer, model.params["unet"])
        keys = context.astype(queries.dtype) @ weights["to_k"]["kernel"].astype(queries.dtype)
        maps["/".join(layer)] = _weights(queries, keys, model.unet.config.heads[_level(model, layer[0])])
    return maps


def _weights(queries: Array, keys: Array, heads: int) -> Array:
    """Attention weights of [B, L, D] to [B, Q, D], averaged over heads: [B, L, Q] float32."""

    def split(y):
        return y.reshape(*y.shape[:2], heads, -1)

    scores = jnp.einsum("blhc,bqhc->bhlq", split(queries), split(keys), preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores / math.sqrt(queries.shape[-1] // heads), axis=-1).mean(axis=1)


def _level(model: Model, block: str) -> int:
    """The level of a block by its name."""
    last = len(model.unet.config.block_channels) - 1
    number = re.search(r"\d+$", block)
    if number is None:
        return last
    return int(number[0]) if block.startswith("down") else last - int(number[0])


def _side(model: Model, shape: tuple[int, int, int], layer: str) -> tuple[int, int]:
    """[h, w] of the feature maps of a layer: halved, rounded up, from level to level."""
    halvings = 2 ** _level(model, layer.split("/")[0])
    return -(-shape[0] // halvings), -(-shape[1] // halvings)


def figure(image: PIL.Image.Image, maps: np.ndarray) -> PIL.Image.Image:
    """One tile per query, in rows as square as they come (8 x 8 for 64): its map [Q, h, w] over the darkened picture.

    Each map is stretched from its own lowest to its own highest value.
    """
    columns = math.ceil(math.sqrt(len(maps)))
    rows = -(-len(maps) // columns)
    sheet = PIL.Image.new("RGB", (columns * (TILE + MARGIN) + MARGIN, rows * (TILE + MARGIN) + MARGIN), "white")
    background = np.asarray(
        image.convert("L").convert("RGB").resize((TILE, TILE), PIL.Image.Resampling.BICUBIC), np.float32
    )
    for number, values in enumerate(maps):
        scaled = (values - values.min()) / max(float(values.max() - values.min()), 1e-12)
        heat = PIL.Image.fromarray(np.uint8(255 * scaled)).resize((TILE, TILE), PIL.Image.Resampling.BICUBIC)
        strength = np.asarray(heat, np.float32)[..., None] / 255
        colour = np.array([255.0, 96.0, 16.0]) * strength + np.array([24.0, 32.0, 96.0]) * (1 - strength)
        tile = PIL.Image.fromarray(np.uint8(0.35 * background + 0.65 * colour))
        sheet.paste(tile, (MARGIN + number % columns * (TILE + MARGIN), MARGIN + number // columns * (TILE + MARGIN)))
    return sheet
