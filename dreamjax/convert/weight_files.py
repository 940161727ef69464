"""Files of an export: safetensors, torch pickles, JSON, tokenizers."""

import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from etils import epath
from tqdm import tqdm

from dreamjax.config import ModelConfig
from dreamjax.convert import importer, tables
from dreamjax.convert.mapping import Leaf, Table, to_foreign
from dreamjax.convert.tensors import require_torch
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.training.model_folder import ModelCard

SHARD_BYTES = 2 * 2**30  # of a safetensors file; a larger part is split into several


class StreamedModel(NamedTuple):
    """A model folder or workdir whose parameters are read one by one."""

    card: ModelCard
    leaves: dict[str, Leaf]
    tokenizer_folder: epath.Path

    @property
    def config(self) -> ModelConfig:
        return self.card.model

    def table(self, part: str) -> Table:
        """The Hugging Face tensor names of a part."""
        return tables.of(part, self.config, {path: leaf.shape for path, leaf in self.leaves.items()})

    def dtype(self, part: str) -> str:
        """The dtype in which a part is stored."""
        return str(next(leaf.dtype for path, leaf in self.leaves.items() if path.startswith(part)))

    def tensors(self, part: str, table: Table) -> Iterator[tuple[str, np.ndarray]]:
        """(foreign name, array) of one part, read one parameter at a time."""
        for path, leaf in self.leaves.items():
            if path.split("/")[0] == part:
                yield from to_foreign(table, path.removeprefix(part).removeprefix("/"), read_leaf(leaf))

    def load_tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.tokenizer_folder)


def read_leaf(leaf: Leaf) -> np.ndarray:
    """The full array of a leaf."""
    return np.asarray(leaf.read((slice(None),) * len(leaf.shape)))


def write_part(model: StreamedModel, part: str, folder: pathlib.Path, stem: str) -> None:
    """Writes the tensors of one part by their Hugging Face names."""
    tensors = model.tensors(part, model.table(part))
    write_tensors(tqdm(tensors, desc=part, unit="tensor", disable=None), folder, stem)


def write_tensors(tensors: Iterable[tuple[str, np.ndarray]], folder: pathlib.Path, stem: str) -> None:
    """One safetensors file, or several of about SHARD_BYTES with an index, as Hugging Face's libraries write them."""
    import safetensors.numpy

    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = []
    pending: dict[str, np.ndarray] = {}
    total = 0

    def close_shard() -> None:
        shards.append(list(pending))
        safetensors.numpy.save_file(pending, folder / f"{stem}-{len(shards):05d}.tmp", metadata={"format": "pt"})
        pending.clear()

    for name, array in tensors:
        if pending and sum(value.nbytes for value in pending.values()) + array.nbytes > SHARD_BYTES:
            close_shard()
        pending[name] = array
        total += array.nbytes
    close_shard()
    if len(shards) == 1:
        (folder / f"{stem}-00001.tmp").rename(folder / f"{stem}.safetensors")
        return
    files = [f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for number, file in enumerate(files, 1):
        (folder / f"{stem}-{number:05d}.tmp").rename(folder / file)
    weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_pickle(arrays: Mapping[str, np.ndarray], file: pathlib.Path) -> None:
    """A state dict that torch.load reads with weights_only."""
    torch = require_torch(file)

    def tensor(array: np.ndarray):  # torch.Tensor, which is no type where torch is not installed
        if array.dtype == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    torch.save({name: tensor(np.array(array, order="C")) for name, array in arrays.items()}, file)


def write_json(file: pathlib.Path, values: Mapping) -> None:
    """Writes a JSON object, and the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, indent=2) + "\n")


def write_tokenizer(tokenizer: Tokenizer, folder: pathlib.Path, max_length: int) -> None:
    """The files of transformers' slow LlamaTokenizer, which `Tokenizer.load` reads too."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(tokenizer.model)
    ids = {"bos": tokenizer.bos, "eos": tokenizer.eos, "unk": tokenizer.unk}
    names = {key: tokenizer.pieces([number])[0] for key, number in ids.items()}
    special = {f"{key}_token": name for key, name in names.items()}
    if tokenizer.added:
        special["pad_token"] = tokenizer.pad_token
    additional = [name for name, _ in tokenizer.added if name != tokenizer.pad_token]
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    numbered = [
        *((ids[key], names[key]) for key in ("unk", "bos", "eos")),
        *((number, name) for name, number in tokenizer.added),
    ]
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": tokenizer.legacy,
        "add_bos_token": True,
        "add_eos_token": False,
        "model_max_length": max_length,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": additional,
        **special,
        "added_tokens_decoder": {str(number): {"content": name} | flags for number, name in numbered},
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", {**special, "additional_special_tokens": additional})
    if tokenizer.added:
        write_json(folder / "added_tokens.json", dict(tokenizer.added))


def copy_clip_tokenizers(model: StreamedModel, targets: Mapping[str, os.PathLike]) -> None:
    """Copies the CLIP tokenizers that a model has to `targets` {text_encoder or clip_text: folder}."""
    for name, target in targets.items():
        if (model.tokenizer_folder / name).exists():
            importer.copy_clip_tokenizer(model.tokenizer_folder / name, target)
