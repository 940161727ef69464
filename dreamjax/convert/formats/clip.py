"""transformers' CLIPVisionModel: names of its tensors, keys of its config.json and of its image processor's."""

import dataclasses

from dreamjax.config import ClipConfig
from dreamjax.config.model import LAYERS, MOST
from dreamjax.convert.foreign_config import LARGEST, ForeignConfig
from dreamjax.convert.mapping import Table
from dreamjax.errors import ConfigError

LAYER = {
    "layers/layer_norm1": "encoder.layers.{i}.layer_norm1",
    "layers/attention/q": "encoder.layers.{i}.self_attn.q_proj",
    "layers/attention/k": "encoder.layers.{i}.self_attn.k_proj",
    "layers/attention/v": "encoder.layers.{i}.self_attn.v_proj",
    "layers/attention/o": "encoder.layers.{i}.self_attn.out_proj",
    "layers/layer_norm2": "encoder.layers.{i}.layer_norm2",
    "layers/mlp/fc1": "encoder.layers.{i}.mlp.fc1",
    "layers/mlp/fc2": "encoder.layers.{i}.mlp.fc2",
}
VISION = {**LAYER, "pre_layernorm": "pre_layrnorm", "post_layernorm": "post_layernorm"}  # transformers' spelling


def pairs(modules: dict[str, str], prefix: str) -> dict[str, str]:
    """The names of the modules' weights and biases."""
    names = {}
    for module, foreign_module in modules.items():
        names[f"{module}/{'scale' if 'norm' in module else 'kernel'}"] = f"{prefix}{foreign_module}.weight"
        names[f"{module}/bias"] = f"{prefix}{foreign_module}.bias"
    return names


NAMES = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "patch_embedding/kernel": "vision_model.embeddings.patch_embedding.weight",
    "position_embedding": "vision_model.embeddings.position_embedding.weight",
    **pairs(VISION, "vision_model."),
}
OLD_NAMES = (
    (r"^(?!vision_model\.|visual_projection\.)", "vision_model."),
)  # a vision transformer saved without its wrapper
IGNORED = (
    r"\.position_ids$",
    r"^visual_projection\.weight$",
)  # a projection into the space of texts belongs to the text tower here


def table(config: ClipConfig) -> Table:
    """The names of one encoder."""
    return Table(NAMES, config.layers, OLD_NAMES, IGNORED)


def read_config(settings: ForeignConfig, select_layer: int | None = None) -> ClipConfig:
    """A config.json of a CLIPVisionModel or of a CLIPModel, with transformers' defaults for missing keys."""
    settings = tower(settings, "vision_config")
    settings.require({"num_channels": (3,), "hidden_act": ("quick_gelu", "gelu"), "model_type": ("clip_vision_model",)})
    try:
        return ClipConfig(
            image_size=settings.integer("image_size", 224),
            patch_size=settings.integer("patch_size", 32),
            width=settings.integer("hidden_size", 768),
            layers=settings.integer("num_hidden_layers", 12, most=LAYERS),
            heads=settings.integer("num_attention_heads", 12),
            ffn_width=settings.integer("intermediate_size", 3072),
            layer_norm_eps=settings.number("layer_norm_eps", 1e-5),
            activation=settings.get("hidden_act", "quick_gelu"),
            select_layer=settings.integer("vision_feature_layer", -2, least=-MOST)
            if select_layer is None
            else select_layer,
        )
    except ConfigError as error:
        raise ConfigError(f"{settings.location}: {error}") from None


def tower(settings: ForeignConfig, key: str) -> ForeignConfig:
    """The vision_config or text_config of a CLIPModel; the settings themselves where they are those of one tower.

    A vision_config_dict or text_config_dict beside it, which files of 2022 have, takes precedence, with defaults for
    its missing keys, as in transformers.
    """
    if settings.get(older := f"{key}_dict") is not None:
        return settings.section(older)
    return settings.section(key) if key in settings.values else settings


def write_config(config: ClipConfig) -> dict:
    """The config.json that `read_config` reads."""
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.ffn_width,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "hidden_act": config.activation,
        "layer_norm_eps": config.layer_norm_eps,
        "vision_feature_layer": config.select_layer,  # LLaVA's name for it; transformers' CLIP ignores it
    }


PROCESSOR_FILE = "preprocessor_config.json"


def read_processor(settings: ForeignConfig, config: ClipConfig) -> ClipConfig:
    """The encoder with its image processor's mean and deviation.

    ConfigError where it prepares images differently from `images.for_encoder`.
    """
    settings.require({key: (True,) for key in ("do_resize", "do_center_crop", "do_rescale", "do_normalize")})
    settings.require({"resample": (3,), "rescale_factor": (1 / 255,)})
    for key, names in (("size", ("shortest_edge",)), ("crop_size", ("height", "width"))):
        value = settings.get(key, config.image_size)
        sides = [value.get(name) for name in names] if isinstance(value, dict) else [value]
        if any(isinstance(side, bool) or side != config.image_size for side in sides):
            raise ConfigError(
                f"{settings.location}: {key}: {value!r:.80} is not the encoder's image_size = {config.image_size}"
            )
    try:
        return dataclasses.replace(
            config,
            image_mean=_three(settings, "image_mean", config.image_mean),
            image_std=_three(settings, "image_std", config.image_std),
        )
    except ConfigError as error:
        raise ConfigError(f"{settings.location}: {error}") from None


def _three(settings: ForeignConfig, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    value = settings.get(key, default)
    fits = (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(
            isinstance(entry, int | float) and not isinstance(entry, bool) and abs(entry) < LARGEST for entry in value
        )
    )
    if not fits or (key == "image_std" and min(value) <= 0):
        raise ConfigError(
            f"{key}: needs three numbers{', each above zero' if key == 'image_std' else ''}, not {value!r:.80}"
        )
    return tuple(map(float, value))


def write_processor(config: ClipConfig) -> dict:
    """The preprocessor_config.json that `read_processor` reads."""
    side = config.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
        "do_convert_rgb": True,
    }
