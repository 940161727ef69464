"""A question of any benchmark."""

import collections
import dataclasses
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Question:
    """One question as a model is asked it, and what its answer is scored against."""

    id: str
    text: str = ""  # "" for captions
    images: tuple[str | bytes, ...] = ()  # names, or the content of image files
    choices: tuple[tuple[str, str], ...] = ()  # (letter, words)
    hint: str = ""
    category: str = ""
    references: tuple[str, ...] = ()  # right answers, one of each annotator; empty on test splits
    groups: tuple[str, ...] = ()  # more groups with a score of their own: GQA's types, MMBench's skills, MM-Vet's needs

    @property
    def key(self) -> tuple[str, str, str]:
        """The identity of the question in a file of predictions."""
        return (self.id, self.text, self.category)

    @property
    def answer(self) -> str:
        """The most frequent reference, the first of equals; "" without references."""
        return collections.Counter(self.references).most_common(1)[0][0] if self.references else ""


def limit(values: Iterable[T], count: int | None, group: Callable[[T], Hashable] = lambda value: "") -> list[T]:
    """The first `count` values of each group, in their order; all of them without a `count`."""
    if count is None:
        return list(values)
    sizes: collections.Counter[Hashable] = collections.Counter()
    chosen = []
    for value in values:
        sizes[group(value)] += 1
        if sizes[group(value)] <= count:
            chosen.append(value)
    return chosen
