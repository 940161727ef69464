"""The command `score`, for the tests that meet it as a user does."""

import sys

import pytest
from absl import flags

from dreamjax import cli, evaluate


@pytest.fixture()
def score(capsys, monkeypatch):
    """Runs the command in this process: (status, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dreamjax.evaluate", *arguments])
        flags.FLAGS.unparse_flags()
        for flag in (
            evaluate.TASK,
            evaluate.PREDICTIONS,
            evaluate.DATA,
            evaluate.OUT,
            evaluate.FEATURES,
            evaluate.INCEPTION,
        ):
            flags.FLAGS[flag.name].unparse()
        with pytest.raises(SystemExit) as ended:
            cli.run("dreamjax.evaluate", evaluate.score)
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run
