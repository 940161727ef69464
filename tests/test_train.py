"""The training command.

A run that is killed or asked to stop goes on as if nothing had been; one that cannot go on says why.
"""

import json
import pathlib
import signal
import time

import forked
import pytest
import quick_xla

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 20
SMALL = (
    f"--config.total_steps={STEPS}",
    "--config.log_every=1",
    "--config.checkpoint_every=5",
    "--config.eval_every=0",
    "--config.batch_size=2",
    "--config.model.llm.width=32",
    "--config.model.llm.layers=1",
    "--config.model.llm.ffn_width=64",
    "--config.model.clip.layers=1",
    "--config.model.unet.context_width=16",
    "--config.model.unet.block_channels=(8,)",
    "--config.model.unet.cross_attention=(True,)",
    "--config.model.unet.heads=(2,)",
)

pytestmark = pytest.mark.slow


def launch(workdir: pathlib.Path, *overrides: str) -> forked.Process:
    """Starts the command on a folder.

    Its runs share what XLA has compiled (a program from the cache is the same to the bit).
    """
    arguments = ["--config=experiments/quickstart.py", f"--workdir={workdir}", *SMALL, *overrides]
    return forked.Process("dreamjax.train", arguments, quick_xla.environment())


def finish(process: forked.Process, expect: int = 0) -> tuple[str, str]:
    """(stdout, stderr) of a command that must end with the given status."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == expect, err
    return out, err


def lines(workdir: pathlib.Path) -> list[dict]:
    """The whole lines of metrics.jsonl, their numbers as the text that stands there."""
    path = workdir / "metrics.jsonl"
    whole = path.read_text().rpartition("\n")[0].split("\n") if path.exists() else []
    return [json.loads(line, parse_float=str) for line in whole if line]


def interrupt(process: forked.Process, workdir: pathlib.Path, step: int, number: int) -> int:
    """Sends a signal as soon as `step` is logged and a checkpoint is whole; the last step that was logged before."""
    while len(done := lines(workdir)) < step or not checkpoints(workdir):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.send_signal(number)
    return done[-1]["step"]


def checkpoints(workdir: pathlib.Path) -> list[int]:
    return [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("straight")
    finish(launch(workdir))
    return workdir


def assert_the_same_run(workdir: pathlib.Path, straight: pathlib.Path):
    ours, theirs = lines(workdir), lines(straight)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == list(range(1, STEPS + 1))
    for name in ("loss", "lm_loss", "image_loss", "grad_norm", "learning_rate", "tokens"):
        assert [line[name] for line in ours] == [line[name] for line in theirs], name
    assert len({line["loss"] for line in theirs}) == STEPS


def test_a_run_killed_and_then_asked_to_stop_repeats_the_straight_one_to_the_last_digit(straight, tmp_path):
    killed = launch(tmp_path)
    reached = interrupt(killed, tmp_path, 7, signal.SIGKILL)
    finish(killed, expect=-signal.SIGKILL)
    assert 7 <= reached < STEPS and max(checkpoints(tmp_path)) < STEPS
    left = len(lines(tmp_path))
    stopped = launch(tmp_path)
    reached = interrupt(stopped, tmp_path, left + 1, signal.SIGTERM)
    out, _ = finish(stopped)
    saved = max(checkpoints(tmp_path))
    assert reached <= saved < STEPS and f"SIGTERM: saved step {saved}" in out
    finish(launch(tmp_path))
    assert_the_same_run(tmp_path, straight)


def test_a_complete_run_has_nothing_to_do_and_another_model_is_refused(straight):
    before = (straight / "metrics.jsonl").read_bytes()
    assert f"complete at step {STEPS}, nothing to do" in finish(launch(straight))[0]
    error = finish(launch(straight, "--config.model.llm.ffn_width=48"), expect=2)[
        1
    ]  # not beside the first, which has the folder's lock
    assert (
        len(error.splitlines()) == 1
        and "holds a run with other values of config.model.llm.ffn_width (64, now 48); bring the old values back"
        in error
    )
    assert (straight / "metrics.jsonl").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_documents(tmp_path):
    error = finish(launch(tmp_path, "--config.optim.learning_rate=1e30", "--config.loss.image_weight=0.0"), expect=2)[1]
    message = error.partition("dreamjax.train: ")[2].splitlines()[0]
    step = len(lines(tmp_path)) + 1
    assert (
        f"step {step}: loss nan" in message
        and "documents: shapes" in message
        and "--config.skip_nonfinite=True" in message
    )
    assert step < 5 and not checkpoints(tmp_path)
