"""transformers' CLIPTextModel and the text side of CLIPModel: names of tensors and keys of config.json."""

from dreamjax.config import ClipTextConfig
from dreamjax.config.model import LAYERS
from dreamjax.convert.foreign_config import ForeignConfig
from dreamjax.convert.formats.clip import LAYER, pairs, tower
from dreamjax.convert.mapping import Table
from dreamjax.errors import ConfigError

LEGACY_END = 2  # the eos_token_id of files from before it was right: the highest id is pooled instead

NAMES = {
    "token_embedding/embedding": "text_model.embeddings.token_embedding.weight",
    "position_embedding": "text_model.embeddings.position_embedding.weight",
    **pairs({**LAYER, "final_layernorm": "final_layer_norm"}, "text_model."),
}
PROJECTIONS = {
    "text_projection/kernel": "text_projection.weight",
    "visual_projection/kernel": "visual_projection.weight",
    "logit_scale": "logit_scale",
}
OLD_NAMES = ((r"^(?!text_model\.|text_projection\.|visual_projection\.|logit_scale$)", "text_model."),)
IGNORED = (r"\.position_ids$",)
IGNORED_WITHOUT_PROJECTION = (*IGNORED, r"^text_projection\.weight$")  # of a tower that returns hidden states alone


def table(config: ClipTextConfig) -> Table:
    """The names of one text tower."""
    if config.projection_width:
        return Table(NAMES | PROJECTIONS, config.layers, OLD_NAMES, IGNORED)
    return Table(NAMES, config.layers, OLD_NAMES, IGNORED_WITHOUT_PROJECTION)


def read_config(settings: ForeignConfig) -> ClipTextConfig:
    """A config.json of a CLIPTextModel, or of a CLIPModel with its projections."""
    projection = vision = 0
    if (text := tower(settings, "text_config")) is not settings:
        projection, vision = (
            settings.integer("projection_dim", 512),
            tower(settings, "vision_config").integer("hidden_size", 768),
        )
        settings = text
    settings.require({"hidden_act": ("quick_gelu", "gelu"), "model_type": ("clip_text_model",)})
    end = settings.integer("eos_token_id", 49407, least=0)
    try:
        return ClipTextConfig(
            vocab_size=settings.integer("vocab_size", 49408),
            positions=settings.integer("max_position_embeddings", 77),
            width=settings.integer("hidden_size", 512),
            layers=settings.integer("num_hidden_layers", 12, most=LAYERS),
            heads=settings.integer("num_attention_heads", 8),
            ffn_width=settings.integer("intermediate_size", 2048),
            layer_norm_eps=settings.number("layer_norm_eps", 1e-5),
            activation=settings.get("hidden_act", "quick_gelu"),
            end_token=None if end == LEGACY_END else end,
            projection_width=projection,
            vision_width=vision,
        )
    except ConfigError as error:
        raise ConfigError(f"{settings.location}: {error}") from None


def write_config(config: ClipTextConfig) -> dict:
    """The config.json of a CLIPTextModel that `read_config` reads."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.ffn_width,
        "max_position_embeddings": config.positions,
        "hidden_act": config.activation,
        "layer_norm_eps": config.layer_norm_eps,
        "eos_token_id": LEGACY_END if config.end_token is None else config.end_token,
        "projection_dim": config.projection_width or config.width,
    }
