"""Ids and texts of the recorded tokenizer, in both of its modes."""

import dataclasses
import json

import numpy as np
import pytest
from parity.bundles import open_bundle, padded


@pytest.mark.parametrize("mode", ["legacy", "nonlegacy"])
def test_ids_and_texts(bundle, mode):
    opened = open_bundle(bundle)
    recorded = opened.record("tokenizer")
    tokenizer = dataclasses.replace(opened.tokenizer, legacy=mode == "legacy")
    encoded = [[tokenizer.bos, *tokenizer.encode(text, special=True)] for text in recorded["texts"]]
    made = {
        "input_ids": encoded,
        "tokens": [tokenizer.pieces(ids) for ids in encoded],
        "no_special": [ids[1:] for ids in encoded],
        "trunc8": [ids[:8] for ids in encoded],
        "decode": [tokenizer.decode(ids) for ids in encoded],
        "decode_skip_special": [tokenizer.decode(ids, skip_special=True) for ids in encoded],
    }
    assert set(made) == set(recorded[mode])
    opened.check(
        {f"tokenizer/{mode}/{field}": (_texts(values), _texts(recorded[mode][field])) for field, values in made.items()}
    )


def _texts(values: list) -> np.ndarray:
    """Lists of any length as things to compare for equality."""
    return np.array([json.dumps(value) for value in values])


def test_what_the_files_say(bundle):
    opened = open_bundle(bundle)
    recorded, tokenizer = opened.record("tokenizer"), opened.tokenizer
    assert tokenizer.size == recorded["len"] and tokenizer.special == recorded["special"]
    assert [tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.unk] == recorded["bos_eos_pad_unk"]
    assert tokenizer.legacy == json.loads((bundle / "ckpt" / "tokenizer_config.json").read_text()).get("legacy", True)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_batches(bundle, side):
    opened = open_bundle(bundle)
    tokenizer, recorded = opened.tokenizer, opened.record("tokenizer")[f"pad_{side}"]
    texts = [tokenizer.decode(ids, skip_special=True) for ids in recorded["input_ids"]]
    ids, mask = padded([[tokenizer.bos, *tokenizer.encode(text, special=True)] for text in texts], tokenizer.pad, side)
    made = {"input_ids": ids, "attention_mask": mask}
    opened.check({f"tokenizer/pad_{side}/{field}": (array, np.array(recorded[field])) for field, array in made.items()})
