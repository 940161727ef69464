"""CLIP's text towers against transformers' classes, and its tokenizer against known ids."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from small_model import relative_error

from dreamjax.config import ClipTextConfig
from dreamjax.convert.assemble import materialise
from dreamjax.convert.formats import clip_text
from dreamjax.convert.mapping import match
from dreamjax.convert.tensors import from_array
from dreamjax.document import clip_tokenizer
from dreamjax.models.clip_text import ClipText
from dreamjax.parallel.param_sharding import path_of

SMALL = ClipTextConfig(vocab_size=40, positions=12, width=16, layers=3, heads=2, ffn_width=24, end_token=5)


def shapes_of(config: ClipTextConfig) -> dict:
    tree = jax.eval_shape(lambda: ClipText(config).init(jax.random.key(0), method="init_all"))["params"]
    return {path_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def params_of(model, config: ClipTextConfig) -> dict:
    """Our parameters from a torch module's, of which those of a picture tower are passed over."""
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("vision_model.")}
    tensors = {name: from_array(name, value.numpy(), "torch") for name, value in state.items()}
    return materialise(match("text", clip_text.table(config), shapes_of(config), tensors, "torch"))["text"]


def tokens() -> np.ndarray:
    """Two texts: one ends before its padding, one has the end token twice."""
    drawn = np.random.default_rng(0).integers(6, 39, (2, 10)).astype(np.int32)
    drawn[0, 4:] = 5
    drawn[1, [3, 8]] = 5
    drawn[1, 6] = 39
    return drawn


def torch_config(config: ClipTextConfig):
    import transformers

    return transformers.CLIPTextConfig(
        **{
            key: value
            for key, value in clip_text.write_config(config).items()
            if key not in ("architectures", "model_type")
        }
    )


@pytest.mark.parametrize("activation, end", [("quick_gelu", 5), ("gelu", None)])
def test_parity_with_transformers(activation, end):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from torch_weights_text import randomise

    config = dataclasses.replace(SMALL, activation=activation, end_token=end)
    theirs = transformers.CLIPTextModel(torch_config(config)).eval()
    randomise(theirs, seed=1)
    params = {"params": params_of(theirs, config)}
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(tokens()).long())
    run = jax.jit(
        lambda params, ids: (ClipText(config).apply(params, ids), ClipText(config).apply(params, ids, method="pooled"))
    )
    hidden, pooled = run(params, tokens())
    assert relative_error(hidden, expected.last_hidden_state) < 1e-5
    assert relative_error(pooled, expected.pooler_output) < 1e-5


def test_scores_are_those_of_a_whole_clip():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from torch_weights_text import randomise

    config = dataclasses.replace(SMALL, projection_width=8, vision_width=16)
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "image_size": 8,
        "patch_size": 4,
    }
    text = {
        key: value
        for key, value in clip_text.write_config(config).items()
        if key not in ("architectures", "model_type")
    }
    theirs = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    ).eval()
    randomise(theirs, seed=2)
    params = {"params": params_of(theirs, config)}
    with torch.no_grad():
        pixels = torch.tensor(np.random.default_rng(1).normal(size=(3, 3, 8, 8)).astype(np.float32))
        expected = theirs(input_ids=torch.tensor(tokens()).long(), pixel_values=pixels)
        pooled = theirs.vision_model(pixel_values=pixels).pooler_output.numpy()
    module = ClipText(config)
    scores, texts = jax.jit(
        lambda p, ids, pooled: (
            module.apply(p, ids, pooled, method="scores"),
            module.apply(p, ids, method="embed_text"),
        )
    )(params, tokens(), pooled)
    assert relative_error(scores, expected.logits_per_image) < 1e-5
    assert relative_error(texts, expected.text_embeds) < 1e-5


def test_too_many_tokens_are_an_error():
    with pytest.raises(ValueError, match="13 tokens are more than the model's 12 positions"):
        jax.eval_shape(lambda: ClipText(SMALL).init(jax.random.key(0), np.zeros((1, 13), np.int32)))


@pytest.mark.parametrize(
    "config, count",
    [
        (ClipTextConfig(), 123_060_480),  # CLIP-L, of Stable Diffusion 1.5
        (
            ClipTextConfig(width=1024, layers=23, heads=16, ffn_width=4096, activation="gelu"),
            340_387_840,
        ),  # OpenCLIP-H, of 2.1
    ],
)
def test_count_at_the_real_size(config, count):
    assert sum(math.prod(shape) for shape in shapes_of(config).values()) == count


def test_the_tokenizer_needs_two_files_and_no_torch(tmp_path):
    """A vocabulary of letters and two merges: `lo` and `low</w>`."""
    import json
    import subprocess
    import sys

    pytest.importorskip("transformers")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocabulary = [*letters, *(f"{c}</w>" for c in letters), "lo", "low</w>", "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nl o\nlo w</w>\n")
    start, end, low = (vocabulary.index(piece) for piece in ("<|startoftext|>", "<|endoftext|>", "low</w>"))
    expected = [
        [start, low, end, end, end],
        [start, vocabulary.index("a</w>"), vocabulary.index("lo"), vocabulary.index("x</w>"), end],
    ]
    found = clip_tokenizer.encode(clip_tokenizer.load(tmp_path), ["LOW", "a lox"], 5)
    assert found.tolist() == expected
    code = (
        "import sys; sys.modules['torch'] = None\nfrom dreamjax.document import clip_tokenizer as t; "
        f"print(t.encode(t.load({str(tmp_path)!r}), ['LOW'], 5).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == str(expected[:1]), done.stderr
