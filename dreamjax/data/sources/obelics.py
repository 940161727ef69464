"""OBELICS (arXiv:2306.16527): JSON lines of `texts` and `images`, of which one is null at each place, and a folder of
pictures.

`images` holds names of files in the folder: the addresses of the published set are to be replaced by where they were
downloaded to. Pictures that are not there, or whose address still stands in their place, are left out.
"""

from dreamjax.data.sources.interleaved import obelics_document
from dreamjax.data.sources.records import Folder, JsonRecords, open_json
from dreamjax.data.storage.unpack import Cache
from dreamjax.document import Document


def open_obelics(path: str, images: str = "", cache: Cache = Cache(), allow_outside: bool = False) -> JsonRecords:
    """The documents of files in OBELICS's layout. Raises SourceError."""
    return open_json(path, parse, images, cache, allow_outside=allow_outside)


def parse(record: dict, folder: Folder) -> Document:
    """The Document of one record."""
    return obelics_document(record, folder.find)
