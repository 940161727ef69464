"""Progress bars: redrawn in a terminal, one line per minute in a log file."""

import sys
from typing import Any

import tqdm

LOG_SECONDS = 60.0


def bar(total: int | None, unit: str, desc: str, initial: int = 0, disable: bool = False, **options: Any) -> tqdm.tqdm:
    """A tqdm bar on stderr; `options` are tqdm's."""
    terminal = sys.stderr.isatty()
    return tqdm.tqdm(
        total=total,
        initial=initial,
        unit=unit,
        desc=desc,
        disable=disable,
        dynamic_ncols=terminal,
        mininterval=0.1 if terminal else LOG_SECONDS,
        maxinterval=10.0 if terminal else LOG_SECONDS,
        **options,
    )
