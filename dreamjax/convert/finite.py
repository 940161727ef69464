"""Counts of NaN and infinite weights by tensor, taken while the weights are read."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from dreamjax.convert.mapping import Leaf

CHUNK = 2**20  # entries that are checked at once, so that counting needs little memory
LISTED = 8  # tensors that one line names


def counted(leaves: Mapping[str, Leaf]) -> tuple[dict[str, Leaf], dict[str, int]]:
    """(leaves, counts): reading the returned leaves fills `counts`.

    counts is {tensor name in its file, else the parameter's path: number of entries that are NaN or infinite}.
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
            if number := count_nonfinite(part):
                counts[name] = counts.get(name, 0) + number
        return array

    return leaf._replace(read=read)


def count_nonfinite(array: np.ndarray) -> int:
    """Entries that are NaN or infinite."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return 0
    entries = array.ravel(order="K")  # as they lie in memory, so that a transposed array is not copied
    parts = (entries[begin : begin + CHUNK] for begin in range(0, entries.size, CHUNK))
    return sum(part.size - int(np.count_nonzero(np.isfinite(part))) for part in parts)


def format_summary(counts: Mapping[str, int]) -> str:
    """One line with the number of weights that are not finite and the names of their tensors."""
    named = [f"{name} ({number})" for name, number in counts.items()]
    more = f" and {len(named) - LISTED} more tensors" if len(named) > LISTED else ""
    return f"{sum(counts.values())} weights are NaN or infinite: {', '.join(named[:LISTED])}{more}"
