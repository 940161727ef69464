"""Hugging Face folders.

LLaMA, CLIP (one tower or both), Stable Diffusion in the layout of diffusers, and our own joints.
"""

import pathlib

from dreamjax.config import ModelConfig
from dreamjax.convert import assemble, tables
from dreamjax.convert.assemble import Found, Raw
from dreamjax.convert.formats import clip, clip_text, llama, stable_diffusion
from dreamjax.convert.mapping import Leaf
from dreamjax.convert.settings import Settings
from dreamjax.convert.tensors import open_weights
from dreamjax.errors import ConfigError

TRANSFORMERS = ("model", "pytorch_model")  # stems of weight files
DIFFUSERS = ("diffusion_pytorch_model",)
JOINTS_TYPE = "dreamllm_joints"  # our own: what joins the parts, by our names
COMPONENTS = {"UNet2DConditionModel": "unet/", "AutoencoderKL": "vae/"}  # diffusers' classes, by _class_name
# What a config.json may say that it is, and how it is read then.
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
    """llama, clip, clip_vision, clip_text, diffusers or None, by what a folder holds.

    ConfigError where it is a part of one of them.
    """
    if any((folder / part / "config.json").is_file() for part in ("unet", "vae")):
        return "diffusers"
    if not (folder / "config.json").is_file():
        return None
    values = Settings.of(folder / "config.json").values
    if isinstance(values.get("_class_name"), str) and values["_class_name"] in COMPONENTS:
        part = COMPONENTS[values["_class_name"]]
        raise ConfigError(
            f"{folder}: is the {part} of a Stable Diffusion folder; give the folder above it (--parts "
            "chooses among its parts)"
        )
    return MODEL_TYPES.get(str(values.get("model_type"))) or ARCHITECTURES.get(_architecture(values))


def _architecture(values: dict) -> str | None:
    """The first of a config.json's architectures."""
    named = values.get("architectures")
    return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None


def seen(folder: pathlib.Path) -> str:
    """What a folder's files say that it is, in words; nothing where they say nothing."""
    said = []
    for file in (folder / "config.json", folder / "model_index.json"):
        values = Settings.of(file).values if file.is_file() else {}
        said += [
            f"{key} {values[key]!r:.80}" for key in ("model_type", "architectures", "_class_name") if key in values
        ]
    return ", ".join(said)


def read(folder: pathlib.Path) -> Found:
    """What a folder holds; ConfigError where it is none of these."""
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


def _read_llama(folder: pathlib.Path) -> Found:
    settings = Settings.of(folder / "config.json")
    tensors, files = open_weights(folder, TRANSFORMERS)
    config, settled, notes = llama.settle_head(llama.read_config(settings), tensors, str(folder))
    leaves = assemble.read_part(
        "llm", llama.table(config), assemble.shapes_of(ModelConfig(llm=config)), settled, str(folder)
    )
    template = "vicuna_v1.1" if "vicuna" in f"{settings.get('_name_or_path', '')} {folder.name}".lower() else None
    raw = {"llm": Raw(settings.values, tensors)}
    return Found(
        "llama",
        str(folder),
        {"llm": config},
        leaves,
        files,
        tokenizer_folder=folder,
        template=template,
        raw=raw,
        notes=notes,
    )


def _read_clip(folder: pathlib.Path, which: str) -> Found:
    """The picture tower as `clip`, the text tower with the projections of a whole CLIPModel as `clip_text`, alone as
    `text_encoder`.
    """
    settings = Settings.of(folder / "config.json")
    tensors, files = open_weights(folder, TRANSFORMERS)
    text = {
        name: tensor
        for name, tensor in tensors.items()
        if which == "clip_text" or (which == "clip" and name.startswith(CLIP_TEXT))
    }
    rest = {name: tensor for name, tensor in tensors.items() if name not in text}
    fields, leaves, raw, tokenizers = {}, {}, {}, {}
    if which != "clip_text":
        config = clip.read_config(settings)
        if (folder / clip.PROCESSOR_FILE).exists():
            config = clip.read_processor(Settings.of(folder / clip.PROCESSOR_FILE), config)
        fields["clip"], raw["clip"] = config, Raw(settings.values, rest)
        leaves |= assemble.read_part(
            "clip", clip.table(config), assemble.shapes_of(ModelConfig(clip=config)), rest, str(folder)
        )
    if which != "clip_vision":
        name = "clip_text" if which == "clip" else "text_encoder"
        config = clip_text.read_config(settings)
        fields[name], raw[name], tokenizers[name] = config, Raw(settings.values, text), folder
        leaves |= assemble.read_part(
            name, clip_text.table(config), assemble.shapes_of(ModelConfig(**{name: config})), text, str(folder)
        )
    return Found(which, str(folder), fields, leaves, files, raw=raw, clip_tokenizers=_with_vocabulary(tokenizers))


def _read_diffusers(folder: pathlib.Path) -> Found:
    """unet/, vae/, scheduler/ and text_encoder/ with tokenizer/, as far as they are there."""
    fields, leaves, raw, tokenizers, files = {}, {}, {}, {}, ()
    readers = {
        "unet": (stable_diffusion.read_unet, DIFFUSERS), "vae": (stable_diffusion.read_vae, DIFFUSERS),
        "text_encoder": (clip_text.read_config, TRANSFORMERS),
    }  # fmt: skip
    for part, (read_config, stems) in readers.items():
        home = folder / part
        if not (home / "config.json").exists():
            continue
        settings = Settings.of(home / "config.json")
        fields[part] = read_config(settings)
        tensors, read_files = open_weights(home, stems)
        raw[part] = Raw(settings.values, tensors)
        files += read_files
    if "vae" in fields and "unet" not in fields:
        raise ConfigError(f"{folder}: has vae/ without unet/")
    if (folder / "scheduler" / "scheduler_config.json").exists():
        fields["diffusion"] = stable_diffusion.read_schedule(
            Settings.of(folder / "scheduler" / "scheduler_config.json")
        )
    elif "unet" in fields:
        raise ConfigError(
            f"{folder}: lacks scheduler/scheduler_config.json: the noise schedule that the U-Net was trained with"
        )
    model = ModelConfig(**fields)
    shapes = assemble.shapes_of(model)
    for part, (_, tensors) in raw.items():
        leaves |= assemble.read_part(part, tables.of(part, model, shapes), shapes, tensors, str(folder / part))
    if "text_encoder" in fields and (folder / "tokenizer").is_dir():
        tokenizers["text_encoder"] = folder / "tokenizer"
    known = {*readers, "scheduler", "tokenizer", "feature_extractor"}
    left = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and path.name not in known and not path.name.startswith(".")
    )
    notes = (f"left aside: {', '.join(left)}",) if left else ()
    return Found(
        "diffusers",
        str(folder),
        fields,
        leaves,
        files,
        raw=raw,
        clip_tokenizers=_with_vocabulary(tokenizers),
        notes=notes,
    )


def _read_joints(folder: pathlib.Path) -> Found:
    """Projectors and dream queries as `export --format=huggingface` writes them."""
    settings = Settings.of(folder / "config.json")
    tensors, files = open_weights(folder, TRANSFORMERS)
    leaves = {
        name.replace(".", "/"): Leaf(t.shape, t.dtype, t.read, str(folder), (name,)) for name, t in tensors.items()
    }
    settings.require({"visual_projector": ("linear", "mlp")})
    read = {"visual_projector": settings.text, "dream_queries": settings.whole}
    fields = {name: read[name](name) for name in read if name in settings.values}
    return Found("joints", str(folder), fields, leaves, files, template=settings.text("template") or None)


def _with_vocabulary(folders: dict[str, pathlib.Path]) -> dict[str, pathlib.Path]:
    """Those that hold CLIP's vocabulary."""
    return {
        name: folder
        for name, folder in folders.items()
        if (folder / "vocab.json").exists() and (folder / "merges.txt").exists()
    }
