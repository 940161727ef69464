"""WebDataset tars, read in place by index: pairs as img2dataset writes them, and interleaved documents.

Neighbouring members of one name up to the first dot of their basename are one record. A record is

* a pair: a picture (.jpg, .jpeg, .png, .webp, ...) and its caption: .txt, or the key `caption` or `text` of .json;
* text alone: .txt without a picture;
* a JSON document (.json with text_list, texts, conversations or instruction, as in the formats mmc4, obelics, llava and
  instruct) whose pictures are members: named as the JSON names them, or by their number (.0.jpg, .1.jpg), or in the JSON
  itself as `image_base64`.

Members that end in .gz are unpacked when read. Compressed tars are unpacked into the cache folder first.
"""

import dataclasses
import gzip
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable

from dreamjax import images
from dreamjax.data import files
from dreamjax.data.index import Index, Member, Scan, open_index
from dreamjax.data.sources import BadRecord, SourceError
from dreamjax.data.sources.json_documents import document_of, is_document
from dreamjax.data.sources.records import Unusable, bad_record, is_similar, parse_json, read_text, text_at, texts_of, with_id
from dreamjax.data.unpack import unpacked
from dreamjax.document import Document, Image, Text

SUFFIXES = (".tar", ".tar.gz", ".tgz")
PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "avif")
CAPTION_KEYS = ("caption", "text")
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")  # up to the first dot of the basename, and the rest


@dataclasses.dataclass(frozen=True)
class WebDataset:
    """The records of all tars that were found, in the order of the files."""

    index: Index
    text_key: str = ""  # extension of the member, or key of the JSON, that holds the caption
    image_key: str = ""  # extension of the picture's member, where a record has several
    min_similarity: float | None = None  # of pairs whose JSON has `similarity`; and of MMC4's pictures
    drop_first_answer: bool = False  # of conversations

    @property
    def skipped(self) -> tuple[BadRecord, ...]:
        """Tars, ends of tars and records that the index left out."""
        return self.index.skipped

    @property
    def fingerprint(self) -> str:
        """Of the tars and the settings."""
        settings = f"{self.text_key}-{self.image_key}-{self.min_similarity}{'-drop_first_answer' * self.drop_first_answer}"
        return f"webdataset-{self.index.fingerprint}-{settings}"

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Document:
        name = self.index.name(index)
        with bad_record(name):
            return with_id(self._document(self.index.members(index)), name)

    def key(self, index: int) -> str:
        """The tar and the record's name in it."""
        return self.index.key(index)

    def texts(self) -> Iterable[str]:
        """All text."""
        return texts_of(self)

    def _document(self, members: dict[str, Member]) -> Document:
        pictures = {kind: _Unzipped(member) if kind.endswith(".gz") else member for kind, member in members.items() if _is_picture(kind)}
        record = None
        if self._needs_json(members):
            record = parse_json(_content(members, "json"))
            if is_document(record):
                return document_of(record, _finder(pictures, record), self.min_similarity, self.drop_first_answer)
        text = self._text(members, record)
        if not text:
            raise Unusable("no text")
        if not pictures:
            return Document((Text(text),))
        if self.min_similarity is not None and not is_similar(record or {}, "similarity", self.min_similarity):
            raise Unusable("low similarity", str(record["similarity"]))
        return Document((Image(self._picture(pictures)), Text(text)), kind="pair")

    def _needs_json(self, members) -> bool:
        has_text = (self.text_key or "txt") in _bare(members)
        return "json" in _bare(members) and (not has_text or self.min_similarity is not None)

    def _text(self, members, record: dict | None) -> str:
        kind = self.text_key or "txt"
        if kind in _bare(members):
            return read_text(_content(members, kind)).strip()
        keys = (self.text_key,) if self.text_key else CAPTION_KEYS
        value = next((record[key] for key in keys if record.get(key) is not None), None) if record is not None else None
        if value is None:
            raise Unusable("missing key", f"{kind}, and {' or '.join(keys)} in json; there are {', '.join(members) or 'no members'}")
        return text_at({"text": value}, "text").strip()

    def _picture(self, pictures: dict) -> images.Source:
        if self.image_key:
            if self.image_key not in pictures:
                raise Unusable("missing key", f"{self.image_key}; there are {', '.join(pictures)}")
            return pictures[self.image_key]
        if len(pictures) > 1:
            raise Unusable("several images", f"{', '.join(pictures)}; choose one with image_key")
        return next(iter(pictures.values()))


@dataclasses.dataclass(frozen=True)
class _Unzipped:
    """A picture in a member that gzip has packed."""

    member: Member

    def read_bytes(self) -> bytes:
        return _unzip(self.member.read_bytes())

    def __str__(self) -> str:
        return str(self.member)


def _unzip(data: bytes) -> bytes:
    try:
        return gzip.decompress(data)
    except (EOFError, zlib.error) as error:
        raise OSError(f"gzip: {error}") from None


def _bare(members: dict[str, Member]) -> set[str]:
    return {kind.removesuffix(".gz") for kind in members}


def _content(members: dict[str, Member], kind: str) -> bytes:
    return members[kind].read_bytes() if kind in members else _unzip(members[f"{kind}.gz"].read_bytes())


def _is_picture(kind: str) -> bool:
    return kind.removesuffix(".gz").rpartition(".")[2] in PICTURES


def _finder(pictures: dict, record: dict) -> Callable[[str, int], images.Source]:
    """Finds a document's pictures by the names that the JSON has for them or, where no member has one of these, by their numbers."""
    infos = record.get("image_info") or record.get("images") or record.get("image") or []
    names = [info.get("image_name") if isinstance(info, dict) else info for info in (infos if isinstance(infos, list) else [infos])]
    by_name = any(isinstance(name, str) and _base(name) in pictures for name in names)
    numbered = {kind.partition(".")[0]: picture for kind, picture in pictures.items()}
    alone = next(iter(pictures.values())) if len(pictures) == len(names) == 1 else None

    def find(name: str, number: int):
        found = pictures.get(_base(name)) if by_name else numbered.get(str(number), alone)
        if found is None:
            raise images.BadImage(f"{name or f'picture {number}'}: no member of the record", "image missing")
        return found

    return find


def _base(name: str) -> str:
    return os.path.basename(name).lower()


# ----------------------------------------------------------------------------------------------------------------------
# Index


def open_webdataset(
    path: str, text_key: str = "", image_key: str = "", min_similarity: float | None = None, cache: str = "", drop_first_answer: bool = False
) -> WebDataset:
    """The records of the tars that a path means. Raises SourceError where there is none."""
    try:
        paths = files.expand(path, SUFFIXES)
    except OSError as error:
        raise SourceError(str(error)) from None
    return WebDataset(open_index(paths, scan_tar, cache, "tars"), text_key, image_key, min_similarity, drop_first_answer)


def scan_tar(path: str, cache: str) -> Scan:
    """The members of one tar, by record. Of a damaged tar it is all before the damage, without the record that it may have cut."""
    stored, problem = unpacked(path, cache)
    scan = Scan(stored=stored)
    end = 0
    record: tuple[str, dict] = ("", {})
    with files.opened(stored) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # which would keep every header that was read
                    end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    found = _NAME.fullmatch(member.name)
                    if not member.isfile() or not found:
                        continue
                    if found[1] != record[0]:
                        _finish(scan, path, *record)
                        record = (found[1], {})
                    record[1].setdefault(found[2].lower(), []).append((member.offset_data, member.size))
        except (tarfile.TarError, ValueError, OverflowError) as error:
            problem = problem or str(error)
        problem = problem or _end_of(file, end)
    if problem:
        where = f" after {record[0]}" if record[0] else ""
        scan.skipped.append((path, "tar damaged", f"{problem}{where}; that record and what follows it are left out"))
    else:
        _finish(scan, path, *record)
    return scan


def _finish(scan: Scan, path: str, name: str, members: dict[str, list]):
    if not name:
        return
    repeated = [kind for kind, found in members.items() if len(found) > 1]
    if repeated:
        scan.skipped.append((f"{path}:{name}", "repeated member", repeated[0]))
    else:
        scan.add(name, [(*found[0], kind) for kind, found in members.items()])


def _end_of(file, end: int) -> str:
    """What is wrong with the place where the members ended: tarfile stops there without a word."""
    file.seek(0, os.SEEK_END)
    if file.tell() < end:
        return f"ends at byte {file.tell():,d}, needed up to {end:,d}"
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        return f"ends at byte {end + len(block):,d} without the mark of its end"
    return f"no header at byte {end:,d}" if any(block) else ""
