"""The members of a tar, one header after the other, whatever the headers say.

The standard library's reader descends once more for each extended header and reads as many bytes as one claims. Here
they are walked in a loop, none is read that is longer than MAX_HEADER, and every size is held against the file's own:
time grows with the file, memory with its members. Read are ustar, GNU's long names and pax, local and global. Behind
the mark of its end the file is read on, as `tar --ignore-zeros` does, so that tars joined with `cat` are read as a
whole.
"""

import os
import posixpath
import re
import tarfile
import typing
from collections.abc import Iterator

BLOCK = tarfile.BLOCKSIZE
MAX_HEADER = 2**20  # bytes of one extended header
MAX_NAME = 4096  # characters; Linux has no longer paths
MAX_HOPS = 40  # from link to link; Linux follows no more
_LONG_NAMES = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE)
_WITHOUT_DATA = (*_LINKS, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
_PAX_RECORD = re.compile(rb"(\d{1,10}) ([^=]{1,1000})=")


class Damaged(Exception):
    """The tar cannot be read on; the message is one line: why, and at which byte."""


class TarMember(typing.NamedTuple):
    """One member.

    A range of the file's bytes, or a link to another member, or nothing of either for the reason `problem`.
    """

    name: str
    part: int  # of tars that were joined, which one
    offset: int = 0
    size: int = 0
    target: str = ""  # the name that a link leads to, from the tar's root
    problem: str = ""


def walk(file: typing.BinaryIO) -> Iterator[TarMember]:
    """The members in their order, without folders. Raises Damaged where the file cannot be read on."""
    size = file.seek(0, os.SEEK_END)
    at, part = 0, 0
    shared: dict[str, str] = {}
    while True:
        if any(_read(file, at, BLOCK, size, "the mark of its end")):
            at, member = _next_member(file, at, size, part, shared)
            if member:
                yield member
            continue
        end, at = at, _behind_zeros(file, at, size)
        if at == size:
            return
        if at - end > BLOCK:  # one block of zeros alone is no mark of the end
            part, shared = part + 1, {}
            try:
                _header(file, at, size)
            except Damaged:
                raise BehindTheEnd(
                    f"{size - at:,d} bytes from byte {at:,d} on, behind the mark of the end, are no tar"
                ) from None


class BehindTheEnd(Damaged):
    """Bytes behind a whole tar that are no tar."""


def resolve(member: TarMember, places: dict[tuple[int, str], TarMember | None]) -> TarMember | None:
    """The member whose bytes a link leads to, in its own tar; None where there is none. See `places_of`."""
    place: TarMember | None = member
    for _ in range(MAX_HOPS):
        if place is None or not place.target:
            return place
        place = places.get((place.part, place.target))
    return None


def places_of(members: list[TarMember]) -> dict[tuple[int, str], TarMember | None]:
    """The members by (tar, path); None where a path is there twice, and it cannot be told which is meant."""
    places: dict[tuple[int, str], TarMember | None] = {}
    for member in members:
        key = member.part, posixpath.normpath(member.name)
        places[key] = None if key in places else member
    return places


def _next_member(
    file: typing.BinaryIO, at: int, size: int, part: int, shared: dict[str, str]
) -> tuple[int, TarMember | None]:
    """The place of the next header, and the member whose headers begin at `at`, None where it is a folder.

    Global headers go into `shared`.
    """
    own: dict[str, str] = {}
    while (info := _header(file, at, size)).type in _PAX or info.type in _LONG_NAMES:
        content = _extended(file, at, info.size, size)
        if info.type in _LONG_NAMES:
            own[_LONG_NAMES[info.type]] = _text(content.partition(b"\0")[0])
        else:
            (shared if info.type == tarfile.XGLTYPE else own).update(_pax_fields(content, at))
        at += BLOCK + _blocks(info.size)
    start, fields, at = at, shared | own, at + BLOCK
    if info.type == tarfile.GNUTYPE_SPARSE:
        at = _behind_sparse_map(file, at, size)
    name = fields.get("GNU.sparse.name") or fields.get("path") or info.name
    if len(name) > MAX_NAME:
        raise Damaged(f"a name of {len(name):,d} characters at byte {start:,d}")
    if info.type in _WITHOUT_DATA:
        return at, None if info.type == tarfile.DIRTYPE else _without_data(info, name, part, fields)
    length = _whole_number(fields["size"] if "size" in fields else info.size, start)
    member = TarMember(name, part, at, length, problem=_problem(info, fields))
    at += _blocks(length)
    if at > size:
        raise Damaged(f"ends at byte {size:,d}, needed up to {at:,d}")
    return at, None if info.type == tarfile.AREGTYPE and name.endswith("/") else member


def _without_data(info: tarfile.TarInfo, name: str, part: int, fields: dict[str, str]) -> TarMember:
    if info.type not in _LINKS:
        return TarMember(name, part, problem="a device or pipe")
    target = fields.get("linkpath") or info.linkname
    from_here = posixpath.dirname(name) if info.type == tarfile.SYMTYPE else ""
    return TarMember(name, part, target=posixpath.normpath(posixpath.join(from_here, target)))


def _problem(info: tarfile.TarInfo, fields: dict[str, str]) -> str:
    if info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in fields):
        return "a sparse file"
    return "" if info.type in tarfile.REGULAR_TYPES else f"of type {info.type!r}"


def _read(file: typing.BinaryIO, at: int, count: int, size: int, what: str) -> bytes:
    if at + count > size:
        raise Damaged(f"ends at byte {size:,d} without {what}")
    file.seek(at)
    return file.read(count)


def _header(file: typing.BinaryIO, at: int, size: int) -> tarfile.TarInfo:
    block = _read(file, at, BLOCK, size, f"the header at byte {at:,d}")
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
    except tarfile.HeaderError:
        raise Damaged(f"no header at byte {at:,d}") from None
    if block[257:265] == tarfile.GNU_MAGIC and info.type != tarfile.DIRTYPE:
        info.name = _text(
            block[:100].partition(b"\0")[0]
        )  # GNU's headers have times where POSIX's have the beginning of a long name
    return info


def _extended(file: typing.BinaryIO, at: int, length: int, size: int) -> bytes:
    if not 0 <= length <= MAX_HEADER:
        raise Damaged(f"the extended header at byte {at:,d} claims {length:,d} bytes")
    return _read(file, at + BLOCK, _blocks(length), size, f"the extended header at byte {at:,d}")[:length]


def _pax_fields(content: bytes, start: int) -> dict[str, str]:
    """The fields of a pax header that matter here.

    Its records are "LENGTH KEY=VALUE\\n", with the length that of the whole record.
    """
    fields, at = {}, 0
    while at < len(content) and content[at]:  # some writers fill up with zeros
        record = _PAX_RECORD.match(content, at)
        end = at + int(record[1]) if record else 0
        if not record or not record.end() < end <= len(content) or content[end - 1] != ord("\n"):
            raise Damaged(f"no record at byte {at:,d} of the pax header at byte {start:,d}")
        key = _text(record[2])
        if key in ("path", "linkpath", "size") or key.startswith("GNU.sparse."):
            fields[key] = _text(content[record.end() : end - 1])
        at = end
    return fields


def _behind_sparse_map(file: typing.BinaryIO, at: int, size: int) -> int:
    """The place of the data of a sparse member of GNU's old format: behind the blocks that go on with its map."""
    more = _read(file, at - BLOCK, BLOCK, size, "a header")[482]
    while more:
        more = _read(file, at, BLOCK, size, "the rest of a sparse member's map")[504]
        at += BLOCK
    return at


def _behind_zeros(file: typing.BinaryIO, at: int, size: int) -> int:
    """The first block from `at` on that is not all zeros; the file's size where there is none."""
    file.seek(at)
    blocks = 1
    while chunk := file.read(blocks * BLOCK):
        zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        if zeros < len(chunk):
            return at + zeros // BLOCK * BLOCK
        at += zeros
        blocks = min(2 * blocks, 2048)  # from one on, since each of many zero blocks may stand alone
    return size


def _blocks(length: int) -> int:
    """Bytes of the blocks that hold so many."""
    return -(-length // BLOCK) * BLOCK


def _whole_number(value: str | int, start: int) -> int:
    number = (
        value
        if isinstance(value, int)
        else int(value)
        if value.isascii() and value.isdigit() and len(value) < 20
        else -1
    )
    if number < 0:
        raise Damaged(f"the header at byte {start:,d} claims a size of {str(value)[:30]!r}")
    return number


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
