"""LLaVA's conversations (arXiv:2304.08485): one JSON list or JSON lines, and the folder that their pictures' names
start from.

Pretraining (558K) and instruction files (80K, 158K, 665K) have one layout. A conversation whose picture is missing is a
bad record: without it the answers cannot be known.
"""

from dreamjax.config import SourceConfig
from dreamjax.data.sources.conversations import conversation, image_names
from dreamjax.data.sources.records import Folder, JsonRecords, Unusable, open_json
from dreamjax.document import Document


def open_llava(config: SourceConfig, seed: int = 0) -> JsonRecords:
    """The conversations of files in LLaVA's layout. Raises SourceError."""
    if config.drop_first_answer:
        return open_json(config, parse, image_of, drop_first_answer=True)
    return open_json(config, parse, image_of)  # the option is part of what is cached under the fingerprint


def parse(record: dict, folder: Folder, drop_first_answer: bool = False) -> Document:
    """The Document of one record."""
    return conversation(record, folder.find, drop_first_answer)


def image_of(record: dict) -> str:
    """The name of the first picture, by which several conversations about one picture lie in one split.

    Raises Unusable where there is none.
    """
    names = image_names(record)
    if not names:
        raise Unusable("image missing", "text alone")
    return names[0]
