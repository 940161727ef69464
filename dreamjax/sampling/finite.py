"""Numbers that are not finite: NaN in the weights, or an overflow, would look like a clean end or a black picture. They
are said.

The sampler carries a flag for each document on the device and ends that document alone, with a note; who asked gets
NotFinite.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.config.aliases import renamed
from dreamjax.document import Document
from dreamjax.errors import RunStopped
from dreamjax.models.dreamllm import Model
from dreamjax.parallel.param_sharding import path_of

NOTE = "not finite: "  # what the note of such a document begins with


@renamed({"made": "results"})
class NotFinite(RunStopped):
    """The model's numbers are NaN or infinite.

    `results` are what came of it nevertheless, sound documents or latents among it.
    """

    def __init__(self, message: str, results: Any = None):
        super().__init__(message)
        self.results = results


def note(written: int, finished: int, begun: int) -> str:
    """The note of a document that wrote so many tokens and drew so many of the pictures that it had begun."""
    return f"{NOTE}picture {begun}" if finished < begun else f"{NOTE}the model's logits from token {written + 1} on"


def broken(notes: Sequence[Sequence[str]]) -> list[int]:
    """The numbers of the documents, by the notes of each, that have such a note."""
    return [number for number, of_document in enumerate(notes) if any(note.startswith(NOTE) for note in of_document)]


def require_documents(documents: Sequence[Document], model: Model):
    """Raises NotFinite, naming the documents, where one has such a note."""
    numbers = broken([document.notes for document in documents])
    if numbers:
        noun = next(note for note in documents[numbers[0]].notes if note.startswith(NOTE))
        raise NotFinite(f"{_which('document', numbers, len(documents))}{noun}; {cause(model)}", documents)


def require_none(numbers: Sequence[int], model: Model):
    """Raises NotFinite where there are any: the numbers of documents, counted from 0, that have such a note."""
    if numbers:
        raise NotFinite(f"documents {list(numbers)}: numbers were {NOTE}{cause(model)}")


def require_rows(rows: Sequence[np.ndarray], noun: str, model: Model, results: Any = None):
    """Raises NotFinite, naming the rows, where one has a number that is not finite; `what` a row is."""
    require_flags([bool(np.isfinite(row).all()) for row in rows], noun, model, results)


def require_flags(finite: Sequence[bool], noun: str, model: Model, results: Any = None):
    """`require_rows` where it is known of each row whether it is finite."""
    numbers = [number for number, is_finite in enumerate(finite) if not is_finite]
    if numbers:
        raise NotFinite(f"{_which(noun, numbers, len(finite))}{NOTE}{cause(model)}", results)


def _which(noun: str, numbers: Sequence[int], count: int) -> str:
    """Which rows, counted from 0; nothing to say of a single one."""
    if count == 1:
        return f"{noun}: "
    listed = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
    return f"{noun} {listed} of {count} (from 0): "


def cause(model: Model) -> str:
    """Name the first parameter that is not finite, or say that all are."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.params):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not bool(jnp.all(jnp.isfinite(leaf))):
            return (
                f"the weights hold NaN or infinities, first in {path_of(path)}: use another checkpoint, or "
                "import them anew"
            )
    return f"the weights are finite: numbers leave the range of {model.config.dtype}, or what was given is not finite"
