"""Which of the published JSON layouts a record is in, for files that may hold any of them."""

from dreamjax.data.sources.conversations import conversation, instruction
from dreamjax.data.sources.interleaved import Find, mmc4_parts, obelics_parts
from dreamjax.document import Document

KEYS = ("instruction", "text_list", "texts", "conversations")


def is_document(record: dict) -> bool:
    """Whether a record is in one of the layouts."""
    return any(isinstance(record.get(key), (list, str)) for key in KEYS)


def document_of(record: dict, find: Find, min_similarity: float | None = None) -> Document:
    """The Document of a record in whichever layout its keys say. Raises Unusable."""
    if "conversations" in record:
        return conversation(record, find)
    if "instruction" in record:
        return instruction(record, find, min_similarity)
    if "text_list" in record:
        return Document(mmc4_parts(record, find, min_similarity))
    return Document(obelics_parts(record, find))
