"""Illustrated documents: the state machine against the model run without a cache, batch mates, limits, compilation, errors."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import PIXEL, boosted, parameters, quick_jit

from dreamjax.batch import Shape, empty_batch, place
from dreamjax.document import Document, Image, Text
from dreamjax.images import for_encoder
from dreamjax.models import dreamllm
from dreamjax.rows import Row, Slots, build_row
from dreamjax.sampling import image, interleave
from dreamjax.sampling.interleave import Options

CONTEXT = 128
OPTIONS = Options(max_tokens=20, max_images=2, num_steps=2, guidance_scale=2.0)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(8, 8, 3), dtype=np.uint8)


def shown(seed: int) -> Image:
    """A picture for the model to see."""
    return Image(picture(seed), dreamed=False)


PROMPTS = (
    Document((Text("Once a red circle"), shown(1), Text("Then"))),
    Document((shown(2), Text("Here is a shape."))),
    Document((Text("One day a blue cross"), Image(picture(3)))),
    Document((Text("Now"),)),
)
OTHERS = (Document((Text("What colour is it?"), shown(4))), Document((shown(5),)), Document((shown(6), Text("The end."))))


@dataclasses.dataclass
class Model:
    """A random model that writes and now and then draws, whatever its prompt."""

    parts: dreamllm.Parts
    params: dict
    tokenizer: object

    def generate(self, prompts, seeds, options=OPTIONS) -> list[Document]:
        return interleave.generate(self.parts, self.params, self.tokenizer, prompts, seeds, options)

    def with_boosts(self, **boosts: float) -> "Model":
        """The same model with other boosts of </s> (eos) and <dream_start> (dream)."""
        ids = {"eos": self.tokenizer.eos, "dream": self.tokenizer.dream_start}
        return dataclasses.replace(self, params=boosted(self.params, {ids[name]: boost for name, boost in boosts.items()}))


@pytest.fixture(scope="module")
def model(shapes_tokenizer) -> Model:
    # Three rows more than there are tokens, as in a model whose embedding was padded.
    llm = dataclasses.replace(PIXEL.llm, vocab_size=shapes_tokenizer.size + 3, max_positions=CONTEXT)
    config = dataclasses.replace(PIXEL, llm=llm)
    return Model(dreamllm.build(config), parameters(config), shapes_tokenizer).with_boosts(eos=-9.0, dream=1.6)


def pictures(document: Document) -> list[np.ndarray]:
    return [np.asarray(picture) for picture in document.images]


# ----------------------------------------------------------------------------------------------------------------------
# Against the model without a cache


class Uncached:
    """One document that is run from its beginning for every token."""

    def __init__(self, model: Model, prompt: Document, seed: int):
        self.model, self.key = model, jax.random.key(seed)
        row = build_row(prompt, model.tokenizer, Slots.of(model.parts.config), prompt=True)
        self.tokens, self.seen, self.dreamed = row.tokens.tolist(), list(row.seen), list(row.dreamed)
        self.images = [for_encoder(prompt.parts[part].pil(), 8) for _, part in row.seen]
        self.run = quick_jit(self._run)
        self.draw = quick_jit(self._draw)

    def _run(self, batch):
        """(logits of the token after the last one, the hidden states at the last queries)."""
        parts, params = self.model.parts, self.model.params
        hidden = dreamllm.hidden_states(parts, params, batch)
        last = hidden[0, jnp.sum(batch.segments) - 1]
        queries = dreamllm.read_out(parts, hidden, batch)[jnp.maximum(jnp.sum(batch.dreamed_valid) - 1, 0)]
        return parts.llm.apply({"params": params["llm"]}, last, method="logits"), queries

    def _draw(self, queries, key):
        parts, params, tokenizer = self.model.parts, self.model.params, self.model.tokenizer
        empty = dreamllm.unconditional(parts, params, tokenizer.bos, tokenizer.dream_start)
        drawing = image.Drawing(OPTIONS.num_steps, OPTIONS.spacing)
        return image.draw(parts, params, queries[None], empty, key[None], jnp.float32(OPTIONS.guidance_scale), drawing)[0]

    def batch(self):
        batch = empty_batch(Shape(1, 1, CONTEXT, 4, 4, 8, 1))
        tokens = np.array(self.tokens, np.int32)
        row = Row(tokens, np.zeros(len(tokens), bool), tuple(self.seen), tuple(self.dreamed), False)
        place(batch, 0, 0, row, self.images, [None] * len(self.dreamed))
        return batch

    def next_token(self, may_dream: bool) -> int:
        tokenizer = self.model.tokenizer
        logits = np.array(self.run(self.batch())[0])
        never = tokenizer.special_ids - {tokenizer.eos} - ({tokenizer.dream_start} if may_dream else set())
        logits[list(never)] = logits[tokenizer.size :] = -np.inf
        return int(np.argmax(logits))

    def dream(self, number: int) -> np.ndarray:
        """Appends the queries and draws picture `number`, counted from 1."""
        tokenizer, count = self.model.tokenizer, self.model.parts.config.dream_queries
        self.dreamed.append((len(self.tokens) + 1, 0))
        self.tokens += [tokenizer.dream_start, *[tokenizer.im_patch] * count, tokenizer.dream_end]
        return np.asarray(self.draw(self.run(self.batch())[1], jax.random.fold_in(self.key, 2**32 - number)))

    def look(self, picture: np.ndarray):
        """Appends what the model sees of the picture."""
        tokenizer = self.model.tokenizer
        self.seen.append((len(self.tokens) + 1, 0))
        self.images.append(for_encoder(picture, 8))
        self.tokens += [tokenizer.im_start, *[tokenizer.im_patch] * self.model.parts.config.clip.patches, tokenizer.im_end]


@pytest.mark.parametrize("number", [0, 2])
def test_a_document_is_what_the_model_says_without_a_cache(model, number):
    document = model.generate(PROMPTS, range(4))[number]
    drawn = pictures(document)
    assert len(drawn) >= 1 and len(document.text) > 10, "the test is empty without a picture and words"
    uncached, runs = Uncached(model, PROMPTS[number], seed=number), [[]]
    for _ in range(OPTIONS.max_tokens):
        token = uncached.next_token(may_dream=len(runs) <= OPTIONS.max_images)
        if token == model.tokenizer.eos:
            break
        if token != model.tokenizer.dream_start:
            uncached.tokens.append(token)
            runs[-1].append(token)
            continue
        expected = uncached.dream(len(runs))
        picture = drawn[len(runs) - 1]
        assert expected.shape == picture.shape and np.max(np.abs(expected.astype(int) - picture)) <= 1
        uncached.look(picture)
        runs.append([])
    assert len(drawn) == len(runs) - 1
    words = [model.tokenizer.decode_continuation(run) for run in runs]
    words = [text if i == 0 and number == 0 else text.lstrip() for i, text in enumerate(words)]
    assert [part.text for part in document.parts if isinstance(part, Text)] == [text for text in words if text]
    kinds = [Image] * 2 * len(runs)
    kinds[::2] = [Text if text else None for text in words]
    assert [type(part) for part in document.parts] == [kind for kind in kinds[:-1] if kind]


def test_a_document_does_not_depend_on_its_batch_mates(model):
    model, options = model.with_boosts(eos=-9.0, dream=4.0), dataclasses.replace(OPTIONS, temperature=0.8, top_p=0.9)
    for number, seed in ((0, 7), (3, 8)):
        mates = list(OTHERS)
        mates.insert(number, PROMPTS[number])
        seeds = [seed if i == number else 90 + i for i in range(4)]
        one = model.generate(PROMPTS, [seed if i == number else i for i in range(4)], options)[number]
        two = model.generate(mates, seeds, options)[number]
        assert one.to_json() == two.to_json()
        assert one.to_json() != model.generate(mates, [seed + 1] * 4, options)[number].to_json()
        alone = model.generate([PROMPTS[number]], [seed], options)[0]
        assert alone.text == one.text and [type(part) for part in alone.parts] == [type(part) for part in one.parts]
        assert one.images and one.text
        for ours, theirs in zip(pictures(alone), pictures(one), strict=True):
            assert np.max(np.abs(ours.astype(int) - theirs)) <= 2


# ----------------------------------------------------------------------------------------------------------------------
# Limits


def test_a_limit_of_tokens_ends_a_document_with_a_note(model):
    documents = model.with_boosts(eos=-50.0, dream=-50.0).generate(PROMPTS, range(4), dataclasses.replace(OPTIONS, max_tokens=5))
    assert {document.notes for document in documents} == {("stopped at the limit of 5 tokens",)}
    assert all(len(document.parts) == 1 and document.text for document in documents)
    nothing = model.generate(PROMPTS, range(4), dataclasses.replace(OPTIONS, max_tokens=0))
    assert all(document.parts == () and document.notes == ("stopped at the limit of 0 tokens",) for document in nothing)


def test_an_end_is_no_limit(model):
    documents = model.with_boosts(eos=50.0).generate(PROMPTS, range(4))
    assert all(document.parts == () and document.notes == () for document in documents)


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_a_limit_of_pictures(model, limit):
    documents = model.with_boosts(eos=-50.0, dream=50.0).generate(PROMPTS, range(4), dataclasses.replace(OPTIONS, max_images=limit))
    for document in documents:
        assert [type(part) for part in document.parts] == [Image] * limit + [Text]


def test_pictures_differ_within_a_document(model):
    first, second = pictures(model.with_boosts(eos=-50.0, dream=50.0).generate(PROMPTS, range(4))[0])
    assert not np.array_equal(first, second)


def test_the_end_of_the_context_ends_a_document_with_a_note(model):
    quiet, long = model.with_boosts(eos=-50.0, dream=-50.0), Document((Text("Once a red circle jumps up. " * 17),))
    length = interleave.prompt_tokens(model.parts, model.tokenizer, long, "plain")
    assert CONTEXT - 20 < length < CONTEXT
    document = quiet.generate([long], [0])[0]
    assert document.notes == ("stopped at the end of the model's context",)
    assert 0 < len(quiet.tokenizer.encode(document.text)) <= 2 * (CONTEXT - length)


def test_a_prompt_longer_than_the_context_is_an_error(model):
    with pytest.raises(ValueError, match=rf"prompt: takes \d+ tokens, which leaves nothing of the model's context of {CONTEXT}"):
        model.generate([Document((Text("Once a red circle jumps up. " * 40),))], [0])


def test_a_picture_needs_an_encoder(model):
    blind = dataclasses.replace(model, parts=dreamllm.build(dataclasses.replace(model.parts.config, clip=None)))
    with pytest.raises(ValueError, match="this model has no picture encoder"):
        blind.generate([PROMPTS[0]], [0])


@pytest.mark.parametrize("field, value", [("max_tokens", -1), ("temperature", -0.1), ("top_p", 0.0), ("top_p", 1.1), ("num_steps", 0), ("guidance_scale", 0.5)])
def test_options_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}: {value}"):
        Options(**{field: value})


def test_banned_are_control_tokens_and_rows_without_a_token(model):
    tokenizer, mask = model.tokenizer, interleave.banned(model.parts, model.tokenizer)
    free = {tokenizer.eos, tokenizer.dream_start}
    assert set(np.flatnonzero(mask)) == (tokenizer.special_ids - free) | {tokenizer.size + i for i in range(3)}
    dry = interleave.banned(dreamllm.build(dataclasses.replace(model.parts.config, unet=None)), tokenizer)
    assert dry[tokenizer.dream_start] and not dry[tokenizer.eos]


# ----------------------------------------------------------------------------------------------------------------------
# Pictures on demand, and compilation


def test_a_picture_on_demand_depends_on_its_seed_and_prompt_alone(model):
    draw = lambda prompts, seeds: interleave.draw_after(model.parts, model.params, model.tokenizer, prompts, seeds, OPTIONS)
    drawn = draw(PROMPTS, [5, 6, 5, 5])
    again = draw((PROMPTS[0], *OTHERS), [5, 1, 2, 3])
    assert drawn[0].shape == (8, 8, 3) and drawn[0].dtype == np.uint8 and len(drawn) == 4
    np.testing.assert_array_equal(drawn[0], again[0])
    assert not np.array_equal(draw(PROMPTS, [6, 6, 5, 5])[0], drawn[0]) and not np.array_equal(drawn[0], drawn[2])


def test_a_picture_on_demand_is_the_one_that_the_model_would_draw_there(model):
    wanted = model.with_boosts(eos=-50.0, dream=50.0).generate(PROMPTS, range(4), dataclasses.replace(OPTIONS, max_images=1))
    drawn = interleave.draw_after(model.parts, model.params, model.tokenizer, PROMPTS, range(4), OPTIONS)
    for document, picture in zip(wanted, drawn):
        np.testing.assert_array_equal(pictures(document)[0], picture)


def test_other_prompts_of_the_same_sizes_compile_nothing(model, caplog):
    model.generate(PROMPTS, range(4))
    other_words = (Document((Text("One day a green cross"), shown(8), Text("Now"))), *OTHERS)
    options = dataclasses.replace(OPTIONS, temperature=0.5, top_p=0.5, guidance_scale=3.0, max_tokens=17, max_images=1)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        model.generate(other_words, [4, 3, 2, 1], options)
        assert [record.message for record in caplog.records if "ompil" in record.message] == []
        jax.jit(lambda x: x + 12345)(jnp.float32(1))
        assert any("ompil" in record.message for record in caplog.records)
