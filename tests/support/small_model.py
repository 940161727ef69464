"""A whole model of the smallest sizes, with every part, and runs of it.

What the tests of training and sampling stand on.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import config as c
from dreamjax.api import DreamLLM
from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Model
from dreamjax.parallel.param_sharding import path_of
from dreamjax.training import optimizer
from dreamjax.training.losses import SpecialIds
from dreamjax.training.state import State, cast, fresh_state

IDS = SpecialIds(bos=1, dream_start=62, im_patch=61)

# Every width divides by 8 and the LLM's and CLIP's heads by 4, so that hardly a kernel stays whole on a mesh of 8
# devices.
LLM = c.LlamaConfig(vocab_size=64, width=32, layers=2, heads=4, kv_heads=4, ffn_width=48, max_positions=64)
CLIP = c.ClipConfig(image_size=8, patch_size=4, width=16, layers=2, heads=4, ffn_width=32)
VAE = c.VaeConfig(latent_channels=8, block_channels=(8, 16), layers_per_block=1, norm_groups=2)
UNET = c.UNetConfig(
    sample_size=4,
    in_channels=8,
    out_channels=8,
    block_channels=(8, 16),
    layers_per_block=1,
    cross_attention=(False, True),
    heads=(2, 4),
    context_width=16,
    norm_groups=2,
)
LATENT = c.ModelConfig(llm=LLM, clip=CLIP, unet=UNET, vae=VAE, dream_queries=3)
PIXEL = dataclasses.replace(  # no VAE: diffusion works on the pictures of 8 x 8 pixels themselves
    LATENT,
    vae=None,
    unet=dataclasses.replace(UNET, sample_size=8, in_channels=3, out_channels=3),
    diffusion=c.DiffusionConfig(beta_schedule="squaredcos_cap_v2", prediction="v_prediction"),
)

# clip/post_layernorm is the one part that no loss reaches: the LLM reads hidden states from before it.
FROZEN = ("^vae/", "^clip/post_layernorm/")


def run_config(
    model: c.ModelConfig = PIXEL, frozen: tuple[str, ...] = FROZEN, optim_changes: dict | None = None, **changes
) -> c.RunConfig:
    """8 rows of 32 tokens with 2 seen and 2 dreamed slots each.

    Everything but `frozen` trains, at a constant rate of 1e-3.
    """
    rate = {"learning_rate": 1e-3, "schedule": "constant", "warmup_share": 0.0}
    trains = rf"^(?!{'|'.join(pattern.removeprefix('^') for pattern in frozen)})"
    return c.RunConfig(
        **{
            "model": model,
            "data": c.DataConfig(train=(c.SourceConfig("shapes"),), length=32, input_slots=2, target_slots=2),
            "optim": c.OptimConfig(**{"trainable": (trains,), "frozen": frozen, **rate, **(optim_changes or {})}),
            "total_steps": 20,
            **changes,
        }
    )


@functools.cache
def parameters(model: c.ModelConfig, seed: int = 0) -> dict:
    """Parameters in host memory drawn without compiling anything, no bias 0 and no scale 1, large enough for
    attention to choose.
    """
    rng = np.random.default_rng(seed)

    def drawn(path, leaf):
        name = path_of(path)
        noise = rng.normal(size=leaf.shape)
        if name.endswith("scale"):
            noise = 1 + 0.2 * noise
        elif name.endswith("bias"):
            noise *= 0.2
        elif name.endswith("kernel"):  # [layers, in, out] in the scanned stacks, [..., in, out] elsewhere
            noise /= math.prod(leaf.shape[1:-1] if "/layers/" in name else leaf.shape[:-1]) ** 0.5
        return noise.astype(np.float32)

    shapes = jax.eval_shape(lambda: dreamllm.init(model, jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(drawn, shapes)


def with_params(model: DreamLLM, params: dict) -> DreamLLM:
    """The same model with other parameters."""
    return dataclasses.replace(model, model=Model(model.config, params))


def boosted(params: dict, boosts: dict[int, float]) -> dict:
    """The parameters with some tokens made likelier (or less likely) by about as much as said.

    The first entry of all that the LLM reads is 4 and no layer changes it, so in every hidden state it is positive; the
    head sees the boosts there.
    """
    params = jax.tree.map(np.array, params)
    llm = params["llm"]
    llm["embed"]["embedding"][:, 0] = 4.0
    for kernel in (llm["layers"]["attention"]["o"]["kernel"], llm["layers"]["mlp"]["down"]["kernel"]):
        kernel[..., 0] = 0.0
    if "dream_queries" in params:
        params["dream_queries"][:, 0] = 4.0
        params["visual_projector"]["linear"]["kernel"][:, 0] = 0.0
        params["visual_projector"]["linear"]["bias"][0] = 4.0
    llm["norm"]["scale"][0] = 1.0
    llm["head"]["kernel"][0] = 0.0
    for token, boost in boosts.items():
        llm["head"]["kernel"][0, token] = boost
    return params


def start(config: c.RunConfig) -> tuple[State, dict]:
    """(state, frozen) of a run at step 0 over `parameters`, as `training.state.init` makes them."""
    trainable, frozen = optimizer.split(config.optim, jax.tree.map(jnp.asarray, parameters(config.model)))
    return fresh_state(config.optim, config.total_steps, trainable), cast(frozen, config.model.dtype)


def leaves(tree) -> dict[str, np.ndarray]:
    """{path: array} of a tree of parameters."""
    return {path_of(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def relative_error(ours, theirs) -> float:
    """Norm of the difference over the norm of `theirs`."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
