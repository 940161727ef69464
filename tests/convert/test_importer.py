"""Composing models from folders as others wrote them.

Variants, older names, new rows, what is refused and by which name.
"""

import dataclasses
import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file
from small_model import CLIP, LLM, UNET, VAE, leaves, parameters

from dreamjax.api import DreamLLM
from dreamjax.config import ModelConfig
from dreamjax.convert import assemble, detect, exporter, importer
from dreamjax.convert.foreign_config import ForeignConfig
from dreamjax.convert.formats import clip, llama, official, stable_diffusion
from dreamjax.convert.mapping import to_foreign
from dreamjax.convert.tables import of
from dreamjax.document.tokenizer import ADDED_TOKENS
from dreamjax.errors import ConfigError

SPECIAL = {"bos": 1, "eos": 2, "pad": 0}


def write(
    folder: pathlib.Path, part: str, config, settings: dict, stem: str = "model", dtype=np.float32, **beside
) -> dict[str, np.ndarray]:
    """A foreign folder of one part with the smallest model's numbers; what its file holds."""
    model = ModelConfig(**{part: config}, **beside)
    shapes = assemble.shapes_of(model)
    values = leaves(parameters(model))
    table = of(part, model, shapes)
    arrays = {
        name: array.astype(dtype)
        for path in assemble.part_shapes(shapes, part)
        for name, array in to_foreign(table, path, values[f"{part}/{path}"])
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(arrays, folder / f"{stem}.safetensors")
    return arrays


@pytest.fixture(scope="module")
def folders(tmp_path_factory, shapes_tokenizer) -> pathlib.Path:
    """llm/ (bare, with a tokenizer), clip/, sd/ in half precision under variant names and with the old names of
    attention.
    """
    root = tmp_path_factory.mktemp("foreign")
    config = dataclasses.replace(LLM, vocab_size=shapes_tokenizer.size - len(ADDED_TOKENS))
    write(root / "llm", "llm", config, llama.write_config(config, "float32", SPECIAL))
    (root / "llm" / "tokenizer.model").write_bytes(shapes_tokenizer.model)
    write(root / "clip", "clip", CLIP, clip.write_config(CLIP))
    (root / "clip" / clip.PROCESSOR_FILE).write_text(json.dumps(clip.write_processor(CLIP)))
    variant = "diffusion_pytorch_model.fp16"
    write(root / "sd" / "unet", "unet", UNET, stable_diffusion.write_unet(UNET), variant, np.float16, vae=VAE)
    arrays = write(root / "sd" / "vae", "vae", VAE, stable_diffusion.write_vae(VAE, 8), variant, np.float16, unet=UNET)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, array in arrays.items():
        for today, before in old.items():
            name = name.replace(f"attentions.0.{today}.", f"attentions.0.{before}.")
        renamed[name] = array
    assert renamed.keys() != arrays.keys()
    save_file(renamed, root / "sd" / "vae" / f"{variant}.safetensors")
    (root / "sd" / "scheduler").mkdir()
    (root / "sd" / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"})
    )
    (root / "sd" / "safety_checker").mkdir()
    return root


def whole(leaf) -> np.ndarray:
    return np.asarray(leaf.read((slice(None),) * len(leaf.shape)))


@pytest.mark.parametrize("new_rows", ["official", "mean"])
def test_three_folders_make_a_dreamllm(folders, new_rows, shapes_tokenizer):
    plan = importer.make_plan([str(folders / name) for name in ("llm", "clip", "sd")], new_rows=new_rows)
    old, new = plan.sources[0].fields["llm"].vocab_size, shapes_tokenizer.size
    assert plan.model.llm.vocab_size == new == old + 8 and plan.tokenizer == shapes_tokenizer
    assert (
        plan.model.diffusion.prediction == "v_prediction"
        and plan.model.diffusion.beta_start == 0.0001
        and plan.model.dtype == "float32"
    )
    assert {"visual_projector/linear/kernel", "condition_projector/linear/kernel", "dream_queries"} < set(plan.fresh)
    assert f"llm/embed/embedding rows {old} to {new - 1} ({new_rows})" in plan.fresh and plan.sources[2].notes == (
        "not read: safety_checker",
    )
    given = load_file(folders / "llm" / "model.safetensors")
    for path, name in (("llm/embed/embedding", "model.embed_tokens.weight"), ("llm/head/kernel", "lm_head.weight")):
        rows = whole(plan.leaves[path]) if path.endswith("embedding") else whole(plan.leaves[path]).T
        np.testing.assert_array_equal(rows[:old], given[name])
        if new_rows == "mean":
            np.testing.assert_allclose(
                rows[old:], np.broadcast_to(given[name].mean(0), (8, LLM.width)), rtol=1e-4, atol=1e-6
            )
        else:
            assert 0.015 < rows[old:].std() < 0.025
    part = plan.leaves["llm/head/kernel"].read((slice(3, 9), slice(old - 2, new - 3)))
    np.testing.assert_array_equal(part, whole(plan.leaves["llm/head/kernel"])[3:9, old - 2 : new - 3])
    assert plan.leaves["vae/encoder/mid_block/attentions_0/to_q/kernel"].dtype == np.float16


def test_an_llm_alone_keeps_its_rows_and_writes_text(folders, tmp_path):
    plan = importer.make_plan([str(folders / "llm")])
    assert plan.fresh == () and not plan.tokenizer.added and plan.model.llm.vocab_size == plan.tokenizer.size
    folder = epath.Path(tmp_path) / "model"
    importer.write(plan, folder)
    ours, theirs = DreamLLM.load(folder), DreamLLM.load(folders / "llm")
    written = [model.generate("a red", max_tokens=4, temperature=0.0).text for model in (ours, theirs)]
    assert written[0] == written[1]
    exporter.export(folder, "huggingface", epath.Path(tmp_path) / "out")
    given, out = (
        load_file(folders / "llm" / "model.safetensors"),
        load_file(tmp_path / "out" / "llm" / "model.safetensors"),
    )
    assert given.keys() == out.keys() and all(given[name].tobytes() == out[name].tobytes() for name in given)


def test_parts_without_an_llm_make_a_folder_but_no_text(folders, tmp_path):
    plan = importer.make_plan([str(folders / "sd")], parts=("unet", "vae"))
    assert plan.model.llm is None and plan.fresh == () and plan.model.dtype == "bfloat16"
    importer.write(plan, epath.Path(tmp_path) / "sd")
    for folder in (tmp_path / "sd", folders / "clip"):
        with pytest.raises(ConfigError, match="holds no LLM"):
            DreamLLM.load(folder)


def test_the_same_part_twice_is_refused(folders):
    with pytest.raises(ConfigError, match="clip: brings clip/.*, and so does"):
        importer.make_plan([str(folders / "clip"), str(folders / "clip")])


def test_shards_are_read_and_missed(folders, tmp_path):
    arrays = load_file(folders / "clip" / "model.safetensors")
    shutil.copyfile(folders / "clip" / "config.json", tmp_path / "config.json")
    names = sorted(arrays)
    files = {f"model-{i:05d}-of-00002.safetensors": names[i - 1 :: 2] for i in (1, 2)}
    for file, own in files.items():
        save_file({name: arrays[name] for name in own}, tmp_path / file)
    index = {"weight_map": {name: file for file, own in files.items() for name in own}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found, expected = detect.read(tmp_path), detect.read(folders / "clip")
    assert (
        all(whole(found.leaves[path]).tobytes() == whole(leaf).tobytes() for path, leaf in expected.leaves.items())
        and len(found.files) == 2
    )
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        ConfigError, match="index.json: names the shards model-00002-of-00002.safetensors, which the folder lacks"
    ):
        detect.read(tmp_path)


def test_pickles_are_read_by_weights_alone(folders, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    arrays = load_file(folders / "clip" / "model.safetensors")
    shutil.copyfile(folders / "clip" / "config.json", tmp_path / "config.json")
    for how in ({}, {"_use_new_zipfile_serialization": False}):  # the second is from before torch 1.6
        torch.save(
            {name: torch.tensor(array).bfloat16() for name, array in arrays.items()},
            tmp_path / "pytorch_model.bin",
            **how,
        )
        kernel = detect.read(tmp_path).leaves["clip/layers/mlp/fc1/kernel"]
        assert kernel.dtype == "bfloat16"
        expected = torch.tensor(arrays["vision_model.encoder.layers.1.mlp.fc1.weight"]).bfloat16().float().numpy().T
        np.testing.assert_array_equal(whole(kernel)[1].astype(np.float32), expected)
    torch.save({"a": pathlib.PurePosixPath("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="pytorch_model.bin: is not a file of weights alone"):
        detect.read(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"is a torch pickle, and torch is not installed; pip install torch"):
        detect.read(tmp_path)


@pytest.mark.parametrize(
    "part, change, message",
    [
        ("llm", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling: .* is not supported"),
        ("llm", {"attention_bias": True}, "attention_bias: True is not supported"),
        ("llm", {"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported"),
        (
            "llm",
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
            "rope_type: 'llama3' is not supported",
        ),
        ("llm", {"head_dim": 16}, "head_dim: 16 is not supported"),
        (
            "llm",
            {"num_hidden_layers": 3},
            r"has no model.layers.2.self_attn.k_proj.weight, needed for llm/layers/attention/k/kernel \(3, 32, 32\)",
        ),
        ("llm", {"num_hidden_layers": 1}, r"llm: 9 tensors fit nowhere, the first is model.layers.1.\S+.weight \("),
        (
            "llm",
            {"intermediate_size": 40},
            r"model.layers.0.mlp.down_proj.weight is \(32, 48\), must be \(32, 40\) for llm/layers/mlp/down/kernel",
        ),
        ("llm", {"tie_word_embeddings": "no"}, "tie_word_embeddings: needs true or false, not 'no'"),
        ("llm", {"hidden_size": "wide"}, "hidden_size: needs a whole number, not 'wide'"),
        ("clip", {"hidden_act": "relu"}, "hidden_act: 'relu' is not supported"),
        ("clip", {"num_channels": 1}, "num_channels: 1 is not supported"),
        ("sd/unet", {"addition_embed_type": "text_time"}, "addition_embed_type: 'text_time' is not supported.*null is"),
        ("sd/unet", {"class_embed_type": "timestep"}, "class_embed_type"),
        ("sd/unet", {"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        (
            "sd/unet",
            {"up_block_types": ["UpBlock2D", "UpBlock2D"]},
            "up_block_types: .* does not mirror down_block_types",
        ),
        ("sd/unet", {"transformer_layers_per_block": [1, 2]}, "transformer_layers_per_block"),
        ("sd/vae", {"use_quant_conv": False}, "use_quant_conv: False is not supported"),
        ("sd/vae", {"shift_factor": 0.1}, "shift_factor"),
    ],
)
def test_what_would_change_the_numbers_is_refused_by_its_key(folders, tmp_path, part, change, message):
    top = part.split("/")[0]
    shutil.copytree(folders / top, tmp_path / top)
    file = tmp_path / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ConfigError, match=message):
        detect.read(tmp_path / top)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_mean": [0.5, 0.5]}, "image_mean: needs three numbers"),
        ({"resample": 2}, "resample: 2 is not supported"),
        ({"crop_size": {"height": 12, "width": 8}}, "crop_size: .* is not the encoder's image_size = 8"),
        ({"do_center_crop": False}, "do_center_crop: False is not supported"),
    ],
)
def test_images_that_would_be_prepared_otherwise_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        clip.read_processor(ForeignConfig(clip.write_processor(CLIP) | change, "preprocessor_config.json"), CLIP)


def test_defaults_of_what_a_file_leaves_out_are_the_libraries():
    config = llama.read_config(ForeignConfig({"model_type": "llama"}, "x"))
    assert (
        config.vocab_size,
        config.width,
        config.kv_heads,
        config.max_positions,
        config.rms_norm_eps,
        config.rope_theta,
    ) == (32000, 4096, 32, 2048, 1e-6, 1e4)
    assert (
        llama.read_config(
            ForeignConfig({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, "x")
        ).rope_theta
        == 5e5
    )
    encoder = clip.read_config(ForeignConfig({"vision_config": {"hidden_size": 960}}, "x"))
    assert (encoder.width, encoder.patch_size, encoder.heads, encoder.activation) == (960, 32, 12, "quick_gelu")
    unet = stable_diffusion.read_unet(ForeignConfig({"sample_size": 64, "cross_attention_dim": 768}, "x"))
    assert unet == official.SD_1
    schedule = stable_diffusion.read_schedule(ForeignConfig({}, "x"))
    assert (
        schedule.timesteps,
        schedule.beta_schedule,
        schedule.beta_start,
        schedule.beta_end,
        schedule.steps_offset,
    ) == (1000, "linear", 0.0001, 0.02, 0)
    assert schedule.set_alpha_to_one


def test_what_is_nowhere_or_unknown_is_said(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty: is a folder in no known layout"):
        detect.read(tmp_path / "empty")
    with pytest.raises(ConfigError, match="nothing/at/all: no such file or folder"):
        detect.read("nothing/at/all")
    import huggingface_hub

    def offline(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ConfigError, match="^someone/model: no such folder here, and the hub does not give it"):
        detect.read("someone/model")
