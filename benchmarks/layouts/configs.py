"""Configuration files with the keys that published folders have, in small sizes.

What matters is which keys are there and in which form: today's libraries write others. The sizes are the smallest that
differ from each other where they can.
"""

NEW_END = 49407  # <|endoftext|> in CLIP's vocabulary
END = 59  # in the small one here

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}
# Vicuna v1.5's; v1.1's lacks num_key_value_heads, rope_scaling and pretraining_tp.
OLD_LLAMA = {
    "_name_or_path": "weights/7b",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "model_type": "llama",
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0",
    "use_cache": True,
}
SINCE_4_31 = {"num_key_value_heads": 4, "pretraining_tp": 1, "rope_scaling": None}

CLIP_VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
}
CLIP_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 60,
    "max_position_embeddings": 9,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": END,
}
# Every default of generation and of classification that transformers 4.16 wrote into each tower's object.
CLUTTER = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "architectures": None,
    "attention_dropout": 0.0,
    "bad_words_ids": None,
    "bos_token_id": None,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "decoder_start_token_id": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "dropout": 0.0,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "eos_token_id": None,
    "finetuning_task": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "hidden_act": "quick_gelu",
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "layer_norm_eps": 1e-05,
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "pad_token_id": None,
    "prefix": None,
    "problem_type": None,
    "projection_dim": 512,
    "pruned_heads": {},
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict": True,
    "return_dict_in_generate": False,
    "sep_token_id": None,
    "task_specific_params": None,
    "temperature": 1.0,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
    "tokenizer_class": None,
    "top_k": 50,
    "top_p": 1.0,
    "torch_dtype": None,
    "torchscript": False,
    "transformers_version": "4.16.0.dev0",
    "typical_p": 1.0,
    "use_bfloat16": False,
}
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "vocab_size",
    "max_position_embeddings",
)


def published_tower(kind: str, sizes: dict) -> dict:
    """The config of one tower as it stood in 2022."""
    return {
        **CLUTTER,
        "architectures": ["CLIPVisionModel" if kind == "clip_vision_model" else "CLIPTextModel"],
        "model_type": kind,
        **sizes,
    }


def published_clip(activation: str) -> dict:
    """openai/clip-vit-large-patch14's form (laion's too, with gelu): both towers at length, and once more in
    *_config_dict, which wins.

    Its text_config has eos_token_id 2, its text_config_dict none, so that the default of today counts.
    """
    text = {**CLUTTER, **CLIP_TEXT, "eos_token_id": 2, "model_type": "clip_text_model", "hidden_act": activation}
    vision = {**CLUTTER, **CLIP_VISION, "model_type": "clip_vision_model", "hidden_act": activation, "num_channels": 3}

    def short(sizes):
        return {
            **{key: value for key, value in sizes.items() if key in SIZES},
            "projection_dim": 8,
            "hidden_act": activation,
        }

    return {
        "_name_or_path": "clip-vit-large-patch14/",
        "architectures": ["CLIPModel"],
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": 8,
        "text_config": text,
        "text_config_dict": short(CLIP_TEXT),
        "torch_dtype": "float32",
        "transformers_version": None,
        "vision_config": vision,
        "vision_config_dict": short(CLIP_VISION),
    }


# openai/clip-vit-large-patch14-336's: a few keys only.
CLIP_336 = {
    "_name_or_path": "weights/clip-336",
    "architectures": ["CLIPModel"],
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
    "projection_dim": 8,
    "text_config": {**CLIP_TEXT, "dropout": 0.0, "model_type": "clip_text_model", "projection_dim": 8},
    "vision_config": {
        **CLIP_VISION,
        "image_size": 12,
        "dropout": 0.0,
        "model_type": "clip_vision_model",
        "projection_dim": 8,
    },
    "torch_dtype": "float32",
    "transformers_version": "4.21.3",
}


def processor(side: int, old: bool = False) -> dict:
    """A preprocessor_config.json, `old` with plain numbers for sizes."""
    statistics = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    if old:
        return {
            "crop_size": side,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "resample": 3,
            "size": side,
            **statistics,
        }
    return {
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_processor_type": "CLIPImageProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": side},
        **statistics,
    }


_UNET = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "block_out_channels": [8, 16],
    "center_input_sample": False,
    "downsample_padding": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 4,
    "out_channels": 4,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
UNETS = {  # 2.x lists the numbers of heads and has linear projections, 1.x one number for all blocks and convolutions
    "2.1": {
        **_UNET,
        "_diffusers_version": "0.10.0.dev0",
        "attention_head_dim": [2, 4],
        "cross_attention_dim": 16,
        "dual_cross_attention": False,
        "num_class_embeds": None,
        "only_cross_attention": False,
        "sample_size": 4,
        "upcast_attention": False,
        "use_linear_projection": True,
    },
    "1.5": {
        **_UNET,
        "_diffusers_version": "0.6.0",
        "attention_head_dim": 4,
        "cross_attention_dim": 16,
        "sample_size": 8,
    },
}
VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.10.0.dev0",
    "act_fn": "silu",
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "out_channels": 3,
    "sample_size": 8,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
TEXT_SIZES = {"2.1": ("gelu", 2), "1.5": ("quick_gelu", 3)}  # activation, layers: one fewer than its CLIP has, and all
TEXT_ENCODERS = {
    which: {
        "_name_or_path": "hf-models/text_encoder",
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_text_model",
        "projection_dim": 512,
        "torch_dtype": "float32",
        "transformers_version": "4.25.0.dev0",
        **CLIP_TEXT,
        "eos_token_id": 2,
        "hidden_act": activation,
        "num_hidden_layers": layers,
    }
    for which, (activation, layers) in TEXT_SIZES.items()
}
_SCHEDULE = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "trained_betas": None,
}
SCHEDULERS = {
    "pndm": {  # 1.5 and 2.1-base
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.10.0.dev0",
        **_SCHEDULE,
        "clip_sample": False,
        "prediction_type": "epsilon",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
    },
    "pndm-2022": {"_class_name": "PNDMScheduler", "_diffusers_version": "0.2.2", **_SCHEDULE, "skip_prk_steps": True},
    "ddim-v": {  # 2.1 at 768 pixels
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.8.0",
        **_SCHEDULE,
        "clip_sample": False,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
    },
    "euler": {
        "_class_name": "EulerDiscreteScheduler",
        "_diffusers_version": "0.19.0.dev0",
        **_SCHEDULE,
        "clip_sample": False,
        "interpolation_type": "linear",
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "timestep_spacing": "leading",
        "use_karras_sigmas": False,
    },
}


def official(projector: str, ids: dict[str, int], vocabulary: int) -> dict:
    """config.json of the official release."""
    width, module = LLAMA["hidden_size"], "omni.models.dreamllm.modeling_plugins"

    def plugin(name, **own):
        return {
            "_target_": f"{module}.{name}",
            "embed_hidden_size": width,
            "local_files_only": False,
            "pretrained_model_name_or_path": "components/llm",
            **own,
        }

    return {
        **OLD_LLAMA,
        **SINCE_4_31,
        **LLAMA,
        "architectures": ["DreamLLMForCausalMLM"],
        "attention_bias": False,
        "log_attentions": False,
        "log_hidden_states": False,
        "loss_scale_schedule": "none",
        "loss_weight_lm": 1.0,
        "loss_weight_vm": 10.0,
        "model_type": "dreamllm",
        "plugins_init_kwargs": {
            "clip_vision_embedding": plugin(
                "CLIPVisionEmbedding",
                clip_vision_model_name_or_path="components/clip",
                freeze_clip_vision_model=True,
                freeze_embedding_layers=True,
                freeze_projector=False,
                projector_depth={"linear": 1, "mlp": 2}[projector],
                projector_type=projector,
                select_layer=-2,
                use_additional_post_layernorm=False,
            ),
            "dream_embedding": plugin("DreamEmbedding", freeze_dream_queries=False, num_dream_queries=3),
            "stable_diffusion_head": plugin(
                "StableDiffusionHead",
                diffusion_name_or_path="components/sd",
                freeze_projector=False,
                freeze_unet=True,
                freeze_vae=True,
                projector_depth=1,
                projector_type="linear",
                resolution=8,
            ),
        },
        "plugins_type": {
            "clip_vision_embedding": "embedding",
            "dream_embedding": "embedding",
            "stable_diffusion_head": "head",
        },
        "rope_theta": 10000.0,
        "special_tokens2ids_dict": {
            "<unk>": 0,
            "<s>": 1,
            "</s>": 2,
            "[PAD]": ids["[PAD]"],
            "additional_special_tokens": {n: i for n, i in ids.items() if n != "[PAD]"},
        },
        "torch_dtype": "float32",
        "transformers_version": "4.35.2",
        "vocab_size": vocabulary + len(ids),
    }
