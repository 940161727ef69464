"""Groups of the blocks that a resumed run has passed, counted once and kept in a file."""

import io
import sys

import numpy as np
from etils import epath

from dreamjax import progress
from dreamjax.data.pipeline.plan import Plan
from dreamjax.errors import gist
from dreamjax.filesystem import atomic

MANY = 16  # blocks; fewer are counted in no time


def count_groups(plan: Plan, number: int, file: epath.Path | None = None):
    """Counts the groups of a plan up to `number`.

    A run that is resumed again and again counts on from where it was, by the file.
    """
    if file is not None and file.exists():
        try:
            with np.load(io.BytesIO(file.read_bytes())) as stored:
                plan.restore(stored["ends"].astype(np.int64).tolist())
        except Exception as error:  # numpy and zip have no error in common for what is damaged
            print(f"{file}: damaged ({gist(error)}), counted anew", file=sys.stderr, flush=True)
    known = len(plan.ends)
    with progress.bar(number, "group", "counting what was trained on", plan.counted, delay=3) as bar:
        while plan.count_block(number):
            bar.update(min(plan.counted, number) - bar.n)
    if file is not None and len(plan.ends) >= known + MANY:
        counted = io.BytesIO()
        np.savez(counted, ends=np.array(plan.ends, np.int64))  # a zip, which holds a checksum
        atomic.write_bytes(file, counted.getvalue())
