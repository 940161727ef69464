"""Export to the layout of the official DreamLLM release, see formats/official.py."""

import os
import pathlib
from collections.abc import Mapping

import numpy as np

from dreamjax.config import ClipConfig, UNetConfig, VaeConfig
from dreamjax.convert.formats import clip, official, stable_diffusion
from dreamjax.convert.mapping import Table
from dreamjax.convert.tensors import require_torch
from dreamjax.convert.weight_files import (
    StreamedModel,
    read_leaf,
    write_json,
    write_part,
    write_pickle,
    write_tokenizer,
)
from dreamjax.errors import ConfigError


def export(model: StreamedModel, out: os.PathLike) -> list[str]:
    """Writes a release folder; returns the parts that the format has no place for."""
    config, root = model.config, pathlib.Path(out)
    if config.llm is None:
        raise ConfigError("--format: official needs an LLM; this model has none")
    if config.unet and not config.vae:
        raise ConfigError("--format: official has no place for diffusion in pixels (this model has a U-Net and no VAE)")
    require_torch(root)
    tokenizer = model.load_tokenizer()
    write_json(root / "config.json", official.write_config(config, tokenizer, model.dtype("llm")))
    write_part(model, "llm", root, "model")
    write_tokenizer(tokenizer, root, config.llm.max_positions)
    if config.clip:
        _write_clip(model, config.clip, root)
    if config.unet and config.vae:
        _write_diffusion(model, config.unet, config.vae, root)
    return [part for part in ("text_encoder", "clip_text") if getattr(config, part)]


def _write_clip(model: StreamedModel, config: ClipConfig, root: pathlib.Path) -> None:
    home = root / official.CLIP_HOME
    write_json(home / "config.json", clip.write_config(config))
    write_json(home / clip.PROCESSOR_FILE, clip.write_processor(config))
    tensors = _prefixed(model, {"clip_vision_model.": "clip"})
    projector = Table(official.VISUAL_PROJECTORS[model.config.visual_projector])
    tensors |= dict(model.tensors("visual_projector", projector))
    write_pickle(tensors, root / official.PLUGINS["clip_vision_embedding"])


def _write_diffusion(model: StreamedModel, unet: UNetConfig, vae: VaeConfig, root: pathlib.Path) -> None:
    home = root / official.DIFFUSION_HOME
    write_json(home / "unet" / "config.json", stable_diffusion.write_unet(unet))
    write_json(home / "vae" / "config.json", stable_diffusion.write_vae(vae, model.config.decoder_size))
    schedule = stable_diffusion.write_schedule(model.config.diffusion)
    write_json(home / "scheduler" / "scheduler_config.json", schedule)
    tensors = _prefixed(model, {"vae.": "vae", "unet.": "unet"})
    tensors |= dict(model.tensors("condition_projector", Table(official.CONDITION_PROJECTOR)))
    write_pickle(tensors, root / official.PLUGINS["stable_diffusion_head"])
    queries = read_leaf(model.leaves["dream_queries"])[None]  # [1, Q, D]
    write_pickle({"dream_queries": queries}, root / official.PLUGINS["dream_embedding"])


def _prefixed(model: StreamedModel, parts: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The tensors of parts {prefix: part}, with the prefix before each name."""
    return {
        prefix + name: array for prefix, part in parts.items() for name, array in model.tensors(part, model.table(part))
    }
