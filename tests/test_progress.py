"""The bar: at once for a person who looks, seldom in a log."""

import sys
import time

import pytest

from dreamjax.progress import bar


@pytest.mark.parametrize("terminal, least, most", [(True, 4, 10), (False, 1, 2)])
def test_how_often_it_is_redrawn(capsys, monkeypatch, terminal, least, most):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with bar(8, "thing", "making") as progress:
        for _ in range(8):
            time.sleep(0.11)
            progress.update()
    drawn = [line for line in capsys.readouterr().err.split("\r") if "making" in line]
    assert least <= len(drawn) <= most and "8/8" in drawn[-1]
