"""Where a prompt ends and its continuation begins, to the token, as lm-evaluation-harness has it.

Nothing is computed here.
"""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_model import LATENT

from dreamjax.document import Document, Image, Text
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import ConfigError
from dreamjax.models.dreamllm import Model
from dreamjax.sampling import likelihood

MODEL = Model(LATENT, {})
WORDS = ["Once", "a", "red", "circle", "jumps", "zebra", "blue", "sleeps", "42", "naïve", "日本"]


@pytest.fixture(scope="module", params=[True, False], ids=["legacy", "new"])
def tokenizer(request, shapes_tokenizer) -> Tokenizer:
    return dataclasses.replace(shapes_tokenizer, legacy=request.param)


def scored(tokenizer, prompt, continuation: str) -> list[int]:
    row = likelihood._scored(
        MODEL, tokenizer, prompt if isinstance(prompt, Document) else Document.of(prompt), continuation, "plain"
    )[1]
    return row.tokens[row.loss_mask].tolist()


def of_the_harness(tokenizer, prompt: str, continuation: str) -> list[int]:
    """What lm-eval's base class of causal models makes of a pair."""
    model = pytest.importorskip("lm_eval.api.model", reason="needs lm-eval")

    class Causal(model.TemplateLM):
        eot_token_id = tokenizer.eos

        def tok_encode(self, string, **_):
            return [tokenizer.bos, *tokenizer.encode(string)]

        _loglikelihood_tokens = loglikelihood_rolling = generate_until = None

    return Causal()._encode_pair(prompt, continuation)[1]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from([" ", "  ", "\n", ". ", ""])), min_size=1, max_size=6),
    st.floats(0.01, 0.99),
)
def test_any_text_parts_where_the_harness_parts_it(tokenizer, words, place):
    text = "".join(word + gap for word, gap in words)
    prompt, continuation = text[: (at := max(1, int(place * len(text))))], text[at:]
    expected = of_the_harness(tokenizer, prompt, continuation)
    if continuation and expected:
        assert scored(tokenizer, prompt, continuation) == expected
    else:
        with pytest.raises(ConfigError, match="^continuation: .* has no token of its own"):
            scored(tokenizer, prompt, continuation)


def test_a_space_at_the_end_is_the_continuations(tokenizer):
    for gap in (" ", "  ", "\n", " \t"):
        moved = scored(tokenizer, f"Once a red{gap}", "zebra")
        assert (
            moved == scored(tokenizer, "Once a red", f"{gap}zebra")
            and tokenizer.decode_continuation(moved) == f"{gap}zebra"
        )
        for prompt in (
            Document.of(["Once a red", gap]),
            Document.of(["Once a", " red", gap[:1], gap[1:]]),
            Document.of(["Once a red" + gap, ""]),
        ):
            assert scored(tokenizer, prompt, "zebra") == moved
    assert (
        scored(tokenizer, " ", "zebra") == scored(tokenizer, "", " zebra") == scored(tokenizer, Document(()), " zebra")
    )


def test_scores_of_parts_are_the_whole(tokenizer):
    """The tokens of a text are those of its first words and of what follows, wherever words part."""
    text = "Once a red zebra jumps."
    whole = scored(tokenizer, Document(()), text)
    for at in [number for number, character in enumerate(text) if character == " "]:
        for split in (at, at + 1):
            prompt, continuation = text[:split], text[split:]
            assert scored(tokenizer, Document(()), prompt.rstrip()) + scored(tokenizer, prompt, continuation) == whole


def test_images_and_turns_keep_what_is_theirs(tokenizer):
    image = np.zeros((8, 8, 3), np.uint8)
    after = scored(tokenizer, Document.of(["Once ", image]), "a zebra")
    assert after == scored(
        tokenizer, Document.of(["Once", image]), "a zebra"
    ) and "zebra" in tokenizer.decode_continuation(after)
    assert scored(tokenizer, Document.of([image, " "]), "zebra") == scored(tokenizer, Document.of([image]), " zebra")

    def chat(*parts):
        return Document((Image(image, is_target=False, role="user"), *parts))

    asked = chat(Text("What is it? ", role="user"))
    assert scored(tokenizer, asked, "zebra") == scored(tokenizer, chat(Text("What is it?", role="user")), "zebra")
    begun = scored(tokenizer, Document((*asked.parts, Text("A red ", role="assistant"))), "zebra")
    assert (
        begun == scored(tokenizer, Document((*asked.parts, Text("A red", role="assistant"))), " zebra")
        and tokenizer.decode_continuation(begun) == " zebra"
    )


@pytest.mark.parametrize("continuation", ["", None, 3])
def test_a_continuation_that_is_none(tokenizer, continuation):
    with pytest.raises(ConfigError, match="^continuation: .* has no token of its own"):
        scored(tokenizer, "Once ", continuation)
