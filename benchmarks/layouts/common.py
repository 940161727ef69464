"""Common parts of all layouts.

Modules with drawn weights, files as torch, safetensors and JSON have them, a vocabulary.
"""

import functools
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import diffusers
import sentencepiece
import torch
import transformers
from safetensors.torch import save_file

from dreamjax.document.tokenizer_training import train_tokenizer

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
diffusers.utils.logging.set_verbosity_error()

HALF, BF16 = torch.float16, torch.bfloat16
Tensors = dict[str, torch.Tensor]


class Written(NamedTuple):
    """The location of a layout."""

    sources: tuple[pathlib.Path, ...]
    tokenizer: pathlib.Path | None = None
    against: tuple[pathlib.Path, ...] = ()  # what `verify` reads the torch side from, where it is not the sources


class Layout(NamedTuple):
    """A layout: `write(folder)` makes it, and its import has the `facts` {dotted name in the Plan: value}.

    Layouts of the same `weights` hold the same tensors in the same dtype, so what is read from them is the same to the
    bit; the first is as today's libraries write it.
    """

    family: str
    name: str
    weights: str
    write: Callable[[pathlib.Path], Written]
    facts: Mapping[str, Any] = {}
    parts: tuple[str, ...] = ()  # --parts


def drawn(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Every parameter drawn anew, so that no scale is 1, no bias 0 and no term can hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim > 1:
                value.copy_(noise / math.sqrt(value[0].numel()))
            else:
                value.copy_(0.2 * noise + ("norm" in name and name.endswith("weight")))
    return module.eval()


@functools.cache
def sentencepiece_model() -> bytes:
    """The vocabulary of every LLM here."""
    return train_tokenizer(["a red circle jumps up"], 300)


@functools.cache
def processor() -> sentencepiece.SentencePieceProcessor:
    """The same to ask for its pieces."""
    return sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())


def with_tokenizer(folder: pathlib.Path) -> Written:
    """The folder with its tokenizer.model."""
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    return Written((folder,))


def clip_vocabulary(folder: pathlib.Path):
    """The files of CLIP's own tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text('{"<|startoftext|>": 0, "<|endoftext|>": 1}')
    (folder / "merges.txt").write_text("#version: 0.2\n")


def write_json(file: pathlib.Path, values: Mapping):
    """A JSON file, with its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, indent=2))


def save_bin(
    tensors: Mapping[str, torch.Tensor],
    folder: pathlib.Path,
    stem: str = "pytorch_model",
    shards: int = 1,
    zipped: bool = True,
):
    """A state dict as torch.save stores it.

    One file, or shards with an index. `zipped` False is the format before torch 1.6.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        torch.save(dict(tensors), folder / f"{stem}.bin", _use_new_zipfile_serialization=zipped)
        return
    names, weight_map = list(tensors), {}
    for number in range(shards):
        own, file = names[number::shards], f"{stem}-{number + 1:05d}-of-{shards:05d}.bin"
        torch.save({name: tensors[name].clone() for name in own}, folder / file)
        weight_map |= dict.fromkeys(own, file)
    write_json(folder / f"{stem}.bin.index.json", {"metadata": {"total_size": 0}, "weight_map": weight_map})


def save_safetensors(tensors: Mapping[str, torch.Tensor], file: pathlib.Path):
    """One safetensors file, with its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, file, {"format": "pt"})


def of_other_frameworks(folder: pathlib.Path):
    """The files that published folders have for others than torch."""
    for name in ("flax_model.msgpack", "tf_model.h5", "rust_model.ot"):
        (folder / name).write_bytes(b"\0" * 16)


def converted(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Tensors:
    """Floating-point tensors in another dtype, others as they are."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}


def prefixed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """With a prefix before every name."""
    return {prefix + name: value for name, value in tensors.items()}


def with_positions(tensors: Mapping[str, torch.Tensor], *prefixes: str) -> Tensors:
    """With the position_ids that transformers before 4.31 kept among the weights."""
    return {**tensors, **{f"{prefix}embeddings.position_ids": torch.arange(5)[None] for prefix in prefixes}}
