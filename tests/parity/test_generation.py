"""Greedy continuations.

Ids of the prompts, and raw logits of every step given the recorded ones before (test_sampling.py writes them).
"""

import jax
import numpy as np
import pytest
from parity.bundles import Bundle, open_bundle, padded, to_batch

from dreamjax.document.batch import Batch, Shape
from dreamjax.models import dreamllm


def runs_of(bundle: Bundle) -> dict[str, dict[str, np.ndarray]]:
    """{run: its arrays}."""
    runs: dict = {}
    for name, array in bundle.arrays("generate").items():
        run, _, field = name.partition("/")
        if field:
            runs.setdefault(run, {})[field] = array
    if not runs:
        pytest.skip(f"{bundle.path.name} has no recorded texts")
    return runs


def prompts_of(run: dict[str, np.ndarray]) -> list[np.ndarray]:
    """A run's prompts without what fills them up."""
    return [ids[mask == 1] for ids, mask in zip(run["input_ids"], run["attention_mask"], strict=False)]


def batches_of(bundle: Bundle, runs: dict[str, dict], length: int) -> dict[str, Batch]:
    """{run.

    Its prompts with their pictures, in rows of `length` tokens}; all of one shape but for the number of rows.
    """
    tokenizer = bundle.tokenizer
    most = max(int((prompt == tokenizer.im_start).sum()) for run in runs.values() for prompt in prompts_of(run))
    batches = {}
    for name, run in runs.items():
        ids, mask = padded(prompts_of(run), tokenizer.pad, "right")
        count = int((ids == tokenizer.im_start).sum())
        images = {"images": bundle.arrays("generate")["pixel_values"][:count]} if count else {}
        shape = Shape(len(ids), 1, length, most, 0, bundle.model.config.clip.image_size, 1)
        batches[name] = to_batch(bundle, shape, ids, mask, **images)
    return batches


def together(batches: dict[str, Batch]) -> Batch:
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *batches.values())


@pytest.fixture(scope="module")
def prompts(bundle) -> dict[str, np.ndarray]:
    """Our ids and masks of each run's prompts."""
    opened = open_bundle(bundle)
    found = {}
    for run in runs_of(opened):
        recorded = opened.record("generate")[run]
        encoded = [[opened.tokenizer.bos, *opened.tokenizer.encode(text, special=True)] for text in recorded["texts"]]
        found[f"{run}/input_ids"], found[f"{run}/attention_mask"] = padded(
            encoded, opened.tokenizer.pad, recorded["padding_side"]
        )
    return found


@pytest.fixture(scope="module")
def scores(bundle) -> dict[str, np.ndarray]:
    """Logits at every step of the recorded continuations, which follow their prompts without a gap."""
    opened = open_bundle(bundle)
    runs = runs_of(opened)
    batches = batches_of(opened, runs, max(run["sequences"].shape[1] for run in runs.values()))
    steps = {}
    for name, run in runs.items():
        new = run["sequences"][:, run["input_ids"].shape[1] :]
        steps[name] = np.array([len(prompt) - 1 + np.arange(new.shape[1]) for prompt in prompts_of(run)])
        rows = np.arange(len(new))[:, None]
        batches[name].tokens[rows, 0, steps[name] + 1] = new
        batches[name].segments[rows, 0, steps[name] + 1] = 1

    @jax.jit
    def run_all(batch):
        hidden = dreamllm.hidden_states(opened.model, batch)
        return opened.model.apply("llm", hidden, method="logits")

    logits = np.asarray(run_all(together(batches)))
    found, first = {}, 0
    for name, at in steps.items():
        found[f"{name}/scores"] = np.take_along_axis(logits[first : first + len(at)], at[..., None], axis=1)
        first += len(at)
    return found


def test_prompts_and_scores(bundle, prompts, scores):
    open_bundle(bundle).compare("generate", "test_generation", prompts | scores)


def test_the_likeliest_tokens_are_the_recorded_ones(bundle, scores):
    """Also in batches, step by step, given the recorded tokens before."""
    opened = open_bundle(bundle)
    for name, run in runs_of(opened).items():
        new = run["sequences"][:, run["input_ids"].shape[1] :]
        open_ended = (
            np.cumsum(new == opened.tokenizer.eos, axis=1) - (new == opened.tokenizer.eos) == 0
        )  # pads follow </s>
        likeliest = scores[f"{name}/scores"].argmax(axis=-1)
        opened.check({f"generate/{name}/likeliest": (likeliest[open_ended], new[open_ended])})
