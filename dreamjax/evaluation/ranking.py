"""A question answered by the likeliest of given continuations."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Contexts with a continuation each, of which the one at `right` should be the likeliest."""

    id: str
    contexts: tuple[str, ...]
    endings: tuple[str, ...]
    right: int
    category: str = ""
    by_length: bool = False  # scores are divided by the number of characters of the endings
    heading: str = ""
    examples: tuple[str, ...] = ()  # before the contexts; those that do not fit are left out, the first ones first
