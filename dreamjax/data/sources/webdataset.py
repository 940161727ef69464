"""WebDataset tars, read in place by index: pairs as img2dataset writes them, and interleaved documents.

Neighbouring members of one name up to the first dot of their basename are one record. A record is

* a pair: a picture (.jpg, .jpeg, .png, .webp, ...) and its caption: .txt, or the key `caption` or `text` of .json;
* text alone: .txt without a picture;
* a JSON document (.json with text_list, texts, conversations or instruction, as in the formats mmc4, obelics, llava and
  instruct) whose pictures are members: named as the JSON names them, or by their number (.0.jpg, .1.jpg), or in the
  JSON
  itself as `image_base64`.

Members that end in .gz are unpacked when read. Compressed tars are unpacked into the cache folder first.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable

from dreamjax.config import SourceConfig
from dreamjax.data.sources.json_documents import document_of, is_document
from dreamjax.data.sources.records import (
    Unusable,
    bad_record,
    cache_of,
    is_similar,
    parse_json,
    read_text,
    text_at,
    texts_of,
    with_id,
)
from dreamjax.data.sources.tar_members import BehindTheEnd, Damaged, TarMember, places_of, resolve, walk
from dreamjax.data.storage import files
from dreamjax.data.storage.index import ByteRange, Index, Scan, open_index
from dreamjax.data.storage.unpack import Cache, unpacked, unzip
from dreamjax.document import Document, Image, Text, image_io
from dreamjax.errors import BadImage, BadRecord, SourceError

SUFFIXES = (".tar", ".tar.gz", ".tgz")
PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "avif")
CAPTION_KEYS = ("caption", "text")


@dataclasses.dataclass(frozen=True)
class WebDataset:
    """The records of all tars that were found, in the order of the files."""

    index: Index
    text_key: str = ""  # extension of the member, or key of the JSON, that holds the caption
    image_key: str = ""  # extension of the picture's member, where a record has several
    min_similarity: float | None = None  # of pairs whose JSON has `similarity`; and of MMC4's pictures
    drop_first_answer: bool = False  # of conversations
    cache: Cache = Cache()  # says how far packed members may grow

    @property
    def skipped(self) -> tuple[BadRecord, ...]:
        """Tars, ends of tars and records that the index left out."""
        return self.index.skipped

    @property
    def fingerprint(self) -> str:
        """A hash of the tars and the settings."""
        settings = (
            f"{self.text_key}-{self.image_key}-{self.min_similarity}{'-drop_first_answer' * self.drop_first_answer}"
        )
        return f"webdataset-{self.index.fingerprint}-{settings}"

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Document:
        name = self.index.name(index)
        with bad_record(name):
            return with_id(self._document(_plain(self.index.members(index), self.cache)), name)

    def key(self, index: int) -> str:
        """The tar and the record's name in it."""
        return self.index.key(index)

    def texts(self) -> Iterable[str]:
        """All text."""
        return texts_of(self)

    def _document(self, members: dict[str, "ByteRange | Unzipped"]) -> Document:
        images = {kind: member for kind, member in members.items() if kind.rpartition(".")[2] in PICTURES}
        record = None
        if self._needs_json(members):
            record = parse_json(members["json"].read_bytes())
            if is_document(record):
                return document_of(record, _finder(images, record), self.min_similarity, self.drop_first_answer)
        text = self._text(members, record)
        if not text:
            raise Unusable("no text")
        if not images:
            return Document((Text(text),))
        facts = record or {}
        if self.min_similarity is not None and not is_similar(facts, "similarity", self.min_similarity):
            raise Unusable("low similarity", str(facts["similarity"]))
        return Document((Image(self._image(images)), Text(text)), kind="pair")

    def _needs_json(self, members) -> bool:
        has_text = (self.text_key or "txt") in members
        return "json" in members and (not has_text or self.min_similarity is not None)

    def _text(self, members, record: dict | None) -> str:
        kind = self.text_key or "txt"
        if kind in members:
            return read_text(members[kind].read_bytes()).strip()
        keys = (self.text_key,) if self.text_key else CAPTION_KEYS
        value = next((record[key] for key in keys if record.get(key) is not None), None) if record is not None else None
        if value is None:
            raise Unusable(
                "missing key",
                f"{kind}, and {' or '.join(keys)} in json; there are {', '.join(members) or 'no members'}",
            )
        return text_at({"text": value}, "text").strip()

    def _image(self, images: dict) -> image_io.Source:
        if self.image_key:
            if self.image_key not in images:
                raise Unusable("missing key", f"{self.image_key}; there are {', '.join(images)}")
            return images[self.image_key]
        if len(images) > 1:
            raise Unusable("several images", f"{', '.join(images)}; choose one with image_key")
        return next(iter(images.values()))


@dataclasses.dataclass(frozen=True)
class Unzipped:
    """A member that gzip has packed; has what image_io.EncodedFile asks for."""

    member: ByteRange
    cache: Cache
    of: int = (
        1  # packed members of the record, which share what any file may grow to: all of them lie in memory at once
    )

    def read_bytes(self) -> bytes:
        """The bytes that were packed; raises Unreadable."""
        return unzip(self.member.read_bytes(), str(self.member), self.cache, self.of)

    def __str__(self) -> str:
        return str(self.member)


def _plain(members: dict[str, ByteRange], cache: Cache) -> dict[str, ByteRange | Unzipped]:
    """The members by what they hold, whether gzip has packed it or not."""
    kinds = [kind for kind in members if kind.endswith(".gz")]
    packed = {kind.removesuffix(".gz"): Unzipped(members[kind], cache, len(kinds)) for kind in kinds}
    return packed | {kind: member for kind, member in members.items() if not kind.endswith(".gz")}


def _finder(images: dict, record: dict) -> Callable[[str, int], image_io.Source]:
    """Finds a document's pictures by the names that the JSON has for them or, where no member has one of these, by
    their numbers.
    """
    infos = record.get("image_info") or record.get("images") or record.get("image") or []
    names = [
        info.get("image_name") if isinstance(info, dict) else info
        for info in (infos if isinstance(infos, list) else [infos])
    ]
    by_name = any(isinstance(name, str) and _base(name) in images for name in names)
    numbered = {kind.partition(".")[0]: image for kind, image in images.items()}
    alone = next(iter(images.values())) if len(images) == len(names) == 1 else None

    def find(name: str, number: int):
        image = images.get(_base(name)) if by_name else numbered.get(str(number), alone)
        if image is None:
            raise BadImage(f"{name or f'picture {number}'}: no member of the record", "image missing")
        return image

    return find


def _base(name: str) -> str:
    return os.path.basename(name).lower()


# ----------------------------------------------------------------------------------------------------------------------
# Index


def open_webdataset(config: SourceConfig, seed: int = 0) -> WebDataset:
    """The records of the tars that the path means. Raises SourceError where there is none."""
    try:
        paths = files.expand(config.path, SUFFIXES)
    except OSError as error:
        raise SourceError(str(error)) from None
    cache = cache_of(config)
    return WebDataset(
        open_index(paths, scan_tar, cache, "tars"),
        config.text_key,
        config.image_key,
        config.min_similarity,
        config.drop_first_answer,
        cache,
    )


def scan_tar(path: str, cache: Cache) -> Scan:
    """The members of one tar, by record.

    Of a damaged tar it is all before the damage, without the record that it may have cut.
    """
    stored, problem = unpacked(path, cache)
    scan = Scan(stored=stored)
    with files.opened(stored) as file:
        members, damage = _read_members(file)
    records = [
        (name, list(group)) for (_, name), group in itertools.groupby(filter(_is_of_record, members), _record_of)
    ]
    if damage and not isinstance(damage, BehindTheEnd):
        name, _ = records.pop() if records else ("", [])
        after = f" after {name}" if name else ""
        scan.skipped.append(
            (path, "tar damaged", f"{problem or damage}{after}; that record and what follows it are left out")
        )
    elif problem or damage:  # behind a mark of the end: no record is cut
        scan.skipped.append((path, "data behind the end", problem or str(damage)))
    places = places_of(members) if any(member.target for member in members) else {}
    for name, group in records:
        _add(scan, path, name, group, places)
    return scan


def _read_members(file) -> tuple[list[TarMember], Damaged | None]:
    members: list[TarMember] = []
    try:
        for member in walk(file):
            members.append(member)
    except Damaged as damage:
        return members, damage
    return members, None


def _add(scan: Scan, path: str, name: str, group: list[TarMember], places: dict):
    """One record; as a whole it is left out where a member of it has no bytes, or comes twice."""
    resolved: dict[str, TarMember] = {}
    for member in group:
        kind = _split(member.name)[1].lower()
        reason, detail = "repeated member" if kind in resolved else "", kind
        at = resolve(member, places)
        if at is None:
            reason, detail = (
                "link leads nowhere",
                f"{kind} to {member.target}, of which the tar holds no file, or several",
            )
        elif at.problem:
            reason, detail = "member is no file", f"{kind} is {at.problem}"
        if reason or at is None:
            scan.skipped.append((f"{path}:{name}", reason, detail))
            return
        resolved[kind] = at
    scan.add(name, [(member.offset, member.size, kind) for kind, member in resolved.items()])


def _split(name: str) -> tuple[str, str]:
    """The name of a member's record, up to the first dot of its basename, and the rest."""
    folder, slash, base = name.rpartition("/")
    stem, _, kind = base.partition(".")
    return (folder + slash + stem if stem else ""), kind


def _is_of_record(member: TarMember) -> bool:
    return all(_split(member.name))


def _record_of(member: TarMember) -> tuple[int, str]:
    return member.part, _split(member.name)[0]
