"""Bundles of recorded results of the official code: DREAMJAX_GOLDENS is a list of folders of bundles, ../shared/golden by default."""

import os
import pathlib

import pytest

DEFAULT = pathlib.Path(__file__).parents[3] / "shared" / "golden"
GOLDENS = [pathlib.Path(path) for path in os.environ.get("DREAMJAX_GOLDENS", str(DEFAULT)).split(os.pathsep) if path]
BUNDLES = sorted(path.parent for folder in GOLDENS for path in folder.glob("*/golden"))


def pytest_generate_tests(metafunc):
    if "bundle" in metafunc.fixturenames:
        missing = pytest.param(None, marks=pytest.mark.skip(reason=f"no bundle in {os.pathsep.join(map(str, GOLDENS))}; set DREAMJAX_GOLDENS"), id="none")
        metafunc.parametrize("bundle", [pytest.param(path, id=path.name) for path in BUNDLES] or [missing], scope="module")
