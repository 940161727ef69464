"""Where each dream query looks: the U-Net's cross-attention between queries and latent positions (the paper's Fig. 6).

Maps are averaged over time steps and heads; every query has one for each side at which the U-Net attends. The weights
are computed again from what enters the attention layers, so that the model itself needs no way to give them out.
"""

import functools
import math
import os
import re
from collections.abc import Mapping
from typing import NamedTuple

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
from dreamjax.sampling.options import Options

Array = jax.Array

TILE = 96  # pixels of one query's map in the figure
MARGIN = 4


class Watched(NamedTuple):
    """A picture and where each dream query looked while it was drawn.

    {(h, w) of the latents there: maps [Q, h, w] float32}.
    """

    image: PIL.Image.Image
    maps: dict[tuple[int, int], np.ndarray]

    def save(self, folder: str | os.PathLike):
        """Writes picture.png, attention_maps.npz, with an array "HxW" for each side, and attention_maps.png, the
        figure of their mean.
        """
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "picture.png").write_bytes(image_io.to_png(self.image))
        (folder / "attention_maps.png").write_bytes(image_io.to_png(figure(self.image, mean_of(self.maps))))
        with (folder / "attention_maps.npz").open("wb") as file:
            np.savez(file, **{f"{height}x{width}": maps for (height, width), maps in self.maps.items()})


def mean_of(maps: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
    """The mean over all sides, [Q, h, w] at the largest, to which the others are stretched."""
    height, width = max(maps)

    def stretch(values):
        return np.asarray(PIL.Image.fromarray(values).resize((width, height), PIL.Image.Resampling.BILINEAR))

    return np.mean([[stretch(values) for values in of_side.astype(np.float32)] for of_side in maps.values()], axis=0)


def attention_maps(
    model: Model, hidden: Array, empty: Array | None, keys: Array, options: Options
) -> tuple[Array, dict[tuple[int, int], np.ndarray]]:
    """Draws pictures for hidden states [B, Q, D] and watches: (latents [B, h, w, C], {(h, w): maps [B, Q, h, w]
    float32}).

    At every position a map says which share of the attention the query has, so that the maps of all queries sum to 1.
    Layers of the same side are averaged.
    """
    shape, plan = denoise.latent_shape(model.config, options), denoise.drawing(model.config, options)
    progress = samplers.begin(denoise.first_noise(keys, shape))
    context = denoise.contexts(model, hidden, empty if options.guidance_scale > 1 else None)
    total: dict = {}
    for step in range(options.num_steps):
        maps = _maps_at(model, context[-1], progress.x, plan.plan.timestep[step])
        total = {name: total.get(name, 0) + np.asarray(value) for name, value in maps.items()}
        progress = denoise.denoise(model, context, progress, plan, keys, None, np.int32(step), np.int32(step + 1))
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
    _, kept = model.unet.apply(variables, x, timesteps, context, capture_intermediates=is_query)
    found = {}
    for path, (queries,) in flatten_dict(kept["intermediates"]).items():
        layer = path[:-2]  # .../attn2, then to_q and __call__
        weights = functools.reduce(lambda tree, key: tree[key], layer, model.params["unet"])
        keys = context.astype(queries.dtype) @ weights["to_k"]["kernel"].astype(queries.dtype)
        found["/".join(layer)] = _weights(queries, keys, model.config.unet.heads[_level(model, layer[0])])
    return found


def _weights(queries: Array, keys: Array, heads: int) -> Array:
    """Attention weights of [B, L, D] to [B, Q, D], averaged over heads: [B, L, Q] float32."""

    def split(y):
        return y.reshape(*y.shape[:2], heads, -1)

    scores = jnp.einsum("blhc,bqhc->bhlq", split(queries), split(keys), preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores / math.sqrt(queries.shape[-1] // heads), axis=-1).mean(axis=1)


def _level(model: Model, block: str) -> int:
    """The level of a block by its name."""
    last = len(model.config.unet.block_channels) - 1
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
    behind = np.asarray(
        image.convert("L").convert("RGB").resize((TILE, TILE), PIL.Image.Resampling.BICUBIC), np.float32
    )
    for number, values in enumerate(maps):
        spread = (values - values.min()) / max(float(values.max() - values.min()), 1e-12)
        heat = PIL.Image.fromarray(np.uint8(255 * spread)).resize((TILE, TILE), PIL.Image.Resampling.BICUBIC)
        strength = np.asarray(heat, np.float32)[..., None] / 255
        colour = np.array([255.0, 96.0, 16.0]) * strength + np.array([24.0, 32.0, 96.0]) * (1 - strength)
        tile = PIL.Image.fromarray(np.uint8(0.35 * behind + 0.65 * colour))
        sheet.paste(tile, (MARGIN + number % columns * (TILE + MARGIN), MARGIN + number // columns * (TILE + MARGIN)))
    return sheet
