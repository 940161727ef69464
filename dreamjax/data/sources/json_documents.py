"""Records of any of the published JSON layouts, told apart by their keys."""

from dreamjax.data.sources.conversations import conversation, instruction
from dreamjax.data.sources.interleaved import Find, mmc4_document, obelics_document
from dreamjax.document import Document

KEYS = ("instruction", "text_list", "texts", "conversations")
COLUMNS = (*KEYS, "text", "image", "images", "image_info", "matched_text_index")  # all that the layouts read


def is_document(record: dict) -> bool:
    """True if a record is in one of the layouts."""
    return any(isinstance(record.get(key), (list, str)) for key in KEYS)


def document_of(
    record: dict, find: Find, min_similarity: float | None = None, drop_first_answer: bool = False
) -> Document:
    """The Document of a record in whichever layout its keys say.

    Raises Unusable, and BadImage where it cannot do without a picture that is missing.
    """
    if "conversations" in record:
        return conversation(record, find, drop_first_answer)
    if "instruction" in record:
        return instruction(record, find, min_similarity)
    if "text_list" in record:
        return mmc4_document(record, find, min_similarity)
    return obelics_document(record, find)
