"""Makes a bundle in the layout of the recorded ones: a small model in the official release layout, and what torch
computes with it.

    python tests/parity/make_bundle.py --out=DIR [--preset=small] [--seed=N]
    DREAMJAX_GOLDENS=DIR python -m pytest tests/parity

DIR gets ckpt/ (config.json, model.safetensors, three pickles, the tokenizer), components/ (the parts' configurations)
and golden/ (arrays and JSON). Every number comes from torch, transformers, diffusers, sentencepiece and Pillow, and
from the rules of the official code written down again in reference_*.py; the package is not imported. Each preset
differs from the others in whatever the layout lets differ. The same preset and seed make the same files.
"""

import argparse
import json
import pathlib

import numpy as np
import reference_model
import reference_records
import reference_text
import torch
import transformers
from reference_records import VARIANTS, Maker

NAMES = ("[PAD]", "<im_start>", "<im_end>", "<im_patch>", "<dream_start>", "<dream_end>", "<image>", "<dream>")
CLIP = {
    "model_type": "clip_vision_model",
    "num_channels": 3,
    "layer_norm_eps": 1e-5,
    "hidden_act": "quick_gelu",
    "projection_dim": 16,
}
UNET = {
    "_class_name": "UNet2DConditionModel",
    "layers_per_block": 1,
    "act_fn": "silu",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}
VAE = {"_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "act_fn": "silu"}
SCHEDULE = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "prediction_type": "epsilon",
}


def unet_of(channels: tuple[int, ...], crosses: tuple[bool, ...], **more) -> dict:
    down = [f"{'CrossAttn' if cross else ''}DownBlock2D" for cross in crosses]
    up = [name.replace("Down", "Up") for name in reversed(down)]
    return UNET | {"block_out_channels": list(channels), "down_block_types": down, "up_block_types": up} | more


def vae_of(channels: tuple[int, ...], **more) -> dict:
    levels = len(channels)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    return VAE | {"block_out_channels": list(channels)} | blocks | more


# `llm` and the parts have the keys of their files. `control` are the ids of <unk>, <s>, </s>; `spare` is how many rows
# the embedding has that no token uses; `left_out` is what is not recorded.
PRESETS = {
    # The smallest of all, with as much that is unlike Stable Diffusion 2.1 and Vicuna as fits.
    "small": {
        "llm": {
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "rope_theta": 5000.0,
            "pad_token_id": 0,
        },
        "pieces": 380,
        "control": (0, 1, 2),
        "order": (3, 4, 2, 7, 5, 0, 1, 6),
        "spare": 0,
        "legacy": True,
        "left_out": (),
        "clip": {
            "hidden_size": 24,
            "intermediate_size": 36,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "image_size": 12,
            "patch_size": 6,
        },
        "select_layer": -2,
        "projector": "mlp",
        "queries": 3,
        "resolution": 16,
        "unet": unet_of(
            (8, 16),
            (False, True),
            in_channels=4,
            out_channels=4,
            attention_head_dim=[2, 4],
            cross_attention_dim=12,
            norm_num_groups=4,
            use_linear_projection=False,
        ),
        "vae": vae_of((4, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2, scaling_factor=0.3),
        "schedule": {
            "prediction_type": "v_prediction",
            "num_train_timesteps": 400,
            "steps_offset": 0,
            "beta_schedule": "linear",
        },
        "loss": {"loss_weight_lm": 1.0, "loss_weight_vm": 10.0, "loss_scale_schedule": "none"},
    },
    "grouped": {
        "llm": {
            "hidden_size": 48,
            "intermediate_size": 100,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 640,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "pad_token_id": 2,
        },
        "pieces": 420,
        "control": (2, 0, 1),
        "order": (7, 6, 5, 4, 3, 2, 1, 0),
        "spare": 5,
        "legacy": False,
        "left_out": (),
        "clip": {
            "hidden_size": 40,
            "intermediate_size": 56,
            "num_hidden_layers": 4,
            "num_attention_heads": 5,
            "image_size": 20,
            "patch_size": 4,
            "hidden_act": "gelu",
        },
        "select_layer": -3,
        "projector": "mlp",
        "queries": 11,
        "resolution": 32,
        "unet": unet_of(
            (16, 24, 32),
            (True, False, True),
            layers_per_block=2,
            in_channels=6,
            out_channels=6,
            attention_head_dim=[4, 3, 2],
            cross_attention_dim=20,
            norm_num_groups=8,
            use_linear_projection=True,
        ),
        "vae": vae_of((8, 12), latent_channels=6, layers_per_block=2, norm_num_groups=4, scaling_factor=0.5),
        "schedule": {
            "prediction_type": "v_prediction",
            "beta_start": 0.001,
            "beta_end": 0.02,
            "timestep_spacing": "trailing",
            "set_alpha_to_one": True,
        },
        "loss": {"loss_weight_lm": 2.0, "loss_weight_vm": 3.0, "loss_scale_schedule": "l2_norm"},
        "variants": {"gentle": {"snr_gamma": 1.5}, "loud": {"noise_offset": 0.3, "input_perturbation": 0.2}},
    },
    "conv": {
        "llm": {
            "hidden_size": 40,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 400,
            "rms_norm_eps": 1e-6,
            "rope_theta": 20000.0,
            "pad_token_id": None,
            "tie_word_embeddings": True,
        },
        "pieces": 400,
        "control": (0, 1, 2),
        "order": (0, 2, 4, 6, 1, 3, 5, 7),
        "spare": 0,
        "legacy": True,
        "left_out": ("mm", "drop", "all", "creation"),
        "clip": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 24,
            "patch_size": 12,
        },
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.3, 0.25, 0.2],
        "select_layer": 1,
        "projector": "linear",
        "queries": 5,
        "resolution": 24,
        "drawn": 32,
        "unet": unet_of(
            (16, 32),
            (True, True),
            in_channels=4,
            out_channels=4,
            attention_head_dim=4,
            cross_attention_dim=24,
            norm_num_groups=8,
            use_linear_projection=False,
        ),
        "vae": vae_of((6, 12, 12), latent_channels=4, layers_per_block=1, norm_num_groups=3, scaling_factor=0.18215),
        "schedule": {
            "num_train_timesteps": 800,
            "beta_schedule": "linear",
            "beta_start": 0.0001,
            "beta_end": 0.015,
            "steps_offset": 3,
        },
        "loss": {"loss_weight_lm": 1.0, "loss_weight_vm": 5.0, "loss_scale_schedule": "l1_norm"},
    },
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", required=True, type=pathlib.Path, help="the bundle's folder; files in it are written over"
    )
    parser.add_argument("--preset", choices=PRESETS, default="small", help="sizes and settings (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, pictures and noise (default: %(default)s)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    make(asked.out, PRESETS[asked.preset], asked.seed)
    print(f"made {asked.out} ({asked.preset}, seed {asked.seed})")


def make(out: pathlib.Path, preset: dict, seed: int):
    """Writes a bundle."""
    model_file = reference_text.train(preset["pieces"], *preset["control"])
    words = tokenizer(model_file, preset)
    config = release_config(preset, words)
    write_components(out / "components", preset, config, model_file)
    write_tokenizer(out / "ckpt", words, config)
    write_json(out / "ckpt" / "config.json", config)
    model = reference_model.build(config, out / "components", words.ids, seed)
    reference_model.save(model, out / "ckpt")
    rows = reference_text.Rows(
        words,
        preset["queries"],
        (preset["clip"]["image_size"] // preset["clip"]["patch_size"]) ** 2,
        preset["llm"]["max_position_embeddings"],
    )
    processor = transformers.CLIPImageProcessorPil.from_pretrained(out / "components" / "clip")
    record(
        out / "golden",
        Maker(model, rows, processor, preset["resolution"], torch.Generator().manual_seed(seed + 1)),
        preset,
    )


def record(golden: pathlib.Path, maker: Maker, preset: dict):
    """Computes and writes golden/."""
    left_out = preset["left_out"]
    golden.mkdir(parents=True, exist_ok=True)

    def save(name, arrays):
        return np.savez(
            golden / f"{name}.npz",
            **{key: np.asarray(torch.as_tensor(value).detach()) for key, value in arrays.items()},
        )

    save("components", reference_records.components(maker))
    batches, written = reference_records.forward(maker)
    for name, arrays in batches.items():
        save(f"forward_{name}", arrays)
    write_json(golden / "forward.json", written)
    variants = {
        name: options for name, options in (VARIANTS | preset.get("variants", {})).items() if name not in left_out
    }
    graded = tuple(name for name in ("base", "drop", "comprehension", "creation") if name in variants)
    arrays, written, gradients = reference_records.losses(maker, batches, variants, graded)
    save("vmloss", arrays)
    write_json(golden / "vmloss.json", written)
    for name, arrays in gradients.items():
        save(f"grads_{name}", arrays)
    for name, (arrays, written) in {
        "prompt": reference_records.prompts(maker, "mm" not in left_out),
        "generate": reference_records.generation(maker),
    }.items():
        save(name, arrays)
        write_json(golden / f"{name}.json", written)
    save("preproc", reference_records.preprocessing(maker))
    write_json(golden / "tokenizer.json", reference_text.record(maker.rows.words))
    write_json(golden / "data.json", reference_text.data_record(maker.rows))


# ----------------------------------------------------------------------------------------------------------------------
# Files of the release


def tokenizer(model_file: bytes, preset: dict) -> reference_text.Words:
    """The added tokens follow the pieces in the preset's order."""
    pieces = reference_text.Words(model_file, (), True).sentencepiece.get_piece_size()
    return reference_text.Words(
        model_file,
        tuple((NAMES[place], pieces + number) for number, place in enumerate(preset["order"])),
        preset["legacy"],
    )


def release_config(preset: dict, words: reference_text.Words) -> dict:
    """ckpt/config.json."""
    unk, bos, eos = preset["control"]
    width, modules = preset["llm"]["hidden_size"], "omni.models.dreamllm.modeling_plugins"
    common = {"embed_hidden_size": width, "pretrained_model_name_or_path": "components/llm"}
    added = dict(words.added)
    special = {"</s>": eos, "<s>": bos, "<unk>": unk, "[PAD]": added.pop("[PAD]"), "additional_special_tokens": added}
    plugins = {
        "clip_vision_embedding": common
        | {
            "_target_": f"{modules}.CLIPVisionEmbedding",
            "clip_vision_model_name_or_path": "components/clip",
            "projector_type": preset["projector"],
            "projector_depth": 2 if preset["projector"] == "mlp" else 1,
            "select_layer": preset["select_layer"],
            "use_additional_post_layernorm": False,
        },
        "dream_embedding": common | {"_target_": f"{modules}.DreamEmbedding", "num_dream_queries": preset["queries"]},
        "stable_diffusion_head": common
        | {
            "_target_": f"{modules}.StableDiffusionHead",
            "diffusion_name_or_path": "components/sd",
            "projector_type": "linear",
            "projector_depth": 1,
            "resolution": preset["resolution"],
        },
    }
    kinds = {"clip_vision_embedding": "embedding", "dream_embedding": "embedding", "stable_diffusion_head": "head"}
    size = words.sentencepiece.get_piece_size() + len(words.added) + preset["spare"]
    llm = {
        "vocab_size": size,
        "hidden_act": "silu",
        "bos_token_id": bos,
        "eos_token_id": eos,
        "rope_scaling": None,
        "attention_bias": False,
        "pretraining_tp": 1,
        "torch_dtype": "float32",
        "use_cache": True,
    }
    names = {"architectures": ["DreamLLMForCausalMLM"], "model_type": "dreamllm", "special_tokens2ids_dict": special}
    return (
        {"tie_word_embeddings": False}
        | preset["llm"]
        | llm
        | preset["loss"]
        | names
        | {"plugins_init_kwargs": plugins, "plugins_type": kinds}
    )


def write_components(folder: pathlib.Path, preset: dict, config: dict, model_file: bytes):
    """The parts' own configurations.

    The U-Net's side is that of the pictures that are drawn, which training's need not have.
    """
    write_json(folder / "clip" / "config.json", CLIP | preset["clip"])
    side = preset["clip"]["image_size"]
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": preset.get("image_mean", [0.48145466, 0.4578275, 0.40821073]),
        "image_std": preset.get("image_std", [0.26862954, 0.26130258, 0.27577711]),
    }
    write_json(folder / "clip" / "preprocessor_config.json", processor)
    latent = preset.get("drawn", preset["resolution"]) // 2 ** (len(preset["vae"]["block_out_channels"]) - 1)
    write_json(folder / "sd" / "unet" / "config.json", preset["unet"] | {"sample_size": latent})
    write_json(folder / "sd" / "vae" / "config.json", preset["vae"] | {"sample_size": preset["resolution"]})
    write_json(folder / "sd" / "scheduler" / "scheduler_config.json", SCHEDULE | preset["schedule"])
    bare = {key: value for key, value in config.items() if not key.startswith(("plugins", "special", "loss"))}
    write_json(folder / "llm" / "config.json", bare | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    (folder / "llm" / "tokenizer.model").write_bytes(model_file)


def write_tokenizer(folder: pathlib.Path, words: reference_text.Words, config: dict):
    """tokenizer.model and the three JSON files of a slow LlamaTokenizer."""
    added, names = dict(words.added), [name for name, _ in words.added if name != "[PAD]"]
    entry = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    listed = {
        str(i): entry | {"content": name, "special": True}
        for name, i in sorted(words.ids.items(), key=lambda item: item[1])
    }
    control = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "[PAD]"}
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": words.legacy,
        "padding_side": "right",
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "sp_model_kwargs": {},
        "use_default_system_prompt": False,
        "added_tokens_decoder": listed,
        "additional_special_tokens": names,
        **control,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(words.model)
    write_json(folder / "added_tokens.json", added)
    write_json(folder / "tokenizer_config.json", settings)
    special = {key: entry | {"content": name} for key, name in control.items()}
    write_json(
        folder / "special_tokens_map.json",
        special | {"additional_special_tokens": [entry | {"content": name} for name in names]},
    )


def write_json(file: pathlib.Path, values: dict):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
