"""Comparison of two outputs, to the byte."""

import pathlib
from typing import Any

import numpy as np

from benchmarks.faults.watch import UNFINISHED

Contents = dict[str, Any]  # by name: arrays, bytes, or anything that can be compared


def same(ours: Contents, theirs: Contents) -> str:
    """The difference of two contents, in a few words; "" if every byte is the same."""
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs:
            return f"{name} is only in one"
        one, two = ours[name], theirs[name]
        if isinstance(one, np.ndarray):
            if one.dtype != two.dtype or one.shape != two.shape or one.tobytes() != two.tobytes():
                return f"{name} differs"
        elif one != two:
            return f"{name} differs"
    return ""


def files(folder: pathlib.Path) -> Contents:
    """{relative name.

    Bytes} of all files, but for unfinished ones that a killed process has left, which nothing reads.
    """
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not any(map(UNFINISHED.search, name.split("/")))}
