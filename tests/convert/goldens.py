"""Where recorded bundles of the official code are, and a skip that says so where there are none."""

import os
import pathlib

import pytest

ROOT = pathlib.Path(os.environ.get("DREAMJAX_GOLDENS", str(pathlib.Path(__file__).parents[2] / ".." / "shared" / "golden")).split(os.pathsep)[0])
BUNDLES = sorted(path.parent for path in ROOT.glob("*/ckpt"))


def one_bundle() -> pathlib.Path:
    """A recorded bundle; skips the test where there is none."""
    if not BUNDLES:
        pytest.skip(f"no recorded bundle under {ROOT} (DREAMJAX_GOLDENS)")
    return BUNDLES[0]
