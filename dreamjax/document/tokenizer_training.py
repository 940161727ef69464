"""Training of a tokenizer like LLaMA's on the texts of a data source, for experiments that bring none."""

import collections.abc
import io
import re

import sentencepiece


def train_tokenizer(texts: collections.abc.Iterable[str], vocab_size: int) -> bytes:
    """A sentencepiece model like LLaMA's (BPE, bytes for unknown characters, single digits), trained in memory.

    The same texts in the same order give the same bytes. `vocab_size` is an upper limit: few texts have few pieces.
    Raises ValueError without any text and where the characters alone are too many.
    """
    characters = set()

    def lines():
        for text in texts:
            for line in re.sub("[\ud800-\udfff]", "\ufffd", text).split("\n"):  # as in LLaMA, a line break is a byte
                characters.update(line)
                yield line

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines(),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            character_coverage=1.0,
            hard_vocab_limit=False,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            split_digits=True,
            add_dummy_prefix=True,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            max_sentence_length=1 << 24,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        if not characters:
            raise ValueError("a tokenizer cannot be trained: there is no text") from None
        needed = len(characters | {" "}) + 3 + 256  # control tokens, bytes
        if vocab_size < needed:
            raise ValueError(
                f"a tokenizer of {vocab_size} pieces is too small for {len(characters)} characters: needs "
                f"at least {needed}"
            ) from None
        raise ValueError(f"a tokenizer cannot be trained: {error}") from error
    return model.getvalue()
