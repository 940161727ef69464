"""config.json of a model folder of this project, as anything may have made it: read, or named in one line."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath
from hostile_values import POINTER, mutations, one_line
from small_model import LATENT, PIXEL

from dreamjax.api import DreamLLM
from dreamjax.config import ClipTextConfig, ModelConfig
from dreamjax.config.validation import from_dict, to_dict
from dreamjax.convert import assemble, exporter
from dreamjax.errors import ConfigError
from dreamjax.training import model_folder
from dreamjax.training.model_folder import LoadedFile, ModelCard, Origin

TEXT = ClipTextConfig(vocab_size=20, positions=6, width=16, layers=2, heads=2, ffn_width=24)
WHOLE = dataclasses.replace(
    LATENT, text_encoder=TEXT, clip_text=dataclasses.replace(TEXT, projection_width=8, vision_width=16)
)
CARD = ModelCard(WHOLE, "plain", (Origin("a", "llama", ("llm",), (LoadedFile("x", 1, "0"),)),), ("dream_queries",))


PARTS = {
    field.name: getattr(WHOLE, field.name)
    for field in dataclasses.fields(WHOLE)
    if dataclasses.is_dataclass(getattr(WHOLE, field.name))
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_other_types_and_sizes_is_read_or_named(part):
    cls, refused = type(PARTS[part]), 0
    for mutated in mutations(json.loads(json.dumps(to_dict(PARTS[part])))):
        try:
            from_dict(cls, mutated, "config.json.model")
        except ConfigError as error:
            one_line(error, "config.json.model")
            refused += 1
    assert refused > 100


def test_a_card_of_other_types_is_read_or_named(tmp_path):
    folder, refused = epath.Path(tmp_path), 0
    small = json.loads(json.dumps(to_dict(dataclasses.replace(CARD, model=ModelConfig()))))
    for mutated in mutations({**small, "model": {"dtype": "float32"}}):
        (tmp_path / "config.json").write_text(json.dumps(mutated))
        try:
            model_folder.read_card(folder)
        except ConfigError as error:
            one_line(error, str(tmp_path))
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"5", b"null", b"[" * 100_000, POINTER], ids=range(7))
def test_a_card_that_is_no_object_is_named(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ConfigError) as refused:
        DreamLLM.load(tmp_path) if model_folder.is_ours(epath.Path(tmp_path)) else model_folder.read_card(
            epath.Path(tmp_path)
        )
    one_line(refused.value, str(tmp_path / "config.json"))


def test_a_card_of_another_model_does_not_open_the_parameters(tmp_path):
    """`info`, `export` and `verify` open it so."""
    folder, model = (
        epath.Path(tmp_path),
        ModelConfig(llm=dataclasses.replace(PIXEL.llm, width=8, heads=2, kv_heads=2, ffn_width=8, layers=1)),
    )
    shapes = assemble.shapes_of(model)
    model_folder.save_leaves(
        folder / "params", dict.fromkeys(shapes, 1), lambda path: jax.numpy.asarray(np.zeros(shapes[path], np.float32))
    )
    model_folder.write_card(folder, ModelCard(model))
    assert exporter.open_model(folder).leaves
    for change in ({"ffn_width": 2**24}, {"vocab_size": 2**24}, {"layers": 1000}, {"tie_embeddings": True}):
        model_folder.write_card(
            folder, ModelCard(dataclasses.replace(model, llm=dataclasses.replace(model.llm, **change)))
        )
        with pytest.raises(ConfigError, match="config.json and the parameters do not belong together: llm/"):
            exporter.open_model(folder)
