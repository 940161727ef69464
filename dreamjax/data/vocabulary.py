"""The tokenizer of a run: the one its workdir holds, one from a file, or one trained on the documents' own text."""

from etils import epath

from dreamjax.config import RunConfig
from dreamjax.data.sources import open_source
from dreamjax.schema import ConfigError
from dreamjax.tokenizer import Tokenizer, train_tokenizer


def open_tokenizer(config: RunConfig, workdir: epath.Path) -> Tokenizer:
    """Opens or makes the run's tokenizer and keeps it in workdir/tokenizer; ConfigError where its ids exceed the LLM's vocabulary."""
    folder = workdir / "tokenizer"
    if folder.exists():
        tokenizer = Tokenizer.load(folder)
    else:
        tokenizer = Tokenizer.from_model(_model(config))
    if tokenizer.size > config.model.llm.vocab_size:
        raise ConfigError(f"config.model.llm.vocab_size: {config.model.llm.vocab_size} is too small for the tokenizer's {tokenizer.size} ids")
    if not folder.exists():
        tokenizer.save(folder)
    return tokenizer


def _model(config: RunConfig) -> bytes:
    path = config.data.tokenizer
    if not path:
        texts = (text for source in config.data.train for text in open_source(source, config.seed).texts())
        return train_tokenizer(texts, config.data.tokenizer_vocab)
    if not epath.Path(path).exists():
        raise ConfigError(f"config.data.tokenizer: there is no file {path}")
    return epath.Path(path).read_bytes()
