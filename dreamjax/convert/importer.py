"""Import of foreign weights into a model folder, streamed: memory holds one parameter, or a few small ones."""

import dataclasses
import math
import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence

from etils import epath
from tqdm import tqdm

from dreamjax.convert import assemble, detect, finite, output, vocabulary
from dreamjax.convert.assemble import ForeignSource, ImportPlan
from dreamjax.convert.foreign_config import ForeignConfig
from dreamjax.convert.tensors import require_content, sha256
from dreamjax.errors import ConfigError
from dreamjax.training import model_folder, weight_transfer
from dreamjax.training.model_folder import LoadedFile, ModelCard, Origin

PARTS = ("llm", "clip", "unet", "vae", "text_encoder", "clip_text")
CLIP_TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


def make_plan(
    sources: Sequence[str],
    tokenizer: str | None = None,
    parts: Sequence[str] = (),
    new_rows: str = "official",
    changes: Mapping | None = None,
    seed: int = 0,
) -> ImportPlan:
    """The model that the sources make together. Only headers are read, and the embedding where new rows are its mean.

    `parts` selects parts, all where it is empty. `tokenizer`: a file or folder for an LLM that comes without one.
    """
    opened = [_select_parts(detect.read(source), parts) for source in sources]
    plan = assemble.compose(opened, changes, seed)
    if plan.model.llm is None or (plan.tokenizer and tokenizer is None):
        return plan
    path = _tokenizer_path(plan, tokenizer)
    text_only = plan.model.clip is None and plan.model.unet is None
    added = vocabulary.listed(path)
    loaded = detect.read_tokenizer(path, plan.model.llm.vocab_size, text_only)
    llm_source = next(source for source in plan.sources if "llm" in source.fields)
    config = ForeignConfig(llm_source.raw_parts["llm"].config, f"{llm_source.location}/config.json")
    notes = vocabulary.check(loaded, path, added, config)
    return dataclasses.replace(assemble.with_tokenizer(plan, loaded, new_rows, seed), notes=notes)


def _tokenizer_path(plan: ImportPlan, tokenizer: str | None) -> pathlib.Path:
    """The file or folder of the tokenizer: the one that the flag names, else the LLM's own folder."""
    if tokenizer is not None:
        path = pathlib.Path(tokenizer)
        if not path.exists():
            raise ConfigError(f"--tokenizer: {path}: no such file or folder")
        return path
    folder = next((source.tokenizer_folder for source in plan.sources if source.tokenizer_folder), None)
    if folder is None or not (folder / "tokenizer.model").exists():
        raise ConfigError(
            f"--tokenizer: is missing, since {folder or plan.sources[0].location} has no tokenizer.model (a "
            "sentencepiece model)"
        )
    return folder


def _select_parts(source: ForeignSource, parts: Sequence[str]) -> ForeignSource:
    """The source with the selected parts alone, all where none is named."""
    if not parts:
        return source
    selected = set(parts)
    fields = {name: value for name, value in source.fields.items() if name not in PARTS or name in selected}
    leaves = {path: leaf for path, leaf in source.leaves.items() if path.split("/")[0] in selected}
    return dataclasses.replace(
        source,
        fields=fields,
        leaves=leaves,
        clip_tokenizers={name: folder for name, folder in source.clip_tokenizers.items() if name in selected},
    )


def write(plan: ImportPlan, out: epath.Path, allow_nonfinite: bool = False) -> dict[str, int]:
    """Writes the model folder; returns {tensor: number of its weights that are NaN or infinite}.

    ConfigError, with nothing at `out`, where `out` is not empty or weights are not finite unless that is allowed.
    """
    leaves, counts = finite.counted(plan.leaves)
    sizes = {path: math.prod(leaf.shape) * leaf.dtype.itemsize for path, leaf in leaves.items()}

    def progress(groups: list[list[str]]) -> Iterable[list[str]]:
        return tqdm(groups, desc="writing", unit="group", disable=None)

    with output.written(out) as folder:
        origins = tuple(origin_of(source) for source in plan.sources)
        model_folder.save_leaves(folder / "params", sizes, lambda path: assemble.place(leaves[path]), progress)
        if counts and not allow_nonfinite:
            raise ConfigError(f"--source: {finite.format_summary(counts)}; --allow_nonfinite takes them as they are")
        if plan.tokenizer:
            plan.tokenizer.save(folder / "tokenizer")
        for source in plan.sources:
            for name, tokenizer_folder in source.clip_tokenizers.items():
                copy_clip_tokenizer(tokenizer_folder, folder / "tokenizer" / name)
        card = ModelCard(plan.model, plan.template, origins, plan.fresh)
        weight_transfer.write_import(folder, card)
        model_folder.write_card(folder, card)  # last, so that a folder with a config.json is complete
    return counts


def origin_of(source: ForeignSource) -> Origin:
    """The record of a source: its parts, and its files with their checksums."""
    parts = tuple(dict.fromkeys(path.split("/")[0] for path in source.leaves))
    files = [
        LoadedFile(_name(file, source.location), file.stat().st_size, sha256(file))
        for file in tqdm(source.files, desc="checksums", unit="file", disable=None)
    ]
    return Origin(source.location, source.format, parts, tuple(files))


def _name(file: pathlib.Path, location: str) -> str:
    return str(file.relative_to(location)) if file.is_relative_to(location) and str(file) != location else file.name


def copy_clip_tokenizer(source, target):
    """Copies the files of a CLIP tokenizer."""
    target.mkdir(parents=True, exist_ok=True)
    for name in CLIP_TOKENIZER_FILES:
        if (source / name).exists():
            require_content(source / name)
            shutil.copyfile(source / name, target / name)
