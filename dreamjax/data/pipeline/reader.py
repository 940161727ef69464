"""Documents of one source as token sequences: one path for the pass that measures and for the batches."""

import dataclasses
import hashlib

from dreamjax.config import SourceConfig
from dreamjax.data.features.stored import EncodedImages
from dreamjax.data.pipeline.lengths import PAIR, Measured
from dreamjax.data.pipeline.task_view import view
from dreamjax.data.source import Source
from dreamjax.document import Document
from dreamjax.document.tokenize import Limits, Slots, TokenSequence, tokenize_document
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import BadRecord

CREATED, COMPREHENDED = 0.0, 0.5  # directions of a pair


def digest(settings: tuple) -> str:
    """24 hex digits of settings, with the names of version 0.1, so that what was measured and trained then counts."""
    names = repr(settings).replace("inputs=", "seen=").replace("targets=", "dreamed=")
    return hashlib.sha256(names.encode()).hexdigest()[:24]


@dataclasses.dataclass(frozen=True)
class TokenizedDocument:
    """A document as the mode shows it, and its tokens."""

    document: Document
    sequence: TokenSequence

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Tokens, input images and target images."""
        return len(self.sequence.tokens), len(self.sequence.inputs), len(self.sequence.targets)


@dataclasses.dataclass(frozen=True)
class Reader:
    """A source, and how its documents become sequences."""

    source: Source
    config: SourceConfig
    tokenizer: Tokenizer
    slots: Slots
    template: str
    limits: Limits
    encoded: EncodedImages | None = None

    @property
    def key(self) -> str:
        """A digest that changes whenever a sequence may have another length."""
        model, mode = self.tokenizer.model, self.config.mode
        return digest((self.source.fingerprint, self.tokenizer, model, self.slots, self.template, self.limits, mode))

    def read(self, index: int, direction: float) -> TokenizedDocument:
        """Document `index` of the source, tokenised; `direction` in [0, 1) decides the side of a pair.

        Raises BadRecord.
        """
        return self.tokenize(view(self.source[index], self.config.mode, direction), self.limits)

    def tokenize(self, document: Document, limits: Limits) -> TokenizedDocument:
        """A document that the mode has been applied to, within limits."""
        sequence = tokenize_document(
            document, self.tokenizer, self.slots, self.template, limits, labels=self.config.labels
        )
        return TokenizedDocument(document, sequence)

    def measure(self, index: int) -> Measured:
        """Measures document `index`, a pair in both directions."""
        if self.config.eval_share and split_of(self.source.key(index), self.config.eval_share) != self.config.split:
            return Measured(other_split=True)
        try:
            document = self.source[index]
        except BadRecord as error:
            return Measured(broken=error)
        is_pair = document.kind == "pair"
        directions = (COMPREHENDED, CREATED) if is_pair and self.config.mode == "joint" else (CREATED,)
        sides = [self.tokenize(view(document, self.config.mode, direction), self.limits) for direction in directions]
        entries = [_entry(side, is_pair) for side in sides]
        entry, truncated = entries[0], any(side.sequence.truncated for side in sides)
        if len(entries) == 1:
            return Measured(entry, truncated, left_out=len(document.left_out))
        (comprehended, *_), (created, *_) = entries
        return Measured((comprehended, PAIR, created) if comprehended or created else (0, 0, 0), truncated)


def _entry(tokenized: TokenizedDocument, is_pair: bool) -> tuple[int, int, int]:
    """Lengths of a document; 0 tokens where it teaches no more than a lone </s>, or is a pair without its image."""
    sequence = tokenized.sequence
    has_loss = sequence.loss_mask[:-1].any() or sequence.targets
    usable = has_loss and (not is_pair or sequence.inputs or sequence.targets)
    return tokenized.lengths if usable else (0, 0, 0)


def split_of(key: str, eval_share: float) -> str:
    """The split of all documents with this key."""
    number = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return "eval" if int.from_bytes(number, "big") < eval_share * 2**64 else "train"
