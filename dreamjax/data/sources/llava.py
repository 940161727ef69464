"""LLaVA's conversations (arXiv:2304.08485): one JSON list or JSON lines, and the folder that their pictures' names
start from.

Pretraining (558K) and instruction files (80K, 158K, 665K) have one layout. A conversation whose picture is missing is a
bad record: without it the answers cannot be known.
"""

from dreamjax.data.sources.conversations import conversation, image_names
from dreamjax.data.sources.records import Folder, JsonRecords, Unusable, open_json
from dreamjax.data.storage.unpack import Cache
from dreamjax.document import Document


def open_llava(
    path: str, images: str = "", cache: Cache = Cache(), allow_outside: bool = False, drop_first_answer: bool = False
) -> JsonRecords:
    """The conversations of files in LLaVA's layout. Raises SourceError."""
    options = {"drop_first_answer": True} if drop_first_answer else {}
    return open_json(path, parse, images, cache, image_of, allow_outside=allow_outside, **options)


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
