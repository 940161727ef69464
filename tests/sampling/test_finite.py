"""NaN in the weights and overflows.

They are said, by document, and end nothing else; they never look like a clean end or a black picture.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath
from small_model import LATENT, boosted, parameters, with_params

from dreamjax.api import DreamLLM
from dreamjax.document import Document
from dreamjax.models.dreamllm import Model
from dreamjax.sampling import finite, output_folder, rerank, stream
from dreamjax.sampling.finite import NotFinite
from dreamjax.sampling.options import Options
from dreamjax.sampling.write_documents import Writer, write_many

FAST = {"num_steps": 2, "guidance_scale": 2.0, "max_tokens": 6, "max_images": 1}
GOOD, BAD = "Once a red circle jumps up.", "Now"


@pytest.fixture(scope="module")
def config(shapes_tokenizer):
    return dataclasses.replace(
        LATENT, llm=dataclasses.replace(LATENT.llm, vocab_size=shapes_tokenizer.size, max_positions=64)
    )


def with_value(params: dict, path: str, value: float, at=...) -> dict:
    """The parameters with one array's entries replaced."""
    params = jax.tree.map(np.array, params)
    inner = params
    for key in path.split("/")[:-1]:
        inner = inner[key]
    inner[path.split("/")[-1]][at] = value
    return params


@pytest.fixture(scope="module")
def model(config, shapes_tokenizer) -> DreamLLM:
    """A sound model that draws a picture at once and does not end."""
    return DreamLLM(
        Model(config, boosted(parameters(config), {shapes_tokenizer.eos: -9.0, shapes_tokenizer.dream_start: 9.0})),
        shapes_tokenizer,
    )


@pytest.fixture(scope="module")
def half(model) -> DreamLLM:
    """Of which one word is broken: prompts that have it, and no others, are not finite."""
    only_bad = set(model.tokenizer.encode(BAD)) - set(model.tokenizer.encode(GOOD))
    return with_params(model, with_value(model.params, "llm/embed/embedding", np.nan, sorted(only_bad)[0]))


def test_one_document_of_a_batch_ends_and_the_others_are_what_they_were(model, half, tmp_path):
    sound = model.generate_batch([GOOD, GOOD], [1, 2], **FAST)
    said = (
        r"^document 1 of 3 \(from 0\): not finite: the model's logits from token 1 on; the weights hold NaN "
        r".* in llm/embed/embedding"
    )
    with pytest.raises(NotFinite, match=said) as caught:
        half.generate_batch([GOOD, BAD, GOOD], [1, 5, 2], batch_size=2, **FAST)
    first, broken, second = caught.value.results
    assert (
        [first.to_json(), second.to_json()] == [document.to_json() for document in sound]
        and first.images
        and not first.notes[0].startswith("not")
    )
    assert broken.parts == () and broken.notes == ("not finite: the model's logits from token 1 on",)


def test_many_documents_say_it_in_their_notes_and_are_written_again(model, half, tmp_path):
    prompts, options = [(Document.of(GOOD), 1), (Document.of(BAD), 5)], Options(**FAST)
    out = epath.Path(tmp_path)
    assert write_many(Writer(half.model, half.tokenizer, options), prompts, out, 2)["not_finite"] == [1]
    assert json.loads((tmp_path / "00001" / "story.json").read_text())["notes"] == [
        "not finite: the model's logits from token 1 on"
    ]
    facts = write_many(Writer(model.model, model.tokenizer, options), prompts, out, 2)
    assert (facts["written"], facts["not_finite"]) == (1, []) and output_folder.read(
        out / "00001", *prompts[1], options
    )["notes"] != []


def test_a_command_ends_with_the_numbers_of_the_documents(half):
    finite.require_none([], half.model)
    with pytest.raises(
        NotFinite, match=r"^documents \[1\]: numbers were not finite: the weights hold NaN .*/embedding: use"
    ):
        finite.require_none([1], half.model)


def test_streams_end_with_the_error_behind_the_document(half, monkeypatch):
    last = stream.Finished(Document((), notes=(finite.note(0, 0, 0),)))
    monkeypatch.setattr(stream, "stream", lambda *_: iter([stream.TextPiece("a"), last]))
    events = half.stream(BAD)
    assert [next(events), next(events)] == [stream.TextPiece("a"), last]
    with pytest.raises(
        NotFinite, match="^document: not finite: the model's logits from token 1 on; the weights hold NaN"
    ):
        next(events)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("path", ["unet/conv_out/kernel", "vae/decoder/conv_out/bias"])
def test_no_image_is_black_by_nan(model, path, value):
    broken = with_params(model, with_value(model.params, path, value))
    with pytest.raises(
        NotFinite, match="^document: not finite: picture 1; the weights hold NaN or infinities, first in (unet|vae)/"
    ) as caught:
        broken.generate_batch([GOOD], batch_size=2, **FAST)
    assert not caught.value.results[0].images
    with pytest.raises(NotFinite, match=r"^picture 0, 1 of 2 \(from 0\): not finite: the weights hold"):
        broken.text_to_image([GOOD, BAD], num_steps=2, guidance_scale=2.0)


def test_a_token_in_the_middle(model, half):
    """The broken word is the model's own: what it wrote before stays, and beams do not hide it."""
    tokenizer = model.tokenizer
    word = sorted(set(tokenizer.encode(BAD)) - set(tokenizer.encode(GOOD)))[0]
    writes = with_params(half, with_value(half.params, "llm/head/kernel", 9.5, (0, word)))
    for beams in (1, 2):
        with pytest.raises(NotFinite, match="not finite: the model's logits from token 2 on") as caught:
            writes.generate_batch([GOOD], batch_size=2, max_tokens=5, max_images=0, beams=beams)
        assert tokenizer.encode(caught.value.results[0].text)[-1] == word


def test_scores_of_nan_are_no_scores(half):
    with pytest.raises(NotFinite, match=r"^pair 1 of 3 \(from 0\): not finite: the weights hold NaN"):
        half.log_probabilities([(GOOD, " a"), (BAD, " a"), (GOOD, " b")])
    image = half.decode(np.zeros((1, 4, 4, 8), np.float32))[0]
    with pytest.raises(NotFinite, match=r"rank: not finite: the score of candidate \(0, 1\)"):
        rerank.rank([image, image], ["a"], lambda *_: np.array([1.0, np.nan]))


def test_weights_that_are_finite_are_said_to_be(model):
    assert finite.cause(model.model).startswith("the weights are finite: numbers leave the range of float32")
    with pytest.raises(NotFinite, match="^picture: not finite: the weights are finite"):
        model.decode(np.full((1, 4, 4, 8), np.nan, np.float32))
