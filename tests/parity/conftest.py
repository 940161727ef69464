"""Writes the errors of all arrays that were compared as {bundle.

{array: error}} to the file that DREAMJAX_PARITY_REPORT names.
"""

import fcntl
import json
import os

from parity.bundles import REPORT

REPORT_FILE = os.environ.get("DREAMJAX_PARITY_REPORT")


def pytest_sessionfinish():
    """Adds what this process compared to what others of the same session wrote.

    Tests/conftest.py has put an earlier session's file away.
    """
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
