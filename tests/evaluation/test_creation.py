"""Pictures drawn for captions.

Matched by id, ranked, gone on with, measured; and Stable Diffusion beside it, against diffusers.
"""

import dataclasses
import json
import types

import jax
import numpy as np
import PIL.Image
import pytest
from etils import epath
from evaluation import layouts
from small_model import LATENT, parameters, with_params

from dreamjax.api import DreamLLM
from dreamjax.config import MeshConfig
from dreamjax.config.model import ClipTextConfig
from dreamjax.convert import exporter
from dreamjax.document import Document, Text
from dreamjax.errors import ConfigError, SourceError
from dreamjax.evaluation import image_runner, report, tasks
from dreamjax.evaluation.benchmarks import image_generation
from dreamjax.evaluation.benchmarks.image_generation import SETTINGS, GenerationPrompt, GenerationSettings
from dreamjax.evaluation.metrics import features
from dreamjax.evaluation.settings import EvaluationSettings, ImageMeasures
from dreamjax.evaluation.stable_diffusion import StableDiffusion
from dreamjax.models.dreamllm import Model
from dreamjax.parallel.mesh import make_mesh
from dreamjax.parallel.param_sharding import parameter_shardings
from dreamjax.sampling import denoise, text_to_image
from dreamjax.sampling.options import Options
from dreamjax.training import model_folder

CLIP_FEATURES = ImageMeasures(features="clip")


def clip_vocabulary(folder):
    """CLIP's tokenizer with a vocabulary of letters: 54 ids."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocabulary = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


@pytest.fixture(scope="module")
def model(shapes_tokenizer, tmp_path_factory) -> DreamLLM:
    """A random model with every part, CLIP's text tower and Stable Diffusion's own text encoder too."""
    text = ClipTextConfig(
        vocab_size=54, positions=16, width=16, layers=1, heads=2, ffn_width=16, activation="gelu", end_token=53
    )
    config = dataclasses.replace(
        LATENT,
        llm=dataclasses.replace(LATENT.llm, vocab_size=shapes_tokenizer.size, max_positions=128),
        text_encoder=text,
        clip_text=dataclasses.replace(text, projection_width=8, vision_width=LATENT.clip.width),
    )
    folder = clip_vocabulary(tmp_path_factory.mktemp("clip"))
    return DreamLLM(Model(config, parameters(config)), shapes_tokenizer, clip_tokenizer=str(folder))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for make in layouts.DRAWN:
        make(root / make.__name__)
    return root


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The profiles as they are, but for the number of candidates and of steps."""
    for name, table in SETTINGS.items():
        fast = {
            task: dataclasses.replace(m, candidates=min(m.candidates, 2), sampling={**m.sampling, "num_steps": 2})
            for task, m in table.items()
        }
        monkeypatch.setitem(SETTINGS, name, fast)


def run(model, name, data, out, profile="clean", batch_size=4, measures=CLIP_FEATURES, count=None, whose="m"):
    how = EvaluationSettings(profile=profile, batch_size=batch_size, measures=measures, count=count)
    tasks.check(name, how)
    return tasks.run(model, name, data / name, out, how, {"model": whose})


def drawn_pixels(folder) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(PIL.Image.open(path)).astype(int) for path in sorted(folder.glob("*.png"))}


# ----------------------------------------------------------------------------------------------------------------------
# Files


def test_captions_of_coco_in_an_order_of_the_seed(data):
    generation_prompts = image_generation.load_coco(data / "coco_fid")[0]
    assert sorted(generation_prompt.id for generation_prompt in generation_prompts) == ["770", "771", "772", "773"]
    by_id = {generation_prompt.id: generation_prompt for generation_prompt in generation_prompts}
    assert by_id["772"].texts == ("one cat sits", "a red cat") and by_id["772"].prompt.text == "one cat sits"
    assert str(by_id["773"].real.source).endswith("val2014/COCO_val2014_000000000043.jpg")
    ids = [
        [
            generation_prompt.id
            for generation_prompt in image_generation.load_coco(data / "coco_fid", count=3, seed=seed)[0]
        ]
        for seed in (0, 0, 1, 2, 3)
    ]
    assert (
        ids[0] == ids[1] == [generation_prompt.id for generation_prompt in generation_prompts][:3]
        and len(set(map(tuple, ids))) > 1
    )


def test_narratives_and_documents(data, tmp_path):
    narratives = image_generation.load_lncoco(data / "lncoco_fid", count=2)[0]
    assert [generation_prompt.id for generation_prompt in narratives] == ["42-93", "43-93"] and narratives[1].texts == (
        "In this picture I see 1 cats.",
    )
    prompts, warnings = image_generation.load_instructmmc4(data / "instructmmc4_fid")
    assert [generation_prompt.id for generation_prompt in prompts] == [
        "0-2",
        "0-4",
        "2-1",
    ] and "1 of 3 documents cannot be used" in warnings[0]
    second = prompts[1]
    assert [(type(part).__name__, part.role) for part in second.prompt.parts] == [
        ("Text", "user"),
        ("Text", "assistant"),
        ("Image", "assistant"),
        ("Text", "assistant"),
    ]
    assert second.texts == ("It runs.",) and not second.prompt.parts[2].is_target
    layouts.coco_fid(tmp_path / "coco_fid")
    (tmp_path / "coco_fid" / "val2014" / "COCO_val2014_000000000043.jpg").unlink()
    with pytest.raises(SourceError, match="1 of 2 pictures are missing, the first is COCO_val2014_000000000043.jpg"):
        image_generation.load_coco(tmp_path / "coco_fid")
    twice = layouts.write_lines(
        tmp_path / "coco_val.jsonl", [{"image_id": "42", "annotator_id": 1, "caption": "a"}] * 2
    )
    with pytest.raises(SourceError, match="the id 42-1 stands there twice"):
        image_generation.load_lncoco(twice, images=str(data / "lncoco_fid"))
    for by in ("/../../x", "a/b", "x" * 300, "\x00", "\ud800"):  # the id names the file of what is drawn
        layouts.write_lines(tmp_path / "coco_val.jsonl", [{"image_id": "42", "annotator_id": by, "caption": "a"}])
        with pytest.raises(SourceError, match="cannot be the name of a file"):
            image_generation.load_lncoco(twice, images=str(data / "lncoco_fid"))


def test_prompts_lose_what_is_farthest_from_the_image():
    generation_prompt = GenerationPrompt("x", Document((Text("wish"), Text("a"), Text("b"), Text("c"))), ("c",), None)

    def cut(most):
        return image_generation.shorten(generation_prompt, lambda prompt: len(prompt.parts) <= most)

    assert [part.text for part in cut(3)[0].prompt.parts] == ["wish", "b", "c"] and cut(3)[1] and not cut(4)[1]
    with pytest.raises(ConfigError, match="x: its prompt is longer than the model's context"):
        cut(0)


# ----------------------------------------------------------------------------------------------------------------------
# Drawing and ranking


def painter(generation_prompts, seeds):
    """A picture whose colour says for whom and with which seed it was drawn."""
    return [
        PIL.Image.new("RGB", (8, 8), (int(generation_prompt.id), seed % 256, 7))
        for generation_prompt, seed in zip(generation_prompts, seeds, strict=True)
    ]


class Judge:
    """Towers that like green, and of one text red."""

    def scorer(self):
        def value(image, text):
            return image.getpixel((0, 0))[1] * (-1 if text == "dark" else 1)

        return lambda images, texts: np.array([value(*pair) for pair in zip(images, texts, strict=True)])


@pytest.mark.parametrize("all_texts", [False, True])
def test_every_captions_images_are_drawn_ranked_and_saved_under_its_id(tmp_path, all_texts):
    generation_prompts = [
        GenerationPrompt(str(i), Document.of(str(i)), ("dark", "light") if i % 2 else ("light", "dark"), None)
        for i in range(7)
    ]
    settings = GenerationSettings(8, 42, all_texts)
    job = image_runner.GenerationJob(prompts=generation_prompts, settings=settings, towers=Judge())
    folder = image_runner.generate(painter, job, epath.Path(tmp_path), {})
    rows = layouts.rows_of(tmp_path / "predictions.jsonl")
    assert [row["question_id"] for row in rows] == [generation_prompt.id for generation_prompt in generation_prompts]
    for generation_prompt, row in zip(generation_prompts, rows, strict=True):
        greens = {seed: image_runner.seed_of(generation_prompt, seed) % 256 for seed in range(42, 50)}
        best = (min if generation_prompt.texts[0] == "dark" and not all_texts else max)(greens, key=greens.get)
        red, green, _ = PIL.Image.open(folder / f"{generation_prompt.id}.png").getpixel((9, 9))
        assert (red, green, row["seed"]) == (int(generation_prompt.id), greens[best], best) and len(row["scores"]) == 8
        assert PIL.Image.open(folder / f"{generation_prompt.id}.png").size == (256, 256)


@pytest.mark.parametrize("name", image_generation.TASKS)
def test_tasks_run_are_interrupted_go_on_and_are_equal_on_eight_devices(model, data, tmp_path, name):
    whole = run(model, name, data, tmp_path / "whole")
    rows = layouts.rows_of(tmp_path / "whole" / name / "predictions.jsonl")
    expected = {"coco_fid": 4, "lncoco_fid": 3, "instructmmc4_fid": 3}[name]
    assert len(rows) == expected == whole.score.counts["images"] and whole.score.counts["real_images"] == {
        "coco_fid": 2
    }.get(name, 3)
    assert set(whole.score.metrics) >= {"frechet", "kid_x1000", "clip_score"} and all(
        map(np.isfinite, whole.score.metrics.values())
    )
    assert -100 <= whole.score.metrics["clip_score"] <= 100
    page = report.render("t", [whole])
    assert page.count("<article>") == expected and ("12.43" in page) == (name == "coco_fid")

    path = tmp_path / "whole" / name / "predictions.jsonl"
    text, pixels = path.read_bytes(), drawn_pixels(path.parent / "pictures")
    path.write_bytes(text[: len(text) // 2])  # as if it had died while it wrote a row
    (path.parent / "pictures" / f"{rows[-1]['question_id']}.png").unlink()
    run(model, name, data, tmp_path / "whole")
    again = drawn_pixels(path.parent / "pictures")
    assert path.read_bytes() == text and all(np.array_equal(again[key], pixels[key]) for key in pixels)

    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        spread = with_params(model, jax.device_put(model.params, parameter_shardings(model.params, mesh)))
        run(spread, name, data, tmp_path / "eight")
    eight = drawn_pixels(tmp_path / "eight" / name / "pictures")
    assert eight.keys() == pixels.keys() and all(np.abs(eight[key] - pixels[key]).max() <= 1 for key in pixels)
    for mine, theirs in zip(rows, layouts.rows_of(tmp_path / "eight" / name / "predictions.jsonl"), strict=True):
        np.testing.assert_allclose(mine.pop("scores", 0), theirs.pop("scores", 0), atol=1e-2)
        assert mine == theirs

    (path.parent / "pictures" / f"{rows[0]['question_id']}.png").unlink()
    with pytest.raises(SourceError, match=f"1 of {expected} pictures are missing"):
        run(model, name, data, tmp_path / "whole")
    with pytest.raises(ConfigError, match="holds predictions with model = 'm', not 'other'"):
        run(model, name, data, tmp_path / "whole", whose="other")


def test_without_a_text_tower_one_image_is_drawn_and_that_is_said(model, data, tmp_path):
    alone = dataclasses.replace(model, clip_tokenizer=None)
    result = run(alone, "coco_fid", data, tmp_path, profile="official", count=3)
    assert any("no CLIP text tower is there to rank 2 candidates" in warning for warning in result.score.warnings)
    assert (
        "clip_score" not in result.score.metrics
        and layouts.rows_of(tmp_path / "coco_fid" / "predictions.jsonl")[0]["seed"] == 42
    )


def test_the_official_manner():
    assert SETTINGS["official"]["coco_fid"].seed == 42 and SETTINGS["official"]["coco_fid"].all_texts
    assert {key: SETTINGS["official"]["coco_fid"].sampling[key] for key in ("sampler", "guidance_scale")} == {
        "sampler": "ddpm",
        "guidance_scale": 2.0,
    }
    with pytest.raises(ConfigError, match="instructmmc4_fid has no profile 'official'"):
        image_generation.settings_of("official", "instructmmc4_fid")


# ----------------------------------------------------------------------------------------------------------------------
# Stable Diffusion


@pytest.mark.slow
def test_stable_diffusion_is_the_baseline(model, data, tmp_path, shapes_tokenizer):
    """From an exported folder; pictures against diffusers' own pipeline from the same noise."""
    transformers, diffusers = pytest.importorskip("transformers"), pytest.importorskip("diffusers")
    import torch

    home = epath.Path(tmp_path / "home")
    flat = model_folder_leaves(model)
    model_folder.save_leaves(
        home / "params", {path: leaf.nbytes for path, leaf in flat.items()}, lambda path: jax.numpy.asarray(flat[path])
    )
    shapes_tokenizer.save(home / "tokenizer")
    for name in ("text_encoder", "clip_text"):
        clip_vocabulary(tmp_path / "home" / "tokenizer" / name)
    model_folder.write_card(home, model_folder.ModelCard(model.config, "plain"))
    exporter.export(home, "huggingface", tmp_path / "out")
    sd = tmp_path / "out" / "sd"

    ours = StableDiffusion.load(str(sd))
    options = Options(sampler="ddim", num_steps=3, guidance_scale=2.5)
    texts, seeds = ["a cat", "the sea", "", "low"], [5, 6, 7, 8]
    made = ours.draw(texts, seeds, options)
    noise = denoise.first_noise(text_to_image.image_keys(seeds), denoise.latent_shape(ours.model.config, options))
    schedule = diffusers.DDIMScheduler.from_pretrained(
        sd / "scheduler", timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False
    )
    tokenizer = transformers.CLIPTokenizer.from_pretrained(sd / "tokenizer", model_max_length=16)
    theirs = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL.from_pretrained(sd / "vae"),
        text_encoder=transformers.CLIPTextModel.from_pretrained(sd / "text_encoder"),
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel.from_pretrained(sd / "unet"),
        scheduler=schedule,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    theirs.set_progress_bar_config(disable=True)
    latents = torch.from_numpy(np.array(noise).transpose(0, 3, 1, 2))
    expected = theirs(
        texts, num_inference_steps=3, guidance_scale=2.5, latents=latents, output_type="np", height=8, width=8
    ).images
    for mine, right in zip(made, expected, strict=True):
        assert np.abs(np.asarray(mine) - 255 * right).max() <= 1

    measures = ImageMeasures(features="clip", baseline=str(sd), clip=str(tmp_path / "out" / "clip"))
    result = run(
        dataclasses.replace(model, clip_tokenizer=None), "coco_fid", data, tmp_path / "run", measures=measures, count=3
    )
    assert (
        result.measured["Stable Diffusion, measured"].keys() == result.score.metrics.keys()
        and "clip_score" in result.score.metrics
    )
    assert layouts.rows_of(tmp_path / "run" / "coco_fid" / "baseline" / "predictions.jsonl")[0]["scores"]
    assert "Stable Diffusion, measured" in report.format_summary(result)
    with pytest.raises(ConfigError, match="--baseline: .* needs unet/, vae/, scheduler/, text_encoder/ and tokenizer/"):
        StableDiffusion.load(str(tmp_path / "out" / "clip"))


def model_folder_leaves(model) -> dict[str, np.ndarray]:
    from small_model import leaves

    return leaves(model.params)


# ----------------------------------------------------------------------------------------------------------------------
# Features


def mean_colour(opened):
    return np.stack([np.asarray(image).mean((0, 1)) for image in opened])


def test_features_are_anything_that_makes_an_array(tmp_path, monkeypatch):
    monkeypatch.setitem(
        __import__("sys").modules, "mine", types.SimpleNamespace(colours=mean_colour, wrong=lambda opened: np.zeros(3))
    )
    extractor = features.extractor("mine:colours", "")
    rng = np.random.default_rng(0)
    for side, shade in (("real", 0), ("drawn", 100)):
        (tmp_path / side).mkdir()
        for i in range(40):
            PIL.Image.fromarray(np.full((4, 4, 3), rng.integers(0, 100, 3) + shade, np.uint8)).save(
                tmp_path / side / f"{i}.png"
            )
    drawn = features.reference(tmp_path / "drawn", extractor)
    real = features.reference(tmp_path / "real", extractor)
    metrics, warnings = features.compare(real, drawn, extractor.name)
    assert (
        3 * 90**2 < metrics["frechet"] < 3 * 110**2
        and metrics["precision"] == metrics["recall"] == 0
        and "not those of published" in warnings[0]
    )
    np.savez(tmp_path / "stats.npz", mu=real.mean(0), sigma=np.cov(real.T))
    known, _ = features.compare(features.reference(tmp_path / "stats.npz", extractor), drawn, "inception")
    assert known == {"fid": pytest.approx(metrics["frechet"], rel=1e-9)}
    for content, words in (
        ({"mu": np.zeros(3)}, "is no npz with mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.zeros(3)}, r"sigma \[3\], must be"),
    ):
        np.savez(tmp_path / "wrong.npz", **content)
        with pytest.raises(SourceError, match=words):
            features.load_statistics(tmp_path / "wrong.npz")
    with pytest.raises(SourceError, match="the reference has 2 features, and mine:colours gives 3"):
        features.compare(real[:, :2], drawn, extractor.name)
    with pytest.raises(ConfigError, match=r"mine:wrong gave an array \[3\] for 32 pictures"):
        features.reference(tmp_path / "real", features.extractor("mine:wrong", ""))
    (tmp_path / "none").mkdir()
    for folder, words in (("none", "holds no pictures"), ("nowhere", "no such folder of pictures")):
        with pytest.raises(SourceError, match=words):
            features.reference(tmp_path / folder, extractor)


@pytest.mark.parametrize(
    "measures, words",
    [
        (
            ImageMeasures(),
            "--inception: is missing: FID is measured in the features of pytorch-fid's Inception network",
        ),
        (ImageMeasures(inception="nowhere.pth"), "--inception: nowhere.pth: no such file"),
        (ImageMeasures(features="x"), "'x' is none of inception, clip"),
        (ImageMeasures(features="json:nothing"), "--features: json:nothing: "),
        (ImageMeasures(features="clip", reference="nowhere"), "--reference: nowhere: no such file"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is_drawn(measures, words):
    with pytest.raises(ConfigError, match=words):
        tasks.check("coco_fid", EvaluationSettings(measures=measures))
