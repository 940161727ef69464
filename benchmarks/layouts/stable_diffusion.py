"""Stable Diffusion 2.1 and 1.5 as diffusers saves them today and as they were published."""

import functools
import pathlib
from collections.abc import Mapping
from functools import partial

import diffusers
import torch

from benchmarks.layouts import clip, configs
from benchmarks.layouts.common import (
    HALF,
    Layout,
    Tensors,
    Written,
    clip_vocabulary,
    converted,
    drawn,
    prefixed,
    save_bin,
    save_safetensors,
    with_positions,
    write_json,
)  # fmt: skip

PARTS = ("unet", "vae", "text_encoder")


@functools.cache
def module(which: str, part: str) -> torch.nn.Module:
    """A part of 2.1 or 1.5."""
    if part == "text_encoder":
        return clip.text(*configs.TEXT_SIZES[which])
    if part == "vae":
        return drawn(diffusers.AutoencoderKL.from_config(configs.VAE), 7)
    return drawn(diffusers.UNet2DConditionModel.from_config(configs.UNETS[which]), 8)


def published(which: str, part: str) -> Tensors:
    """A part's weights by the names that were published.

    Attention in the VAE from before diffusers 0.15, position_ids.
    """
    state = module(which, part).state_dict()
    if part == "text_encoder":
        return with_positions(prefixed("text_model.", state), "text_model.")
    return old_attention(state) if part == "vae" else state


def old_attention(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """query, key, value, proj_attn for to_q, to_k, to_v, to_out.0."""
    renamed = {}
    for name, value in tensors.items():
        for today, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f"attentions.0.{today}.", f"attentions.0.{old}.")
        renamed[name] = value
    return renamed


def beside(home: pathlib.Path, which: str, scheduler: str):
    """Files of a folder besides weights, which are not read."""
    for part, values in zip(PARTS, (configs.UNETS[which], configs.VAE, configs.TEXT_ENCODERS[which]), strict=True):
        write_json(home / part / "config.json", values)
    write_json(home / "scheduler" / "scheduler_config.json", configs.SCHEDULERS[scheduler])
    write_json(
        home / "model_index.json", {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.10.0.dev0"}
    )
    write_json(home / "feature_extractor" / "preprocessor_config.json", configs.processor(8, old=True))
    write_json(home / "safety_checker" / "config.json", {"architectures": ["StableDiffusionSafetyChecker"]})
    clip_vocabulary(home / "tokenizer")


def stem(part: str, suffix: str) -> str:
    """The name of a part's weight files before the variant."""
    return (
        "diffusion_pytorch_model" if part != "text_encoder" else "model" if suffix == "safetensors" else "pytorch_model"
    )


def save_as(tensors: Tensors, home: pathlib.Path, part: str, suffix: str, variant: str = ""):
    """One file of a part, whose name has the variant in it."""
    name = stem(part, suffix) + (f".{variant}" if variant else "")
    if suffix == "bin":
        save_bin(tensors, home / part, name)
    else:
        save_safetensors(tensors, home / part / f"{name}.safetensors")


def as_today(folder: pathlib.Path, which: str, scheduler: str, shard: str = "1GB") -> Written:
    """save_pretrained of each part."""
    home = folder / "sd"
    for part in PARTS:
        module(which, part).save_pretrained(home / part, max_shard_size=shard)
    write_json(home / "scheduler" / "scheduler_config.json", configs.SCHEDULERS[scheduler])
    clip_vocabulary(home / "tokenizer")
    return Written((home,))


def as_published(
    folder: pathlib.Path, which: str, scheduler: str, suffix: str = "bin", crowded: bool = False
) -> Written:
    """Files as they were published.

    `crowded` among those of other precision, of training and of other programs, with other numbers in them.
    """
    home = folder / "sd"
    beside(home, which, scheduler)
    for part in PARTS:
        tensors = published(which, part)
        save_as(tensors, home, part, suffix)
        if crowded:
            wrong = {name: value + 1 for name, value in tensors.items()}
            for other in ("bin", "safetensors"):
                save_as(converted(wrong, HALF), home, part, other, "fp16")
                save_as(wrong, home, part, other, "non_ema")
    if crowded:
        save_safetensors(
            {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4)}, home / "v2-1_512-ema-pruned.safetensors"
        )
        torch.save({"state_dict": {}}, home / "v2-1_512-nonema-pruned.ckpt")
    return Written((home,))


def in_half(folder: pathlib.Path, suffix: str, crowded: bool = False) -> Written:
    """float16 under variant names alone; `crowded` beside the weights of training, with other numbers in them."""
    home = folder / "sd"
    beside(home, "2.1", "pndm")
    for part in PARTS:
        tensors = converted(published("2.1", part), HALF)
        save_as(tensors, home, part, suffix, "fp16")
        if crowded:
            save_as({name: value + 1 for name, value in tensors.items()}, home, part, "safetensors", "fp16.non_ema")
            save_as({name: value + 1 for name, value in tensors.items()}, home, part, "safetensors", "ema_only.non_ema")
    return Written((home,))


def half_in_shards(folder: pathlib.Path) -> Written:
    """save_pretrained of float16 parts with a variant, in shards."""
    home = folder / "sd"
    beside(home, "2.1", "pndm")
    for part in PARTS:
        half = type(module("2.1", part))
        own = module("2.1", part).config
        half = half(own) if part == "text_encoder" else half.from_config(own)
        half.load_state_dict(module("2.1", part).state_dict())
        half.to(HALF).save_pretrained(home / part, variant="fp16", max_shard_size="16KB")
    return Written((home,))


def unet_alone(folder: pathlib.Path) -> Written:
    """unet/ and scheduler/."""
    home = folder / "sd"
    module("2.1", "unet").save_pretrained(home / "unet")
    write_json(home / "scheduler" / "scheduler_config.json", configs.SCHEDULERS["pndm"])
    return Written((home,))


_21 = {
    "model.unet.linear_projection": True,
    "model.unet.heads": (2, 4),
    "model.text_encoder.layers": 2,
    "model.text_encoder.activation": "gelu",
}
_15 = {
    "model.unet.linear_projection": False,
    "model.unet.heads": (4, 4),
    "model.text_encoder.layers": 3,
    "model.text_encoder.activation": "quick_gelu",
}
_BASE = {
    "model.diffusion.prediction": "epsilon",
    "model.diffusion.beta_start": 0.00085,
    "model.diffusion.steps_offset": 1,
}
_today, _old, _half = (
    partial(as_today, which="2.1", scheduler="pndm"),
    partial(as_published, which="2.1", scheduler="pndm"),
    partial(in_half, suffix="safetensors"),
)
LAYOUTS = (
    Layout("SD 2.1", "safetensors", "sd21", _today, {**_21, **_BASE}),
    Layout("SD 2.1", "safetensors in shards", "sd21", partial(_today, shard="16KB")),
    Layout(
        "SD 2.1",
        "as published: .bin, query/key/value/proj_attn, position_ids, safety_checker",
        "sd21",
        _old,
        {**_21, **_BASE},
    ),
    Layout("SD 2.1", "the same in safetensors", "sd21", partial(_old, suffix="safetensors")),
    Layout("SD 2.1", ".bin among fp16, non_ema and whole checkpoints", "sd21", partial(_old, crowded=True)),
    Layout("SD 2.1", "safetensors among the same", "sd21", partial(_old, suffix="safetensors", crowded=True)),
    Layout(
        "SD 2.1",
        "v-prediction, DDIMScheduler",
        "sd21",
        partial(_old, scheduler="ddim-v"),
        {"model.diffusion.prediction": "v_prediction"},
    ),
    Layout("SD 2.1", "EulerDiscreteScheduler", "sd21", partial(_old, scheduler="euler"), _BASE),
    Layout("SD 2.1", "float16, *.fp16.safetensors alone", "sd21-fp16", _half, {"model.dtype": "bfloat16"}),
    Layout("SD 2.1", "float16, *.fp16.bin alone", "sd21-fp16", partial(in_half, suffix="bin")),
    Layout("SD 2.1", "float16, *.fp16.safetensors beside *.non_ema", "sd21-fp16", partial(_half, crowded=True)),
    Layout("SD 2.1", "float16, *.fp16 in shards", "sd21-fp16", half_in_shards),
    Layout(
        "SD 2.1",
        "U-Net and VAE alone (--parts=unet,vae)",
        "sd21-two",
        _today,
        {"model.text_encoder": None},
        ("unet", "vae"),
    ),
    Layout(
        "SD 2.1", "unet/ and scheduler/ alone", "sd21-unet", unet_alone, {"model.vae": None, "model.unet.heads": (2, 4)}
    ),
    Layout("SD 1.5", "safetensors", "sd15", partial(as_today, which="1.5", scheduler="pndm"), {**_15, **_BASE}),
    Layout(
        "SD 1.5",
        "as published: .bin, one number of heads, 1x1 convolutions, schedule of diffusers 0.2",
        "sd15",
        partial(as_published, which="1.5", scheduler="pndm-2022"),
        {**_15, **_BASE},
    ),
)
