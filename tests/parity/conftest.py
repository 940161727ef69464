"""Bundles of recorded results of the official code: DREAMJAX_GOLDENS is a list of folders of bundles (or bundles), ../shared/golden by default.

DREAMJAX_PARITY_REPORT names a file that gets the errors of all arrays that were compared, as {bundle: {array: error}}.
"""

import json
import os
import pathlib

import pytest
from parity.bundles import REPORT

DEFAULT = pathlib.Path(__file__).parents[3] / "shared" / "golden"
GOLDENS = [pathlib.Path(path) for path in os.environ.get("DREAMJAX_GOLDENS", str(DEFAULT)).split(os.pathsep) if path]
BUNDLES = sorted({path.parent.resolve() for folder in GOLDENS for pattern in ("golden", "*/golden") for path in folder.glob(pattern) if (path.parent / "ckpt").is_dir()})


def pytest_generate_tests(metafunc):
    if "bundle" in metafunc.fixturenames:
        missing = pytest.param(None, marks=pytest.mark.skip(reason=f"no bundle in {os.pathsep.join(map(str, GOLDENS))}; set DREAMJAX_GOLDENS"), id="none")
        metafunc.parametrize("bundle", [pytest.param(path, id=path.name) for path in BUNDLES] or [missing], scope="module")


def pytest_sessionfinish():
    file = os.environ.get("DREAMJAX_PARITY_REPORT")
    if file and REPORT:
        pathlib.Path(file).write_text(json.dumps(REPORT, indent=1) + "\n")
