"""The scripts that start runs elsewhere.

What --dry-run prints is what they do, and a shell reads it as it was meant.
"""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

from dreamjax.parallel.mesh import TPU_OPTIONS

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
TRAIN = ("--config=experiments/quickstart.py", "--workdir=gs://bucket/run", "--config.sample_prompts=('It\"s $HOME',)")
PLACE = ("--name=story", "--project=p", "--zone=us-central2-b")
STARTS = {
    "tpu": (*PLACE, "--type=v4-128", "--bucket=gs://bucket/code"),
    "gke": (
        "--name=story",
        "--image=here/dreamjax:1",
        "--accelerator=tpu-v4-podslice",
        "--topology=4x4x4",
        "--hosts=16",
    ),
    "slurm": ("--name=story", "--nodes=4", "--gpus=8", "--partition=big"),
    "gpu": ("--name=story", "--gpus=0,1"),
}
OTHERS = {
    "tpu": {
        "status": "queued-resources describe story",
        "log": "tail -n 200 -F",
        "delete": "queued-resources delete story",
    },
    "gke": {"status": "get job story", "log": "logs --follow", "delete": "delete job/story service/story"},
    "slurm": {"status": "squeue --me --name=story", "log": "tail -n 200 -F", "delete": "scancel --me --name=story"},
    "gpu": {"status": "cat runs/gpu-story.pid", "log": "tail -n 200 -F runs/gpu-story.log", "delete": "kill -TERM"},
}


def launch(script: str, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess:
    """Runs a script where no other program than a shell's usual ones is found."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nowhere"}
    done = subprocess.run(
        [ROOT / "launch" / f"{script}.sh", *arguments], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == expect, done.stderr
    return done


@pytest.mark.parametrize("script", STARTS)
def test_a_dry_start_prints_commands_that_carry_every_word(script):
    printed = launch(script, "start", *STARTS[script], "--dry-run", "--", *TRAIN).stdout
    text = printed.replace("#   ", "")
    if script == "gke":
        assert "- '--config.sample_prompts=(''It\"s $HOME'',)'" in text
    else:
        line = next(line for line in text.splitlines() if "dreamjax.train" in line)
        words = shlex.split(line.replace(";", " ; "))
        assert all(word in words for word in TRAIN), line
    flag = (
        "xla_gpu_enable_latency_hiding_scheduler"
        if script in ("slurm", "gpu")
        else "xla_tpu_enable_async_collective_fusion"
    )
    assert flag in text and (script == "gpu" or "--stopped_status=75" in text)


@pytest.mark.parametrize("script, command", [(script, command) for script in OTHERS for command in OTHERS[script]])
def test_the_other_commands(script, command):
    settings = PLACE if script == "tpu" else ("--name=story",)
    assert OTHERS[script][command] in " ".join(shlex.split(launch(script, command, *settings, "--dry-run").stdout))


def test_what_is_asked_of_tpu_slurm_and_kubernetes():
    tpu = launch("tpu", "start", *STARTS["tpu"], "--slices=2", "--spot=yes", "--dry-run", "--", *TRAIN).stdout
    assert "queued-resources create story --project=p --zone=us-central2-b --accelerator-type=v4-128" in tpu
    assert all(f"--{name}={value}" in tpu for name, value in TPU_OPTIONS.items()), (
        "launch/flags.sh and the train step ask for the same"
    )
    assert "--node-count=2 --node-prefix=story --spot" in tpu
    slurm = launch("slurm", "start", *STARTS["slurm"], "--dry-run", "--", *TRAIN).stdout
    for line in (
        "--nodes=4",
        "--ntasks-per-node=8",
        "--gres=gpu:8",
        "--signal=TERM@300",
        "--requeue",
        "--partition=big",
    ):
        assert f"#SBATCH {line}\n" in slurm
    assert "account" not in slurm and "\n#   export XLA_FLAGS=" in slurm
    yaml = pytest.importorskip("yaml")
    gke = launch("gke", "start", *STARTS["gke"], "--dry-run", "--", *TRAIN).stdout
    manifest = "".join(line[4:] + "\n" for line in gke.splitlines() if line.startswith("#   "))
    service, job = yaml.safe_load_all(manifest)
    pod = job["spec"]["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None" and pod["subdomain"] == service["metadata"]["name"] == "story"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 16 and job["spec"]["completionMode"] == "Indexed"
    assert pod["containers"][0]["command"][3:] == ["dreamjax.train", *TRAIN, "--stopped_status=75"]
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}


@pytest.mark.parametrize(
    "arguments, named",
    [
        (("tpu", "start", *PLACE, "--", *TRAIN), "--type=... is missing"),
        (("gke", "start", "--", *TRAIN), "--name=... is missing"),
        (("slurm",), "needs a command"),
        (("slurm", "begin", "--name=a"), "'begin' is no command"),
        (("gpu", "log", "--nmae=a"), "--nmae is unknown"),
        (("gpu", "start", "--name=a", "--", "--workdir=b"), "needs --config"),
        (("gke", "start", *STARTS["gke"], "--", TRAIN[0], "--workdir=b"), "has to be in a bucket"),
    ],
)
def test_what_is_wrong_ends_in_one_line(arguments, named):
    done = launch(*arguments, expect=2)
    assert named in done.stderr and len(done.stderr.splitlines()) == 1 and not done.stdout


@pytest.mark.parametrize("script", STARTS)
def test_help(script):
    done = launch(script, "--help")
    assert (
        all(
            f"launch/{script}.sh {words}" in done.stdout
            for words in ("start --name=NAME", "status|log|delete --name=NAME")
        )
        and not done.stderr
    )


def test_shellcheck_finds_nothing():
    program = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([program, "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
