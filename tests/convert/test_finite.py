"""Weights that are NaN or infinite are counted by tensor on their way.

An import that has some leaves nothing behind.
"""

import json

import ml_dtypes
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import save_file

from dreamjax.config import LlamaConfig
from dreamjax.config.model import ModelConfig
from dreamjax.convert import assemble, exporter, finite, importer, verify
from dreamjax.convert.formats import llama
from dreamjax.convert.mapping import Leaf, to_foreign
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.document.tokenizer_training import train_tokenizer
from dreamjax.errors import ConfigError

MODEL = train_tokenizer(["a red circle"], 300)
CONFIG = LlamaConfig(
    vocab_size=Tokenizer.from_model(MODEL).piece_count,
    width=8,
    layers=2,
    heads=2,
    kv_heads=2,
    ffn_width=8,
    max_positions=16,
)
WORDS = "3 weights are NaN or infinite: lm_head.weight (1), model.layers.1.mlp.up_proj.weight (2)"


def source(folder, dtype) -> str:
    """A LLaMA with a NaN in its head and both infinities in one tensor of its second layer."""
    rng = np.random.default_rng(0)
    shapes = assemble.part_shapes(assemble.shapes_of(ModelConfig(llm=CONFIG)), "llm")
    table = llama.table(CONFIG)
    tensors = {
        name: value.astype(dtype)
        for path, shape in shapes.items()
        for name, value in to_foreign(table, path, rng.normal(size=shape).astype(np.float32))
    }
    tensors["lm_head.weight"][-1, 3] = np.nan
    tensors["model.layers.1.mlp.up_proj.weight"][:2, 0] = np.inf, -np.inf
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps(llama.write_config(CONFIG, "float32", {"bos": 1, "eos": 2, "pad": 0}))
    )
    (folder / "tokenizer.model").write_bytes(MODEL)
    return str(folder)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_an_import_names_and_counts_them_and_leaves_nothing(tmp_path, dtype):
    plan = importer.make_plan([source(tmp_path / "llm", dtype)])
    with pytest.raises(ConfigError) as refused:
        importer.write(plan, epath.Path(tmp_path / "out"))
    assert str(refused.value) == f"--source: {WORDS}; --allow_nonfinite takes them as they are"
    assert [path.name for path in tmp_path.iterdir()] == ["llm"]


def test_what_was_allowed_in_is_told_of_on_its_way_out(tmp_path, capsys):
    given = source(tmp_path / "llm", np.float32)
    out = epath.Path(tmp_path / "out")
    assert importer.write(importer.make_plan([given]), out, allow_nonfinite=True) == {
        "lm_head.weight": 1,
        "model.layers.1.mlp.up_proj.weight": 2,
    }
    exporter.export(out, "huggingface", epath.Path(tmp_path / "exported"))
    assert "3 weights are NaN or infinite: llm/" in capsys.readouterr().err
    errors = dict.fromkeys(("float32", "bfloat16", "torch_bfloat16"), 0.0)
    words = verify.format_summary(
        [
            {"part": "llm", "output": name, **errors, "not_finite": {"llm/norm/scale": 3}, "ok": True}
            for name in ("hidden", "logits")
        ]
    )
    assert (
        words.splitlines()[3] == "llm           3 weights are NaN or infinite: llm/norm/scale (3)"
        and len(words.splitlines()) == 5
    )


def test_every_entry_is_counted_once_whatever_the_layout(monkeypatch):
    monkeypatch.setattr(finite, "CHUNK", 7)
    array = np.zeros((5, 6, 4), np.float32)
    array[1, 2], array[4, 5, 3] = np.nan, np.inf
    for turned in (
        array,
        array.transpose(2, 0, 1),
        array[:, ::2],
        array[1],
        np.float32(np.nan),
        array.astype(ml_dtypes.bfloat16),
        np.arange(9),
    ):
        expected = np.count_nonzero(~np.isfinite(np.asarray(turned, np.float32)))
        assert finite.count_nonfinite(np.asarray(turned)) == expected
    leaf = Leaf(array.shape, array.dtype, array.__getitem__, "here", ("a", "b", "c", "d", "e"), stacked=True)
    leaves, counts = finite.counted({"x": leaf})
    for begin in range(5):
        leaves["x"].read((slice(begin, begin + 1), slice(None), slice(None)))
    assert counts == {"b": 4, "e": 1}
    assert (
        finite.format_summary({str(i): 1 for i in range(10)})
        == "10 weights are NaN or infinite: 0 (1), 1 (1), 2 (1), 3 (1), 4 (1), 5 (1), 6 (1), 7 (1) and 2 more tensors"
    )
