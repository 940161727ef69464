"""Every benchmark end to end with a random model on small made files.

Asked, written down, interrupted, resumed, scored, shown.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest
from evaluation import layouts
from small_model import LATENT, parameters, with_params

from dreamjax.api import DreamLLM
from dreamjax.config import MeshConfig
from dreamjax.document import Document, Text
from dreamjax.document.tokenize import Slots, tokenize_prompt
from dreamjax.errors import ConfigError, SourceError
from dreamjax.evaluation import few_shot, likelihood_runner, report, tasks
from dreamjax.evaluation.benchmarks import image_generation
from dreamjax.evaluation.benchmarks.registry import BENCHMARKS
from dreamjax.evaluation.image_folder import ImageFolder
from dreamjax.evaluation.metrics import captions
from dreamjax.evaluation.prompts import PromptTemplate
from dreamjax.evaluation.question import Question
from dreamjax.evaluation.settings import EvaluationSettings
from dreamjax.evaluation.tasks import RUNNABLE
from dreamjax.models.dreamllm import Model
from dreamjax.parallel.mesh import make_mesh
from dreamjax.parallel.param_sharding import parameter_shardings

SHORT = {"max_tokens": 6}
OF_ANSWERS = [
    name for name in RUNNABLE if name not in (*image_generation.TASKS, "study")
]  # what is drawn has tests of its own


@pytest.fixture(scope="module")
def model(shapes_tokenizer) -> DreamLLM:
    """A random model that sees and writes."""
    llm = dataclasses.replace(LATENT.llm, vocab_size=shapes_tokenizer.size, max_positions=512)
    config = dataclasses.replace(LATENT, llm=llm, unet=None, vae=None)
    params = parameters(config)
    return DreamLLM(Model(config, params), shapes_tokenizer)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    layouts.write_all(root)
    return root


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    """Profiles as they are, but for the length of answers and the beams; no Java, which is slow to start."""
    monkeypatch.setattr(captions, "has_java", lambda: False)

    def brief(template):
        check = template.answerable
        if check:
            otherwise = brief(check.otherwise) if isinstance(check.otherwise, PromptTemplate) else check.otherwise
            check = dataclasses.replace(check, prompt=brief(check.prompt), otherwise=otherwise)
        return dataclasses.replace(template, decoding=SHORT, answerable=check)

    for name, benchmark in BENCHMARKS.items():
        prompts = {profile: brief(template) for profile, template in benchmark.prompts.items()}
        monkeypatch.setitem(BENCHMARKS, name, dataclasses.replace(benchmark, prompts=prompts))


def run(model, name, data, out, **how):
    return tasks.run(model, name, data / name, out, EvaluationSettings(**{"batch_size": 4, **how}), {"model": "m"})


@pytest.mark.parametrize("name", OF_ANSWERS)
def test_every_benchmark_runs_and_is_scored(model, data, tmp_path, name):
    result = run(model, name, data, tmp_path, batch_size=8)
    rows = layouts.rows_of(tmp_path / name / "predictions.jsonl")
    assert len(rows) == {
        "mme": 6,
        "pope": 6,
        "vqav2": 3,
        "scienceqa": 3,
        "mmbench": 3,
        "hellaswag": 1,
        "winogrande": 1,
        "boolq": 1,
        "mmlu": 4,
    }.get(name, 2)
    if name == "mmvet":  # graded elsewhere
        assert result.score is None and "holds answers, not grades" in result.note
        assert json.loads(result.export().path.read_text()).keys() == {"v1_0", "v1_1"}
    else:
        assert result.score.counts["missing"] == result.score.counts["unmatched"] == 0 and result.score.counts[
            "predictions"
        ] == len(rows)
    assert len(result.samples) == len(rows)
    page = report.render("t", [result])
    assert page.count("<article>") == len(rows)
    assert name not in ("coco", "pope", "mmlu") or any(
        f"{value:.2f}" in page for figures in result.paper.values() for value in figures.values()
    )


# ----------------------------------------------------------------------------------------------------------------------
# Interruptions and meshes


def test_an_interrupted_run_goes_on(model, data, tmp_path, monkeypatch):
    run(model, "mme", data, tmp_path / "whole")
    whole = (tmp_path / "whole" / "mme" / "predictions.jsonl").read_bytes()
    asked, generate = [], DreamLLM.generate_batch

    def dying(self, prompts, *arguments, **options):
        asked.append(len(prompts))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return generate(self, prompts, *arguments, **options)

    monkeypatch.setattr(DreamLLM, "generate_batch", dying)
    with pytest.raises(KeyboardInterrupt):
        run(model, "mme", data, tmp_path / "cut")
    path = tmp_path / "cut" / "mme" / "predictions.jsonl"
    assert path.read_bytes() == b"".join(whole.splitlines(True)[:4])
    path.write_bytes(path.read_bytes()[:-9])  # as if it had died while it wrote the fourth row
    run(model, "mme", data, tmp_path / "cut")
    assert path.read_bytes() == whole and asked == [4, 2, 3]
    run(model, "mme", data, tmp_path / "cut")
    assert asked == [4, 2, 3]  # nothing is left to ask


def test_a_folder_of_other_predictions_is_not_gone_on_with(model, data, tmp_path):
    run(model, "mme", data, tmp_path)
    with pytest.raises(ConfigError, match="holds predictions with seed = 0, not 1; use another folder"):
        run(model, "mme", data, tmp_path, seed=1)


@pytest.mark.parametrize("name", OF_ANSWERS)
def test_every_benchmark_goes_on_and_predicts_the_same_on_eight_devices(model, data, tmp_path, name):
    run(model, name, data, tmp_path, batch_size=8)
    path = tmp_path / name / "predictions.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])  # as if it had died while it wrote a row
    run(model, name, data, tmp_path, batch_size=8)
    assert path.read_bytes() == whole
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        spread = with_params(model, jax.device_put(model.params, parameter_shardings(model.params, mesh)))
        run(spread, name, data, tmp_path / "eight", batch_size=8)
    for mine, theirs in zip(
        layouts.rows_of(path), layouts.rows_of(tmp_path / "eight" / name / "predictions.jsonl"), strict=True
    ):
        np.testing.assert_allclose(mine.pop("scores", 0), theirs.pop("scores", 0), rtol=1e-4)
        assert mine == theirs


def test_letters_after_the_same_words_are_ranked_in_one_pass(model, data, tmp_path, monkeypatch):
    run(model, "mmlu", data, tmp_path / "once", batch_size=8)
    monkeypatch.setattr(
        likelihood_runner, "alternatives", lambda *arguments: None
    )  # as where a letter is of several tokens
    run(model, "mmlu", data, tmp_path / "each", batch_size=8)
    once, each = (layouts.rows_of(tmp_path / folder / "mmlu" / "predictions.jsonl") for folder in ("once", "each"))
    assert len({json.dumps(row["scores"]) for row in once}) == len(once) == 4
    for mine, theirs in zip(once, each, strict=True):
        np.testing.assert_allclose(mine.pop("scores"), theirs.pop("scores"), rtol=1e-5)
        assert mine == theirs


# ----------------------------------------------------------------------------------------------------------------------
# Counts, examples, profiles


def test_a_count_is_of_the_questions_scored(model, data, tmp_path):
    for name, expected in {"vqav2": 2, "pope": 3, "mme": 6, "mmbench": 2, "mmlu": 2}.items():
        count = 2 if name == "vqav2" else 1
        result = run(model, name, data, tmp_path, count=count)
        assert (
            result.score.counts["questions"] == expected == len(layouts.rows_of(tmp_path / name / "predictions.jsonl"))
        ), name
        assert result.score.counts["missing"] == 0 and result.export is None


def test_examples_come_with_their_answers(model, data, tmp_path):
    layouts.vqav2(tmp_path / "train", 6)
    result = run(
        model,
        "vqav2",
        data,
        tmp_path,
        shots=2,
        examples="rices",
        shots_from=str(tmp_path / "train"),
        images=str(tmp_path / "train"),
    )
    assert "2 examples in context (rices)" in result.setting and result.paper["accuracy"]["DreamLLM"] == 58.1
    for sample in result.samples:
        roles = [(type(part).__name__, part.role) for part in sample.prompt.parts]
        assert roles == [("Image", "user"), ("Text", "user"), ("Text", "assistant")] * 2 + [
            ("Image", "user"),
            ("Text", "user"),
        ]
        assert [part.text for part in sample.prompt.parts if part.role == "assistant"] == ["red", "red"]
        assert (
            len({part.source for part in sample.prompt.parts if hasattr(part, "source")}) == 3
        )  # never the question's own picture


def test_the_nearest_images_are_right_before_the_question():
    pool = [Question(str(i), "?", (str(i),), references=("a",)) for i in range(5)]
    angles = {str(i): i / 10 for i in range(5)}
    features = {name: np.array([np.cos(angle), np.sin(angle)]) for name, angle in angles.items()}
    choose = few_shot.by_images(pool, 2, features)
    assert [example.id for example in choose(pool[0])] == ["2", "1"] and [
        example.id for example in choose(pool[4])
    ] == ["2", "3"]
    draw = few_shot.at_random(pool, 2, seed=3)
    assert draw(pool[1]) == few_shot.at_random(pool, 2, seed=3)(pool[1]) and all(
        pool[1] not in few_shot.at_random(pool, 4, seed)(pool[1]) for seed in range(5)
    )
    assert len({tuple(example.id for example in few_shot.at_random(pool, 2, seed)(pool[0])) for seed in range(9)}) > 2


def test_equal_features_of_images_have_length_one(model, data):
    images = ImageFolder(data / "vqav2").require(("42", "43", "44"))
    features = few_shot.image_features(model, images, batch_size=2)
    assert features.keys() == images.keys() and np.linalg.norm(features["42"]) == pytest.approx(1, abs=1e-5)
    assert not np.allclose(features["42"], features["43"], atol=1e-3)


def test_examples_that_do_not_fit_are_left_out_and_said(model, data, tmp_path):
    layouts.vqav2(tmp_path / "train", 30)
    result = run(
        model,
        "vqav2",
        data,
        tmp_path,
        count=1,
        shots=25,
        shots_from=str(tmp_path / "train"),
        images=str(tmp_path / "train"),
    )
    assert any("examples were left out of prompts" in warning for warning in result.score.warnings)


def test_the_official_words_around_a_question(model, data, shapes_tokenizer):
    asked = BENCHMARKS["vqav2"].questions(data / "vqav2")[0]
    image = ImageFolder(data / "vqav2").find("42")
    prompt = BENCHMARKS["vqav2"].prompt("official").document(asked, [image])
    words = [part.text if hasattr(part, "text") else "<picture>" for part in prompt.parts]
    assert words[1:] == [
        "Based on the image, please answer the question.",
        "<picture>",
        "What colour is it, 0?Please provide an accurate answer within one word.",
        "The short answer '(one word)' is:",
    ]
    assert words[0].startswith(" A chat between a curious user")
    row = tokenize_prompt(prompt, shapes_tokenizer, Slots(queries=3, patches=4), "vicuna_v1.1")
    text = shapes_tokenizer.decode([token for token in row.tokens.tolist() if token != shapes_tokenizer.im_patch])
    assert "USER: Based on the image" in text and text.endswith("ASSISTANT: The short answer '(one word)' is:")


def test_official_answers_are_clipped():
    assert BENCHMARKS["textvqa"].prompt("official").postprocess(' "Coca Cola", a brand.') == "coca cola"
    assert (
        BENCHMARKS["coco"].prompt("official").postprocess(" a Cat.")
        == BENCHMARKS["nocaps"].prompt("official").postprocess("a Cat.")
        == "A cat."
    )
    assert (
        BENCHMARKS["scienceqa"].prompt("clean").postprocess("(B) the sky") == "B"
        and BENCHMARKS["gqa"].prompt("clean").postprocess(" yes.\nMore") == "yes"
    )


class Speaker:
    """Stands for a model: says what a function of the prompt's text gives."""

    template = "plain"

    def __init__(self, model, say):
        self.model, self.config, self.tokenizer, self.options, self.say, self.heard = (
            model.model,
            model.config,
            model.tokenizer,
            model.options,
            say,
            [],
        )

    def generate_batch(self, prompts, seeds, **options):
        self.heard += [prompt.text for prompt in prompts]
        return [Document((Text(self.say(prompt.text)),)) for prompt in prompts]


def test_what_cannot_be_known(model, data, tmp_path):
    unsure = Speaker(model, lambda text: "No." if "can be known" in text else "A rose, I think")
    vizwiz = run(unsure, "vizwiz", data, tmp_path, profile="official")
    assert vizwiz.score.metrics["accuracy"] == 100 and len(unsure.heard) == 2  # nothing is asked again
    run(unsure, "mmbench", data, tmp_path, profile="official")
    options = (
        "Hint:nanQuestion:Which is red?Options: (0). rose (0). sky (0). sea Please provide an accurate and "
        "detailed answer."
    )
    assert (
        unsure.heard[-3].endswith(options)
        and "Hint:It is far.Question:Which is blue?Options: (0). rose" in unsure.heard[-1]
    )
    assert unsure.heard[2].endswith(
        "questions. Hint:nanQuestion:Which is red?Is the answer can be known?"
    )  # without what the exam's words say
    sure = Speaker(model, lambda text: "Yes." if "can be known" in text else '"A Rose", I think')
    run(sure, "vizwiz", data, tmp_path / "sure", profile="official")
    assert [row["text"] for row in layouts.rows_of(tmp_path / "sure" / "vizwiz" / "predictions.jsonl")] == [
        "a rose"
    ] * 2
    run(sure, "mmbench", data, tmp_path / "sure", profile="official")
    assert not any("(0)." in text for text in sure.heard)
    knowing = Speaker(model, lambda text: "I know it." if "can be known" in text else "so")
    assert (
        run(knowing, "vizwiz", data, tmp_path / "knowing", profile="official").score.metrics["accuracy"] == 100
    )  # any "no" counts there
    run(knowing, "mmbench", data, tmp_path / "knowing", profile="official")
    assert not any("(0)." in text for text in knowing.heard)  # and here only at the beginning


def test_right_answers_are_right(model, data, tmp_path):
    """The way from files through prompts and predictions to the score loses no answer and mixes none up."""
    right = {"Is it red? Please answer yes or no.": "Yes", "Is it blue? Please answer yes or no.": "No"}
    assert run(Speaker(model, right.get), "mme", data, tmp_path).score.metrics["perception"] == 400
    pope = run(
        Speaker(model, lambda text: "Yes, there is." if "dog" in text else "No"), "pope", data, tmp_path
    ).score.metrics
    assert pope["accuracy"] == pope["random_f1"] == pope["adversarial_f1"] == 100
    letters = {"rose\nB. sky\nC. sea": "A", "A. sky": "C", "Which is blue": "B"}
    assert (
        run(
            Speaker(model, lambda text: next(v for k, v in letters.items() if k in text)), "mmbench", data, tmp_path
        ).score.metrics["accuracy"]
        == 100
    )
    science = run(
        Speaker(model, lambda text: "A" if "red" in text else "B. a sky"), "scienceqa", data, tmp_path
    ).score.metrics
    assert science["accuracy"] == science["image_accuracy"] == 100


# ----------------------------------------------------------------------------------------------------------------------
# What is wrong


def test_missing_images_are_counted_before_anything_is_asked(model, data, tmp_path):
    layouts.vqav2(tmp_path / "vqav2")
    (tmp_path / "vqav2" / "val2014" / "COCO_val2014_000000000043.jpg").unlink()
    with pytest.raises(SourceError, match="1 of 3 pictures are missing, the first is 43"):
        run(model, "vqav2", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out" / "vqav2" / "predictions.jsonl").exists()


def test_images_are_found_by_folder_and_never_guessed(data, tmp_path):
    mme = ImageFolder(data / "mme")
    assert {
        name: str(mme.find(name).source).removeprefix(str(data / "mme"))
        for q in BENCHMARKS["mme"].questions(data / "mme")
        for name in q.images
    } == {
        "existence/000000006040": "/existence/images/000000006040.png",
        "code_reasoning/0020": "/code_reasoning/0020.png",
        "color/0020": "/color/images/0020.png",
    }
    science = ImageFolder(data / "scienceqa")
    assert [
        str(science.find(q.images[0]).source)[-14:]
        for q in BENCHMARKS["scienceqa"].questions(data / "scienceqa")
        if q.images
    ] == [
        "st/4/image.png",
        "t/12/image.png",
    ]
    assert science.find("5/image.png") is None
    layouts.make_image(tmp_path / "train2014" / "COCO_train2014_000000000042.jpg", 1)
    layouts.make_image(tmp_path / "val2014" / "COCO_val2014_000000000042.jpg", 2)
    with pytest.raises(SourceError, match="42 may be .*train2014.* or .*val2014"):
        ImageFolder(tmp_path).find("42")


def test_what_cannot_be_run_is_said():
    for how, name, words in (
        (EvaluationSettings(profile="official"), "mme", "mme has no profile 'official'"),
        (EvaluationSettings(profile="x"), "coco", "--profile: 'x' is unknown"),
        (EvaluationSettings(), "x", "--task: 'x' is unknown"),
        (EvaluationSettings(shots=2), "piqa", "--shots: piqa has its own"),
    ):
        with pytest.raises(ConfigError, match=words):
            tasks.check(name, how)
    with pytest.raises(ConfigError, match="--examples: 'near' is none of random, rices"):
        EvaluationSettings(examples="near")
