"""Every layout that users come with, one by one: what is read, what is made of it, and the numbers against torch's."""

import functools
import json
import math
import pathlib
import subprocess

import numpy as np
import pytest
from etils import epath
from quick_xla import command

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers"), pytest.importorskip("transformers")

from benchmarks import what_loads  # noqa: E402
from benchmarks.layouts import clip, llm, official, stable_diffusion  # noqa: E402
from benchmarks.layouts.common import processor, save_bin  # noqa: E402
from dreamjax.convert import detect, importer, verify  # noqa: E402
from dreamjax.errors import ConfigError  # noqa: E402

torch.set_num_threads(1)
DATA = what_loads.DATA
FIRST = {layout.weights: layout for layout in reversed(what_loads.LAYOUTS)}
NAMED = {f"{layout.family}: {layout.name}": layout for layout in what_loads.LAYOUTS}


@pytest.fixture(scope="module")
def bits_of_the_first(tmp_path_factory):
    """What the first layout of some weights gives, as today's libraries write it."""

    @functools.cache
    def bits(weights: str) -> what_loads.Bits:
        layout = FIRST[weights]
        return what_loads.bits_of(what_loads.plan_of(layout, layout.write(tmp_path_factory.mktemp("first"))))

    return bits


@pytest.mark.parametrize("name", NAMED)
def test_a_layout_is_read_as_what_it_is(name, tmp_path, bits_of_the_first):
    layout = NAMED[name]
    plan = what_loads.plan_of(layout, layout.write(tmp_path))
    assert not what_loads.wrong_facts(layout, plan)
    assert what_loads.bits_of(plan) == bits_of_the_first(layout.weights)


def array(tensor: "torch.Tensor", *axes: int) -> np.ndarray:
    return tensor.detach().numpy().transpose(axes) if axes else tensor.detach().numpy()


def read(plan, path: str) -> np.ndarray:
    leaf = plan.leaves[path]
    return np.asarray(leaf.read(tuple(slice(0, n, 1) for n in leaf.shape)))


def test_the_firsts_hold_what_the_torch_modules_hold(tmp_path):
    """One tensor of each kind, by hand, so that a mistake in all layouts of some weights alike would show."""
    plan = what_loads.plan_of(FIRST["llama"], FIRST["llama"].write(tmp_path / "llm"))
    layer = llm.llama().model.layers[1]
    np.testing.assert_array_equal(
        read(plan, "llm/layers/attention/k/kernel")[1], array(layer.self_attn.k_proj.weight, 1, 0)
    )
    np.testing.assert_array_equal(
        read(plan, "llm/layers/mlp_norm/scale")[1], array(layer.post_attention_layernorm.weight)
    )
    plan = what_loads.plan_of(FIRST["clip-both"], FIRST["clip-both"].write(tmp_path / "clip"))
    both = clip.both("quick_gelu")
    np.testing.assert_array_equal(
        read(plan, "clip/patch_embedding/kernel"),
        array(both.vision_model.embeddings.patch_embedding.weight, 2, 3, 1, 0),
    )
    np.testing.assert_array_equal(
        read(plan, "clip_text/visual_projection/kernel"), array(both.visual_projection.weight, 1, 0)
    )
    plan = what_loads.plan_of(FIRST["sd21"], FIRST["sd21"].write(tmp_path / "sd"))
    attention = stable_diffusion.module("2.1", "vae").encoder.mid_block.attentions[0]
    for ours, theirs in (("to_q", attention.to_q), ("to_v", attention.to_v), ("to_out_0", attention.to_out[0])):
        np.testing.assert_array_equal(
            read(plan, f"vae/encoder/mid_block/attentions_0/{ours}/kernel"), array(theirs.weight, 1, 0)
        )
    plan = what_loads.plan_of(FIRST["official-mlp"], FIRST["official-mlp"].write(tmp_path / "release"))
    joints = official.joints("mlp")
    for ours, theirs in (("fc1", "0"), ("fc2", "2")):
        np.testing.assert_array_equal(
            read(plan, f"visual_projector/{ours}/kernel"), array(joints[f"visual.projector.{theirs}.weight"], 1, 0)
        )
    np.testing.assert_array_equal(read(plan, "dream_queries"), array(joints["dream_queries"])[0])
    assert plan.tokenizer.dream_start == processor().get_piece_size() + official.ADDED.index("<dream_start>")


VERIFIED_BY_DEFAULT = ("llama-fp16", "sd15")
VERIFIED_TOO = ("llama-tied", "llama-gqa", "llama2c", "clip-laion", "clip-336")


@pytest.mark.parametrize(
    "weights", [*VERIFIED_BY_DEFAULT, *(pytest.param(weights, marks=pytest.mark.slow) for weights in VERIFIED_TOO)]
)
def test_the_numbers_are_torchs(weights: str, tmp_path):
    """The last layout of some weights, mostly as it was published.

    U-Nets of 2.1's kind and VAEs by their old names stand in benchmarks/what_loads.py.
    """
    layout = [layout for layout in what_loads.LAYOUTS if layout.weights == weights][-1]
    written = layout.write(tmp_path / "source")
    parts = layout.parts or (("text_encoder",) if layout.weights == "sd15" else ())
    plan = importer.make_plan([str(source) for source in written.sources], written.tokenizer, parts)
    importer.write(plan, epath.Path(tmp_path) / "model")
    rows = verify.verify(epath.Path(tmp_path) / "model", [str(source) for source in written.against or written.sources])
    assert rows and all(row["ok"] and row["float32"] < 1e-5 for row in rows), rows


def test_a_joined_model_is_verified_with_its_added_rows(tmp_path):
    """The LLM has eight rows more than its source; projections and queries belong to no source."""
    given = [
        str(path)
        for written in (llm.before(tmp_path, name="vicuna"), clip.vision_today(tmp_path))
        for path in written.sources
    ]
    plan = importer.make_plan(given)
    assert plan.model.llm.vocab_size == processor().get_piece_size() + 8 and plan.template == "vicuna_v1.1"
    importer.write(plan, epath.Path(tmp_path) / "model")
    rows = verify.verify(epath.Path(tmp_path) / "model", given)
    assert [row["output"] for row in rows] == ["hidden", "logits", "hidden", "pooled"] and all(
        row["ok"] for row in rows
    )


def test_a_part_of_a_stable_diffusion_folder_asks_for_the_whole(tmp_path):
    (home,) = stable_diffusion.as_published(tmp_path, "2.1", "pndm").sources
    with pytest.raises(ConfigError, match="vae: is the vae/ of a Stable Diffusion folder; give the folder above it"):
        detect.read(home / "vae")


def test_of_a_hub_repository_what_nobody_reads_is_left(monkeypatch, tmp_path):
    import huggingface_hub

    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **how: asked.update(how) or tmp_path)
    assert detect.locate("someone/stable-diffusion") == tmp_path
    files = [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.bin",
        "tokenizer/merges.txt",
        "tokenizer.model",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "v2-1_512-ema-pruned.safetensors",
        "v1-5-pruned-emaonly.safetensors",
        "safety_checker/model.safetensors",
        "flax_model.msgpack",
    ]
    assert list(huggingface_hub.utils.filter_repo_objects(files, **asked)) == files[:6]


# ----------------------------------------------------------------------------------------------------------------------
# The commands


def last(done: subprocess.CompletedProcess) -> dict:
    return json.loads(done.stdout.splitlines()[-1])


def test_the_commands_from_a_folder_of_vicuna_and_out_again(tmp_path):
    (source,) = llm.before(tmp_path, name="vicuna-7b-v1.5", buffers=True).sources
    model, out = tmp_path / "model", tmp_path / "out"
    facts = last(command("convert", "import", f"--source={source}", f"--out={model}"))
    count = sum(math.prod(value.shape) for value in llm.llama().state_dict().values())
    assert facts["model"] == str(model) and facts["parameters"] == {"llm": count} and facts["template"] == "vicuna_v1.1"
    done = command("convert", "info", f"--model={model}")
    assert last(done)["origins"][0]["path"] == str(source) and f"{count:,d}" in done.stdout
    assert (
        last(command("convert", "export", f"--model={model}", "--format=huggingface", f"--out={out}"))["left_out"] == []
    )
    again = what_loads.bits_of(importer.make_plan([str(out / "llm")]))
    assert again == what_loads.bits_of(importer.make_plan([str(source)]))


def test_verify_ends_with_the_verdict(tmp_path):
    (source,) = llm.before(tmp_path).sources
    importer.write(importer.make_plan([str(source)]), epath.Path(tmp_path) / "model")
    tensors = dict(llm.llama().state_dict())
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"] * 1.001
    save_bin(tensors, source)
    done = command("convert", "verify", f"--model={tmp_path / 'model'}", f"--source={source}", expect=1)
    (hidden, logits), table = last(done)["verified"], done.stdout.splitlines()
    assert (
        (hidden["output"], logits["output"]) == ("hidden", "logits")
        and not hidden["ok"]
        and 1e-4 < hidden["float32"] < 1e-2
    )
    assert (
        table[1].startswith("llm           hidden")
        and table[1].endswith("differs")
        and "2 of 2 differ; the tolerances are 0.0001" in table[3]
    )
    assert not done.stderr.strip() or "Traceback" not in done.stderr


def test_stories260k_by_the_commands(tmp_path):
    if not DATA.exists():
        pytest.skip(f"no {DATA} (DREAMJAX_DATA)")
    command(
        "convert",
        "import",
        f"--source={DATA / 'stories260K.bin'}",
        f"--tokenizer={DATA / 'tok512.bin'}",
        f"--out={tmp_path / 'model'}",
    )
    facts = last(
        command(
            "sample",
            f"--model={tmp_path / 'model'}",
            "--prompt=",
            "--temperature=0",
            "--max_tokens=40",
            f"--out={tmp_path / 'story'}",
        )
    )
    text = "".join(part["text"] for part in json.loads(pathlib.Path(facts["json"]).read_text())["parts"])
    assert text.startswith("Once upon a time, there was a little girl named Lily. She loved to play outside")
