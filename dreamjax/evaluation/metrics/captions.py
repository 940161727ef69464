"""CIDEr, BLEU, METEOR and ROUGE-L through pycocoevalcap, the COCO caption evaluation.

METEOR and the Penn Treebank tokenizer are Java programs. Without Java the rest is computed on `plain_tokens` instead,
which comes close to, but is not, the published measure.
"""

import dataclasses
import re
import shutil
from collections.abc import Mapping, Sequence

Texts = Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class CaptionMetrics:
    """Metrics of a corpus as fractions (CIDEr is no share and goes up to 10)."""

    values: dict[str, float]
    tokenizer: str  # ptb | plain


def has_java() -> bool:
    return shutil.which("java") is not None


def measure(references: Texts, captions: Mapping[str, str]) -> CaptionMetrics:
    """CIDEr, Bleu_1 to Bleu_4, ROUGE_L and METEOR of a caption for each key; without Java `measure_plain`."""
    if not has_java():
        return measure_plain(references, captions)
    from pycocoevalcap.meteor.meteor import Meteor

    expected, written = ptb_tokens(references), ptb_tokens({key: [captions[key]] for key in references})
    values = _without_java(expected, written) | {"METEOR": float(Meteor().compute_score(expected, written)[0])}
    return CaptionMetrics(values, "ptb")


def measure_plain(references: Texts, captions: Mapping[str, str]) -> CaptionMetrics:
    """CIDEr, Bleu_1 to Bleu_4 and ROUGE_L on `plain_tokens`."""
    expected, written = _plain(references), _plain({key: [captions[key]] for key in references})
    return CaptionMetrics(_without_java(expected, written), "plain")


def _without_java(expected: dict[str, list[str]], written: dict[str, list[str]]) -> dict[str, float]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    bleu = Bleu(4).compute_score(expected, written, verbose=0)[0]
    values = {"CIDEr": Cider().compute_score(expected, written)[0]}
    values |= {f"Bleu_{n}": value for n, value in enumerate(bleu, 1)}
    values["ROUGE_L"] = Rouge().compute_score(expected, written)[0]
    return {name: float(value) for name, value in values.items()}


def plain_tokens(text: str) -> list[str]:
    """Words in lower case without punctuation, n't and what follows an apostrophe parted as Penn Treebank does."""
    return re.findall(r"n't\b|'\w+|\w+?(?=n't\b)|\w+(?:-\w+)*", text.lower())


def _plain(texts: Texts) -> dict[str, list[str]]:
    return {key: [" ".join(plain_tokens(text)) for text in values] for key, values in texts.items()}


def ptb_tokens(texts: Texts) -> dict[str, list[str]]:
    """Texts in the tokens of Penn Treebank, parted by spaces."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # The tokenizer works line by line: every kind of line break inside a caption has to go.
    return PTBTokenizer().tokenize(
        {key: [{"caption": " ".join(text.split())} for text in values] for key, values in texts.items()}
    )
