"""The commands as a user meets them.

What is wrong ends with one line that names it, a result is JSON on the last line.
"""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
QUICKSTART = "--config=experiments/quickstart.py"


def train(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "dreamjax.train", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    "arguments, named",
    [
        ((QUICKSTART, "--config.model.llm.hidden=64", "--dry_run"), "--config: has no key 'hidden'"),
        ((QUICKSTART, "--config.data.train[3].path=x", "--dry_run"), "--config: tuple index out of range"),
        ((QUICKSTART, "--config.total_steps=0", "--dry_run"), "config.total_steps: must be positive, is 0"),
        (("--config=nowhere.py", "--dry_run"), "--config: [Errno 2] No such file or directory: 'nowhere.py'"),
        ((QUICKSTART,), "--workdir: is missing"),
        (
            (QUICKSTART, "--config.data.train[0].format=storybook", "--config.data.train[0].path=nowhere"),
            "nowhere is no folder",
        ),
    ],
    ids=["unknown_key", "no_such_source", "bad_value", "missing_config", "missing_workdir", "missing_data"],
)
def test_what_is_wrong_ends_with_one_line_that_names_it(arguments, named, tmp_path, training):
    workdir = [] if named.startswith("--workdir") else [f"--workdir={tmp_path / 'run'}"]
    done = training(*arguments, *workdir)
    assert done.returncode == 2
    assert done.stderr.startswith("dreamjax.train: ") and done.stderr.count("\n") == 1 and named in done.stderr, (
        done.stderr
    )


def test_a_process_ends_with_it_too():
    done = train("--config=nowhere.py", "--dry_run")
    assert (
        done.returncode == 2
        and done.stdout == ""
        and done.stderr == "dreamjax.train: --config: [Errno 2] No such file or directory: 'nowhere.py'\n"
    )


def test_a_dry_run_ends_in_json():
    done = train(QUICKSTART, "--dry_run", "--config.mesh.fsdp=2", "--config.total_steps=77")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert set(facts["parameters"]) >= {"llm", "clip", "unet", "dream_queries"}
    assert sum(facts["parameters"].values()) == facts["trainable"] + facts["frozen"]
    assert facts["mesh"] == {"data": 4, "fsdp": 2, "tensor": 1} and facts["total_steps"] == 77


def test_help():
    done = train("--help")
    assert done.returncode == 0 and done.stderr == ""
    assert (
        all(said in done.stdout for said in ("--config", "--workdir", "dry_run", "~/.cache/dreamjax"))
        and "Trains a model" in done.stdout
    )
