"""A model in a user's hands: pictures on demand by their options, errors in one line, many prompts, ranking."""

import dataclasses

import numpy as np
import PIL.Image
import pytest
from etils import epath
from small_model import LATENT, boosted, parameters

from dreamjax.api import DreamLLM, prompts_of
from dreamjax.config.model import ClipTextConfig
from dreamjax.document import Document, Image, Text
from dreamjax.errors import ConfigError
from dreamjax.models.dreamllm import Model
from dreamjax.sampling import rerank
from dreamjax.training import model_folder

FAST = {"num_steps": 2, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def model(shapes_tokenizer) -> DreamLLM:
    """A random model with a VAE, whose pictures have 8 x 8 pixels."""
    llm = dataclasses.replace(LATENT.llm, vocab_size=shapes_tokenizer.size, max_positions=128)
    config = dataclasses.replace(LATENT, llm=llm)
    params = boosted(parameters(config), {shapes_tokenizer.eos: -9.0, shapes_tokenizer.dream_start: 1.3})
    return DreamLLM(Model(config, params), shapes_tokenizer)


def test_a_tokenizer_of_more_ids_than_rows_is_another_models(shapes_tokenizer, tmp_path):
    model_folder.write_card(epath.Path(tmp_path), model_folder.ModelCard(LATENT))
    shapes_tokenizer.save(tmp_path / "tokenizer")
    with pytest.raises(
        ConfigError,
        match=rf"tokenizer: has {shapes_tokenizer.size} ids, and the LLM beside it {LATENT.llm.vocab_size} rows",
    ):
        DreamLLM.load(tmp_path)


def test_the_prompt_is_kept_when_asked_for(model):
    options = {"max_tokens": 3, "max_images": 0}
    new, both = (model.generate("Once a red", keep_prompt=keep, **options) for keep in (False, True))
    assert both.parts == (Text("Once a red"), *new.parts) and both.notes == new.notes
    assert len(repr(model)) < 300


def test_one_prompt_or_several():
    image = PIL.Image.new("RGB", (8, 8))
    assert [
        len(prompts_of(content))
        for content in ("a", ["a"], ["a", "b"], ["a", image], [["a", image], "b"], [Document.of("a")] * 3, [])
    ] == [1, 1, 2, 1, 2, 3, 1]
    assert prompts_of(["a", image])[0].parts[1].is_input


def test_images_of_several_prompts_at_once_and_one_by_one(model):
    latents = model.text_to_latents(["a red circle", "a blue cross that jumps"], 2, seed=5, batch_size=4, **FAST)
    assert latents.shape == (4, 4, 4, 8) and latents.dtype == np.float32
    assert len({latent.tobytes() for latent in latents}) == 4
    for number, prompt in enumerate(
        ["a red circle", "a red circle", "a blue cross that jumps", "a blue cross that jumps"]
    ):
        alone = model.text_to_latents(prompt, seed=5 + number, **FAST)[0]
        np.testing.assert_allclose(alone, latents[number], atol=2e-4)
    images = model.text_to_image(["a red circle", "a blue cross that jumps"], 2, seed=5, batch_size=3, **FAST)
    for mine, theirs in zip(images, model.decode(latents), strict=False):
        assert np.max(np.abs(np.asarray(mine).astype(int) - np.asarray(theirs))) <= 1


def test_noise_that_is_given_and_previews_on_the_way(model):
    rng = np.random.default_rng(0)
    noise, fresh = rng.normal(size=(2, 4, 4, 8)).astype(np.float32), rng.normal(size=(2, 2, 4, 4, 8)).astype(np.float32)
    told = []
    given = {"latents": noise, "step_noise": fresh, "sampler": "ddpm", "spacing": "leading", **FAST}
    one = model.text_to_latents(
        ["a red circle"],
        2,
        seed=1,
        preview=lambda step, images: told.append((step, len(images))),
        preview_every=1,
        **given,
    )
    np.testing.assert_array_equal(
        one, model.text_to_latents(["a red circle"], 2, seed=9, **given)
    )  # no draw is left to the seed
    assert told == [(1, 2)] and not np.allclose(one[0], one[1])
    with pytest.raises(ConfigError, match=r"latents: have the shape \(2, 4, 4, 3\), must have \(2, 4, 4, 8\)"):
        model.text_to_latents("a", 2, latents=noise[..., :3], **FAST)
    with pytest.raises(ConfigError, match="step_noise: has the shape"):
        model.text_to_latents("a", 2, step_noise=fresh[:1], **FAST)


def test_negative_prompts(model):
    prompts, negatives = (
        ["a red circle", "a blue cross"],
        ["a green bar", Document((Text("an"), Image(np.zeros((8, 8, 3), np.uint8), is_target=False)))],
    )
    both = model.text_to_latents(prompts, negative=negatives, **FAST)
    for number in range(2):
        alone = model.text_to_latents(prompts[number], seed=number, negative=negatives[number], **FAST)[0]
        np.testing.assert_allclose(alone, both[number], atol=2e-4)
    without = model.text_to_latents(prompts, **FAST)
    assert not np.allclose(both, without, atol=1e-2)
    np.testing.assert_allclose(
        model.text_to_latents(prompts, negative="", **FAST), without, atol=2e-4
    )  # the empty prompt is no context
    with pytest.raises(ConfigError, match="negative: 2 negative prompts for 3 prompts"):
        model.text_to_latents(["a", "b", "c"], negative=negatives, **FAST)


def test_any_size_that_the_vae_divides(model):
    image = model.text_to_image("a red circle", height=10, width=14, **FAST)[0]
    assert image.size == (14, 10)
    with pytest.raises(ConfigError, match="width: 13 pixels is not a multiple of 2"):
        model.text_to_image("a red circle", width=13, **FAST)


def test_right_padding_is_left_padding_for_the_longest_prompt_alone(model):
    prompts = ["a red circle jumps up and down", "a"]
    left, right = (model.text_to_latents(prompts, padding=padding, **FAST) for padding in ("left", "right"))
    np.testing.assert_allclose(left[0], right[0], atol=2e-4)
    assert not np.allclose(left[1], right[1], atol=1e-2)
    np.testing.assert_allclose(model.text_to_latents("a", seed=1, padding="right", **FAST)[0], left[1], atol=2e-4)


@pytest.mark.parametrize(
    "how, message",
    [
        ({"num_steps": 0}, "num_steps: 0 is below 1"),
        ({"guidance_scale": 0.9}, "guidance_scale: 0.9 is below 1"),
        ({"num_images": 0}, "num_images: 0 is below 1"),
        ({"num_steps": 1001}, "num_steps: 1001 is not between 1 and 1000"),
        ({"batch_size": 0}, "batch_size: 0 is below 1"),
        ({"context": 4096, "max_tokens": 1}, ""),
    ],
)
def test_bad_requests_are_named(model, how, message):
    if message:
        with pytest.raises(ConfigError, match=message):
            model.text_to_image("a", **how)
    else:
        with pytest.raises(ConfigError, match="context: 4096 is above the model's 128 positions"):
            model.generate("a", **how)
    with pytest.raises(TypeError, match="steps is not an option; there are max_tokens"):
        model.text_to_image("a", steps=3)


def test_batches_of_many_prompts_and_their_seeds(model):
    options = {"max_tokens": 6, "max_images": 1, "temperature": 1.0, **FAST}
    prompts = ["Once a red circle", "A blue cross", "Now"]
    made = model.generate_batch(prompts, [4, 5, 6], batch_size=2, **options)
    again = model.generate_batch(prompts[1:], [5, 6], batch_size=2, **options)
    assert [document.to_json() for document in made[1:]] == [document.to_json() for document in again]
    assert model.generate_batch([]) == []


def test_the_best_of_several_images():
    images = [PIL.Image.new("RGB", (2, 2), (shade, 0, 0)) for shade in (10, 40, 20, 5, 7, 6)]

    def score(images, texts):
        return np.array(
            [
                int(np.asarray(p)[0, 0, 0]) * (1 if text == "bright" else -1)
                for p, text in zip(images, texts, strict=False)
            ]
        )

    ranked = rerank.rank(images, ["bright", "dark"], score)
    assert [int(np.asarray(p)[0, 0, 0]) for p in ranked[0].images] == [40, 20, 10] and ranked[1].scores.tolist() == [
        -5,
        -6,
        -7,
    ]
    best = rerank.marked(ranked, 1)
    assert [p.info["score"] for p in best] == [40.0, -5.0] and best[0].info["scores"] == [40.0, 20.0, 10.0]


def test_rank_keeps_the_images_that_clip_finds_to_fit(model, monkeypatch):
    tower = ClipTextConfig(
        vocab_size=32,
        positions=6,
        width=16,
        layers=1,
        heads=2,
        ffn_width=16,
        projection_width=8,
        vision_width=LATENT.clip.width,
    )
    config = dataclasses.replace(model.config, clip_text=tower)
    seeing = dataclasses.replace(
        model,
        model=Model(config, model.params | {"clip_text": parameters(config)["clip_text"]}),
        clip_tokenizer="here",
    )

    def words(texts, **_):
        return {
            "input_ids": [
                [1, *(len(word) for word in text.split())][:5] + [31] * (6 - min(5, len(text.split()) + 1))
                for text in texts
            ]
        }

    monkeypatch.setattr("dreamjax.document.clip_tokenizer.load", lambda folder: words)
    prompts = ["a red circle", "a blue cross that jumps"]
    drawn = model.text_to_image(prompts, 3, seed=4, **FAST)
    best = seeing.text_to_image(prompts, 1, seed=4, rank=True, candidates=3, **FAST)
    score = rerank.clip_scorer(seeing.model, words)
    for number, image in enumerate(best):
        alone = [float(score([candidate], [prompts[number]])[0]) for candidate in drawn[3 * number : 3 * number + 3]]
        np.testing.assert_allclose(sorted(alone, reverse=True), image.info["scores"], rtol=1e-4)
        assert max(alone) - min(alone) > 1e-3 and image.tobytes() == drawn[3 * number + int(np.argmax(alone))].tobytes()
    with pytest.raises(ConfigError, match="rank: needs CLIP's picture encoder and its text tower"):
        model.text_to_image("a", rank=True, **FAST)
