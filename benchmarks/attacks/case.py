"""One hostile input and how it is read."""

from collections.abc import Callable
from typing import NamedTuple

from dreamjax.config import SourceConfig


class Case(NamedTuple):
    """A source, or a function that reads something else and returns the bytes that it took in."""

    name: str
    source: SourceConfig | None = None
    read: Callable[[], bytes] | None = None
    survivors: tuple[
        int, ...
    ] = ()  # records of the source that are valid, and must be read whatever stands beside them
    pairs: bool = False  # every record is a picture and its caption, and none may become text alone
