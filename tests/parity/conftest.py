"""Bundles of recorded results of the official code: DREAMJAX_GOLDENS is a list of folders of bundles (or bundles), ../shared/golden by default.

DREAMJAX_PARITY_REPORT names a file that gets the errors of all arrays that were compared, as {bundle: {array: error}}.
"""

import fcntl
import json
import os
import pathlib

import pytest
from parity.bundles import REPORT

DEFAULT = pathlib.Path(__file__).parents[3] / "shared" / "golden"
GOLDENS = [pathlib.Path(path) for path in os.environ.get("DREAMJAX_GOLDENS", str(DEFAULT)).split(os.pathsep) if path]
REPORT_FILE = os.environ.get("DREAMJAX_PARITY_REPORT")
BUNDLES = sorted({path.parent.resolve() for folder in GOLDENS for pattern in ("golden", "*/golden") for path in folder.glob(pattern) if (path.parent / "ckpt").is_dir()})


def pytest_generate_tests(metafunc):
    if "bundle" in metafunc.fixturenames:
        missing = pytest.param(None, marks=pytest.mark.skip(reason=f"no bundle in {os.pathsep.join(map(str, GOLDENS))}; set DREAMJAX_GOLDENS"), id="none")
        metafunc.parametrize("bundle", [pytest.param(path, id=path.name) for path in BUNDLES] or [missing], scope="module")


def pytest_sessionstart(session):
    if REPORT_FILE and not hasattr(session.config, "workerinput"):  # the session itself, not one of its worker processes
        pathlib.Path(REPORT_FILE).unlink(missing_ok=True)


def pytest_sessionfinish():
    """Adds what this process compared to what others wrote."""
    if REPORT_FILE and REPORT:
        with open(REPORT_FILE, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read()
            whole = json.loads(text) if text else {}
            for bundle, errors in REPORT.items():
                whole.setdefault(bundle, {}).update(errors)
            file.truncate(0)
            file.write(json.dumps(whole, indent=1) + "\n")
