"""Weights that are no numbers, NaN and infinities, counted by tensor while they stream past."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from dreamjax.convert.mapping import Leaf

CHUNK = 2**20  # entries that are looked at together, so that counting takes no memory to speak of
LISTED = 8  # tensors that one line names


def counted(leaves: Mapping[str, Leaf]) -> tuple[dict[str, Leaf], dict[str, int]]:
    """(leaves, counts).

    What is read of the leaves from now on is counted, {tensor as its file names it, else our path: entries that are not
    finite}.
    """
    counts: dict[str, int] = {}
    return {path: _counting(path, leaf, counts) for path, leaf in leaves.items()}, counts


def _counting(path: str, leaf: Leaf, counts: dict[str, int]) -> Leaf:
    def read(index: tuple[slice, ...]) -> np.ndarray:
        array = leaf.read(index)
        parts = (
            zip(leaf.tensors[index[0]], array, strict=True)
            if leaf.stacked
            else [(leaf.tensors[0] if leaf.tensors else path, array)]
        )
        for name, part in parts:
            if number := count(part):
                counts[name] = counts.get(name, 0) + number
        return array

    return leaf._replace(read=read)


def count(array: np.ndarray) -> int:
    """Entries that are NaN or infinite."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return 0
    entries = array.ravel(order="K")  # as they lie in memory, so that a transposed array is not copied
    parts = (entries[begin : begin + CHUNK] for begin in range(0, entries.size, CHUNK))
    return sum(part.size - int(np.count_nonzero(np.isfinite(part))) for part in parts)


def format_summary(counts: Mapping[str, int]) -> str:
    """How many weights are not finite, and of which tensors."""
    named = [f"{name} ({number})" for name, number in counts.items()]
    more = f" and {len(named) - LISTED} more tensors" if len(named) > LISTED else ""
    return f"{sum(counts.values())} weights are NaN or infinite: {', '.join(named[:LISTED])}{more}"
