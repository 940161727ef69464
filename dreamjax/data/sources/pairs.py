"""Image-text pairs in JSON: JSON lines or one list of records, or COCO's captions, and the folder that their pictures' names start from.

A record names its picture (`image` or `file_name`) and holds its caption (`caption` or `text`), of a list of captions the
first; other keys by option. COCO's file (Lin et al. 2014) is one object of `images` (id, file_name) and `annotations`
(image_id, caption): each annotation is a pair. A pair whose picture is missing is a bad record.
"""

import functools
import json
import re

from dreamjax.data import files
from dreamjax.data.index import Scan
from dreamjax.data.sources.records import CHUNK, Folder, JsonRecords, Unusable, open_json, require, scan_json
from dreamjax.data.unpack import unpacked
from dreamjax.document import Document, Image, Text

TEXT_KEYS = ("caption", "text")
IMAGE_KEYS = ("image", "file_name")
_GAP = re.compile(r"[ \t\r\n,:]*")  # between the values of an object or a list


def open_pairs(path: str, images: str = "", text_key: str = "", image_key: str = "", min_similarity: float | None = None, cache: str = "") -> JsonRecords:
    """The pairs of JSON files; those of one picture have one key. `min_similarity` is asked of the records' `similarity`. Raises SourceError."""
    options = {"text_key": text_key, "image_key": image_key, "min_similarity": min_similarity}
    return open_json(path, parse, images, cache, functools.partial(picture_of, image_key=image_key), scan_pairs, **options)


def parse(record: dict, folder: Folder, text_key: str = "", image_key: str = "", min_similarity: float | None = None) -> Document:
    """The Document of one record. Raises Unusable."""
    name = picture_of(record, image_key)
    key = _key(record, text_key, TEXT_KEYS)
    captions = record[key] if isinstance(record[key], list) else [record[key]]
    text = require({key: captions[0] if captions else ""}, key, str).strip()
    if not text:
        raise Unusable("no text")
    if min_similarity is not None and (similarity := require(record, "similarity", float)) < min_similarity:
        raise Unusable("low similarity", str(similarity))
    source = folder.find(name)
    if source is None:
        raise Unusable("image missing", name)
    return Document((Image(source), Text(text)), kind="pair")


def picture_of(record: dict, image_key: str = "") -> str:
    """The name of a record's picture. Raises Unusable."""
    return require(record, _key(record, image_key, IMAGE_KEYS), str)


def _key(record: dict, wanted: str, usual: tuple[str, ...]) -> str:
    found = next((key for key in ((wanted,) if wanted else usual) if record.get(key) is not None), None)
    if found is None:
        raise Unusable("missing key", f"{wanted or ' or '.join(usual)}; there are {', '.join(record)}")
    return found


# ----------------------------------------------------------------------------------------------------------------------
# COCO's captions


def scan_pairs(path: str, cache: str) -> Scan:
    """The range of each record of one file; of a COCO file those of each annotation and of its picture. Such a file is held in memory meanwhile."""
    stored, problem = unpacked(path, cache)
    with files.opened(stored) as file:
        if not _is_coco(file.read(CHUNK).decode("latin-1")):
            return scan_json(path, cache)
    scan = Scan(stored=stored)
    if problem:
        scan.skipped.append((path, "file damaged", f"{problem}; used is what could be unpacked"))
    with files.opened(stored) as file:
        lists, error = _two_lists(file.read().decode("latin-1"))  # one character of each byte: places are places in the file
    if error:
        scan.skipped.append((path, "bad JSON", f"{error}; the rest of the file is left out"))
    pictures = {owner: (at, size, "image") for at, size, owner, _ in lists["images"]}
    for number, (at, size, _, owner) in enumerate(lists["annotations"]):
        if owner in pictures:
            scan.add(str(number), [pictures[owner], (at, size, "")])
        else:
            scan.skipped.append((f"{path}:{number}", "image missing", f"no entry of images has the id {owner}"))
    return scan


def _is_coco(start: str) -> bool:
    """Whether a file that starts so is one object, one of whose lists of COCO's comes before anything large."""
    decode, at = json.JSONDecoder().raw_decode, _GAP.match(start.removeprefix("\xef\xbb\xbf")).end() + 3 * start.startswith("\xef\xbb\xbf")
    if start[at : at + 1] != "{":
        return False
    try:
        while True:
            key, at = decode(start, _GAP.match(start, at + (start[at] == "{")).end())
            at = _GAP.match(start, at).end()
            if key in ("images", "annotations") and re.compile(r"\[\s*\{").match(start, at):
                return True
            at = decode(start, at)[1]
    except (ValueError, IndexError, RecursionError):
        return False


def _two_lists(text: str) -> tuple[dict[str, list[tuple[int, int, str, str]]], str]:
    """(offset, size, id, image_id) of each item of `images` and `annotations`, as far as the object can be read, and what ended it."""
    decode, lists = json.JSONDecoder().raw_decode, {"images": [], "annotations": []}
    at = text.index("{") + 1
    try:
        while text[at := _GAP.match(text, at).end()] != "}":
            key, at = decode(text, at)
            at = _GAP.match(text, at).end()
            if key not in lists or text[at] != "[":
                at = decode(text, at)[1]
                continue
            at += 1
            while text[at := _GAP.match(text, at).end()] != "]":
                item, end = decode(text, at)
                owner = item if isinstance(item, dict) else {}
                lists[key].append((at, end - at, json.dumps(owner.get("id")), json.dumps(owner.get("image_id"))))
                at = end
            at += 1
    except (ValueError, IndexError, RecursionError) as error:
        return lists, f"at byte {at:,d}: {str(error).split(':')[0]}"
    return lists, ""
