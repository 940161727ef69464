"""Settings: they survive JSON, and what cannot be right is refused by its key."""

import copy
import dataclasses
import json
import math
import pathlib
import re
import runpy

import ml_collections
import pytest

from dreamjax import config as c
from dreamjax.config.validation import from_dict, to_dict
from dreamjax.errors import ConfigError

EXPERIMENTS = sorted((pathlib.Path(__file__).parents[2] / "experiments").glob("[a-z]*.py"))


def small() -> dict:
    """A run as nested dicts, with an entry in every list."""
    run = c.RunConfig(
        model=dataclasses.replace(c.dreamllm_7b(), llm=c.LlamaConfig(width=64, heads=4, kv_heads=2)),
        data=c.DataConfig(train=(c.SourceConfig("shapes"),), eval=(c.SourceConfig("shapes", split="eval"),)),
        optim=c.OptimConfig(trainable=("llm",), frozen=("clip",), lr_rules=(c.LrRule("llm", 0.1),), ema_decay=0.9),
        loss=c.LossConfig(snr_gamma=5.0),
        init_from=(c.InitFrom("elsewhere"),),
        eval_every=3,
    )
    return json.loads(json.dumps(to_dict(run)))


def changed(key: str, value) -> dict:
    """`small` with one key, such as data.train[0].format, set to a value; `...` takes it away."""
    values = small()
    *path, last = [int(step) if step.isdigit() else step for step in re.findall(r"\w+", key)]
    inner = values
    for step in path:
        inner = inner[step]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return values


# ----------------------------------------------------------------------------------------------------------------------
# There and back


@pytest.mark.parametrize(
    "config", [c.dreamllm_7b(), c.tiny(), c.ModelConfig(llm=c.LlamaConfig())], ids=["dreamllm_7b", "tiny", "text"]
)
def test_models_survive_json(config):
    assert from_dict(c.ModelConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_runs_survive_json():
    run = from_dict(c.RunConfig, small())
    assert from_dict(c.RunConfig, json.loads(json.dumps(to_dict(run)))) == run
    assert from_dict(c.RunConfig, ml_collections.ConfigDict(to_dict(run))) == run
    assert run.optim.lr_rules == (c.LrRule("llm", 0.1),) and run.model.unet.heads == (5, 10, 20, 20)
    assert hash(run) == hash(from_dict(c.RunConfig, small()))  # modules and caches are keyed by configurations


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_experiments(file):
    experiment = runpy.run_path(str(file))
    values = experiment["get_config"]()
    run = from_dict(c.RunConfig, values)
    assert from_dict(c.RunConfig, json.loads(json.dumps(to_dict(run)))) == run
    assert json.loads(json.dumps(to_dict(run))) == json.loads(values.to_json())  # every key is there to be overridden
    assert f"--config=experiments/{file.name}" in experiment["__doc__"]
    for key in ("seed", "total_steps", "batch_size", "log_every", "checkpoint_every", "mesh"):
        assert key in values
    assert list(values.mesh) == ["data", "fsdp", "tensor"]


def test_defaults_fill_what_is_left_out():
    data = {"train": [{"format": "shapes"}], "input_slots": 0, "target_slots": 0}
    run = from_dict(c.RunConfig, {"model": {"llm": {}}, "data": data, "optim": {"trainable": ["."]}})
    assert run.model.llm == c.LlamaConfig() and run.model.clip is None and run.batch_size == 8


def test_whole_numbers_are_floats_where_floats_are_wanted():
    run = from_dict(c.RunConfig, changed("optim.learning_rate", 1))
    assert run.optim.learning_rate == 1.0 and type(run.optim.learning_rate) is float


def test_derived_sizes():
    assert c.ClipConfig().patches == 256 and c.VaeConfig().downsampling == 8 and c.dreamllm_7b().decoder_size == 512
    assert c.tiny().decoder_size == 16
    assert from_dict(c.RunConfig, changed("data.rows_per_group", 4)).groups == 2


# ----------------------------------------------------------------------------------------------------------------------
# Refused


def refuses(values, key: str, cls=c.RunConfig):
    before = copy.deepcopy(values)
    with pytest.raises(ConfigError) as error:
        from_dict(cls, values)
    assert str(error.value).startswith(f"config.{key}: ") and "\n" not in str(error.value), error.value
    assert values == before


@pytest.mark.parametrize(
    "key",
    [
        "totl_steps",
        "model.llm.hidden",
        "model.clip.x",
        "data.train[0].kind",
        "optim.lr_rules[0].rate",
        "init_from[0].x",
        "mesh.model",
        "loss.weight",
    ],
)
def test_unknown_keys(key):
    refuses(changed(key, 1), key)


def test_the_error_for_an_unknown_key_says_which_there_are():
    with pytest.raises(ConfigError, match=r"unknown key; config.mesh has data, fsdp, tensor$"):
        from_dict(c.RunConfig, changed("mesh.model", 2))


@pytest.mark.parametrize(
    "key",
    [
        "model",
        "data",
        "optim",
        "model.llm",
        "data.train",
        "optim.trainable",
        "data.train[0].format",
        "optim.lr_rules[0].factor",
        "init_from[0].path",
    ],
)
def test_missing_keys(key):
    refuses(changed(key, ...), key)


@pytest.mark.parametrize(
    "key, value",
    [
        ("total_steps", "10"),
        ("total_steps", 10.0),
        ("total_steps", True),
        ("total_steps", None),
        ("batch_size", [8]),
        ("skip_nonfinite", 1),
        ("model", 3),
        ("model.llm", None),
        ("model.clip", "openai/clip-vit-large-patch14"),
        ("model.dtype", 16),
        ("model.llm.rope_theta", "1e4"),
        ("model.unet.heads", 5),
        ("model.unet.heads[1]", "10"),
        ("model.unet.cross_attention[0]", 1),
        ("data.train", "shapes"),
        ("data.train[0]", "shapes"),
        ("data.tokenizer", None),
        ("optim.learning_rate", "2e-5"),
        ("optim.learning_rate", True),
        ("optim.trainable", "."),
        ("optim.ema_decay", "0.9"),
        ("loss.snr_gamma", [5]),
        ("sample_prompts[0]", 1),
        ("mesh.data", 1.5),
        ("init_from", {"path": "x"}),
    ],
)
def test_wrong_types(key, value):
    refuses(changed(key, value), key if value != {"path": "x"} else "init_from[0]")


@pytest.mark.parametrize(
    "key, value, named",
    [
        ("total_steps", 0, None),
        ("batch_size", -8, None),
        ("accumulate", 0, None),
        ("accumulate", 3, "batch_size"),
        ("log_every", 0, None),
        ("checkpoints_kept", 0, None),
        ("eval_every", -1, None),
        ("seed", -1, None),
        ("sample_tokens", -1, None),
        ("data.rows_per_group", 3, "batch_size"),
        ("data.rows_per_group", 0, None),
        ("data.length", 2, None),
        ("data.length", 4096, None),
        ("data.eval", [], "eval_every"),
        ("data.train", [], None),
        ("data.input_slots", -1, None),
        ("data.target_slots", -1, None),
        ("data.max_bad_share", 1.5, None),
        ("data.threads", 0, None),
        ("data.tokenizer_vocab", 0, None),
        ("model.clip", None, "data.input_slots"),
        ("model.dtype", "float16", None),
        ("model.visual_projector", "resampler", None),
        ("model.dream_queries", 0, None),
        ("model.llm.heads", 5, "model.llm.width"),
        ("model.llm.heads", 0, None),
        ("model.llm.heads", 64, None),
        ("model.llm.kv_heads", 3, None),
        ("model.llm.kv_heads", 0, None),
        ("model.llm.width", -64, None),
        ("model.llm.layers", 0, None),
        ("model.llm.vocab_size", 0, None),
        ("model.llm.ffn_width", 0, None),
        ("model.llm.remat", "some", None),
        ("model.llm.rope_theta", 0.0, None),
        ("model.llm.rms_norm_eps", -1.0, None),
        ("model.clip.patch_size", 15, None),
        ("model.clip.patch_size", 0, None),
        ("model.clip.heads", 0, None),
        ("model.clip.heads", 15, "model.clip.width"),
        ("model.clip.activation", "relu", None),
        ("model.clip.select_layer", 30, None),
        ("model.clip.layers", 0, None),
        ("model.unet.heads", [5], None),
        ("model.unet.heads", [7, 10, 20, 20], None),
        ("model.unet.heads", [0, 10, 20, 20], None),
        ("model.unet.cross_attention", [True], None),
        ("model.unet.norm_groups", 7, None),
        ("model.unet.norm_groups", 0, None),
        ("model.unet.sample_size", 60, None),
        ("model.unet.in_channels", 9, None),
        ("model.unet.sample_size", 0, None),
        ("model.unet.layers_per_block", 0, None),
        ("model.unet.block_channels", [], None),
        ("model.vae.norm_groups", 7, None),
        ("model.vae.norm_groups", 0, None),
        ("model.vae.scaling_factor", 0.0, None),
        ("model.diffusion.beta_schedule", "cosine", None),
        ("model.diffusion.prediction", "sample", None),
        ("model.diffusion.timesteps", 0, None),
        ("model.diffusion.beta_start", -0.1, None),
        ("model.diffusion.beta_end", 1.5, None),
        ("model.diffusion.steps_offset", -1, None),
        ("mesh.data", 0, None),
        ("mesh.fsdp", -1, "mesh.data"),
        ("mesh.tensor", -2, None),
        ("loss.condition_dropout", 1.0, None),
        ("loss.ce_chunk", 0, None),
        ("loss.lm_weight", -1.0, None),
        ("loss.image_weight", -1.0, None),
        ("loss.snr_gamma", 0.0, None),
        ("loss.weight_norm", "l3", None),
        ("loss.unconditional", "none", None),
        ("init_from[0].which", "first", None),
        ("init_from[0].new_rows", "zero", None),
        ("loss.noise_offset", -1.0, None),
        ("loss.input_perturbation", -1.0, None),
        ("optim.learning_rate", 0.0, None),
        ("optim.learning_rate", math.nan, None),
        ("optim.learning_rate", math.inf, None),
        ("optim.schedule", "step", None),
        ("optim.warmup_share", 1.1, None),
        ("optim.final_share", -0.1, None),
        ("optim.ema_decay", 1.0, None),
        ("optim.clip_norm", 0.0, None),
        ("optim.b1", 1.0, None),
        ("optim.b2", -0.1, None),
        ("optim.eps", -1.0, None),
        ("optim.weight_decay", -1.0, None),
        ("optim.trainable", ["("], None),
        ("optim.lr_rules[0].pattern", "(", None),
        ("optim.lr_rules[0].factor", -1.0, None),
        ("init_from[0].pattern", "(", None),
    ],
)
def test_nonsense_values(key, value, named):
    refuses(changed(key, value), named or key)


def test_parts_that_need_each_other():
    refuses(changed("model.unet", None), "model.vae")
    without_decoder = changed("model.unet", None)
    without_decoder["model"]["vae"] = None
    refuses(without_decoder, "data.target_slots")
