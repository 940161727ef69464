"""Instruction documents (InstructMMC4, Instruct-BLIP-LAION; DreamLLM, Sec. 3): a user's wish, and text with pictures as
the answer.

Files are one JSON list or JSON lines; `dreamjax.data.sources.conversations` describes the records. Pictures lie in a
folder.
"""

from dreamjax.config import SourceConfig
from dreamjax.data.sources.conversations import instruction
from dreamjax.data.sources.records import Folder, JsonRecords, open_json
from dreamjax.document import Document


def open_instruct(config: SourceConfig, seed: int = 0) -> JsonRecords:
    """The documents of files of instructions. Raises SourceError."""
    return open_json(config, parse, min_similarity=config.min_similarity)


def parse(record: dict, folder: Folder, min_similarity: float | None) -> Document:
    """The Document of one record."""
    return instruction(record, folder.find, min_similarity)
