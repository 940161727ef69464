"""The recorded batches through the model: what the LLM reads, its hidden states, logits and language loss."""

import numpy as np
from parity.bundles import open_bundle
from parity.forward import forward


def test_states_logits_and_loss(bundle):
    opened = open_bundle(bundle)
    assert forward(opened), "no forward_*.npz"
    for file, ours in forward(opened).items():
        mask = opened.arrays(file)["attention_mask"]
        rows, length = mask.shape
        cut = {name: array[:rows, :length] if np.ndim(array) else array for name, array in ours.items()}
        opened.compare(file, "test_forward", cut, where=mask == 1)  # what stands at pads has no meaning


def test_losses_and_tokens_in_words(bundle):
    opened = open_bundle(bundle)
    for file, ours in forward(opened).items():
        recorded = opened.record("forward")[file.removeprefix("forward_")]
        opened.check({f"forward/{file}/{name}": (ours["loss"], np.float32(recorded[name])) for name in ("eval_loss", "lm_loss")})
        assert [opened.tokenizer.pieces(row) for row in opened.arrays(file)["input_ids"]] == recorded["tokens"]
