"""The recorded batches through the model: what the LLM reads, its hidden states, logits and language loss.

The loss of an evaluation is the language loss with its weight; there is no picture's in it.
"""

import numpy as np
from parity.bundles import open_bundle
from parity.forward import forward
from parity.vmloss import own_loss


def test_states_logits_and_loss(bundle):
    opened = open_bundle(bundle)
    assert forward(opened), "no forward_*.npz"
    for file, ours in forward(opened).items():
        mask = opened.arrays(file)["attention_mask"]
        rows, length = mask.shape
        cut = {name: array[:rows, :length] for name, array in ours.items() if np.ndim(array)}
        cut["loss"] = own_loss(opened).weights[0] * ours["lm_loss"]
        opened.compare(file, "test_forward", cut, where=mask == 1)  # what stands at pads has no meaning


def test_losses_and_tokens_in_words(bundle):
    opened = open_bundle(bundle)
    for file, ours in forward(opened).items():
        recorded = opened.record("forward")[file.removeprefix("forward_")]
        made = {"eval_loss": own_loss(opened).weights[0] * ours["lm_loss"], "lm_loss": ours["lm_loss"]}
        opened.check({f"forward/{file}/{name}": (loss, np.float32(recorded[name])) for name, loss in made.items()})
        assert [opened.tokenizer.pieces(row) for row in opened.arrays(file)["input_ids"]] == recorded["tokens"]
