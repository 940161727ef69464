"""The official DreamLLM release.

An LLM, three torch pickles and the tokenizer, the components' configurations beside them.
"""

import math
import pathlib
from functools import partial

import torch

from benchmarks.layouts import clip, configs, stable_diffusion
from benchmarks.layouts.common import (
    Layout,
    Written,
    prefixed,
    processor,
    save_bin,
    save_safetensors,
    with_positions,
    with_tokenizer,
    write_json,
)
from benchmarks.layouts.llm import llama

ADDED = (
    "[PAD]",
    "<im_start>",
    "<dream_end>",
    "<dream_start>",
    "<im_patch>",
    "<im_end>",
    "<image>",
    "<dream>",
)  # in the order of the ids that it gave
VISION = "clip_vision_model.vision_model."


def joints(projector: str) -> dict[str, torch.Tensor]:
    """The weights that join the parts, by the names in the pickles: both projectors and the dream queries."""
    generator = torch.Generator().manual_seed(9)

    def normal(*shape):
        return torch.randn(shape, generator=generator) / math.sqrt(shape[-1])

    width, seen = configs.LLAMA["hidden_size"], configs.CLIP_VISION["hidden_size"]
    sides = {"linear": {"": seen}, "mlp": {"0.": seen, "2.": width}}[projector]
    visual = {f"visual.projector.{at}weight": normal(width, side) for at, side in sides.items()} | {
        f"visual.projector.{at}bias": normal(width) for at in sides
    }
    context = configs.UNETS["2.1"]["cross_attention_dim"]
    return {**visual, "condition.projector.weight": normal(context, width), "dream_queries": normal(1, 3, width)}


def release(folder: pathlib.Path, projector: str, suffix: str) -> Written:
    """The folder, with its LLM in one safetensors file or in .bin shards."""
    home, joined = folder / "dreamllm", joints(projector)

    def own(which):
        return {
            name.replace(f"{which}.", "projector.", 1): value
            for name, value in joined.items()
            if name.startswith(f"{which}.")
        }

    angles = {
        f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4)
        for i in range(configs.LLAMA["num_hidden_layers"])
    }
    tensors = {**llama(added=len(ADDED)).state_dict(), **angles}
    if suffix == "bin":
        save_bin(tensors, home, shards=2)
    else:
        save_safetensors(tensors, home / "model.safetensors")
    torch.save(
        {**with_positions(prefixed(VISION, clip.vision().state_dict()), VISION), **own("visual")},
        home / "clip_vision_embedding.bin",
    )
    torch.save({"dream_queries": joined["dream_queries"]}, home / "dream_embedding.bin")
    sd = {
        **prefixed("vae.", stable_diffusion.module("2.1", "vae").state_dict()),
        **prefixed("unet.", stable_diffusion.module("2.1", "unet").state_dict()),
    }
    torch.save({**sd, **own("condition")}, home / "stable_diffusion_head.bin")
    ids = {name: processor().get_piece_size() + i for i, name in enumerate(ADDED)}
    write_json(home / "config.json", configs.official(projector, ids, processor().get_piece_size()))
    write_json(home / "added_tokens.json", ids)
    write_json(
        home / "special_tokens_map.json",
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "[PAD]"},
    )
    write_json(
        home / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "legacy": True, "pad_token": "[PAD]"}
    )
    stable_diffusion.beside(folder / "components" / "sd", "2.1", "pndm")
    write_json(
        folder / "components" / "clip" / "config.json",
        configs.published_tower("clip_vision_model", configs.CLIP_VISION),
    )
    return with_tokenizer(home)


_FACTS = {"template": "vicuna_v1.1", "fresh": (), "model.dream_queries": 3, "model.decoder_size": 8}
LAYOUTS = (
    Layout(
        "Official release",
        "linear projector, safetensors",
        "official",
        partial(release, projector="linear", suffix="safetensors"),
        _FACTS,
    ),
    Layout(
        "Official release",
        "linear projector, .bin in shards",
        "official",
        partial(release, projector="linear", suffix="bin"),
        _FACTS,
    ),
    Layout(
        "Official release",
        "MLP projector",
        "official-mlp",
        partial(release, projector="mlp", suffix="safetensors"),
        {**_FACTS, "model.visual_projector": "mlp"},
    ),
)
