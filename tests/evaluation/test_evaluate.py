"""The command with a model, in this process.

Several benchmarks at once, gone on with, and what is wrong in one line.
"""

import dataclasses
import json
import pathlib
import sys

import pytest
from absl import flags
from evaluation import layouts
from small_model import LATENT, parameters

from dreamjax import cli, evaluate
from dreamjax.api import DreamLLM
from dreamjax.models.dreamllm import Model

FLAGS = ("model", "task", "data", "out", "count", "profile", "shots", "examples", "mesh", "batch_size")


@pytest.fixture()
def command(capsys, monkeypatch, shapes_tokenizer, tmp_path):
    """Runs `python -m dreamjax.evaluate` on a random model: (status, stdout, stderr)."""
    config = dataclasses.replace(
        LATENT,
        llm=dataclasses.replace(LATENT.llm, vocab_size=shapes_tokenizer.size, max_positions=128),
        unet=None,
        vae=None,
    )
    model = DreamLLM(Model(config, parameters(config)), shapes_tokenizer)
    monkeypatch.setattr(DreamLLM, "load", lambda *arguments: model)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dreamjax.evaluate", f"--model={tmp_path / 'model'}", *arguments])
        flags.FLAGS.unparse_flags()
        for name in FLAGS:
            flags.FLAGS[name].unparse()
        with pytest.raises(SystemExit) as ended:
            cli.run("dreamjax.evaluate", evaluate.main)
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run


def test_benchmarks_go_on_where_they_stopped(command, tmp_path):
    layouts.pope(tmp_path / "data" / "pope")
    layouts.boolq(tmp_path / "data" / "boolq")
    arguments = (
        "--task=pope,boolq",
        f"--data={tmp_path / 'data'}",
        f"--out={tmp_path / 'out'}",
        "--batch_size=8",
        "--mesh=8,1,1",
    )
    status, out, err = command(*arguments)
    found = json.loads(out.splitlines()[-1])["tasks"]
    assert (
        status == 0 and found["pope"]["counts"]["questions"] == 6 and found["boolq"]["metrics"]["accuracy"] in (0, 100)
    )
    assert found["pope"]["paper"]["random_f1"] == {"DreamLLM": 86.91} and "86.91" in out
    page = pathlib.Path(found["pope"]["html"]).read_text()
    assert (
        page.count("<article>") == 7
        and "86.91" in page
        and "Is there a dog in the image?" in page
        and "reference: yes" in page
    )
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == found
    predictions = pathlib.Path(found["pope"]["predictions"])
    whole = predictions.read_bytes()
    predictions.write_bytes(whole[: len(whole) // 2])
    status, out, err = command(*arguments)
    assert predictions.read_bytes() == whole and json.loads(out.splitlines()[-1])["tasks"] == found
    status, out, err = command(*arguments, "--profile=official", "--task=pope")
    assert status == 2 and "holds predictions with profile = 'clean', not 'official'" in err.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments, named",
    [
        (("--task=pope",), "--data: is missing"),
        (("--task=pope,poem", "--data=x"), "--task: 'poem' is unknown; there are shapes, toy, storybook, coco"),
        (("--task=mme", "--data=x", "--profile=official"), "--profile: mme has no profile 'official'"),
        (("--task=gqa", "--data=nowhere"), "nowhere: no such file or folder"),
        (("--task=gqa", "--data=x", "--mesh=2,2"), "--mesh: '2,2' is not three numbers"),
        (("--task=gqa", "--data=x", "--mesh=3,1,1"), "3 x 1 x 1 does not fit 8 devices"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(command, tmp_path, arguments, named):
    status, out, err = command(f"--out={tmp_path / 'out'}", *arguments)
    assert status == 2 and out == "" and err.startswith("dreamjax.evaluate: ") and err.count("\n") == 1 and named in err
