"""Export to Hugging Face folders: llm/, clip/, sd/ as diffusers stores it, joints/ (projectors, dream queries)."""

import os
import pathlib

from dreamjax.convert import assemble
from dreamjax.convert.formats import clip, clip_text, huggingface, llama, stable_diffusion
from dreamjax.convert.weight_files import (
    StreamedModel,
    copy_clip_tokenizers,
    read_leaf,
    write_json,
    write_part,
    write_tensors,
    write_tokenizer,
)

FOLDERS = ("llm", "clip", "sd", "joints")
DIFFUSERS_VERSION = "0.24.0"  # in whose form the configurations are written


def export(model: StreamedModel, out: os.PathLike) -> list[str]:
    """Writes the folders of the parts that a model has; returns the parts that the format has no place for."""
    root = pathlib.Path(out)
    _export_llm(model, root / "llm")
    _export_clip(model, root / "clip")
    _export_stable_diffusion(model, root / "sd")
    _export_joints(model, root / "joints")
    copy_clip_tokenizers(model, {"text_encoder": root / "sd" / "tokenizer", "clip_text": root / "clip"})
    return ["clip_text"] if model.config.clip_text and not model.config.clip else []


def _export_llm(model: StreamedModel, folder: pathlib.Path) -> None:
    config = model.config.llm
    if not config:
        return
    tokenizer = model.load_tokenizer()
    special_ids = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.unk}
    write_json(folder / "config.json", llama.write_config(config, model.dtype("llm"), special_ids))
    write_part(model, "llm", folder, "model")
    write_tokenizer(tokenizer, folder, config.max_positions)


def _export_clip(model: StreamedModel, folder: pathlib.Path) -> None:
    """A CLIPVisionModel, or a CLIPModel where the model has the text tower too."""
    image, text = model.config.clip, model.config.clip_text
    if not image:
        return
    write_json(folder / clip.PROCESSOR_FILE, clip.write_processor(image))
    if not text:
        write_json(folder / "config.json", clip.write_config(image))
        write_part(model, "clip", folder, "model")
        return
    config = {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": text.projection_width,
        "text_config": clip_text.write_config(text),
        "vision_config": clip.write_config(image),
    }
    write_json(folder / "config.json", config)
    towers = {part: model.table(part) for part in ("clip", "clip_text")}
    tensors = (tensor for part, table in towers.items() for tensor in model.tensors(part, table))
    write_tensors(tensors, folder, "model")


def _export_stable_diffusion(model: StreamedModel, folder: pathlib.Path) -> None:
    config = model.config
    if config.unet:
        index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": DIFFUSERS_VERSION}
        write_json(folder / "model_index.json", index)
        schedule = stable_diffusion.write_schedule(config.diffusion)
        write_json(folder / "scheduler" / "scheduler_config.json", schedule)
        write_json(folder / "unet" / "config.json", stable_diffusion.write_unet(config.unet))
        write_part(model, "unet", folder / "unet", huggingface.DIFFUSERS[0])
    if config.vae:
        write_json(folder / "vae" / "config.json", stable_diffusion.write_vae(config.vae, config.decoder_size))
        write_part(model, "vae", folder / "vae", huggingface.DIFFUSERS[0])
    if config.text_encoder:
        write_json(folder / "text_encoder" / "config.json", clip_text.write_config(config.text_encoder))
        write_part(model, "text_encoder", folder / "text_encoder", huggingface.TRANSFORMERS[0])


def _export_joints(model: StreamedModel, folder: pathlib.Path) -> None:
    joints = {path: leaf for path, leaf in model.leaves.items() if path.split("/")[0] in assemble.JOINTS}
    if not joints:
        return
    config = {
        "model_type": huggingface.JOINTS_TYPE,
        "visual_projector": model.config.visual_projector,
        "dream_queries": model.config.dream_queries,
        "template": model.card.template,
    }
    write_json(folder / "config.json", config)
    write_tensors(((path.replace("/", "."), read_leaf(leaf)) for path, leaf in joints.items()), folder, "model")
