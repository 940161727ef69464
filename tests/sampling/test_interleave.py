"""Illustrated documents.

The state machine against the model run without a cache, batch mates, limits, compilation, errors.
"""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import PIXEL, boosted, parameters

from dreamjax.diffusion import samplers
from dreamjax.document import Document, Image, Text
from dreamjax.document.batch import Shape, empty_batch, place
from dreamjax.document.image_io import for_encoder
from dreamjax.document.tokenize import Slots, TokenSequence, tokenize_prompt
from dreamjax.errors import ConfigError
from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Model
from dreamjax.sampling import denoise, interleave, likelihood, prompts, stream, text_to_image
from dreamjax.sampling.options import Options

CONTEXT = 128
OPTIONS = Options(sampler="ddim", max_tokens=20, max_images=2, num_steps=2, guidance_scale=2.0)


def make_image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(8, 8, 3), dtype=np.uint8)


def shown(seed: int) -> Image:
    """A picture for the model to see."""
    return Image(make_image(seed), is_target=False)


PROMPTS = (
    Document((Text("Once a red circle"), shown(1), Text("Then"))),
    Document((shown(2), Text("Here is a shape."))),
    Document((Text("One day a blue cross"), Image(make_image(3)))),
    Document((Text("Now"),)),
)
OTHERS = (
    Document((Text("What colour is it?"), shown(4))),
    Document((shown(5),)),
    Document((shown(6), Text("The end."))),
)


def request_of(prompts, seeds, options=OPTIONS) -> interleave.GenerationRequest:
    return interleave.GenerationRequest(prompts=prompts, seeds=seeds, options=options)


@dataclasses.dataclass
class Writer:
    """A random model that writes and now and then draws, whatever its prompt."""

    model: Model
    tokenizer: object

    def generate(self, prompts, seeds, options=OPTIONS) -> list[Document]:
        return interleave.generate(self.model, self.tokenizer, request_of(prompts, seeds, options))

    def with_boosts(self, **boosts: float) -> "Writer":
        """The same model with other boosts of </s> (eos) and <dream_start> (dream)."""
        ids = {"eos": self.tokenizer.eos, "dream": self.tokenizer.dream_start}
        return self.with_params(boosted(self.model.params, {ids[name]: boost for name, boost in boosts.items()}))

    def with_params(self, params: dict) -> "Writer":
        return dataclasses.replace(self, model=Model(self.model.config, params))


@pytest.fixture(scope="module")
def model(shapes_tokenizer) -> Model:
    # Three rows more than there are tokens, as in a model whose embedding was padded.
    llm = dataclasses.replace(PIXEL.llm, vocab_size=shapes_tokenizer.size + 3, max_positions=CONTEXT)
    config = dataclasses.replace(PIXEL, llm=llm)
    return Writer(Model(config, parameters(config)), shapes_tokenizer).with_boosts(eos=-9.0, dream=1.3)


def drawn_in(document: Document) -> list[np.ndarray]:
    return [np.asarray(image) for image in document.images]


# ----------------------------------------------------------------------------------------------------------------------
# Against the model without a cache


class Uncached:
    """One document that is run from its beginning for every token."""

    def __init__(self, model: Writer, prompt: Document, seed: int):
        self.model, self.key = model, jax.random.key(seed)
        row = tokenize_prompt(prompt, model.tokenizer, Slots.of(model.model.config))
        self.tokens, self.inputs, self.targets = row.tokens.tolist(), list(row.inputs), list(row.targets)
        self.images = [for_encoder(prompt.parts[part].pil(), 8) for _, part in row.inputs]
        self.run = jax.jit(self._run)
        self.draw = jax.jit(self._draw)

    def _run(self, batch):
        """(logits of the token after the last one, the hidden states at the last queries)."""
        model = self.model.model
        hidden = dreamllm.hidden_states(model, batch)
        last = hidden[0, jnp.sum(batch.segments) - 1]
        queries = dreamllm.read_out(model, hidden, batch)[jnp.maximum(jnp.sum(batch.target_valid) - 1, 0)]
        return model.apply("llm", last, method="logits"), queries

    def _draw(self, queries, key):
        model, tokenizer = self.model.model, self.model.tokenizer
        empty = dreamllm.unconditional(model, tokenizer.bos, tokenizer.dream_start)
        noise = jax.random.normal(key, (1, 8, 8, 3))
        contexts = [dreamllm.condition(model, hidden[None]) for hidden in (empty, queries)]
        plan = samplers.ddim(model.config.diffusion, OPTIONS.num_steps, OPTIONS.spacing, pixels=True)

        def predict(x, timesteps):
            without, conditional = (dreamllm.denoise(model, x, timesteps, context) for context in contexts)
            return without + OPTIONS.guidance_scale * (conditional - without)

        def still(_):
            return jnp.zeros_like(noise)

        denoiser = samplers.Denoiser(config=model.config.diffusion, predict=predict, noise=still, clip=True)
        drawn = samplers.advance(denoiser, plan, samplers.begin(noise), 0, OPTIONS.num_steps)
        return dreamllm.decode_latents(model, drawn.x)[0]

    def batch(self):
        batch = empty_batch(Shape(1, 1, CONTEXT, 4, 4, 8, 1))
        tokens = np.array(self.tokens, np.int32)
        row = TokenSequence(tokens, np.zeros(len(tokens), bool), tuple(self.inputs), tuple(self.targets), False)
        place(batch, (0, 0), row, self.images, [None] * len(self.targets))
        return batch

    def next_token(self) -> int:
        tokenizer = self.model.tokenizer
        logits = np.array(self.run(self.batch())[0])
        never = tokenizer.special_ids - {tokenizer.eos, tokenizer.dream_start}
        logits[list(never)] = logits[tokenizer.size :] = -np.inf
        return int(np.argmax(logits))

    def dream(self, number: int) -> np.ndarray:
        """Appends the queries and draws picture `number`, counted from 1."""
        tokenizer, count = self.model.tokenizer, self.model.model.config.dream_queries
        self.targets.append((len(self.tokens) + 1, 0))
        self.tokens += [tokenizer.dream_start, *[tokenizer.im_patch] * count, tokenizer.dream_end]
        return np.asarray(self.draw(self.run(self.batch())[1], jax.random.fold_in(self.key, 2**32 - number)))

    def look(self, image: np.ndarray):
        """Appends what the model sees of the picture."""
        tokenizer = self.model.tokenizer
        self.inputs.append((len(self.tokens) + 1, 0))
        self.images.append(for_encoder(image, 8))
        self.tokens += [
            tokenizer.im_start,
            *[tokenizer.im_patch] * self.model.model.config.clip.patches,
            tokenizer.im_end,
        ]


@pytest.mark.parametrize("number", [0, 2])
def test_a_document_is_what_the_model_says_without_a_cache(model, number):
    document = model.generate(PROMPTS, range(4))[number]
    drawn = drawn_in(document)
    assert len(drawn) >= 1 and len(document.text) > 10, "the test is empty without a picture and words"
    uncached, runs = Uncached(model, PROMPTS[number], seed=number), [[]]
    for _ in range(OPTIONS.max_tokens):
        token = uncached.next_token()
        if token == model.tokenizer.eos or (token == model.tokenizer.dream_start and len(runs) > OPTIONS.max_images):
            break
        if token != model.tokenizer.dream_start:
            uncached.tokens.append(token)
            runs[-1].append(token)
            continue
        expected = uncached.dream(len(runs))
        image = drawn[len(runs) - 1]
        assert expected.shape == image.shape and np.max(np.abs(expected.astype(int) - image)) <= 1
        uncached.look(image)
        runs.append([])
    assert len(drawn) == len(runs) - 1
    words = [model.tokenizer.decode_continuation(run) for run in runs]
    words = [text if i == 0 and number == 0 else text.lstrip() for i, text in enumerate(words)]
    assert [part.text for part in document.parts if isinstance(part, Text)] == [text for text in words if text]
    kinds = [Image] * 2 * len(runs)
    kinds[::2] = [Text if text else None for text in words]
    assert [type(part) for part in document.parts] == [kind for kind in kinds[:-1] if kind]


LONG = Document(
    (
        Text("Once a red circle jumps up. Then it hides. " * 5),
        shown(7),
        Text("It is green."),
        shown(8),
        shown(9),
        Text("And then"),
    )
)


def test_a_document_does_not_depend_on_its_batch_mates(model):
    """To the byte in a batch of eight, though mates are longer and draw more.

    Alone, in other shapes, the same words and pictures within 2/255.
    """
    model, options = (
        model.with_boosts(eos=-9.0, dream=3.0),
        dataclasses.replace(OPTIONS, temperature=0.8, top_p=0.9, repetition_penalty=1.1),
    )
    short = [PROMPTS[3]] * 3 + [Document(())] * 4
    mixed = [*OTHERS, LONG, *PROMPTS[1:3], LONG]
    ones = []
    for number, seed in ((0, 7), (3, 8)):
        made = []
        for mates in (short, mixed):
            batch = [*mates[:5], PROMPTS[number], *mates[5:]]
            made.append(model.generate(batch, [seed if i == 5 else 90 + i for i in range(8)], options)[5])
        one, two = made
        assert one.to_json() == two.to_json()
        ones.append(one)
        alone = model.generate([PROMPTS[number]], [seed], options)[0]
        assert alone.text == one.text and [type(part) for part in alone.parts] == [type(part) for part in one.parts]
        for ours, theirs in zip(drawn_in(alone), drawn_in(one), strict=True):
            assert np.max(np.abs(ours.astype(int) - theirs)) <= 2
        assert one.to_json() != model.generate([PROMPTS[number]], [seed + 1], options)[0].to_json()
    assert any(one.images for one in ones) and any(one.text for one in ones)


# ----------------------------------------------------------------------------------------------------------------------
# Limits


def test_a_limit_of_tokens_ends_a_document_with_a_note(model):
    documents = model.with_boosts(eos=-50.0, dream=-50.0).generate(
        PROMPTS, range(4), dataclasses.replace(OPTIONS, max_tokens=5)
    )
    assert {document.notes for document in documents} == {("stopped at the limit of 5 tokens",)}
    assert all(len(document.parts) == 1 and document.text for document in documents)
    nothing = model.generate(PROMPTS, range(4), dataclasses.replace(OPTIONS, max_tokens=0))
    assert all(document.parts == () and document.notes == ("stopped at the limit of 0 tokens",) for document in nothing)


def test_an_end_is_no_limit(model):
    documents = model.with_boosts(eos=50.0).generate(PROMPTS, range(4))
    assert all(document.parts == () and document.notes == () for document in documents)


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_a_limit_of_images(model, limit):
    documents = model.with_boosts(eos=-50.0, dream=50.0).generate(
        PROMPTS, range(4), dataclasses.replace(OPTIONS, max_images=limit)
    )
    for document in documents:
        assert [type(part) for part in document.parts] == ([Image] * limit or [Text])
        assert document.notes == (
            f"stopped at the limit of {limit} pictures" if limit else "stopped at the limit of 20 tokens",
        )


def test_images_differ_within_a_document(model):
    first, second = drawn_in(model.with_boosts(eos=-50.0, dream=50.0).generate(PROMPTS, range(4))[0])
    assert not np.array_equal(first, second)


def test_the_end_of_the_context_ends_a_document_with_a_note(model):
    quiet, long = model.with_boosts(eos=-50.0, dream=-50.0), Document((Text("Once a red circle jumps up. " * 17),))
    length = prompts.prompt_tokens(model.model, model.tokenizer, long, "plain")
    assert CONTEXT - 20 < length < CONTEXT
    document = quiet.generate([long], [0])[0]
    assert document.notes == ("stopped at the end of the model's context",)
    assert 0 < len(quiet.tokenizer.encode(document.text)) <= 2 * (CONTEXT - length)


def test_a_prompt_longer_than_the_context_is_an_error(model):
    with pytest.raises(
        ValueError, match=rf"prompt: takes \d+ tokens, with 1 to come that is more than the context of {CONTEXT}"
    ):
        model.generate([Document((Text("Once a red circle jumps up. " * 40),))], [0])


def test_an_image_needs_an_encoder(model):
    blind = dataclasses.replace(
        model, model=Model(dataclasses.replace(model.model.config, clip=None), model.model.params)
    )
    with pytest.raises(ValueError, match="this model has no picture encoder"):
        blind.generate([PROMPTS[0]], [0])


BAD = {
    "max_tokens": [-1],
    "temperature": [-0.1, float("nan")],
    "top_p": [0.0, 1.1],
    "top_k": [-1],
    "repetition_penalty": [0.0],
    "num_steps": [0],
    "guidance_scale": [0.5],
    "guidance_rescale": [1.5],
    "eta": [1.5],
    "min_images": [9],
    "beams": [0, 2],
    "stop": [""],
    "sampler": ["euler"],
    "spacing": ["karras"],
    "padding": ["middle"],
    "height": [-8],
}


@pytest.mark.parametrize("field, value", [(field, value) for field, values in BAD.items() for value in values])
def test_options_out_of_range_are_named(field, value):
    with pytest.raises(ConfigError, match=f"^{field}: "):
        Options(**{field: value})


def test_banned_are_control_tokens_and_rows_without_a_token(model):
    tokenizer, mask = model.tokenizer, prompts.banned(model.model, model.tokenizer)
    free = {tokenizer.eos, tokenizer.dream_start}
    assert set(np.flatnonzero(mask)) == (tokenizer.special_ids - free) | {tokenizer.size + i for i in range(3)}
    dry = prompts.banned(Model(dataclasses.replace(model.model.config, unet=None), {}), tokenizer)
    assert dry[tokenizer.dream_start] and not dry[tokenizer.eos]


# ----------------------------------------------------------------------------------------------------------------------
# Pictures on demand, and compilation


def draw(model, prompts, seeds, options=OPTIONS, **how):
    request = text_to_image.ImageRequest(prompts=prompts, seeds=seeds, options=options, **how)
    latents = text_to_image.image_latents(model.model, model.tokenizer, request)
    return np.asarray(denoise.decode(model.model, latents).images)


def test_an_image_on_demand_depends_on_its_seed_and_prompt_alone(model):
    drawn = draw(model, PROMPTS, [5, 6, 5, 5])
    again = draw(model, (PROMPTS[0], LONG, *OTHERS[:2]), [5, 1, 2, 3])
    assert drawn.shape == (4, 8, 8, 3) and drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[0], again[0])
    assert not np.array_equal(draw(model, PROMPTS, [6, 6, 5, 5])[0], drawn[0]) and not np.array_equal(
        drawn[0], drawn[2]
    )


def test_an_image_on_demand_is_the_one_that_the_model_would_draw_there(model):
    negative = Document.of("a blue cross")
    options = dataclasses.replace(OPTIONS, max_images=1, sampler="ddpm", num_steps=3, negative=negative)
    wanted = model.with_boosts(eos=-50.0, dream=50.0).generate(PROMPTS, range(4), options)
    drawn = draw(model, PROMPTS, range(4), options, negatives=[negative] * 4)
    for document, image in zip(wanted, drawn, strict=True):
        assert np.max(np.abs(drawn_in(document)[0].astype(int) - image)) <= 1
    assert (
        np.max(np.abs(draw(model, PROMPTS, range(4), options).astype(int) - drawn)) > 8
    )  # the negative prompt matters


def test_other_prompts_of_the_same_sizes_compile_nothing(model, caplog):
    def row_of(prompt):
        return prompts.prompt_row(model.model, model.tokenizer, prompt, "plain")

    def use(documents, seeds, options, preview_every=1):
        model.generate(documents, seeds, options)
        draw(model, documents, seeds, options)
        request = request_of([documents[0]], [0], options)
        list(stream.stream(model.model, model.tokenizer, request, interleave.Pace(1, preview_every)))

    use(PROMPTS, range(4), OPTIONS)
    other_words = (
        Document((Text("One day a green cross"), shown(8), Text("Now"))),
        Document((shown(5), Text("There it was."))),
        Document((Text("Now a green bar is"), Image(make_image(4)))),
        Document((Text("So"),)),
    )
    assert [len(row.tokens) // 16 for row in map(row_of, PROMPTS)] == [
        len(row.tokens) // 16 for row in map(row_of, other_words)
    ]
    options = dataclasses.replace(
        OPTIONS,
        temperature=0.5,
        top_k=7,
        top_p=0.5,
        repetition_penalty=1.2,
        guidance_scale=3.0,
        guidance_rescale=0.2,
        max_tokens=17,
        max_images=1,
        min_images=1,
        sampler="dpm_solver",
        num_steps=4,
        spacing="linspace",
        stop=("red",),
    )
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        use(other_words, [4, 3, 2, 1], options, preview_every=2)
        assert [record.message for record in caplog.records if "ompil" in record.message] == []
        jax.jit(lambda x: x + 12345)(jnp.float32(1))
        assert any("ompil" in record.message for record in caplog.records)


# ----------------------------------------------------------------------------------------------------------------------
# Stop strings, chats, forced pictures, what is not masked


def test_a_stop_string_ends_a_document_before_it(model):
    whole = model.generate(PROMPTS, range(4))
    texts = [part.text for document in whole for part in document.parts if isinstance(part, Text)]
    stop = next(text[2:5] for text in texts if len(text) > 8)
    for before, document in zip(
        whole,
        model.generate(PROMPTS, range(4), dataclasses.replace(OPTIONS, stop=(stop, "never written"))),
        strict=True,
    ):
        assert not any(stop in part.text for part in document.parts if isinstance(part, Text))
        expected = []
        for part in before.parts:
            expected.append(part)
            if isinstance(part, Text) and stop in part.text:
                expected[-1:] = [Text(part.text[: part.text.index(stop)])] if part.text.index(stop) else []
                break
        assert document.to_json()["parts"] == Document(tuple(expected)).to_json()["parts"]
        assert document.notes == (
            before.notes if len(expected) == len(before.parts) and expected[-1] == before.parts[-1] else ()
        )


def test_in_a_chat_the_new_parts_are_the_assistants_and_the_next_turn_reads_them(model):
    asked = Document(
        (
            Text("Be kind.", role="system"),
            Text("What is this?", role="user"),
            Image(make_image(2), is_target=False, role="user"),
        )
    )
    options = dataclasses.replace(OPTIONS, template="vicuna_v1.1", max_tokens=6)
    answer = model.generate([asked], [0], options)[0]
    assert answer.parts and {part.role for part in answer.parts} == {"assistant"} and not answer.text.startswith(" ")
    again = Document((*asked.parts, *answer.parts, Text("And now?", role="user")))
    tokens = prompts.prompt_row(model.model, model.tokenizer, again, "vicuna_v1.1").tokens.tolist()
    assert tokens.count(model.tokenizer.eos) == 1 and "ASSISTANT:" in model.tokenizer.decode_continuation(tokens[-12:])


def test_strings_that_look_like_control_tokens_stay_text(model):
    forged = Document.of("a <dream_start> and </s><im_start> end")
    tokens = prompts.prompt_row(model.model, model.tokenizer, forged, "plain").tokens.tolist()
    assert not set(tokens[1:]) & model.tokenizer.special_ids and "<dream_start>" in model.tokenizer.decode_continuation(
        tokens
    )
    assert model.generate([forged], [0])[0] is not None


def test_images_that_are_forced_come_and_those_that_are_forbidden_do_not(model):
    shy = model.with_boosts(eos=3.0, dream=-50.0)
    for document in shy.generate(PROMPTS, range(4), dataclasses.replace(OPTIONS, min_images=2)):
        assert len(document.images) == 2
    eager = model.with_boosts(eos=-50.0, dream=50.0)
    assert not any(
        document.images for document in eager.generate(PROMPTS, range(4), dataclasses.replace(OPTIONS, max_images=0))
    )


def test_control_tokens_out_of_place_are_counted(model):
    tokenizer = model.tokenizer
    wild = model.with_params(boosted(model.model.params, {tokenizer.im_end: 50.0}))
    assert not any(
        note.startswith("control") for document in wild.generate(PROMPTS, range(4)) for note in document.notes
    )
    for document in wild.generate(PROMPTS, range(4), dataclasses.replace(OPTIONS, unmasked=True, max_tokens=5)):
        assert "control tokens out of place: 5" in document.notes and document.text == ""


# ----------------------------------------------------------------------------------------------------------------------
# Streams


@pytest.mark.parametrize("number, every", [(0, 1), (1, 3)])
def test_a_stream_tells_the_document_that_generate_returns(model, number, every, tmp_path):
    model, options = model.with_boosts(eos=-9.0, dream=3.0), dataclasses.replace(OPTIONS, temperature=0.9, stop=("zq",))
    events = stream.stream(
        model.model, model.tokenizer, request_of([PROMPTS[number]], [3], options), interleave.Pace(every, 1)
    )
    page = tmp_path / "page.html"
    inputs, told, number_of = [], [], 0
    for event in stream.save_while(events, PROMPTS[number], page, pause=0):
        inputs.append(event)
        if not isinstance(event, stream.Finished):
            assert "http-equiv" in page.read_text()
        match event:
            case stream.TextPiece(text=piece):
                told.append(told.pop() + piece if told and isinstance(told[-1], str) else piece)
            case stream.ImageDone(number=at, image=drawn):
                assert at == number_of
                number_of += 1
                told.append(np.asarray(drawn))
    document = model.generate([PROMPTS[number]], [3], options)[0]
    assert inputs[-1].document.to_json() == document.to_json() and len(document.images) > 0
    for mine, part in zip(told, document.parts, strict=True):
        if isinstance(part, Text):
            assert mine == part.text
        else:
            np.testing.assert_array_equal(mine, np.asarray(part.pil()))
    kinds = [type(event) for event in inputs]
    assert (
        kinds.count(stream.ImageStarted)
        == kinds.count(stream.ImageDone)
        == kinds.count(stream.Preview)
        == len(document.images)
    )
    assert kinds.count(stream.TextPiece) >= 3 / every
    finished = page.read_text()
    assert "http-equiv" not in finished and finished.count("<img") == len(document.images) + len(PROMPTS[number].images)


def test_what_may_still_change_is_held_back():
    assert stream.settled("abc\ufffd\ufffd", ()) == 3 and stream.settled("a\ufffdb", ()) == 3
    assert stream.settled("The EN", ("END", "NEVER")) == 4 and stream.settled("The end", ("END",)) == 7


# ----------------------------------------------------------------------------------------------------------------------
# Log-probabilities


def test_log_probabilities_of_continuations(model):
    pairs = [(PROMPTS[0], " a red circle."), (LONG, " it"), (PROMPTS[1], " Now it is blue."), (Document(()), "One day")]
    found = likelihood.log_probabilities(model.model, model.tokenizer, pairs)
    for (prompt, continuation), shares in zip(pairs, found, strict=True):
        uncached = Uncached(model, prompt, 0)
        row = prompts.prompt_row(
            model.model, model.tokenizer, Document((*prompt.parts, Text(continuation))), "plain"
        ).tokens
        expected = []
        for token in row[len(row) - len(shares) :]:
            logits = np.asarray(uncached.run(uncached.batch())[0], np.float64)
            expected.append(logits[token] - np.log(np.sum(np.exp(logits - logits.max()))) - logits.max())
            uncached.tokens.append(int(token))
        np.testing.assert_allclose(shares, expected, atol=1e-4)
        assert continuation.strip() in model.tokenizer.decode_continuation(row[-len(shares) :])
    with pytest.raises(ConfigError, match="continuation: '' has no token"):
        likelihood.log_probabilities(model.model, model.tokenizer, [(PROMPTS[0], "")])
