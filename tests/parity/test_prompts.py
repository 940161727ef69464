"""Conditions of recorded prompts: their ids, and the hidden states at the dream queries behind them.

Shorter prompts of a batch are filled up. On the left, or not at all, that changes nothing. The official inference fills
up on the right: pads that nobody sees stand between a prompt and the queries and move the queries' positions, so that a
prompt's condition depends on its batch mates. Here that is a row with a gap.
"""

import jax
import numpy as np
import pytest
from parity.bundles import Bundle, open_bundle, padded, to_batch
from small_model import relative_error

from dreamjax.document.batch import Shape
from dreamjax.models import dreamllm


def prompts_of(bundle: Bundle) -> dict[str, list[str]]:
    recorded = bundle.record("prompt")
    return {
        "pos": recorded["prompts"],
        "neg": recorded["negative_prompts"],
        "single": recorded["prompts"][:1],
        "empty": [""],
    }


def image_prompt(bundle: Bundle) -> list[int]:
    """The ids of the prompt with a picture."""
    image = "<im_start>" + "<im_patch>" * bundle.slots.patches + "<im_end>"
    return [
        bundle.tokenizer.bos,
        *bundle.tokenizer.encode(bundle.record("prompt")["mm_text"].replace("<image>", image), special=True),
    ]


def with_queries(bundle: Bundle, ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that go on with a dreamed picture, whatever fills them up."""
    tokenizer = bundle.tokenizer
    image = [tokenizer.dream_start, *[tokenizer.im_patch] * bundle.slots.queries, tokenizer.dream_end]
    return np.concatenate([ids, np.tile(image, (len(ids), 1))], axis=1), np.concatenate(
        [mask, np.ones((len(ids), len(image)), int)], axis=1
    )


@pytest.fixture(scope="module")
def ours(bundle) -> dict[str, np.ndarray]:
    """Our side of prompt.npz; all rows run at once."""
    opened = open_bundle(bundle)
    found, rows = {}, {}
    for side in ("right", "left"):
        for kind, texts in prompts_of(opened).items():
            ids, mask = padded(
                [[opened.tokenizer.bos, *opened.tokenizer.encode(text, special=True)] for text in texts],
                opened.tokenizer.pad,
                side,
            )
            found |= {f"{side}/{kind}/input_ids": ids, f"{side}/{kind}/attention_mask": mask}
            rows[f"{side}/{kind}"] = with_queries(opened, ids, mask)
    images = {}
    if "mm/prompt_embeds" in opened.arrays("prompt"):
        ids = np.array([image_prompt(opened)])
        rows["mm"] = with_queries(opened, ids, np.ones_like(ids))
        images = {"images": opened.arrays("prompt")["mm/pixel_values"]}
    flat = [(one, inputs) for ids, mask in rows.values() for one, inputs in zip(ids, mask, strict=False)]
    ids, _ = padded([one for one, _ in flat], opened.tokenizer.pad, "right")
    mask, _ = padded([inputs for _, inputs in flat], 0, "right")
    config = opened.model.config
    batch = to_batch(
        opened,
        Shape(*ids.shape[:1], 1, ids.shape[1], 1, 1, config.clip.image_size, config.decoder_size),
        ids,
        mask,
        **images,
    )
    batch.target_start[:, 0] = np.argmax(ids == opened.tokenizer.dream_start, axis=1) + 1
    batch.target_valid[:] = True

    @jax.jit
    def run(batch):
        hidden = dreamllm.hidden_states(opened.model, batch)
        return dreamllm.embed_batch(opened.model, batch), dreamllm.read_out(opened.model, hidden, batch)

    embeds, conditions = jax.device_get(run(batch))
    first = 0
    for name, (ids, _) in rows.items():
        found[f"{name}/prompt_embeds"] = conditions[first : first + len(ids)]
        first += len(ids)
    if "mm" in rows:
        found["mm/inputs_embeds"] = embeds[-1:, : len(image_prompt(opened))]
    return found


def test_conditions(bundle, ours):
    open_bundle(bundle).compare("prompt", "test_prompts", ours)


def test_padding_on_the_left_changes_nothing_and_on_the_right_moves_the_queries(bundle, ours):
    alone = ours["left/single/prompt_embeds"][0]
    left, right = (relative_error(ours[f"{side}/pos/prompt_embeds"][0], alone) for side in ("left", "right"))
    filled = (ours["left/pos/attention_mask"][0] == 0).any()
    assert left < 1e-4 and (not filled or right > 10 * left)
