"""The bar of long work: redrawn at once in a terminal, a line now and then in a log file."""

import sys

import tqdm

SECONDS_IN_A_LOG = 60.0


def bar(total: int | None, unit: str, desc: str, initial: int = 0, disable: bool = False, **options) -> tqdm.tqdm:
    """A tqdm bar on stderr; `options` are tqdm's."""
    terminal = sys.stderr.isatty()
    every = {"mininterval": 0.1} if terminal else {"mininterval": SECONDS_IN_A_LOG, "maxinterval": SECONDS_IN_A_LOG}
    return tqdm.tqdm(
        total=total, initial=initial, unit=unit, desc=desc, disable=disable, dynamic_ncols=terminal, **every, **options
    )
