"""CLIP, one tower or both, as transformers saves it today and as it was published."""

import functools
import pathlib
from functools import partial

import torch
import transformers

from benchmarks.layouts import configs
from benchmarks.layouts.common import (
    Layout,
    Written,
    clip_vocabulary,
    drawn,
    of_other_frameworks,
    prefixed,
    save_bin,
    save_safetensors,
    with_positions,
    write_json,
)  # fmt: skip


@functools.cache
def vision(activation: str = "quick_gelu") -> transformers.CLIPVisionModel:
    """The picture tower."""
    return drawn(
        transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**configs.CLIP_VISION, hidden_act=activation)), 1
    )


@functools.cache
def text(activation: str, layers: int) -> transformers.CLIPTextModel:
    """A text tower as a Stable Diffusion has it, which pools at the highest id."""
    changes = {"hidden_act": activation, "num_hidden_layers": layers, "eos_token_id": 2}
    return drawn(transformers.CLIPTextModel(transformers.CLIPTextConfig(**{**configs.CLIP_TEXT, **changes})), 2)


@functools.cache
def both(activation: str) -> transformers.CLIPModel:
    """A whole model around the picture tower."""
    own = {
        "text_config": {**configs.CLIP_TEXT, "hidden_act": activation},
        "vision_config": {**configs.CLIP_VISION, "hidden_act": activation},
    }
    module = drawn(transformers.CLIPModel(transformers.CLIPConfig(**own, projection_dim=8)), 3)
    module.vision_model.load_state_dict(vision(activation).state_dict())
    return module


def vision_today(folder: pathlib.Path, activation: str = "quick_gelu") -> Written:
    """save_pretrained of a CLIPVisionModel."""
    vision(activation).save_pretrained(folder / "clip")
    return Written((folder / "clip",))


def vision_before(folder: pathlib.Path) -> Written:
    """A .bin with the tower's prefix before every name, and position_ids."""
    home = folder / "clip"
    save_bin(with_positions(prefixed("vision_model.", vision().state_dict()), "vision_model."), home)
    write_json(home / "config.json", configs.published_tower("clip_vision_model", configs.CLIP_VISION))
    write_json(home / "preprocessor_config.json", configs.processor(8, old=True))
    return Written((home,))


def vision_projected(folder: pathlib.Path) -> Written:
    """CLIPVisionModelWithProjection, as picture adapters have it."""
    module = drawn(transformers.CLIPVisionModelWithProjection(vision().config), 4)
    module.vision_model.load_state_dict(vision().state_dict())
    module.save_pretrained(folder / "clip")
    return Written((folder / "clip",))


def both_today(folder: pathlib.Path) -> Written:
    """save_pretrained of a CLIPModel, with its image processor."""
    both("quick_gelu").save_pretrained(folder / "clip")
    write_json(folder / "clip" / "preprocessor_config.json", configs.processor(8))
    return Written((folder / "clip",))


def openai(folder: pathlib.Path) -> Written:
    """As openai published it.

    A .bin with position_ids among files for other frameworks, and a config.json of hundreds of keys.
    """
    home = folder / "clip-vit-large-patch14"
    save_bin(with_positions(both("quick_gelu").state_dict(), "vision_model.", "text_model."), home)
    of_other_frameworks(home)
    return _described(home, "quick_gelu")


def laion(folder: pathlib.Path) -> Written:
    """As laion published it: gelu, safetensors and .bin beside the files of OpenCLIP."""
    home = folder / "CLIP-ViT-H-14"
    tensors = with_positions(both("gelu").state_dict(), "vision_model.", "text_model.")
    save_safetensors(tensors, home / "model.safetensors")
    save_bin(tensors, home)
    other = {"transformer.resblocks.0.ln_1.weight": torch.ones(4)}
    save_safetensors(other, home / "open_clip_model.safetensors")
    save_bin(other, home, "open_clip_pytorch_model")
    return _described(home, "gelu")


def _described(home: pathlib.Path, activation: str) -> Written:
    write_json(home / "config.json", configs.published_clip(activation))
    write_json(home / "preprocessor_config.json", configs.processor(8, old=True))
    clip_vocabulary(home)
    return Written((home,))


def larger(folder: pathlib.Path) -> Written:
    """As the 336-pixel model was published: few keys, and an image processor of its own size."""
    home = folder / "clip-vit-large-patch14-336"
    module = drawn(transformers.CLIPModel(transformers.CLIPConfig(**configs.CLIP_336)), 5)
    save_bin(with_positions(module.state_dict(), "vision_model.", "text_model."), home)
    write_json(home / "config.json", configs.CLIP_336)
    write_json(home / "preprocessor_config.json", configs.processor(12))
    return Written((home,))


def text_alone(folder: pathlib.Path) -> Written:
    """save_pretrained of a CLIPTextModel."""
    text("gelu", 2).save_pretrained(folder / "text")
    return Written((folder / "text",))


def text_projected(folder: pathlib.Path) -> Written:
    """CLIPTextModelWithProjection."""
    module = drawn(transformers.CLIPTextModelWithProjection(text("gelu", 2).config), 6)
    module.text_model.load_state_dict(text("gelu", 2).state_dict())
    module.save_pretrained(folder / "text")
    return Written((folder / "text",))


_NEW_END = {"model.clip_text.end_token": configs.NEW_END}
LAYOUTS = (
    Layout("CLIP", "CLIPVisionModel", "clip", vision_today, {"model.clip_text": None}),
    Layout("CLIP", "CLIPVisionModel of transformers 4: .bin, position_ids", "clip", vision_before),
    Layout("CLIP", "CLIPVisionModelWithProjection", "clip", vision_projected),
    Layout(
        "CLIP",
        "CLIPModel, the picture tower alone (--parts=clip)",
        "clip",
        both_today,
        {"model.clip_text": None},
        ("clip",),
    ),
    Layout("CLIP", "CLIPModel, both towers", "clip-both", both_today, {"model.clip_text.end_token": configs.END}),
    Layout("CLIP", "as openai published it: .bin, position_ids, hundreds of keys", "clip-both", openai, _NEW_END),
    Layout(
        "CLIP",
        "gelu, CLIPVisionModel",
        "clip-gelu",
        partial(vision_today, activation="gelu"),
        {"model.clip.activation": "gelu"},
    ),
    Layout(
        "CLIP",
        "gelu, as laion published it: beside OpenCLIP's own files",
        "clip-laion",
        laion,
        {"model.clip.activation": "gelu", **_NEW_END},
    ),
    Layout(
        "CLIP",
        "other pixels, as the 336-pixel model was published",
        "clip-336",
        larger,
        {"model.clip.image_size": 12, "model.clip_text.end_token": configs.END},
    ),
    Layout("CLIP", "CLIPTextModel alone", "clip-text", text_alone, {"model.text_encoder.end_token": None}),
    Layout("CLIP", "CLIPTextModelWithProjection", "clip-text", text_projected),
)
