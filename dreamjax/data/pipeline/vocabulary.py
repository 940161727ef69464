"""The tokenizer of a run.

The one its workdir holds, one from a file or an earlier run, or one trained on the documents' own text.
"""

import re

from etils import epath

from dreamjax.config import RunConfig
from dreamjax.data.registry import open_source
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.document.tokenizer_training import train_tokenizer
from dreamjax.errors import ConfigError


def open_tokenizer(config: RunConfig, workdir: epath.Path) -> Tokenizer:
    """Opens or makes the run's tokenizer and keeps it in workdir/tokenizer.

    ConfigError where its ids exceed the LLM's vocabulary.
    """
    folder = workdir / "tokenizer"
    try:
        tokenizer = Tokenizer.load(folder) if folder.exists() else _find_tokenizer(config)
    except ValueError as error:  # a file that is damaged, or no tokenizer
        raise ConfigError(str(error)) from None
    assert config.model.llm is not None  # as RunConfig requires
    if tokenizer.size > config.model.llm.vocab_size:
        raise ConfigError(
            f"config.model.llm.vocab_size: {config.model.llm.vocab_size} is too small for the tokenizer's "
            f"{tokenizer.size} ids"
        )
    if not folder.exists():
        tokenizer.save(folder)
    return tokenizer


def _find_tokenizer(config: RunConfig) -> Tokenizer:
    path = config.data.tokenizer
    if not path:
        # Rows of an embedding mean what the tokenizer says that they were trained with.
        origins = [origin.path for origin in config.init_from if re.search(origin.pattern, "llm/embed/embedding")]
        folders = [folder for folder in (epath.Path(origin) / "tokenizer" for origin in origins) if folder.exists()]
        if folders:
            return Tokenizer.load(folders[0])
        texts = (text for source in config.data.train for text in open_source(source, config.seed).texts())
        return Tokenizer.from_model(train_tokenizer(texts, config.data.tokenizer_vocab))
    if not epath.Path(path).exists():
        raise ConfigError(f"config.data.tokenizer: there is no file {path}")
    return Tokenizer.load(path) if epath.Path(path).is_dir() else Tokenizer.from_model(path)
