"""MMC4 (arXiv:2304.06939): JSON lines, also in zips as they are published, and a folder with the pictures that were
downloaded.

Pictures that are not there, or that are named by a URL, are left out, as are those with a CLIP similarity below 0.25 to
their sentence.
"""

from dreamjax.config import SourceConfig
from dreamjax.data.sources.interleaved import mmc4_document
from dreamjax.data.sources.records import Folder, JsonRecords, open_json
from dreamjax.document import Document


def open_mmc4(config: SourceConfig, seed: int = 0) -> JsonRecords:
    """The documents of MMC4's files. Raises SourceError."""
    return open_json(config, parse, min_similarity=config.min_similarity)


def parse(record: dict, folder: Folder, min_similarity: float | None) -> Document:
    """The Document of one record."""
    return mmc4_document(record, folder.find, min_similarity)
