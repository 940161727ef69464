"""Export of a model: the official release layout, Hugging Face folders per part, or a model folder.

Parameters are read a few at a time and one file is written after the other, so memory is bounded by the largest file.
"""

import math
import os
import sys
from collections.abc import Callable, Iterable

import numpy as np
from etils import epath
from tqdm import tqdm

from dreamjax.convert import assemble, finite, huggingface_export, official_export, output
from dreamjax.convert.mapping import Leaf
from dreamjax.convert.weight_files import StreamedModel, copy_clip_tokenizers
from dreamjax.errors import ConfigError
from dreamjax.training import checkpoint, model_folder, weight_transfer

FORMATS = ("official", "huggingface", "params")


def open_model(folder: epath.Path, which: str = "last") -> StreamedModel:
    """A model folder, streamed from disk, or a training workdir, whose parameters are loaded."""
    card = model_folder.read_card(folder)
    stored, read = _stream_folder(folder) if (folder / "params").exists() else _load_workdir(folder, which)
    shapes = assemble.shapes_of(card.model)
    mismatch = sorted(set(shapes) ^ set(stored))
    if mismatch:
        raise ConfigError(f"{folder}: config.json and the parameters do not belong together: {mismatch[0]}")
    for path, shape in shapes.items():
        if tuple(stored[path].shape) != shape:
            raise ConfigError(
                f"{folder}: config.json and the parameters do not belong together: {path} is "
                f"{tuple(stored[path].shape)}, must be {shape}"
            )

    def leaf(path: str) -> Leaf:
        array = stored[path]
        return Leaf(tuple(array.shape), np.dtype(array.dtype), lambda index: read(path)[index], str(folder))

    return StreamedModel(card, {path: leaf(path) for path in stored}, folder / "tokenizer")


def _stream_folder(folder: epath.Path) -> tuple[dict, Callable[[str], np.ndarray]]:
    """({path: shape and dtype}, function that reads a parameter) of a model folder."""
    stored = model_folder.stored(folder)
    return stored, model_folder.reader(folder, stored)


def _load_workdir(folder: epath.Path, which: str) -> tuple[dict, Callable[[str], np.ndarray]]:
    params = checkpoint.flatten(checkpoint.load_params(folder, which))
    return params, lambda path: np.asarray(params[path])


def export(folder: epath.Path, kind: str, out: epath.Path, which: str = "last") -> list[str]:
    """Writes a model in one of FORMATS; returns the parts that the format has no place for.

    ConfigError where `out` is not empty. The chain of origins is written beside the weights, in every folder that an
    import takes, which reads it back. Weights that are NaN or infinite are written unchanged and counted on stderr.
    """
    if kind not in FORMATS:
        raise ConfigError(f"--format: {kind!r} is none of {', '.join(FORMATS)}")
    if kind != "params" and "://" in os.fspath(out):
        raise ConfigError(
            f"--out: {out}: a bucket takes --format=params alone; export to a folder on this machine and copy it"
        )
    model = open_model(folder, which)
    leaves, counts = finite.counted(model.leaves)
    exporters = {"params": _export_params, "official": official_export.export, "huggingface": huggingface_export.export}
    with output.written(out) as root:
        root.mkdir(parents=True, exist_ok=True)
        unsupported = exporters[kind](model._replace(leaves=leaves), root)
        folders = [root / name for name in huggingface_export.FOLDERS] if kind == "huggingface" else [root]
        for part in folders:
            if part.exists():
                weight_transfer.write_origins(part, folder, which)
    if counts:
        print(f"{folder}: {finite.format_summary(counts)}; exported as they are", file=sys.stderr)
    return unsupported


def _export_params(model: StreamedModel, out: epath.Path) -> list[str]:
    sizes = {path: math.prod(leaf.shape) * leaf.dtype.itemsize for path, leaf in model.leaves.items()}
    model_folder.save_leaves(out / "params", sizes, lambda path: assemble.place(model.leaves[path]), _progress)
    if model.config.llm:
        model.load_tokenizer().save(out / "tokenizer")
    copy_clip_tokenizers(model, {name: out / "tokenizer" / name for name in ("text_encoder", "clip_text")})
    model_folder.write_card(out, model.card)
    return []


def _progress(groups: list[list[str]]) -> Iterable[list[str]]:
    return tqdm(groups, desc="writing", unit="group", disable=None)
