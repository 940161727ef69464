"""Every tensor of the real models, by the classes of transformers and diffusers without memory, is one of ours and
back.
"""

import dataclasses

import numpy as np
import pytest

from dreamjax.config import ClipConfig, ClipTextConfig, LlamaConfig, ModelConfig, UNetConfig, VaeConfig
from dreamjax.convert import assemble, tables
from dreamjax.convert.foreign_config import ForeignConfig
from dreamjax.convert.formats import clip, clip_text, llama, official, stable_diffusion
from dreamjax.convert.mapping import foreign_names, torch_shape
from dreamjax.convert.tensors import Tensor

torch = pytest.importorskip("torch")
diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")

VICUNA = dict(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    max_position_embeddings=2048,
)
CLIP_L = dict(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=224,
    patch_size=14,
    hidden_act="quick_gelu",
)
CLIP_H = CLIP_L | dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, hidden_act="gelu")
UNET_21 = dict(sample_size=64, cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True)
UNET_15 = dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
VAE_BOTH = dict(
    block_out_channels=[128, 256, 512, 512],
    layers_per_block=2,
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
)
TEXT_15 = dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    hidden_act="quick_gelu",
    eos_token_id=2,
)
TEXT_21 = dict(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=23,
    num_attention_heads=16,
    hidden_act="gelu",
    eos_token_id=2,
)

CASES = {
    "Vicuna-7B": (
        "llm",
        VICUNA,
        lambda c: transformers.LlamaForCausalLM(transformers.LlamaConfig(**c)),
        llama.read_config,
        LlamaConfig(vocab_size=32000),
    ),
    "CLIP-L/14": (
        "clip",
        CLIP_L,
        lambda c: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**c)),
        clip.read_config,
        ClipConfig(),
    ),
    "CLIP-L/14 at 336 pixels": (
        "clip",
        CLIP_L | {"image_size": 336},
        lambda c: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**c)),
        clip.read_config,
        ClipConfig(image_size=336),
    ),
    "CLIP-H/14": (
        "clip",
        CLIP_H,
        lambda c: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**c)),
        clip.read_config,
        ClipConfig(width=1280, layers=32, ffn_width=5120, activation="gelu"),
    ),
    "SD 2.1-base U-Net": (
        "unet",
        UNET_21,
        diffusers.UNet2DConditionModel.from_config,
        stable_diffusion.read_unet,
        UNetConfig(),
    ),
    "SD 1.5 U-Net": (
        "unet",
        UNET_15,
        diffusers.UNet2DConditionModel.from_config,
        stable_diffusion.read_unet,
        official.SD_1,
    ),
    "SD VAE": ("vae", VAE_BOTH, diffusers.AutoencoderKL.from_config, stable_diffusion.read_vae, VaeConfig()),
    "SD 1.5 text encoder": (
        "text_encoder",
        TEXT_15,
        lambda c: transformers.CLIPTextModel(transformers.CLIPTextConfig(**c)),
        clip_text.read_config,
        ClipTextConfig(),
    ),
    "SD 2.1 text encoder": (
        "text_encoder",
        TEXT_21,
        lambda c: transformers.CLIPTextModel(transformers.CLIPTextConfig(**c)),
        clip_text.read_config,
        ClipTextConfig(width=1024, layers=23, heads=16, ffn_width=4096, activation="gelu"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_names_and_shapes_map_to_ours_and_back(name):
    part, settings, make, read, expected = CASES[name]
    config = read(ForeignConfig(settings, name))
    assert config == expected
    with torch.device("meta"):
        theirs = {key: tuple(value.shape) for key, value in make(settings).state_dict().items()}
    assert not any("position_ids" in key or "inv_freq" in key for key in theirs)
    # A VAE alone draws nothing: beside the smallest U-Net.
    beside = (
        {
            "unet": dataclasses.replace(
                UNetConfig(), block_channels=(32,), cross_attention=(False,), heads=(1,), layers_per_block=1
            )
        }
        if part == "vae"
        else {}
    )
    model = ModelConfig(**{part: config}, **beside)
    shapes = assemble.shapes_of(model)
    table = tables.of(part, model, shapes)

    def unread(index):
        raise AssertionError("nothing is read")

    tensors = {key: Tensor(key, shape, np.dtype(np.float16), name, unread) for key, shape in theirs.items()}
    leaves = assemble.read_part(part, table, shapes, tensors, name)
    assert {path: leaf.shape for path, leaf in leaves.items()} == {
        path: shape for path, shape in shapes.items() if path.split("/")[0] == part
    }
    back = {}
    for path, shape in assemble.part_shapes(shapes, part).items():
        one = shape[1:] if "{i}" in table.names[path] else shape
        back |= {key: torch_shape(path, one) for key in foreign_names(table, path)}
    prefix = next(
        (p for p in ("vision_model.", "text_model.") if p in next(iter(back)) and p not in next(iter(theirs))), ""
    )
    assert {key.removeprefix(prefix): shape for key, shape in back.items()} == theirs
