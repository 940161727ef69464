"""From an experiment file to a model in a user's hands: train, sample, export, measure, through the commands."""

import json
import pathlib

import jax
import numpy as np
import pytest
from quick_xla import command

import dreamjax

SMALL = (
    "--config.total_steps=4",
    "--config.log_every=1",
    "--config.checkpoint_every=2",
    "--config.eval_every=2",
    "--config.eval_batches=1",
    "--config.sample_every=4",
    "--config.sample_tokens=4",
    "--config.batch_size=2",
    "--config.model.unet.block_channels=(8,)",
    "--config.model.unet.cross_attention=(True,)",
    "--config.model.unet.heads=(2,)",
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "quickstart"
    command("train", "--config=experiments/quickstart.py", f"--workdir={folder}", *SMALL)
    return folder


def test_a_run_leaves_what_it_should(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {
        "loss",
        "lm_loss",
        "image_loss",
        "grad_norm",
        "learning_rate",
        "tokens_per_second",
        "documents",
        "pictures",
    } <= set(lines[0])
    assert {"eval_loss", "eval_shapes_lm_loss", "eval_shapes_image_loss", "eval_shapes_image_loss_t0"} <= set(lines[1])
    assert (
        (workdir / "config.json").exists()
        and list(workdir.glob("events*"))
        and (workdir / "samples" / "step_0000004.html").exists()
    )


def test_sample_writes_a_page_and_repeats_itself(workdir, tmp_path):
    arguments = (f"--model={workdir}", "--prompt=Once a red circle jumps up.", "--max_tokens=12", "--num_steps=2")
    first = json.loads(command("sample", *arguments, f"--out={tmp_path / 'a'}").stdout.splitlines()[-1])
    json.loads(command("sample", *arguments, f"--out={tmp_path / 'b'}").stdout.splitlines()[-1])
    page = pathlib.Path(first["html"]).read_text()
    assert "Once a red circle jumps up." in page and "http" not in page.split("<body")[1]
    assert (tmp_path / "a" / "story.json").read_bytes() == (tmp_path / "b" / "story.json").read_bytes()


@pytest.mark.parametrize(
    "flag, words",
    [
        ("--image=/nowhere/a.png", "/nowhere/a.png"),
        ("--template=none --model=/nowhere", "/nowhere"),
        ("--top_p=0", "top_p"),
    ],
)
def test_sample_says_in_one_line_what_is_wrong(workdir, tmp_path, flag, words):
    done = command("sample", f"--model={workdir}", f"--out={tmp_path}", *flag.split(), expect=2)
    assert words in done.stderr and len(done.stderr.splitlines()) == 1


def test_an_exported_model_is_the_same_model(workdir, tmp_path):
    command("convert", "export", f"--model={workdir}", f"--out={tmp_path / 'model'}")
    run, exported = dreamjax.DreamLLM.load(workdir), dreamjax.DreamLLM.load(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, run.params, exported.params)
    story = [
        model.generate("Once a red circle jumps up.", seed=3, max_tokens=8, num_steps=2).to_json()
        for model in (run, exported)
    ]
    assert story[0] == story[1]
    drawn = exported.text_to_image("A red circle.", num_images=2, seed=1, num_steps=2)
    assert [image.size for image in drawn] == [(16, 16)] * 2 and np.asarray(drawn[0]).tobytes() != np.asarray(
        drawn[1]
    ).tobytes()
    assert isinstance(exported.answer(drawn[0], "What colour is it?", max_tokens=3), str)
    assert len(exported.caption(drawn, max_tokens=3)) == 2


def test_evaluate_ends_with_its_figures(workdir, tmp_path):
    done = command("evaluate", f"--model={workdir}", "--task=toy", f"--out={tmp_path}", "--count=4")
    results = json.loads(done.stdout.splitlines()[-1])
    expected = {
        "image_agreement",
        "image_chance",
        "answer_accuracy",
        "answer_chance",
        "answer_swapped",
        "recall_agreement",
        "placement",
    }
    assert expected | {"unseen_agreement", "judge_accuracy", "train_seconds", "items", "html"} <= set(results)
    assert results["judge_accuracy"] >= 0.98 and pathlib.Path(results["html"]).exists()
    assert len(pathlib.Path(results["items"]).read_text().splitlines()) == 16
    assert (
        results["task"] == "toy"
        and results["metrics"]["image_chance"] == 5.0
        and "NaN" not in done.stdout.splitlines()[-1]
    )
    assert pathlib.Path(results["report"]).read_text().count("<article>") == 16
