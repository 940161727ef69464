"""The Hugging Face tensor names of each part of a model."""

from collections.abc import Mapping

from dreamjax.config import ModelConfig
from dreamjax.config.validation import require_present
from dreamjax.convert import assemble
from dreamjax.convert.formats import clip, clip_text, llama, stable_diffusion
from dreamjax.convert.mapping import Table


def of(part: str, model: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Table:
    """The Hugging Face names of llm, clip, text_encoder, clip_text, unet or vae in a model with parameters of these
    `shapes`.
    """
    match part:
        case "llm":
            return llama.table(require_present(model.llm, part))
        case "clip":
            return clip.table(require_present(model.clip, part))
        case "text_encoder" | "clip_text":
            return clip_text.table(getattr(model, part))
        case "unet":
            return stable_diffusion.unet_table(assemble.part_shapes(shapes, part))
        case "vae":
            return stable_diffusion.vae_table(assemble.part_shapes(shapes, part))
    raise ValueError(f"{part}: has no names of its own in other formats")
