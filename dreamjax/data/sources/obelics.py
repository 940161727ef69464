"""OBELICS (arXiv:2306.16527): JSON lines of `texts` and `images`, of which one is null at each place, and a folder of
pictures.

`images` holds names of files in the folder: the addresses of the published set are to be replaced by where they were
downloaded to. Pictures that are not there, or whose address still stands in their place, are left out.
"""

from dreamjax.config import SourceConfig
from dreamjax.data.sources.interleaved import obelics_document
from dreamjax.data.sources.records import Folder, JsonRecords, open_json
from dreamjax.document import Document


def open_obelics(config: SourceConfig, seed: int = 0) -> JsonRecords:
    """The documents of files in OBELICS's layout. Raises SourceError."""
    return open_json(config, parse)


def parse(record: dict, folder: Folder) -> Document:
    """The Document of one record."""
    return obelics_document(record, folder.find)
