"""CLIP's own byte-pair tokenizer, of Stable Diffusion's text encoder and of the text tower for ranking.

Transformers', without torch.
"""

import os
from collections.abc import Sequence

import numpy as np


def load(folder: str | os.PathLike):
    """transformers' CLIPTokenizer from a folder with vocab.json and merges.txt; the padding token is the folder's."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(os.fspath(folder))


def encode(tokenizer, texts: Sequence[str], length: int = 77) -> np.ndarray:
    """[B, length] int32: start, the text, cut where it is too long, end, and padding."""
    ids = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True)["input_ids"]
    return np.asarray(ids, np.int32)
