"""Out in every format and back again, bit for bit.

The classes of transformers and diffusers take the exports and compute what we do.
"""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from etils import epath
from small_model import CLIP, LLM, UNET, VAE, leaves, parameters

from dreamjax.config import ClipTextConfig, DiffusionConfig, ModelConfig
from dreamjax.convert import assemble, detect, exporter, importer, tables, torch_reference, verify
from dreamjax.convert.formats import official
from dreamjax.convert.mapping import Leaf
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import ConfigError
from dreamjax.training import checkpoint, model_folder, weight_transfer
from dreamjax.training.model_folder import ModelCard

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

TEXT = ClipTextConfig(
    vocab_size=20, positions=6, width=16, layers=2, heads=2, ffn_width=24, activation="gelu", end_token=None
)
# What the smallest model leaves at its default: grouped queries, an MLP, velocities, 1x1 convolutions, other constants.
OTHER = ModelConfig(
    llm=dataclasses.replace(LLM, heads=4, kv_heads=2, rope_theta=5000.0, rms_norm_eps=1e-5, max_positions=48),
    clip=dataclasses.replace(CLIP, activation="gelu", select_layer=-1, image_mean=(0.5, 0.4, 0.3), layer_norm_eps=1e-6),
    unet=dataclasses.replace(UNET, cross_attention=(True, False), heads=(4, 2), linear_projection=False),
    vae=dataclasses.replace(VAE, scaling_factor=0.5), visual_projector="mlp", dream_queries=5,
    diffusion=DiffusionConfig(timesteps=100, beta_schedule="linear", prediction="v_prediction", steps_offset=0),
    text_encoder=TEXT, clip_text=dataclasses.replace(TEXT, end_token=19, projection_width=8, vision_width=CLIP.width),
)  # fmt: skip


def save(folder: epath.Path, model: ModelConfig, tokenizer: Tokenizer, dtype=np.float32) -> dict[str, np.ndarray]:
    """A model folder of ours and what is in it."""
    values = {path: leaf.astype(dtype) for path, leaf in leaves(parameters(model)).items()}
    model_folder.save_leaves(
        folder / "params",
        {path: value.nbytes for path, value in values.items()},
        lambda path: jax.numpy.asarray(values[path]),
    )
    tokenizer.save(folder / "tokenizer")
    model_folder.write_card(folder, ModelCard(model, "vicuna_v1.1"))
    return values


def read(plan: assemble.ImportPlan) -> dict[str, np.ndarray]:
    return {path: whole(leaf) for path, leaf in plan.leaves.items()}


def whole(leaf: Leaf) -> np.ndarray:
    return np.asarray(leaf.read((slice(None),) * len(leaf.shape)))


def assert_same(found: dict, expected: dict):
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert (
            found[path].dtype == value.dtype
            and found[path].shape == value.shape
            and found[path].tobytes() == value.tobytes()
        ), path


@pytest.fixture(scope="module")
def made(tmp_path_factory, shapes_tokenizer):
    """(folder, values) of OTHER in bfloat16, with its exports beside it."""
    folder = epath.Path(tmp_path_factory.mktemp("made"))
    model = dataclasses.replace(
        OTHER, llm=dataclasses.replace(OTHER.llm, vocab_size=shapes_tokenizer.size), dtype="bfloat16"
    )
    values = save(folder / "model", model, shapes_tokenizer, ml_dtypes.bfloat16)
    left = {kind: exporter.export(folder / "model", kind, folder / kind) for kind in exporter.FORMATS}
    assert left == {"official": ["text_encoder", "clip_text"], "huggingface": [], "params": []}
    return folder, model, values


def hub_folders(folder: epath.Path) -> list[str]:
    return [str(folder / "huggingface" / name) for name in ("llm", "clip", "sd", "joints")]


def test_the_official_layout_comes_back(made, shapes_tokenizer):
    folder, model, values = made
    plan = importer.make_plan([str(folder / "official")])
    assert plan.model == dataclasses.replace(model, text_encoder=None, clip_text=None)
    assert_same(
        read(plan),
        {path: value for path, value in values.items() if not path.startswith(("text_encoder/", "clip_text/"))},
    )
    assert plan.tokenizer == shapes_tokenizer and plan.template == "vicuna_v1.1" and plan.fresh == ()


def test_hugging_face_folders_come_back(made, shapes_tokenizer):
    folder, model, values = made
    plan = importer.make_plan(hub_folders(folder))
    assert plan.model == model
    assert_same(read(plan), values)
    assert plan.tokenizer == shapes_tokenizer and plan.template == "vicuna_v1.1" and plan.fresh == ()


def test_a_copy_in_our_own_form_is_the_same(made):
    folder, model, values = made
    opened = exporter.open_model(folder / "params")
    assert opened.card == ModelCard(model, "vicuna_v1.1")
    assert_same({path: whole(leaf) for path, leaf in opened.leaves.items()}, values)
    with pytest.raises(ConfigError, match="params holds something already"):
        exporter.export(folder / "model", "params", folder / "params")


def test_an_import_on_disk_says_where_it_comes_from(made):
    folder, model, values = made
    plan = importer.make_plan([str(folder / "official")])
    importer.write(plan, folder / "again")
    card = model_folder.read_card(folder / "again")
    assert card.model == plan.model and card.fresh == ()
    (origin,) = card.origins
    assert origin.format == "official" and origin.parts == (
        "llm",
        "clip",
        "visual_projector",
        "dream_queries",
        "unet",
        "vae",
        "condition_projector",
    )
    assert {file.name for file in origin.files} == {"model.safetensors", *official.PLUGINS.values()} and all(
        len(file.sha256) == 64 for file in origin.files
    )
    loaded = leaves(checkpoint.load_params(folder / "again"))
    assert all(loaded[path].dtype == np.float32 for path in loaded)
    np.testing.assert_array_equal(
        loaded["llm/layers/mlp/up/kernel"], values["llm/layers/mlp/up/kernel"].astype(np.float32)
    )
    with pytest.raises(ConfigError, match="again holds something already"):
        importer.write(plan, folder / "again")


@pytest.mark.parametrize("kind", ["official", "huggingface"])
def test_the_chain_of_origins_survives_an_export(made, tmp_path, kind):
    """What was known of the model before it went out stands in what comes in again, also when the export is gone."""
    folder, model, values = made
    llm = [str(folder / "official")] if kind == "official" else hub_folders(folder)[:1]
    out = epath.Path(tmp_path) / "in"
    importer.write(importer.make_plan(llm, parts=("llm",)), out)
    record = weight_transfer.origins_of(out)
    (source,) = record["origins"]
    assert source["path"] == llm[0] and source["files"] and source["fresh"] == []
    (before,) = source["origins"]
    assert before["path"] == str(folder / "model") and before["parameters"] is None
    exporter.export(out, kind, epath.Path(tmp_path) / "out")
    importer.write(
        importer.make_plan([str(tmp_path / "out" / "llm") if kind == "huggingface" else str(tmp_path / "out")]),
        epath.Path(tmp_path) / "again",
    )
    words = weight_transfer.format_summary(weight_transfer.origins_of(epath.Path(tmp_path) / "again")).splitlines()
    places = [line.split()[1].removesuffix(":") for line in words if line.lstrip().startswith("from ")]
    assert places[1:] == [str(out), llm[0], str(folder / "model")]


def test_each_device_reads_what_it_holds(made):
    """Of the placements that a mesh asks for, together every entry once."""
    from dreamjax.config import MeshConfig
    from dreamjax.parallel.mesh import make_mesh
    from dreamjax.parallel.param_sharding import parameter_shardings

    folder, model, values = made
    leaf = importer.make_plan([str(folder / "official")]).leaves["llm/layers/mlp/up/kernel"]
    asked = []
    counted = leaf._replace(read=lambda index: asked.append(index) or leaf.read(index))
    mesh = make_mesh(MeshConfig(1, 4, 2))
    shape = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    sharding = parameter_shardings({"llm": {"layers": {"mlp": {"up": {"kernel": shape}}}}}, mesh)["llm"]["layers"][
        "mlp"
    ]["up"]["kernel"]
    placed = assemble.place(counted, sharding)
    np.testing.assert_array_equal(placed, values["llm/layers/mlp/up/kernel"])
    sizes = [np.prod([s.stop - s.start for s in index]) for index in asked]
    assert sum(sizes) == np.prod(leaf.shape) and max(sizes) == np.prod(leaf.shape) // 8


@pytest.fixture(scope="module")
def raw(made):
    """(model, parts as the Hugging Face exports have them)."""
    folder, model, _ = made
    return model, {part: one for source in hub_folders(folder) for part, one in detect.read(source).raw_parts.items()}


def test_transformers_and_diffusers_load_the_exports(made, raw):
    """Their own loading gives the modules that `verify` compares with ours."""
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    folder, model, _ = made
    home = folder / "huggingface"
    classes = {
        "llm": (transformers.LlamaForCausalLM, home / "llm"),
        "clip": (transformers.CLIPVisionModel, home / "clip"),
        "clip_text": (transformers.CLIPModel, home / "clip"),
        "text_encoder": (transformers.CLIPTextModel, home / "sd" / "text_encoder"),
        "unet": (diffusers.UNet2DConditionModel, home / "sd" / "unet"),
        "vae": (diffusers.AutoencoderKL, home / "sd" / "vae"),
    }
    for part, (cls, path) in classes.items():
        theirs, info = cls.from_pretrained(str(path), output_loading_info=True)
        assert not info["missing_keys"] and not info["mismatched_keys"], part
        if part != "clip":  # whose folder is that of both towers
            assert not info["unexpected_keys"], part
        expected = torch_reference.torch_module(part, model, raw[1]).state_dict()
        found = theirs.float().state_dict()
        assert found.keys() == expected.keys(), part
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=f"{part} {name}")
    assert theirs.config.scaling_factor == 0.5
    assert (
        diffusers.DDPMScheduler.from_pretrained(str(home / "sd" / "scheduler")).config.prediction_type == "v_prediction"
    )


@pytest.mark.slow
def test_verify_finds_our_numbers_and_torchs_the_same(made):
    folder, model, _ = made
    rows = verify.verify(folder / "model", hub_folders(folder))
    assert {row["part"] for row in rows} == {"llm", "clip", "text_encoder", "clip_text", "unet", "vae"}
    for row in rows:
        assert row["ok"] and row["float32"] < 1e-5, row
        assert 1e-5 < row["bfloat16"] < 2.5 * row["torch_bfloat16"] + 1e-3, row
    words = verify.format_summary(rows).splitlines()
    assert len(words) == len(rows) + 2 and words[-1].startswith("all the same; the tolerances are 0.0001 in float32")
    json.dumps(rows)


def test_verify_sees_one_wrong_weight(made, raw):
    folder, model, values = made
    assert verify.relative_error(np.ones(4), np.array([1, 1, 1, 1.1])) > 0.04
    shapes = assemble.shapes_of(model)
    assert tables.of("llm", model, shapes).names["head/kernel"] == "lm_head.weight"
    opened = exporter.open_model(folder / "model")
    broken = dict(opened.leaves)
    wrong = np.array(values["llm/norm/scale"])
    wrong[3] += 1
    broken["llm/norm/scale"] = Leaf(wrong.shape, wrong.dtype, wrong.__getitem__, "here")
    own = {path: leaf for path, leaf in broken.items() if path.startswith("llm/")}
    rows = verify.compare("llm", model, own, raw[1], np.random.default_rng(0))
    assert not any(row["ok"] for row in rows)


def test_a_small_model_without_its_joints_gets_fresh_ones(made):
    folder, model, values = made
    plan = importer.make_plan(hub_folders(folder)[:3], changes={"dream_queries": 7})
    assert set(plan.fresh) == {
        "visual_projector/linear/kernel",
        "visual_projector/linear/bias",
        "condition_projector/linear/kernel",
        "dream_queries",
    }
    assert (
        plan.leaves["dream_queries"].shape == (7, model.llm.width)
        and 0.01 < whole(plan.leaves["dream_queries"]).std() < 0.03
    )
    assert plan.model.dream_queries == 7
