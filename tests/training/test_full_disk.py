"""A disk that is full in the middle of a save: one line, and the checkpoint before it stays the last."""

import errno
import itertools
import os
import subprocess
import sys

import pytest
import quick_xla
from etils import epath

from dreamjax import cli
from dreamjax.training import checkpoint

# What Orbax and tensorstore raise comes from threads of theirs; a limit on the size of a file stands for a full disk.
SAVES_TWICE = """
import resource, sys
import jax.numpy as jnp
from etils import epath
from dreamjax import cli
from dreamjax.parallel import multihost
from dreamjax.training import checkpoint
from dreamjax.training.state import State

folder = sys.argv.pop()

def main():
    manager = checkpoint.open_manager(epath.Path(folder), 2)
    for step in (1, 2, 3):
        state = State(jnp.int32(step), {"a": jnp.arange(50_000.0) ** 0.5}, {"b": jnp.zeros(3)}, None)
        checkpoint.save(manager, state, {"seconds": 1.0}, None)
        if step == 1:
            manager.wait_until_finished()
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    manager.wait_until_finished()

cli.run("save", multihost.multihost_main(main))
"""


@pytest.mark.slow
def test_a_save_that_finds_no_room_ends_with_one_line_and_loses_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SAVES_TWICE, str(tmp_path)],
        env=quick_xla.environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = [line for line in done.stderr.splitlines() if not line.startswith("W")]  # Orbax warns of this and that
    assert done.returncode == 2 and len(said) == 1, done.stderr
    assert (
        said[0].startswith(f"save: {tmp_path}/checkpoints/2.")
        and "File too large; complete files stay complete" in said[0]
    )
    assert checkpoint.last_step(epath.Path(tmp_path)) == 1


def wrapped(*errors: Exception) -> Exception:
    """The last, as raised from the one before it, and so on."""
    for cause, error in itertools.pairwise(errors):
        error.__cause__ = cause
    return errors[-1]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_what_says_so_is_found_in_every_wrapping(number):
    full = OSError(number, os.strerror(number), "/data/run/metrics.jsonl")
    text = ValueError(
        f'RESOURCE_EXHAUSTED: Error writing local file "/data/run/5.tmp/d": {os.strerror(number)} '
        f"[os_error_code={number}]"
    )
    for error, path in (
        (full, "metrics.jsonl"),
        (wrapped(full, RuntimeError("save failed"), ValueError()), "metrics.jsonl"),
        (wrapped(text, RuntimeError()), "5.tmp/d"),
    ):
        assert cli.no_room(error) == (
            f"/data/run/{path}: {os.strerror(number)}; complete files stay complete, and when there is room "
            "the same command goes on from there"
        )


def test_other_errors_are_no_full_disks():
    circle = ValueError("a")
    circle.__context__ = wrapped(circle, RuntimeError("b"))
    assert not any(
        map(
            cli.no_room,
            (
                None,
                FileNotFoundError(errno.ENOENT, "none", "x"),
                ValueError("RESOURCE_EXHAUSTED: out of memory"),
                circle,
            ),
        )
    )
