"""A model out again: the official release layout, Hugging Face folders per part, or a model folder of ours.

Parameters are read a few at a time and written into one file after the other, so memory is bounded by the largest file.
"""

import json
import math
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from etils import epath
from tqdm import tqdm

from dreamjax.convert import assemble, finite, importer, output, tables
from dreamjax.convert.formats import clip, clip_text, huggingface, llama, official, stable_diffusion
from dreamjax.convert.mapping import Leaf, Table, to_theirs
from dreamjax.convert.tensors import require_torch
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import ConfigError
from dreamjax.training import checkpoint, model_folder, weight_transfer
from dreamjax.training.model_folder import ModelCard

FORMATS = ("official", "huggingface", "params")
HUGGINGFACE = ("llm", "clip", "sd", "joints")  # the folders of that format
SHARD_BYTES = 2 * 2**30  # of a safetensors file; what a part has more goes into further ones


class Opened(NamedTuple):
    """A model of ours, read when asked for."""

    card: ModelCard
    leaves: dict[str, Leaf]
    tokenizer: epath.Path


def open_model(folder: epath.Path, which: str = "last") -> Opened:
    """A model folder, streamed from disk, or a training workdir, whose parameters are loaded."""
    card = model_folder.read_card(folder)
    if (folder / "params").exists():
        wanted = model_folder.stored(folder)
        read = model_folder.reader(folder, wanted)
    else:
        wanted = checkpoint.flatten(checkpoint.load_params(folder, which))

        def read(path):
            return np.asarray(wanted[path])

    shapes = assemble.shapes_of(card.model)
    lost = sorted(set(shapes) ^ set(wanted))
    if lost:
        raise ConfigError(f"{folder}: config.json and the parameters do not belong together: {lost[0]}")
    for path, shape in shapes.items():
        if tuple(wanted[path].shape) != shape:
            raise ConfigError(
                f"{folder}: config.json and the parameters do not belong together: {path} is "
                f"{tuple(wanted[path].shape)}, must be {shape}"
            )
    ordered = [path for path in wanted if path in shapes]

    def leaf(path):
        return Leaf(
            tuple(wanted[path].shape), np.dtype(wanted[path].dtype), lambda index: read(path)[index], str(folder)
        )

    return Opened(card, {path: leaf(path) for path in ordered}, folder / "tokenizer")


def export(folder: epath.Path, kind: str, out: epath.Path, which: str = "last") -> list[str]:
    """Writes a model in one of FORMATS; the parts that the format has no place for. ConfigError where `out` holds
    something.

    Beside it, in every folder that an import takes, goes the chain of origins, which an import reads back. Weights that
    are NaN or infinite are written as they are and counted on stderr.
    """
    if kind not in FORMATS:
        raise ConfigError(f"--format: {kind!r} is none of {', '.join(FORMATS)}")
    if kind != "params" and "://" in os.fspath(out):
        raise ConfigError(
            f"--out: {out}: a bucket takes --format=params alone; export to a folder on this machine and copy it"
        )
    opened = open_model(folder, which)
    leaves, counts = finite.counted(opened.leaves)
    with output.written(out) as home:
        home.mkdir(parents=True, exist_ok=True)
        writers = {"params": _export_params, "official": _export_official, "huggingface": _export_huggingface}
        left = writers[kind](opened._replace(leaves=leaves), home)
        for part in [home / name for name in HUGGINGFACE] if kind == "huggingface" else [home]:
            if part.exists():
                weight_transfer.write_origins(part, folder, which)
    if counts:
        print(f"{folder}: {finite.format_summary(counts)}; exported as they are", file=sys.stderr)
    return left


def _export_params(opened: Opened, out: epath.Path) -> list[str]:
    sizes = {path: math.prod(leaf.shape) * leaf.dtype.itemsize for path, leaf in opened.leaves.items()}
    model_folder.save_leaves(out / "params", sizes, lambda path: assemble.place(opened.leaves[path]), _progress)
    if opened.card.model.llm:
        Tokenizer.load(opened.tokenizer).save(out / "tokenizer")
    _copy_clip_tokenizers(opened, {name: out / "tokenizer" / name for name in ("text_encoder", "clip_text")})
    model_folder.write_card(out, opened.card)
    return []


def _progress(things):
    return tqdm(things, desc="writing", unit="group", disable=None)


# ----------------------------------------------------------------------------------------------------------------------
# Hugging Face folders


def _export_huggingface(opened: Opened, out: os.PathLike) -> list[str]:
    """llm/, clip/, sd/{unet,vae,scheduler,text_encoder,tokenizer}/, and joints/ with what only a DreamLLM has."""
    out, model = pathlib.Path(out), opened.card.model
    shapes = {path: leaf.shape for path, leaf in opened.leaves.items()}
    if model.llm:
        _write_json(
            out / "llm" / "config.json", llama.write_config(model.llm, _dtype_of(opened, "llm"), _special_ids(opened))
        )
        _write_part(opened, "llm", tables.of("llm", model, shapes), out / "llm", "model")
        write_tokenizer(Tokenizer.load(opened.tokenizer), out / "llm", model.llm.max_positions)
    if model.clip:
        _write_json(out / "clip" / clip.PROCESSOR_FILE, clip.write_processor(model.clip))
    if model.clip and model.clip_text:
        both = {
            "model_type": "clip",
            "architectures": ["CLIPModel"],
            "projection_dim": model.clip_text.projection_width,
        }
        both |= {"text_config": clip_text.write_config(model.clip_text), "vision_config": clip.write_config(model.clip)}
        _write_json(out / "clip" / "config.json", both)
        named = {part: tables.of(part, model, shapes) for part in ("clip", "clip_text")}
        _write_tensors(
            ((name, value) for part, table in named.items() for name, value in _tensors(opened, part, table)),
            out / "clip",
            "model",
        )
    elif model.clip:
        _write_json(out / "clip" / "config.json", clip.write_config(model.clip))
        _write_part(opened, "clip", tables.of("clip", model, shapes), out / "clip", "model")
    if model.unet:
        _write_json(
            out / "sd" / "model_index.json", {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.24.0"}
        )
        _write_json(
            out / "sd" / "scheduler" / "scheduler_config.json", stable_diffusion.write_schedule(model.diffusion)
        )
    for part, config, stem in (
        ("unet", model.unet and stable_diffusion.write_unet(model.unet), "diffusion_pytorch_model"),
        ("vae", model.vae and stable_diffusion.write_vae(model.vae, model.decoder_size), "diffusion_pytorch_model"),
        ("text_encoder", model.text_encoder and clip_text.write_config(model.text_encoder), "model"),
    ):
        if config:
            _write_json(out / "sd" / part / "config.json", config)
            _write_part(opened, part, tables.of(part, model, shapes), out / "sd" / part, stem)
    joints = {path: leaf for path, leaf in opened.leaves.items() if path.split("/")[0] in assemble.JOINTS}
    if joints:
        settings = {"visual_projector": model.visual_projector, "dream_queries": model.dream_queries}
        _write_json(
            out / "joints" / "config.json",
            {"model_type": huggingface.JOINTS_TYPE, **settings, "template": opened.card.template},
        )
        _write_tensors(
            ((path.replace("/", "."), _read(leaf)) for path, leaf in joints.items()), out / "joints", "model"
        )
    _copy_clip_tokenizers(opened, {"text_encoder": out / "sd" / "tokenizer", "clip_text": out / "clip"})
    return ["clip_text"] if model.clip_text and not model.clip else []


# ----------------------------------------------------------------------------------------------------------------------
# The official layout


def _export_official(opened: Opened, out: os.PathLike) -> list[str]:
    out, model = pathlib.Path(out), opened.card.model
    if model.llm is None:
        raise ConfigError("--format: official needs an LLM; this model has none")
    if model.unet and not model.vae:
        raise ConfigError("--format: official has no place for diffusion in pixels (this model has a U-Net and no VAE)")
    require_torch(out)
    shapes = {path: leaf.shape for path, leaf in opened.leaves.items()}
    tokenizer = Tokenizer.load(opened.tokenizer)
    config = official.write_config(model, tokenizer, _dtype_of(opened, "llm"))
    _write_json(out / "config.json", config)
    _write_part(opened, "llm", tables.of("llm", model, shapes), out, "model")
    write_tokenizer(tokenizer, out, model.llm.max_positions)
    if model.clip:
        _write_json(out / official.CLIP_HOME / "config.json", clip.write_config(model.clip))
        _write_json(out / official.CLIP_HOME / clip.PROCESSOR_FILE, clip.write_processor(model.clip))
        tensors = _prefixed(opened, {"clip_vision_model.": "clip"}, shapes)
        tensors |= dict(_tensors(opened, "visual_projector", Table(official.VISUAL_PROJECTORS[model.visual_projector])))
        _write_pickle(tensors, out / official.PLUGINS["clip_vision_embedding"])
    if model.unet:
        for part, settings in (
            ("unet", stable_diffusion.write_unet(model.unet)),
            ("vae", stable_diffusion.write_vae(model.vae, model.decoder_size)),
        ):
            _write_json(out / official.DIFFUSION_HOME / part / "config.json", settings)
        _write_json(
            out / official.DIFFUSION_HOME / "scheduler" / "scheduler_config.json",
            stable_diffusion.write_schedule(model.diffusion),
        )
        tensors = _prefixed(opened, {"vae.": "vae", "unet.": "unet"}, shapes)
        tensors |= dict(_tensors(opened, "condition_projector", Table(official.CONDITION_PROJECTOR)))
        _write_pickle(tensors, out / official.PLUGINS["stable_diffusion_head"])
        _write_pickle(
            {"dream_queries": _read(opened.leaves["dream_queries"])[None]}, out / official.PLUGINS["dream_embedding"]
        )
    return [part for part in ("text_encoder", "clip_text") if getattr(model, part)]


def _prefixed(opened: Opened, parts: Mapping[str, str], shapes: Mapping) -> dict[str, np.ndarray]:
    return {
        prefix + name: value
        for prefix, part in parts.items()
        for name, value in _tensors(opened, part, tables.of(part, opened.card.model, shapes))
    }


def _write_pickle(arrays: Mapping[str, np.ndarray], file: pathlib.Path):
    """A state dict that torch.load reads with weights_only."""
    torch = require_torch(file)

    def tensor(array: np.ndarray):
        return (
            torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
            if array.dtype == "bfloat16"
            else torch.from_numpy(array)
        )

    torch.save({name: tensor(np.array(array, order="C")) for name, array in arrays.items()}, file)


# ----------------------------------------------------------------------------------------------------------------------
# Files


def _read(leaf: Leaf) -> np.ndarray:
    return np.asarray(leaf.read((slice(None),) * len(leaf.shape)))


def _tensors(opened: Opened, part: str, table: Table) -> Iterator[tuple[str, np.ndarray]]:
    """(their name, array) of one part, a parameter after the other."""
    for path, leaf in opened.leaves.items():
        if path.split("/")[0] == part:
            yield from to_theirs(table, path.removeprefix(part).removeprefix("/"), _read(leaf))


def _write_part(opened: Opened, part: str, table: Table, folder: pathlib.Path, stem: str):
    _write_tensors(tqdm(_tensors(opened, part, table), desc=part, unit="tensor", disable=None), folder, stem)


def _write_tensors(tensors: Iterable[tuple[str, np.ndarray]], folder: pathlib.Path, stem: str):
    """One safetensors file, or several of about SHARD_BYTES with an index, as Hugging Face's libraries write them."""
    import safetensors.numpy

    folder.mkdir(parents=True, exist_ok=True)
    shards, held, total = [], {}, 0

    def close():
        shards.append(list(held))
        safetensors.numpy.save_file(held, folder / f"{stem}-{len(shards):05d}.tmp", metadata={"format": "pt"})
        held.clear()

    for name, array in tensors:
        if held and sum(value.nbytes for value in held.values()) + array.nbytes > SHARD_BYTES:
            close()
        held[name] = array
        total += array.nbytes
    close()
    if len(shards) == 1:
        (folder / f"{stem}-00001.tmp").rename(folder / f"{stem}.safetensors")
        return
    files = [f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for number, file in enumerate(files, 1):
        (folder / f"{stem}-{number:05d}.tmp").rename(folder / file)
    weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    _write_json(
        folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
    )


def _write_json(file: pathlib.Path, values: dict):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, indent=2) + "\n")


def _dtype_of(opened: Opened, part: str) -> str:
    return str(next(leaf.dtype for path, leaf in opened.leaves.items() if path.startswith(part)))


def _special_ids(opened: Opened) -> dict[str, int]:
    tokenizer = Tokenizer.load(opened.tokenizer)
    return {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.unk}


def write_tokenizer(tokenizer: Tokenizer, folder: pathlib.Path, longest: int):
    """The files of transformers' slow LlamaTokenizer, which `Tokenizer.load` reads too."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(tokenizer.model)
    names = {
        key: tokenizer.pieces([number])[0]
        for key, number in (("bos", tokenizer.bos), ("eos", tokenizer.eos), ("unk", tokenizer.unk))
    }
    special = {f"{key}_token": name for key, name in names.items()} | (
        {"pad_token": tokenizer.pad_token} if tokenizer.added else {}
    )
    others = [name for name, _ in tokenizer.added if name != tokenizer.pad_token]

    def plain(name):
        return {
            "content": name,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }

    numbered = [
        (tokenizer.unk, names["unk"]),
        (tokenizer.bos, names["bos"]),
        (tokenizer.eos, names["eos"]),
        *((i, name) for name, i in tokenizer.added),
    ]
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": tokenizer.legacy,
        "add_bos_token": True,
        "add_eos_token": False,
        "model_max_length": longest,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": others,
        **special,
        "added_tokens_decoder": {str(number): plain(name) for number, name in numbered},
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", {**special, "additional_special_tokens": others})
    if tokenizer.added:
        _write_json(folder / "added_tokens.json", dict(tokenizer.added))


def _copy_clip_tokenizers(opened: Opened, targets: Mapping[str, pathlib.Path]):
    for name, target in targets.items():
        if (opened.tokenizer / name).exists():
            importer.copy_clip_tokenizer(opened.tokenizer / name, target)
