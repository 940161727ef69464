"""Image-text pairs in JSON: JSON lines or one list of records, or COCO's captions, and the folder that their pictures'
names start from.

A record names its picture (`image` or `file_name`) and holds its caption (`caption` or `text`), of a list of captions
the first; other keys by option. COCO's file (Lin et al. 2014) is one object of `images` (id, file_name) and
`annotations` (image_id, caption): each annotation is a pair. A pair whose picture is missing is a bad record.
"""

import functools
import json
import re
from collections.abc import Callable

from dreamjax.config import SourceConfig
from dreamjax.data.sources.records import (
    CHUNK,
    Folder,
    JsonRecords,
    Unusable,
    is_similar,
    open_json,
    require,
    scan_json,
    text_at,
    value_end,
)
from dreamjax.data.storage import files
from dreamjax.data.storage.index import Scan
from dreamjax.data.storage.unpack import Cache, unpacked
from dreamjax.document import Document, Image, Text

TEXT_KEYS = ("caption", "text")
IMAGE_KEYS = ("image", "file_name")
_GAP = re.compile(r"[ \t\r\n,:]*")  # between the values of an object or a list


def _skip_gap(text: str, at: int = 0) -> int:
    """The next value's place."""
    gap = _GAP.match(text, at)
    return gap.end() if gap else at


def open_pairs(config: SourceConfig, seed: int = 0) -> JsonRecords:
    """The pairs of JSON files.

    Those of one image have one key. `min_similarity` is asked of the records' `similarity`. Raises SourceError.
    """
    key_of = functools.partial(image_of, image_key=config.image_key)
    return open_json(
        config,
        parse,
        key_of,
        scan_pairs,
        text_key=config.text_key,
        image_key=config.image_key,
        min_similarity=config.min_similarity,
    )


def parse(
    record: dict, folder: Folder, text_key: str = "", image_key: str = "", min_similarity: float | None = None
) -> Document:
    """The Document of one record. Raises Unusable."""
    name = image_of(record, image_key)
    key = _key(record, text_key, TEXT_KEYS)
    captions = record[key] if isinstance(record[key], list) else [record[key]]
    text = text_at({key: captions[0] if captions else ""}, key).strip()
    if not text:
        raise Unusable("no text")
    if min_similarity is not None and not is_similar(record, "similarity", min_similarity):
        raise Unusable("low similarity", str(record["similarity"]))
    return Document((Image(folder.find(name)), Text(text)), kind="pair")


def image_of(record: dict, image_key: str = "") -> str:
    """The name of a record's picture. Raises Unusable."""
    return require(record, _key(record, image_key, IMAGE_KEYS), str)


def _key(record: dict, chosen: str, usual: tuple[str, ...]) -> str:
    key = next((key for key in ((chosen,) if chosen else usual) if record.get(key) is not None), None)
    if key is None:
        raise Unusable("missing key", f"{chosen or ' or '.join(usual)}; there are {', '.join(record)}")
    return key


# ----------------------------------------------------------------------------------------------------------------------
# COCO's captions


def scan_pairs(path: str, cache: Cache) -> Scan:
    """The range of each record of one file.

    Of a COCO file those of each annotation and of its picture. Such a file is held in memory meanwhile.
    """
    stored, problem = unpacked(path, cache)
    with files.opened(stored) as file:
        if not _is_coco(file.read(CHUNK).decode("latin-1")):
            return scan_json(path, cache)
    scan = Scan(stored=stored)
    if problem:
        scan.skipped.append((path, "file damaged", f"{problem}; used is what could be unpacked"))
    with files.opened(stored) as file:
        lists, error = _two_lists(
            file.read().decode("latin-1")
        )  # one character of each byte: places are places in the file
    if error:
        scan.skipped.append((path, "bad JSON", f"{error}; the rest of the file is left out"))
    images = {owner: (at, size, "image") for at, size, owner, _ in lists["images"] if owner is not None}
    for number, (at, size, _, owner) in enumerate(lists["annotations"]):
        if owner in images:
            scan.add(str(number), [images[owner], (at, size, "")])
        elif owner is not None:
            scan.skipped.append((f"{path}:{number}", "image missing", f"no entry of images has the id {owner}"))
        else:
            scan.skipped.append((f"{path}:{number}", "missing key", "image_id, a number or text"))
    return scan


def _is_coco(start: str) -> bool:
    """True if a file that starts so is one object, one of whose lists of COCO's comes before anything large."""
    decode, at = (
        json.JSONDecoder(parse_int=str).raw_decode,
        _skip_gap(start.removeprefix("\xef\xbb\xbf")) + 3 * start.startswith("\xef\xbb\xbf"),
    )
    if start[at : at + 1] != "{":
        return False
    try:
        while True:
            key, at = decode(start, _skip_gap(start, at + (start[at] == "{")))
            at = _skip_gap(start, at)
            if key in ("images", "annotations") and re.compile(r"\[\s*\{").match(start, at):
                return True
            at = _item(decode, start, at)[1]
    except (ValueError, IndexError, RecursionError):
        return False


def _two_lists(text: str) -> tuple[dict[str, list[tuple[int, int, str | None, str | None]]], str]:
    """(offset, size, id, image_id) of each item of `images` and `annotations`, as far as the object can be read, and
    what ended it.
    """
    decode = json.JSONDecoder(
        parse_int=str
    ).raw_decode  # of numbers only equality counts, and Python reads no more than 4,300 digits
    lists: dict[str, list[tuple[int, int, str | None, str | None]]] = {"images": [], "annotations": []}
    at = text.index("{") + 1
    try:
        while text[at := _skip_gap(text, at)] != "}":
            key, at = decode(text, at)
            at = _skip_gap(text, at)
            if key not in lists or text[at] != "[":
                at = _item(decode, text, at)[1]
                continue
            at += 1
            while text[at := _skip_gap(text, at)] != "]":
                item, end = _item(decode, text, at)
                lists[key].append((at, end - at, _id(item, "id"), _id(item, "image_id")))
                at = end
            at += 1
    except (ValueError, IndexError, RecursionError) as error:
        return lists, f"at byte {at:,d}: {str(error).split(':')[0]}"
    return lists, ""


def _item(decode: Callable, text: str, at: int) -> tuple[object, int]:
    """A value, None where it is no JSON, and where it ends."""
    try:
        return decode(text, at)
    except (ValueError, RecursionError):
        end = value_end(text, at)
        if end is None:
            raise
        return None, end


def _id(item, key: str) -> str | None:
    value = item.get(key) if isinstance(item, dict) else None
    return value if isinstance(value, str) else None
