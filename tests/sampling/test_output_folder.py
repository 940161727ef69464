"""What a document leaves on disk says all that is needed to write it again; the command does so."""

import dataclasses
import json

import numpy as np
import pytest
from etils import epath
from small_model import PIXEL, boosted, parameters

from dreamjax.api import DreamLLM
from dreamjax.document import Document, Image, Text
from dreamjax.errors import ConfigError
from dreamjax.models.dreamllm import Model
from dreamjax.sampling import attention_maps, output_folder
from dreamjax.sampling.options import Options
from dreamjax.sampling.write_documents import Writer, write_again, write_many

OPTIONS = Options(
    max_tokens=10,
    max_images=1,
    num_steps=2,
    guidance_scale=2.0,
    temperature=0.9,
    stop=("zq", "qz"),
    negative=Document.of("a green bar"),
)
PICTURE = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(shapes_tokenizer) -> DreamLLM:
    config = dataclasses.replace(
        PIXEL, llm=dataclasses.replace(PIXEL.llm, vocab_size=shapes_tokenizer.size, max_positions=128)
    )
    params = boosted(parameters(config), {shapes_tokenizer.eos: -9.0, shapes_tokenizer.dream_start: 3.0})
    return DreamLLM(Model(config, params), shapes_tokenizer)


def files(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def many(model, tmp_path):
    """Writes prompts as the command does, in batches of two."""
    return lambda prompts: write_many(
        Writer(model.model, model.tokenizer, OPTIONS), prompts, epath.Path(tmp_path / "many"), 2
    )


def test_an_item_of_many_is_written_again_from_its_record_to_the_byte(model, many, tmp_path):
    prompts = [
        (Document((Text("Once a"), Image(PICTURE, is_target=False), Text("Then"))), 7),
        (Document.of("Now"), 8),
        (Document.of("So a red circle"), 9),
    ]
    facts = many(prompts)
    assert facts["documents"] == facts["written"] == 3
    for number, (prompt, seed) in enumerate(prompts):
        folder = epath.Path(tmp_path / "many" / f"{number:05d}")
        asked = output_folder.asked(folder)
        assert asked.prompt.to_json() == prompt.to_json() and (asked.seed, asked.options, asked.batch_size) == (
            seed,
            OPTIONS,
            2,
        )
        again = epath.Path(tmp_path / f"again{number}")
        told = write_again(
            Writer(model.model, model.tokenizer, asked.options), [(asked.prompt, asked.seed)], again, asked.batch_size
        )
        assert files(again) == files(folder) and told["seed"] == seed
    assert any("image_0.png" in files(tmp_path / "many" / f"{number:05d}") for number in range(3))


def test_what_is_there_is_skipped_and_what_is_not_comes_out_the_same(many, tmp_path):
    prompts = [(Document.of("Now"), 8), (Document.of("So a red circle"), 9), (Document.of("One day"), 1)]
    many(prompts)
    before = files(tmp_path / "many" / "00001")
    (tmp_path / "many" / "00001" / "story.json").unlink()
    assert many(prompts)["written"] == 1 and files(tmp_path / "many" / "00001") == before
    with pytest.raises(ConfigError, match="holds what another prompt, seed or option made"):
        many([(Document.of("Now"), 3), *prompts[1:]])


def test_a_prompt_that_does_not_fit_is_named_before_anything_is_written(many, tmp_path):
    with pytest.raises(ConfigError, match="--prompts: document 1: prompt: takes .* more than the context of 128"):
        many([(Document.of("Now"), 0), (Document.of("Once a red circle jumps up. " * 40), 0)])
    assert not list((tmp_path / "many").glob("*/story.json"))


@pytest.mark.parametrize("record", [None, "{", json.dumps({"parts": []})])
def test_a_record_that_says_too_little_is_one_error(record, tmp_path):
    if record is not None:
        (tmp_path / "story.json").write_text(record)
    with pytest.raises(
        ConfigError, match="story.json: (is not there|is no JSON|does not say what its document was made of)"
    ):
        output_folder.asked(epath.Path(tmp_path))


def test_attention_maps_are_saved_with_the_image_that_is_drawn_anyway(model, tmp_path):
    options = {"num_steps": 2, "guidance_scale": 2.0}
    watched = model.attention_maps("a red circle", seed=3, **options)
    drawn = np.asarray(model.text_to_image("a red circle", seed=3, **options)[0])
    assert np.max(np.abs(np.asarray(watched.image).astype(int) - drawn)) <= 1
    watched.save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"picture.png", "attention_maps.npz", "attention_maps.png"}
    with np.load(tmp_path / "attention_maps.npz") as saved:
        assert set(saved.files) == {"4x4"} and saved["4x4"].shape == (PIXEL.dream_queries, 4, 4)
        np.testing.assert_array_equal(saved["4x4"], watched.maps[4, 4])
    two = {(2, 2): np.ones((1, 2, 2), np.float32), (4, 4): np.full((1, 4, 4), 3, np.float32)}
    np.testing.assert_array_equal(attention_maps.mean_of(two), np.full((1, 4, 4), 2))
