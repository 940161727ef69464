"""The class for lm-evaluation-harness against the model's own calls."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import LATENT, parameters

from dreamjax.api import DreamLLM
from dreamjax.errors import ConfigError
from dreamjax.models.dreamllm import Model

pytest.importorskip("lm_eval", reason="needs lm-eval")


@pytest.fixture(scope="module")
def harness(shapes_tokenizer):
    from dreamjax.evaluation.lm_eval import DreamJAX

    config = dataclasses.replace(
        LATENT,
        llm=dataclasses.replace(LATENT.llm, vocab_size=shapes_tokenizer.size, max_positions=48),
        unet=None,
        vae=None,
    )
    return DreamJAX(DreamLLM(Model(config, parameters(config)), shapes_tokenizer), batch_size=4)


class Request:
    def __init__(self, *args):
        self.args = args


@functools.cache
def compiled():
    def run(model, tokens):
        apply = functools.partial(model.apply, "llm")
        hidden, _ = apply(apply(tokens, method="embed"), jnp.arange(tokens.shape[1])[None])
        return jax.nn.log_softmax(apply(hidden, method="logits"))

    return jax.jit(run)


def log_probabilities(harness, tokens: list[int]) -> np.ndarray:
    """[n, V]: of the token after each of the given ones."""
    padded = jnp.array([[*tokens, *[0] * (harness.context - len(tokens))]])
    return np.asarray(compiled()(harness.model.model, padded))[0, : len(tokens)]


def test_continuations(harness):
    pairs = [
        ("Once a red circle", " jumps up."),
        ("A", " blue square"),
        ("", "The end."),
        ("Once a red circle", " sleeps"),
        ("What is it?", " red"),
    ]
    found = harness.loglikelihood([Request(*pair) for pair in pairs], disable_tqdm=True)
    for (context, continuation), (total, _) in zip(pairs, found, strict=True):
        before = len(harness.tok_encode(context)) if context else 1
        tokens = harness.tok_encode(context + continuation)
        shares = log_probabilities(harness, tokens)
        assert total == pytest.approx(sum(shares[i - 1, tokens[i]] for i in range(before, len(tokens))), abs=1e-3)


def test_a_choice_after_a_space_is_scored_with_it_here_and_by_the_model(harness):
    pairs = [
        ("Once a red ", "circle jumps"),
        ("Once a red", " circle jumps"),
        ("Once a red\n", "circle"),
        ("Once a ", "zebra"),
    ]
    found = [total for total, _ in harness.loglikelihood([Request(*pair) for pair in pairs], disable_tqdm=True)]
    own = [float(shares.sum(dtype=np.float64)) for shares in harness.model.log_probabilities(pairs, batch_size=4)]
    assert found[0] == pytest.approx(found[1], abs=1e-4) and found == pytest.approx(own, abs=1e-3)


def test_a_choice_without_a_token_does_not_win(harness):
    for pair in (("Once a red", ""), ("Once a red circ", "l")):
        if not harness._encode_pair(*pair)[1]:
            with pytest.raises(ConfigError, match="request 1: the continuation has no token of its own: .'Once a red"):
                harness.loglikelihood([Request("Once", " a"), Request(*pair)], disable_tqdm=True)


def test_what_greedy_decoding_writes_is_greedy(harness):
    context = harness.tok_encode("Once a red circle")
    likely = [int(log_probabilities(harness, context)[-1].argmax())]
    likely.append(int(log_probabilities(harness, context + likely)[-1].argmax()))
    other = [likely[0], (likely[1] + 1) % 500]
    greedy = [
        flag
        for _, flag in harness._loglikelihood_tokens(
            [(None, context, likely), (None, context, other), (None, context, other[1:])], disable_tqdm=True
        )
    ]
    assert greedy == [True, False, False]


def test_whole_texts_in_windows(harness):
    short, long = "Once a red circle jumps up.", " ".join(["Once a red circle jumps up and a blue square sleeps."] * 12)
    found = harness.loglikelihood_rolling([Request(short), Request(long)], disable_tqdm=True)
    tokens = harness.tok_encode(short)
    assert len(tokens) < 48 < len(harness.tok_encode(long))
    shares = log_probabilities(harness, tokens)
    assert found[0] == pytest.approx(sum(shares[i - 1, tokens[i]] for i in range(1, len(tokens))), abs=1e-3)
    tokens, expected, done = harness.tok_encode(long), 0.0, 1
    while done < len(tokens):  # each token is counted once; the last window reaches back as far as there is room
        end = min(done + 47, len(tokens))
        window = tokens[max(end - 48, 0) : end]
        shares = log_probabilities(harness, window)
        expected += sum(shares[i - 1, window[i]] for i in range(len(window) - (end - done), len(window)))
        done = end
    assert found[1] == pytest.approx(expected, rel=1e-5)


def test_writing_until(harness):
    whole = harness.generate_until([Request("Once a red", {"until": [], "max_gen_toks": 8})], disable_tqdm=True)[0]
    stop = whole[3:5]
    found = harness.generate_until(
        [
            Request("Once a red", {"until": [stop], "max_gen_toks": 8}),
            Request("word " * 90, {"until": "\n", "max_gen_toks": 4}),
        ],
        disable_tqdm=True,
    )
    assert found[0] == whole[: whole.index(stop)] and len(whole) > 5
    assert harness.model.generate("Once a red", max_tokens=8, max_images=0).text == whole


@pytest.mark.parametrize("size", [0, "0", "auto", -1, None])
def test_a_batch_of_nothing_is_refused(size):
    from dreamjax.evaluation.lm_eval import DreamJAX

    with pytest.raises(ConfigError, match="batch_size: .* is no number from 1 on"):
        DreamJAX("no such folder", batch_size=size)
