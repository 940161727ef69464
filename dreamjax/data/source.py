"""Source: a random-access sequence of Documents, which every format gives.

A source is a frozen dataclass and a pure function of the index, so that any number of hosts, and a resumed run, see the
same documents.
"""

from collections.abc import Iterable
from typing import Protocol

from dreamjax.document import Document
from dreamjax.errors import BadRecord

SPLITS = ("train", "eval")


class Source(Protocol):
    """Documents by index. It can be pickled, cheaply however many documents it has, and called from many threads."""

    @property
    def skipped(self) -> tuple[BadRecord, ...]:
        """Records that were left out when the source was opened; these have no index."""

    @property
    def fingerprint(self) -> str:
        """A hash of everything that affects the documents: the key of anything cached from them."""

    def __len__(self) -> int:
        """Documents of the split."""

    def __getitem__(self, index: int) -> Document:
        """The document at 0 <= index < len(source), its images not yet opened.

        Raises BadRecord, the same one each time, where the record cannot be used, and IndexError outside.
        """

    def key(self, index: int) -> str:
        """The key that decides the split of a document: documents of one key lie in the same split.

        Files that were moved keep their keys.
        """

    def texts(self) -> Iterable[str]:
        """Strings to train a tokenizer on."""
