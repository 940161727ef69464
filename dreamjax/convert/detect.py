"""Sources of weights, recognised by their content: folders, files, names on the Hugging Face hub."""

import os
import pathlib
import re

from dreamjax.config import ModelConfig
from dreamjax.convert import assemble
from dreamjax.convert.assemble import ForeignSource, RawPart
from dreamjax.convert.formats import huggingface, llama, llama2c, official
from dreamjax.convert.tensors import require_content
from dreamjax.document.tokenizer import MODEL_FILE, Tokenizer
from dreamjax.errors import ConfigError, gist

LAYOUTS = (
    "a LLaMA or CLIP folder of transformers (config.json), a Stable Diffusion folder of diffusers "
    "(unet/, vae/), the official DreamLLM release "
    "(config.json with plugins_init_kwargs), a llama2.c .bin"
)
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ["*.json", "*.safetensors", "*.bin", "*.model", "*.txt"]
HUB_IGNORED = [
    "*.non_ema.*",
    "*-pruned*",
    "*emaonly*",
    "safety_checker/*",
    "open_clip_*",
]  # gigabytes that no reader needs


def read(source: str | os.PathLike) -> ForeignSource:
    """Opens a source of any known layout; ConfigError where it is missing or of no known layout."""
    path = locate(source)
    require_content(path)
    if path.is_file():
        if not llama2c.recognises(path):
            raise ConfigError(f"{source}: is a file in no known layout; known are {LAYOUTS}")
        return _read_llama2c(path)
    if official.recognises(path):
        return official.read(path)
    if huggingface.kind(path):
        return huggingface.read(path)
    if (path / "params").exists() or (path / "checkpoints").exists():
        raise ConfigError(
            f"{source}: is a model folder or workdir of this project already; init_from and --model take it as it is"
        )
    description = huggingface.describe(path)
    known = f"known are {LAYOUTS}; of model types {', '.join(huggingface.MODEL_TYPES)}, dreamllm"
    raise ConfigError(f"{source}: is a folder in no known layout{description and f' (it says {description})'}; {known}")


def locate(source: str | os.PathLike) -> pathlib.Path:
    """The local path of a source: a path as it is, a hub name after its download or from the hub's cache."""
    path = pathlib.Path(source)
    if path.exists():
        return path
    if not HUB_NAME.fullmatch(os.fspath(source)):
        raise ConfigError(f"{source}: no such file or folder")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(os.fspath(source), allow_patterns=HUB_FILES, ignore_patterns=HUB_IGNORED)
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ConfigError(
            f"{source}: no such folder here, and the hub does not give it ({gist(error)}); download it "
            "elsewhere and give the folder"
        ) from None


def _read_llama2c(file: pathlib.Path) -> ForeignSource:
    config, tensors = llama2c.read(file)
    leaves = assemble.read_part(
        "llm", llama.table(config), assemble.shapes_of(ModelConfig(llm=config)), tensors, str(file)
    )
    return ForeignSource(
        "llama2.c",
        str(file),
        {"llm": config},
        leaves,
        (file,),
        raw_parts={"llm": RawPart(llama.write_config(config, "float32", {}), tensors)},
    )


def read_tokenizer(path: pathlib.Path, vocab_size: int, text_only: bool) -> Tokenizer:
    """The tokenizer of a folder, of a sentencepiece model or of a llama2.c vocabulary, with the added tokens unless
    it is `text_only`.
    """
    require_content(path / MODEL_FILE if path.is_dir() else path)
    try:
        if path.is_dir():
            return Tokenizer.load(path, text_only)
        if path.suffix == ".bin":
            tokenizer = llama2c.read_tokenizer(path, vocab_size)
            return tokenizer if text_only else Tokenizer.from_model(tokenizer.model)
        return Tokenizer.from_model(path, {}, pad_token="<unk>") if text_only else Tokenizer.from_model(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None
