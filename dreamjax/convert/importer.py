"""Foreign weights into a model folder, streamed.

At no time is more in memory than one parameter, or a few small ones.
"""

import dataclasses
import math
import pathlib
import shutil
from collections.abc import Mapping, Sequence

from etils import epath
from tqdm import tqdm

from dreamjax.convert import assemble, detect, finite, output, vocabulary
from dreamjax.convert.assemble import Found, Plan
from dreamjax.convert.settings import Settings
from dreamjax.convert.tensors import require_content, sha256
from dreamjax.errors import ConfigError
from dreamjax.training import model_folder, weight_transfer
from dreamjax.training.model_folder import LoadedFile, ModelCard, Origin

PARTS = ("llm", "clip", "unet", "vae", "text_encoder", "clip_text")
CLIP_TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


def make_plan(
    given: Sequence[str],
    tokenizer: str | None = None,
    parts: Sequence[str] = (),
    new_rows: str = "official",
    changes: Mapping | None = None,
    seed: int = 0,
) -> Plan:
    """The model that the sources make; nothing is read yet but headers, and the mean of embedding rows where it is
    wanted.

    `parts` are the only ones taken, all where it is empty. `tokenizer`: a file or folder for an LLM that brings none.
    """
    found = [_only(detect.read(source), parts) for source in given]
    plan = assemble.compose(found, changes, seed)
    if plan.model.llm is None or (plan.tokenizer and tokenizer is None):
        return plan
    folder = next((f.tokenizer_folder for f in found if f.tokenizer_folder), None)
    if tokenizer is None and (folder is None or not (folder / "tokenizer.model").exists()):
        raise ConfigError(
            f"--tokenizer: is missing, since {folder or plan.found[0].where} has no tokenizer.model (a "
            "sentencepiece model)"
        )
    path = folder if tokenizer is None else pathlib.Path(tokenizer)
    if not path.exists():
        raise ConfigError(f"--tokenizer: {path}: no such file or folder")
    text_only = plan.model.clip is None and plan.model.unet is None
    added = vocabulary.listed(path)
    read = detect.read_tokenizer(path, plan.model.llm.vocab_size, text_only)
    of_llm = next(found for found in plan.found if "llm" in found.settings)
    notes = vocabulary.check(read, path, added, Settings(of_llm.raw["llm"].config, f"{of_llm.where}/config.json"))
    return dataclasses.replace(assemble.with_tokenizer(plan, read, new_rows, seed), notes=notes)


def _only(found: Found, parts: Sequence[str]) -> Found:
    """The source without the parts that are not wanted."""
    if not parts:
        return found
    kept = set(parts)
    settings = {name: value for name, value in found.settings.items() if name not in PARTS or name in kept}
    leaves = {path: leaf for path, leaf in found.leaves.items() if path.split("/")[0] in kept}
    return dataclasses.replace(
        found,
        settings=settings,
        leaves=leaves,
        clip_tokenizers={name: folder for name, folder in found.clip_tokenizers.items() if name in kept},
    )


def write(plan: Plan, out: epath.Path, allow_nonfinite: bool = False) -> dict[str, int]:
    """Writes the model folder; {tensor: weights of it that are NaN or infinite}.

    ConfigError where `out` holds something, or where weights are not finite unless that is allowed; nothing is at `out`
    then.
    """
    leaves, counts = finite.counted(plan.leaves)
    sizes = {path: math.prod(leaf.shape) * leaf.dtype.itemsize for path, leaf in leaves.items()}

    def progress(groups):
        return tqdm(groups, desc="writing", unit="group", disable=None)

    with output.written(out) as folder:
        origins = tuple(origin_of(found) for found in plan.found)
        model_folder.save_leaves(folder / "params", sizes, lambda path: assemble.place(leaves[path]), progress)
        if counts and not allow_nonfinite:
            raise ConfigError(f"--source: {finite.format_summary(counts)}; --allow_nonfinite takes them as they are")
        if plan.tokenizer:
            plan.tokenizer.save(folder / "tokenizer")
        for name, source in ((name, source) for found in plan.found for name, source in found.clip_tokenizers.items()):
            copy_clip_tokenizer(source, folder / "tokenizer" / name)
        card = ModelCard(plan.model, plan.template, origins, plan.fresh)
        weight_transfer.write_import(folder, card)
        model_folder.write_card(folder, card)  # last, so that a folder with a config.json is whole
    return counts


def origin_of(found: Found) -> Origin:
    """What a source brought, with the checksums of its files."""
    parts = tuple(dict.fromkeys(path.split("/")[0] for path in found.leaves))
    files = [
        LoadedFile(_name(file, found.where), file.stat().st_size, sha256(file))
        for file in tqdm(found.files, desc="checksums", unit="file", disable=None)
    ]
    return Origin(found.where, found.format, parts, tuple(files))


def _name(file: pathlib.Path, where: str) -> str:
    return str(file.relative_to(where)) if file.is_relative_to(where) and str(file) != where else file.name


def copy_clip_tokenizer(source, target):
    """The files of CLIP's own tokenizer."""
    target.mkdir(parents=True, exist_ok=True)
    for name in CLIP_TOKENIZER_FILES:
        if (source / name).exists():
            require_content(source / name)
            shutil.copyfile(source / name, target / name)
