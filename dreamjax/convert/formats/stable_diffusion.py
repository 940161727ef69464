"""diffusers' UNet2DConditionModel, AutoencoderKL and noise schedules: names of tensors and keys of their
configurations.

Our submodules have diffusers' names with list indices joined by an underscore, so the names follow from ours by rule.
"""

import re
from collections.abc import Iterable

from dreamjax.config import DiffusionConfig, UNetConfig, VaeConfig
from dreamjax.config.model import LAYERS_PER_BLOCK
from dreamjax.convert.foreign_config import ForeignConfig
from dreamjax.convert.mapping import Table
from dreamjax.errors import ConfigError

# Attention layers of a VAE saved before diffusers 0.15.
OLD_VAE = ((r"\.query\.", ".to_q."), (r"\.key\.", ".to_k."), (r"\.value\.", ".to_v."), (r"\.proj_attn\.", ".to_out.0."))

# Settings that change numbers, with the values that are supported; null and missing stand for diffusers' defaults,
# which are supported.
UNET_FIXED = {
    "_class_name": ("UNet2DConditionModel",),
    "act_fn": ("silu",),
    "addition_embed_type": (),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (),
    "encoder_hid_dim_type": (),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_scale_factor": (1,),
    "mid_block_only_cross_attention": (False,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "norm_eps": (1e-5,),
    "num_class_embeds": (),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (),
    "time_cond_proj_dim": (),
    "time_embedding_act_fn": (),
    "time_embedding_dim": (),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (),
    "dropout": (0, 0.0),
}
VAE_FIXED = {
    "_class_name": ("AutoencoderKL",),
    "act_fn": ("silu",),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    "mid_block_add_attention": (True,),
    "shift_factor": (0, 0.0),
    "latents_mean": (),
    "latents_std": (),
}
SCHEDULE_FIXED = {
    "trained_betas": (),
    "rescale_betas_zero_snr": (False,),
    "thresholding": (False,),
    "use_flow_sigmas": (False,),
}

# Defaults of diffusers' classes for missing keys: those of most classes, then by class those that differ. Classes of
# other processes (flow matching, EDM) are not listed. A key that a class does not have counts as missing.
SCHEDULE_DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
    "steps_offset": 0,
    "set_alpha_to_one": True,
    "clip_sample": False,
}
_STABLE_DIFFUSIONS_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS: dict[str, dict] = {
    **dict.fromkeys(
        ("DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler"), {"clip_sample": True}
    ),
    "PNDMScheduler": {"set_alpha_to_one": False},
    **dict.fromkeys(
        ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler", "DEISMultistepScheduler"),
        {},
    ),
    **dict.fromkeys(
        ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "SASolverScheduler"),
        {},
    ),
    **dict.fromkeys(
        ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"), _STABLE_DIFFUSIONS_BETAS
    ),
    **dict.fromkeys(("LCMScheduler", "TCDScheduler"), {"beta_schedule": "scaled_linear", **_STABLE_DIFFUSIONS_BETAS}),
}


def unet_table(paths: Iterable[str]) -> Table:
    """The names of a U-Net with these parameters."""
    return Table({path: diffusers_name(path) for path in paths})


def vae_table(paths: Iterable[str]) -> Table:
    """The names of an autoencoder with these parameters."""
    return Table({path: diffusers_name(path) for path in paths}, old_names=OLD_VAE)


def diffusers_name(path: str) -> str:
    """`down_blocks_0/resnets_1/conv1/kernel` -> `down_blocks.0.resnets.1.conv1.weight`."""
    *modules, leaf = path.split("/")
    dotted = [
        re.sub(
            r"^(down_blocks|up_blocks|resnets|attentions|transformer_blocks|downsamplers|upsamplers|net|to_out)_(\d+)$",
            r"\1.\2",
            m,
        )
        for m in modules
    ]
    return ".".join([*dotted, {"kernel": "weight", "scale": "weight", "bias": "bias"}[leaf]])


def read_unet(settings: ForeignConfig, sample_size: int | None = None) -> UNetConfig:
    """A unet/config.json; `sample_size` in latents overrides the file's."""
    settings.require(UNET_FIXED)
    channels = settings.integers("block_out_channels", (320, 640, 1280, 1280))
    levels = len(channels)
    down = settings.names("down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",))
    up = settings.names("up_block_types", ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
    known = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
    if len(down) != levels or not set(down) <= set(known):
        raise ConfigError(
            f"{settings.location}: down_block_types: {list(down)} needs {levels} entries, each {' or '.join(known)}"
        )
    mirrored = tuple(name.replace("Down", "Up") for name in reversed(down))
    if up != mirrored:
        raise ConfigError(
            f"{settings.location}: up_block_types: {list(up)} does not mirror down_block_types; {list(mirrored)} would"
        )
    layers = set(settings.per_block("layers_per_block", 2, levels, LAYERS_PER_BLOCK))
    if len(layers) > 1 or set(settings.per_block("transformer_layers_per_block", 1, levels)) != {1}:
        raise ConfigError(
            f"{settings.location}: layers_per_block and transformer_layers_per_block: need the same number "
            "for all blocks, and 1 transformer layer"
        )
    contexts = set(settings.per_block("cross_attention_dim", 1280, levels))
    if len(contexts) > 1:
        raise ConfigError(
            f"{settings.location}: cross_attention_dim: needs one width for all blocks, not {sorted(contexts)}"
        )
    # What diffusers calls attention_head_dim is the number of heads, unless a file has the later key.
    heads_key = "attention_head_dim" if settings.get("num_attention_heads") is None else "num_attention_heads"
    heads = settings.per_block(heads_key, 8, levels)
    try:
        return UNetConfig(
            sample_size=sample_size or settings.integer("sample_size"),
            in_channels=settings.integer("in_channels", 4),
            out_channels=settings.integer("out_channels", 4),
            block_channels=channels,
            layers_per_block=layers.pop(),
            cross_attention=tuple(known[name] for name in down),
            heads=heads,
            context_width=contexts.pop(),
            norm_groups=settings.integer("norm_num_groups", 32),
            linear_projection=settings.flag("use_linear_projection", False),
        )
    except ConfigError as error:
        raise ConfigError(f"{settings.location}: {error}") from None


def write_unet(config: UNetConfig) -> dict:
    """The unet/config.json that `read_unet` reads."""
    down = ["CrossAttnDownBlock2D" if cross else "DownBlock2D" for cross in config.cross_attention]
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.24.0",
        "sample_size": config.sample_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": list(config.block_channels),
        "layers_per_block": config.layers_per_block,
        "down_block_types": down,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "attention_head_dim": list(config.heads),
        "cross_attention_dim": config.context_width,
        "norm_num_groups": config.norm_groups,
        "norm_eps": 1e-5,
        "use_linear_projection": config.linear_projection,
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "center_input_sample": False,
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
        "only_cross_attention": False,
        "dual_cross_attention": False,
    }


def read_vae(settings: ForeignConfig) -> VaeConfig:
    """A vae/config.json."""
    settings.require(VAE_FIXED)
    channels = settings.integers("block_out_channels", (64,))
    settings.require(
        {
            "down_block_types": (("DownEncoderBlock2D",) * len(channels),),
            "up_block_types": (("UpDecoderBlock2D",) * len(channels),),
        }
    )
    image_channels = settings.integer("in_channels", 3)
    settings.require({"out_channels": (image_channels,)})
    try:
        return VaeConfig(
            image_channels=image_channels,
            latent_channels=settings.integer("latent_channels", 4),
            block_channels=channels,
            layers_per_block=settings.integer("layers_per_block", 1, most=LAYERS_PER_BLOCK),
            norm_groups=settings.integer("norm_num_groups", 32),
            scaling_factor=settings.number("scaling_factor", 0.18215),
        )
    except ConfigError as error:
        raise ConfigError(f"{settings.location}: {error}") from None


def write_vae(config: VaeConfig, sample_size: int) -> dict:
    """The vae/config.json that `read_vae` reads; `sample_size` in pixels."""
    levels = len(config.block_channels)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.24.0",
        "in_channels": config.image_channels,
        "out_channels": config.image_channels,
        "latent_channels": config.latent_channels,
        "block_out_channels": list(config.block_channels),
        "layers_per_block": config.layers_per_block,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "norm_num_groups": config.norm_groups,
        "scaling_factor": config.scaling_factor,
        "act_fn": "silu",
        "sample_size": sample_size,
        "force_upcast": True,
    }


def read_schedule(settings: ForeignConfig) -> DiffusionConfig:
    """The noise schedule of a scheduler_config.json, with the defaults of its diffusers class for missing keys."""
    settings.require(SCHEDULE_FIXED | {"_class_name": tuple(SCHEDULERS)})
    name = settings.get("_class_name")
    defaults = SCHEDULE_DEFAULTS | SCHEDULERS.get(name, {})
    if settings.flag("clip_sample", defaults["clip_sample"]):
        value = "true" if "clip_sample" in settings.values else f"is missing, which is true for a {name},"
        raise ConfigError(
            f"{settings.location}: clip_sample: {value} and not supported; false is, which "
            "StableDiffusionPipeline itself sets: write it into the file"
        )
    try:
        return DiffusionConfig(
            timesteps=settings.integer("num_train_timesteps", defaults["num_train_timesteps"]),
            beta_schedule=settings.text("beta_schedule", defaults["beta_schedule"]),
            beta_start=settings.number("beta_start", defaults["beta_start"]),
            beta_end=settings.number("beta_end", defaults["beta_end"]),
            prediction=settings.text("prediction_type", defaults["prediction_type"]),
            steps_offset=settings.integer("steps_offset", defaults["steps_offset"], least=0),
            set_alpha_to_one=settings.flag("set_alpha_to_one", defaults["set_alpha_to_one"]),
        )
    except ConfigError as error:
        raise ConfigError(f"{settings.location}: {error}") from None


def write_schedule(config: DiffusionConfig) -> dict:
    """The scheduler_config.json that `read_schedule` reads, in the form of Stable Diffusion 2.1-base's."""
    return {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.24.0",
        "num_train_timesteps": config.timesteps,
        "beta_schedule": config.beta_schedule,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "prediction_type": config.prediction,
        "steps_offset": config.steps_offset,
        "set_alpha_to_one": config.set_alpha_to_one,
        "skip_prk_steps": True,
        "clip_sample": False,
        "trained_betas": None,
    }
