"""Hugging Face folders: LLaMA, CLIP (one tower or both), Stable Diffusion as diffusers stores it, and our joints."""

import pathlib
from collections.abc import Callable
from typing import Any

from dreamjax.config import ModelConfig
from dreamjax.convert import assemble, tables
from dreamjax.convert.assemble import ForeignSource, RawPart
from dreamjax.convert.foreign_config import ForeignConfig
from dreamjax.convert.formats import clip, clip_text, llama, stable_diffusion
from dreamjax.convert.mapping import Leaf
from dreamjax.convert.tensors import open_weights
from dreamjax.errors import ConfigError

TRANSFORMERS = ("model", "pytorch_model")  # stems of weight files
DIFFUSERS = ("diffusion_pytorch_model",)
JOINTS_TYPE = "dreamllm_joints"  # our own: projectors and dream queries, by our names
COMPONENTS = {"UNet2DConditionModel": "unet/", "AutoencoderKL": "vae/"}  # diffusers' classes, by _class_name
# Values of model_type and architectures in config.json -> kind.
MODEL_TYPES = {
    JOINTS_TYPE: "joints",
    "llama": "llama",
    "clip": "clip",
    "clip_vision_model": "clip_vision",
    "clip_text_model": "clip_text",
}
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "CLIPModel": "clip",
    "CLIPVisionModel": "clip_vision",
    "CLIPTextModel": "clip_text",
}
CLIP_TEXT = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")


def kind(folder: pathlib.Path) -> str | None:
    """llama, clip, clip_vision, clip_text, joints, diffusers or None; ConfigError for a part of a diffusers folder."""
    if any((folder / part / "config.json").is_file() for part in ("unet", "vae")):
        return "diffusers"
    if not (folder / "config.json").is_file():
        return None
    values = ForeignConfig.of(folder / "config.json").values
    if isinstance(values.get("_class_name"), str) and values["_class_name"] in COMPONENTS:
        part = COMPONENTS[values["_class_name"]]
        raise ConfigError(
            f"{folder}: is the {part} of a Stable Diffusion folder; give the folder above it (--parts "
            "chooses among its parts)"
        )
    return MODEL_TYPES.get(str(values.get("model_type"))) or ARCHITECTURES.get(_architecture(values) or "")


def _architecture(values: dict) -> str | None:
    """The first of a config.json's architectures."""
    named = values.get("architectures")
    return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None


def describe(folder: pathlib.Path) -> str:
    """The keys by which a folder's files describe it, for messages; empty where there are none."""
    entries = []
    for file in (folder / "config.json", folder / "model_index.json"):
        values = ForeignConfig.of(file).values if file.is_file() else {}
        entries += [
            f"{key} {values[key]!r:.80}" for key in ("model_type", "architectures", "_class_name") if key in values
        ]
    return ", ".join(entries)


def read(folder: pathlib.Path) -> ForeignSource:
    """Opens a folder of one of these kinds."""
    match kind(folder):
        case "llama":
            return _read_llama(folder)
        case "clip" | "clip_vision" | "clip_text" as which:
            return _read_clip(folder, which)
        case "joints":
            return _read_joints(folder)
        case "diffusers":
            return _read_diffusers(folder)
    raise ConfigError(f"{folder}: is not recognised")


def _read_llama(folder: pathlib.Path) -> ForeignSource:
    settings = ForeignConfig.of(folder / "config.json")
    tensors, files = open_weights(folder, TRANSFORMERS)
    config, resolved, notes = llama.resolve_head(llama.read_config(settings), tensors, str(folder))
    leaves = assemble.read_part(
        "llm", llama.table(config), assemble.shapes_of(ModelConfig(llm=config)), resolved, str(folder)
    )
    template = "vicuna_v1.1" if "vicuna" in f"{settings.get('_name_or_path', '')} {folder.name}".lower() else None
    raw = {"llm": RawPart(settings.values, tensors)}
    return ForeignSource(
        "llama",
        str(folder),
        {"llm": config},
        leaves,
        files,
        tokenizer_folder=folder,
        template=template,
        raw_parts=raw,
        notes=notes,
    )


def _read_clip(folder: pathlib.Path, which: str) -> ForeignSource:
    """The image tower as `clip`; the text tower as `clip_text` from a CLIPModel, which has projections, else as
    `text_encoder`.
    """
    settings = ForeignConfig.of(folder / "config.json")
    tensors, files = open_weights(folder, TRANSFORMERS)
    text = {
        name: tensor
        for name, tensor in tensors.items()
        if which == "clip_text" or (which == "clip" and name.startswith(CLIP_TEXT))
    }
    rest = {name: tensor for name, tensor in tensors.items() if name not in text}
    fields: dict[str, Any] = {}
    leaves: dict[str, Leaf] = {}
    raw: dict[str, RawPart] = {}
    tokenizers: dict[str, pathlib.Path] = {}
    if which != "clip_text":
        config = clip.read_config(settings)
        if (folder / clip.PROCESSOR_FILE).exists():
            config = clip.read_processor(ForeignConfig.of(folder / clip.PROCESSOR_FILE), config)
        fields["clip"], raw["clip"] = config, RawPart(settings.values, rest)
        leaves |= assemble.read_part(
            "clip", clip.table(config), assemble.shapes_of(ModelConfig(clip=config)), rest, str(folder)
        )
    if which != "clip_vision":
        name = "clip_text" if which == "clip" else "text_encoder"
        text_config = clip_text.read_config(settings)
        fields[name], raw[name], tokenizers[name] = text_config, RawPart(settings.values, text), folder
        tower: dict[str, Any] = {name: text_config}
        shapes = assemble.shapes_of(ModelConfig(**tower))
        leaves |= assemble.read_part(name, clip_text.table(text_config), shapes, text, str(folder))
    return ForeignSource(
        which, str(folder), fields, leaves, files, raw_parts=raw, clip_tokenizers=_with_vocabulary(tokenizers)
    )


def _read_diffusers(folder: pathlib.Path) -> ForeignSource:
    """unet/, vae/, scheduler/ and text_encoder/ with tokenizer/, those that exist."""
    fields: dict[str, Any] = {}
    leaves: dict[str, Leaf] = {}
    raw: dict[str, RawPart] = {}
    tokenizers: dict[str, pathlib.Path] = {}
    files: tuple[pathlib.Path, ...] = ()
    readers: dict[str, tuple[Callable[[ForeignConfig], object], tuple[str, ...]]] = {
        "unet": (stable_diffusion.read_unet, DIFFUSERS), "vae": (stable_diffusion.read_vae, DIFFUSERS),
        "text_encoder": (clip_text.read_config, TRANSFORMERS),
    }  # fmt: skip
    for part, (read_config, stems) in readers.items():
        home = folder / part
        if not (home / "config.json").exists():
            continue
        settings = ForeignConfig.of(home / "config.json")
        fields[part] = read_config(settings)
        tensors, weight_files = open_weights(home, stems)
        raw[part] = RawPart(settings.values, tensors)
        files += weight_files
    if "vae" in fields and "unet" not in fields:
        raise ConfigError(f"{folder}: has vae/ without unet/")
    if (folder / "scheduler" / "scheduler_config.json").exists():
        fields["diffusion"] = stable_diffusion.read_schedule(
            ForeignConfig.of(folder / "scheduler" / "scheduler_config.json")
        )
    elif "unet" in fields:
        raise ConfigError(
            f"{folder}: lacks scheduler/scheduler_config.json: the noise schedule that the U-Net was trained with"
        )
    model = ModelConfig(**fields)
    shapes = assemble.shapes_of(model)
    for part, raw_part in raw.items():
        table = tables.of(part, model, shapes)
        leaves |= assemble.read_part(part, table, shapes, raw_part.tensors, str(folder / part))
    if "text_encoder" in fields and (folder / "tokenizer").is_dir():
        tokenizers["text_encoder"] = folder / "tokenizer"
    known = {*readers, "scheduler", "tokenizer", "feature_extractor"}
    unread = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and path.name not in known and not path.name.startswith(".")
    )
    notes = (f"not read: {', '.join(unread)}",) if unread else ()
    return ForeignSource(
        "diffusers",
        str(folder),
        fields,
        leaves,
        files,
        raw_parts=raw,
        clip_tokenizers=_with_vocabulary(tokenizers),
        notes=notes,
    )


def _read_joints(folder: pathlib.Path) -> ForeignSource:
    """Projectors and dream queries as `export --format=huggingface` writes them."""
    settings = ForeignConfig.of(folder / "config.json")
    tensors, files = open_weights(folder, TRANSFORMERS)
    leaves = {
        name.replace(".", "/"): Leaf(t.shape, t.dtype, t.read, str(folder), (name,)) for name, t in tensors.items()
    }
    settings.require({"visual_projector": ("linear", "mlp")})
    fields: dict[str, Any] = {}
    if "visual_projector" in settings.values:
        fields["visual_projector"] = settings.text("visual_projector")
    if "dream_queries" in settings.values:
        fields["dream_queries"] = settings.integer("dream_queries")
    return ForeignSource("joints", str(folder), fields, leaves, files, template=settings.text("template") or None)


def _with_vocabulary(folders: dict[str, pathlib.Path]) -> dict[str, pathlib.Path]:
    """The folders that hold a CLIP vocabulary."""
    return {
        name: folder
        for name, folder in folders.items()
        if (folder / "vocab.json").exists() and (folder / "merges.txt").exists()
    }
