"""The official DreamLLM release: a folder with config.json, the LLM in safetensors, three torch pickles and the
tokenizer.

    config.json                  LLaMA's keys, plugins_init_kwargs (the content of the pickles), special token ids
    model*.safetensors           the LLM alone
    clip_vision_embedding.bin    clip_vision_model.* and the visual projector
    dream_embedding.bin          dream_queries [1, Q, D]
    stable_diffusion_head.bin    vae.*, unet.* and the condition projector

The configurations of CLIP and of Stable Diffusion are not in it: config.json has their path or hub name.
"""

import dataclasses
import os
import pathlib
from typing import Any

from dreamjax.config import ClipConfig, DiffusionConfig, LlamaConfig, ModelConfig, UNetConfig, VaeConfig
from dreamjax.config.model import MOST
from dreamjax.config.validation import require_present
from dreamjax.convert import assemble, vocabulary
from dreamjax.convert.assemble import ForeignSource, RawPart
from dreamjax.convert.foreign_config import ForeignConfig
from dreamjax.convert.formats import clip, llama, stable_diffusion
from dreamjax.convert.mapping import Leaf, Table
from dreamjax.convert.tensors import Tensor, Tensors, open_file, open_weights
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import ConfigError

TEMPLATE = "vicuna_v1.1"
PLUGINS = {
    "clip_vision_embedding": "clip_vision_embedding.bin",
    "dream_embedding": "dream_embedding.bin",
    "stable_diffusion_head": "stable_diffusion_head.bin",
}
LINEAR = {"linear/kernel": "projector.projector.weight", "linear/bias": "projector.projector.bias"}
MLP = {
    "fc1/kernel": "projector.projector.0.weight", "fc1/bias": "projector.projector.0.bias",
    "fc2/kernel": "projector.projector.2.weight", "fc2/bias": "projector.projector.2.bias",
}  # fmt: skip
PLUGINS_MODULE = "omni.models.dreamllm.modeling_plugins"  # of the official code
VISUAL_PROJECTORS = {"linear": LINEAR, "mlp": MLP}
CONDITION_PROJECTOR = {"linear/kernel": "projector.projector.weight"}
QUERIES = {"": "dream_queries"}
PREFIXES = {"clip_vision_model.": "clip", "unet.": "unet", "vae.": "vae"}  # of tensor names in the pickles

CLIP_HOME, DIFFUSION_HOME = "components/clip", "components/sd"  # folders of the components' configurations in exports

# Components by hub name, matched by its last part, for a release whose paths do not exist on this machine.
KNOWN_CLIP = {
    "openai/clip-vit-large-patch14": ClipConfig(),
    "openai/clip-vit-large-patch14-336": ClipConfig(image_size=336),
}
SD_1 = UNetConfig(heads=(8, 8, 8, 8), context_width=768, linear_projection=False)
KNOWN_DIFFUSION = {
    "stabilityai/stable-diffusion-2-1-base": (UNetConfig(), VaeConfig(), DiffusionConfig()),
    "stabilityai/stable-diffusion-2-base": (UNetConfig(), VaeConfig(), DiffusionConfig()),
    "runwayml/stable-diffusion-v1-5": (SD_1, VaeConfig(), DiffusionConfig()),
    "CompVis/stable-diffusion-v1-4": (SD_1, VaeConfig(), DiffusionConfig()),
}


def recognises(path: pathlib.Path) -> bool:
    """True for a folder in this layout."""
    config = path / "config.json"
    return config.is_file() and "plugins_init_kwargs" in ForeignConfig.of(config).values


def read(folder: pathlib.Path) -> ForeignSource:
    """The parts of a release folder; ConfigError names what is missing, unexpected, misshapen or not supported."""
    settings = ForeignConfig.of(folder / "config.json")
    model = read_model(folder, settings)
    tensors, files = open_weights(folder, ("model", "pytorch_model"))
    llm, resolved, notes = llama.resolve_head(require_present(model.llm, "llm"), tensors, str(folder))
    model = dataclasses.replace(model, llm=llm)
    shapes = assemble.shapes_of(model)
    leaves = assemble.read_part("llm", llama.table(llm), shapes, resolved, str(folder))
    fields: dict[str, Any] = {"llm": llm}
    raw = {"llm": RawPart(settings.values, tensors)}
    plugins = settings.section("plugins_init_kwargs")
    for name, file in ((name, folder / file) for name, file in PLUGINS.items() if name in plugins.values):
        if not file.exists():
            raise ConfigError(f"{folder}: lacks {file.name}, which config.json's plugins_init_kwargs asks for")
        files += (file,)
        tensors = open_file(file)
        leaves |= _read_plugin(name, model, shapes, tensors, str(file))
        for prefix, part in PREFIXES.items():
            part_tensors = {
                key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)
            }
            if part_tensors:
                raw[part] = RawPart(_component_config(folder, plugins, model, part), part_tensors)
    if model.clip:
        fields |= {"clip": model.clip, "visual_projector": model.visual_projector}
    if model.unet:
        fields |= {
            "unet": model.unet,
            "vae": model.vae,
            "diffusion": model.diffusion,
            "dream_queries": model.dream_queries,
        }
    tokenizer, tokenizer_notes = _read_tokenizer(folder, settings, llm)
    return ForeignSource(
        "official", str(folder), fields, leaves, files, raw, tokenizer, template=TEMPLATE, notes=notes + tokenizer_notes
    )


@dataclasses.dataclass(frozen=True)
class Imported:
    """A release in memory."""

    model: ModelConfig
    params: dict
    tokenizer: Tokenizer
    template: str


def load(folder: str | os.PathLike, shardings: dict | None = None) -> Imported:
    """A release folder as float32 parameters, on the default device or by `shardings`, a tree like them."""
    plan = assemble.compose([read(pathlib.Path(folder))])
    tokenizer = require_present(plan.tokenizer, f"{folder}: tokenizer")
    return Imported(plan.model, assemble.materialise(plan.leaves, shardings), tokenizer, plan.template)


# ----------------------------------------------------------------------------------------------------------------------
# Configuration


def read_model(folder: pathlib.Path, settings: ForeignConfig) -> ModelConfig:
    """The model that a config.json describes."""
    fields: dict = {"llm": llama.read_config(settings)}
    plugins = settings.section("plugins_init_kwargs")
    unknown = sorted(set(plugins.values) - set(PLUGINS))
    if unknown:
        raise ConfigError(f"{plugins.location}: {unknown[0]}: is not supported; {', '.join(PLUGINS)} are")
    if "clip_vision_embedding" in plugins.values:
        plugin = plugins.section("clip_vision_embedding")
        plugin.require({"use_additional_post_layernorm": (False,), "projector_type": ("linear", "mlp")})
        fields["visual_projector"] = plugin.get("projector_type", "linear")
        plugin.require({"projector_depth": (1,) if fields["visual_projector"] == "linear" else (2,)})
        _check_width(plugin, fields["llm"])
        fields["clip"] = _read_clip(folder, plugin)
    if "stable_diffusion_head" in plugins.values:
        plugin = plugins.section("stable_diffusion_head")
        plugin.require({"projector_type": ("linear",), "projector_depth": (1,)})
        _check_width(plugin, fields["llm"])
        fields["unet"], fields["vae"], fields["diffusion"] = _read_diffusion(folder, plugin)
        queries = plugins.section("dream_embedding")
        _check_width(queries, fields["llm"])
        fields["dream_queries"] = queries.integer("num_dream_queries", 64)
    elif "dream_embedding" in plugins.values:
        raise ConfigError(
            f"{plugins.location}: dream_embedding: without stable_diffusion_head nothing reads the dream queries"
        )
    try:
        return ModelConfig(**fields)
    except ConfigError as error:
        raise ConfigError(f"{settings.location}: {error}") from None


def _check_width(plugin: ForeignConfig, config: LlamaConfig):
    plugin.require({"embed_hidden_size": (config.width,)})


def _read_clip(folder: pathlib.Path, plugin: ForeignConfig) -> ClipConfig:
    select_layer = plugin.integer("select_layer", -2, least=-MOST)
    home = find_component(folder, plugin, "clip_vision_model_name_or_path", "config.json")
    if home is None:
        return dataclasses.replace(
            _known(plugin, "clip_vision_model_name_or_path", KNOWN_CLIP), select_layer=select_layer
        )
    config = clip.read_config(ForeignConfig.of(home / "config.json"), select_layer)
    if (home / clip.PROCESSOR_FILE).exists():
        config = clip.read_processor(ForeignConfig.of(home / clip.PROCESSOR_FILE), config)
    return config


def _read_diffusion(folder: pathlib.Path, plugin: ForeignConfig) -> tuple[UNetConfig, VaeConfig, DiffusionConfig]:
    """(U-Net, VAE, schedule); the image side is `resolution`, not the sample_size in the U-Net's own file."""
    resolution = plugin.integer("resolution", 512)
    home = find_component(folder, plugin, "diffusion_name_or_path", "unet/config.json")
    if home is None:
        unet, vae, schedule = _known(plugin, "diffusion_name_or_path", KNOWN_DIFFUSION)
        return dataclasses.replace(unet, sample_size=resolution // vae.downsampling), vae, schedule
    vae = stable_diffusion.read_vae(ForeignConfig.of(home / "vae" / "config.json"))
    if resolution % vae.downsampling:
        raise ConfigError(
            f"{plugin.location}: resolution: {resolution} is not a multiple of the VAE's {vae.downsampling}"
        )
    unet = stable_diffusion.read_unet(ForeignConfig.of(home / "unet" / "config.json"), resolution // vae.downsampling)
    return unet, vae, stable_diffusion.read_schedule(ForeignConfig.of(home / "scheduler" / "scheduler_config.json"))


def find_component(folder: pathlib.Path, plugin: ForeignConfig, key: str, file: str) -> pathlib.Path | None:
    """The folder of a component's configuration: its path from the release folder, from the one above, or as it is."""
    name = plugin.text(key)
    homes = [folder / name, folder.absolute().parent / name, pathlib.Path(name)] if name else []
    return next((home for home in homes if (home / file).is_file()), None)


def _component_config(folder: pathlib.Path, plugins: ForeignConfig, model: ModelConfig, part: str) -> dict:
    """The component's own config.json; written from our configuration where the component is known by name alone."""
    key, plugin, file = {
        "clip": ("clip_vision_model_name_or_path", "clip_vision_embedding", "config.json"),
        "unet": ("diffusion_name_or_path", "stable_diffusion_head", "unet/config.json"),
        "vae": ("diffusion_name_or_path", "stable_diffusion_head", "vae/config.json"),
    }[part]
    home = find_component(folder, plugins.section(plugin), key, file)
    if home is not None:
        return ForeignConfig.of(home / file).values
    match part:
        case "clip":
            return clip.write_config(require_present(model.clip, part))
        case "unet":
            return stable_diffusion.write_unet(require_present(model.unet, part))
    return stable_diffusion.write_vae(require_present(model.vae, part), model.decoder_size)


def _known(plugin: ForeignConfig, key: str, known: dict):
    name = plugin.text(key).rstrip("/")
    for hub_name, config in known.items():
        if name.split("/")[-1] == hub_name.split("/")[-1]:
            return config
    raise ConfigError(
        f"{plugin.location}: {key}: {name!r} is no folder here with the component's config.json (put it at "
        "that path, from the release or from its parent)"
    )


def write_config(model: ModelConfig, tokenizer: Tokenizer, dtype: str) -> dict:
    """The config.json that `read_model` reads; known components are referred to by their hub names."""
    llm = require_present(model.llm, "llm")
    plugins, plugin_types = {}, {}
    if model.clip:
        plugins["clip_vision_embedding"] = _clip_plugin(model, model.clip, llm.width)
        plugin_types["clip_vision_embedding"] = "embedding"
    if model.unet:
        plugins["dream_embedding"] = {
            "_target_": f"{PLUGINS_MODULE}.DreamEmbedding",
            "num_dream_queries": model.dream_queries,
            "embed_hidden_size": llm.width,
            "pretrained_model_name_or_path": None,
        }
        plugins["stable_diffusion_head"] = _diffusion_plugin(model, model.unet, llm.width)
        plugin_types |= {"dream_embedding": "embedding", "stable_diffusion_head": "head"}
    config = llama.write_config(llm, dtype, {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.unk})
    return config | {
        "architectures": ["DreamLLMForCausalMLM"],
        "model_type": "dreamllm",
        "special_tokens2ids_dict": _write_special_ids(tokenizer),
        "plugins_init_kwargs": plugins,
        "plugins_type": plugin_types,
        "loss_weight_lm": 1.0,
        "loss_weight_vm": 10.0,
    }


def _clip_plugin(model: ModelConfig, config: ClipConfig, width: int) -> dict:
    known = (
        name
        for name, known_config in KNOWN_CLIP.items()
        if known_config == dataclasses.replace(config, select_layer=known_config.select_layer)
    )
    return {
        "_target_": f"{PLUGINS_MODULE}.CLIPVisionEmbedding",
        "clip_vision_model_name_or_path": next(known, CLIP_HOME),
        "embed_hidden_size": width,
        "projector_type": model.visual_projector,
        "projector_depth": 1 if model.visual_projector == "linear" else 2,
        "select_layer": config.select_layer,
        "use_additional_post_layernorm": False,
        "pretrained_model_name_or_path": None,
    }


def _diffusion_plugin(model: ModelConfig, config: UNetConfig, width: int) -> dict:
    components = (dataclasses.replace(config, sample_size=UNetConfig.sample_size), model.vae, model.diffusion)
    known = (name for name, configs in KNOWN_DIFFUSION.items() if configs == components)
    return {
        "_target_": f"{PLUGINS_MODULE}.StableDiffusionHead",
        "diffusion_name_or_path": next(known, DIFFUSION_HOME),
        "embed_hidden_size": width,
        "projector_type": "linear",
        "projector_depth": 1,
        "resolution": model.decoder_size,
        "pretrained_model_name_or_path": None,
    }


def _write_special_ids(tokenizer: Tokenizer) -> dict:
    """special_tokens2ids_dict: {token: id}, with the added tokens one level deeper."""
    control = {tokenizer.pieces([number])[0]: number for number in (tokenizer.unk, tokenizer.bos, tokenizer.eos)}
    added = dict(tokenizer.added)
    pad = {name: added.pop(name) for name in (tokenizer.pad_token,) if name in added}
    return {**control, **pad, "additional_special_tokens": added}


# ----------------------------------------------------------------------------------------------------------------------
# Weights and tokenizer


def _read_plugin(name: str, model: ModelConfig, shapes: dict, tensors: Tensors, location: str) -> dict[str, Leaf]:
    """The leaves of one pickle."""
    if name == "dream_embedding":
        return assemble.read_part(
            "dream_queries",
            Table(QUERIES),
            shapes,
            {key: _without_batch(value) for key, value in tensors.items()},
            location,
        )
    if name == "clip_vision_embedding":
        projector, prefixes = (
            VISUAL_PROJECTORS[model.visual_projector],
            {"clip_vision_model.": ("clip", clip.table(require_present(model.clip, "clip")))},
        )
    else:
        paths = {part: assemble.part_shapes(shapes, part) for part in ("unet", "vae")}
        prefixes = {
            "unet.": ("unet", stable_diffusion.unet_table(paths["unet"])),
            "vae.": ("vae", stable_diffusion.vae_table(paths["vae"])),
        }
        projector = CONDITION_PROJECTOR
    joint = "visual_projector" if name == "clip_vision_embedding" else "condition_projector"
    leaves: dict[str, Leaf] = {}
    remaining = dict(tensors)
    for prefix, (part, table) in prefixes.items():
        part_tensors = {
            key.removeprefix(prefix): remaining.pop(key) for key in list(remaining) if key.startswith(prefix)
        }
        leaves |= assemble.read_part(part, table, shapes, part_tensors, f"{location}: {prefix[:-1]}")
    return leaves | assemble.read_part(joint, Table(projector), shapes, remaining, location)


def _without_batch(tensor: Tensor) -> Tensor:
    """[1, Q, D] as [Q, D]."""
    if len(tensor.shape) != 3 or tensor.shape[0] != 1:
        return tensor
    return tensor._replace(shape=tensor.shape[1:], read=lambda index: tensor.read((slice(0, 1), *index))[0])


def _read_tokenizer(
    folder: pathlib.Path, settings: ForeignConfig, config: LlamaConfig
) -> tuple[Tokenizer, tuple[str, ...]]:
    """(tokenizer of the folder, notes on its rows).

    ConfigError where its ids are not those of config.json, or more than the embedding has rows.
    """
    listed = vocabulary.listed(folder)
    try:
        tokenizer = Tokenizer.load(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from None
    for name, number in _special_ids(settings).items():
        if tokenizer.special.get(name) != number:
            raise ConfigError(
                f"{settings.location}: special_tokens2ids_dict: {name} is {number}, but "
                f"{tokenizer.special.get(name, 'no token')} in the tokenizer"
            )
    if tokenizer.size > config.vocab_size:
        raise ConfigError(f"{folder}: the tokenizer has {tokenizer.size} ids, and the model {config.vocab_size} rows")
    return tokenizer, vocabulary.check(tokenizer, folder, listed, settings)


def _special_ids(settings: ForeignConfig) -> dict[str, int]:
    """{token: id} of the two levels of special_tokens2ids_dict."""
    values = settings.section("special_tokens2ids_dict").values if "special_tokens2ids_dict" in settings.values else {}
    return {
        name: number
        for key, value in values.items()
        for name, number in (value.items() if isinstance(value, dict) else ((key, value),))
    }
