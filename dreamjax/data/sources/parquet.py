"""Parquet as datasets are exported from the hub: a row is a record.

Rows with `texts` and `images` (lists of one length), `text_list`, `conversations` or `instruction` are documents in the
layouts of `json_documents`; others are pairs: a picture (column `image`, `jpg` or `images`) and its caption (`text` or
`caption`), or text alone. A picture is a struct of bytes and path, or bytes, or a path in the folder of pictures, or a
list of one of these.

Parquet reads whole row groups: text and pictures are read apart, and each process keeps the last few of them. A
shuffled epoch over large files is therefore slow: `python -m dreamjax.prepare` once makes it fast.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet

from dreamjax.config import SourceConfig
from dreamjax.data.sources.json_documents import COLUMNS, document_of, is_document
from dreamjax.data.sources.records import Folder, Unusable, bad_record, is_similar, text_at, texts_of, with_id
from dreamjax.data.storage import files
from dreamjax.document import Document, Image, Text, image_io
from dreamjax.errors import BadImage, BadRecord, SourceError, Unreadable

SUFFIX = ".parquet"
TEXT_COLUMNS = ("text", "caption")
IMAGE_COLUMNS = ("image", "jpg", "images")
CACHED = 4  # columns of row groups per process
LARGEST = 2**32  # bytes of one of them
ROWS = 2**16  # read at once, at most


@dataclasses.dataclass(frozen=True)
class Cell:
    """A picture in one row; has what image_io.EncodedFile asks for."""

    file: str
    file_version: str
    group: int
    row: int
    column: str
    item: int  # of a list; -1 where the cell is a picture itself
    name: str
    folder: Folder

    def read_bytes(self) -> bytes:
        """The encoded picture; raises BadImage and OSError."""
        value = _column(self.file, self.file_version, self.group, self.column)[self.row].as_py()
        value = value[self.item] if self.item >= 0 else value
        data = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(data, bytes):
            return data
        path = _path_in(value)
        if path is None:
            raise BadImage(f"{self.name}: no picture in the column {self.column}", "image missing")
        return image_io.file_bytes(self.folder.find(path))

    def __str__(self) -> str:
        return self.name


def _path_in(value) -> str | None:
    """The path of a picture that is not in the table itself."""
    path = value if not isinstance(value, dict) else None if value.get("bytes") else value.get("path")
    return path if isinstance(path, str) else None


def _is_read_at_once(kind: pyarrow.DataType) -> bool:
    """True for columns that hold so little that a record's images are looked at with its text, and for lists, of which
    nothing else is known.
    """
    types = pyarrow.types
    return any(
        fits(kind)
        for fits in (
            types.is_string,
            types.is_large_string,
            types.is_list,
            types.is_large_list,
            types.is_fixed_size_list,
        )
    )


def _column(file: str, file_version: str, group: int, column: str) -> pyarrow.ChunkedArray:
    """One column of a row group; Unreadable where the file is damaged or not what it was."""
    cells = _read_column(file, file_version, group, column)
    if isinstance(cells, Unreadable):
        raise Unreadable(*cells.args)
    return cells


@functools.lru_cache(maxsize=CACHED)
def _read_column(file: str, file_version: str, group: int, column: str) -> pyarrow.ChunkedArray | Unreadable:
    """As `_column`, with an error as a value.

    It is cached too, else each row of a bad group would read all of it again.
    """
    try:
        if files.file_version(file) != file_version:
            return Unreadable(f"{file}: has changed since it was opened", "file changed")
        with _open(file) as parquet:
            return _read_bounded(parquet, group, column, file)
    except Unreadable as error:
        return error
    except pyarrow.ArrowException as error:
        return Unreadable(f"{file}: {error}", "file damaged")


def _read_bounded(parquet: pyarrow.parquet.ParquetFile, group: int, column: str, file: str) -> pyarrow.ChunkedArray:
    """The column, in parts that cannot be larger than LARGEST.

    A value that is stored once may stand in a thousand million rows.
    """
    facts = parquet.metadata.row_group(group)
    stored = sum(
        chunk.total_uncompressed_size
        for chunk in map(facts.column, range(facts.num_columns))
        if chunk.path_in_schema.partition(".")[0] == column
    )
    parts, size = [], 0
    for batch in parquet.iter_batches(min(max(LARGEST // max(stored, 1), 1), ROWS), [group], [column]):
        parts.append(batch.column(0))
        size += parts[-1].nbytes
        if size > LARGEST:
            raise Unreadable(
                f"{file}: the column {column} of group {group} takes more than {LARGEST:,d} bytes",
                "unpacks to too much",
            )
    if sum(map(len, parts)) != facts.num_rows:
        raise Unreadable(
            f"{file}: group {group} has {sum(map(len, parts)):,d} rows of {column}, not {facts.num_rows:,d}",
            "file damaged",
        )
    return pyarrow.chunked_array(parts)


def _open(file: str) -> pyarrow.parquet.ParquetFile:
    return pyarrow.parquet.ParquetFile(
        fsspec.open(file, "rb").open() if files.is_remote(file) else os.path.abspath(file)
    )  # else it takes "~" for the home


@dataclasses.dataclass(frozen=True)
class Parquet:
    """The rows of all files, in the order of the files."""

    files: tuple[
        tuple[str, str, tuple[str, ...], tuple[str, ...]], ...
    ]  # name, stamp, columns, those whose pictures are looked at with the text
    groups: np.ndarray  # [groups, 2]: number of the file, number in the file
    ends: np.ndarray  # [groups] one past the last row of each
    skipped: tuple[BadRecord, ...]
    folder: Folder
    text_key: str = ""
    image_key: str = ""
    min_similarity: float | None = None
    drop_first_answer: bool = False  # of conversations

    @property
    def fingerprint(self) -> str:
        """A hash of the files and the settings."""
        facts = [
            [file[:3] for file in self.files],
            self.folder.path,
            self.text_key,
            self.image_key,
            self.min_similarity,
        ]
        facts += [
            name
            for name, on in (("outside", self.folder.allow_outside), ("drop_first_answer", self.drop_first_answer))
            if on
        ]
        return f"parquet-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}"

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Document:
        name = self._name(index)
        with bad_record(name):
            return with_id(self._document(index, name), name)

    def key(self, index: int) -> str:
        """The file, the row group and the row in it."""
        return os.path.basename(self._name(index))

    def _name(self, index: int) -> str:
        file, group, row = self._place(index)
        return f"{self.files[file][0]}:{group}:{row}"

    def texts(self) -> Iterable[str]:
        """All text."""
        return texts_of(self)

    def _place(self, index: int) -> tuple[int, int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"there are rows 0 to {len(self) - 1}, not {index}")
        number = int(np.searchsorted(self.ends, index, side="right"))
        file, group = self.groups[number].tolist()
        return file, group, index - (int(self.ends[number - 1]) if number else 0)

    def _document(self, index: int, name: str) -> Document:
        file, group, row = self._place(index)
        path, file_version, columns, at_once = self.files[file]

        def value(column):
            return _value(path, file_version, group, row, column)

        image = next((c for c in ((self.image_key,) if self.image_key else IMAGE_COLUMNS) if c in columns), None)
        if self.image_key and image is None:
            raise Unusable("missing key", f"column {self.image_key}; there are {', '.join(columns)}")

        def cell(item):
            return Cell(path, file_version, group, row, image, item, name, self.folder)

        if is_document({column: [] for column in columns}):
            record = {column: value(column) for column in columns if column in COLUMNS and column != image}
            return self._layout(record, value(image) if image else None, cell)
        column = next((c for c in ((self.text_key,) if self.text_key else TEXT_COLUMNS) if c in columns), None)
        if column is None:
            raise Unusable(
                "missing key",
                f"a column of text ({self.text_key or ' or '.join(TEXT_COLUMNS)}); there are {', '.join(columns)}",
            )
        text = text_at({column: value(column)}, column).strip()
        if not text:
            raise Unusable("no text")
        if image is None:
            return Document((Text(text),))
        if self.min_similarity is not None:
            similarity = {c: value(c) for c in columns if c == "similarity"}
            if not is_similar(similarity, "similarity", self.min_similarity):
                raise Unusable("low similarity", str(similarity["similarity"]))
        source = self._one_of(value(image), cell) if image in at_once else cell(-1)
        return Document((Image(source), Text(text)), kind="pair")

    def _one_of(self, value, cell) -> image_io.Source:
        """The picture of a pair, from a column of paths or of lists."""
        items = value if isinstance(value, list) else [value]
        if len(items) > 1:
            raise Unusable("several images", f"{len(items)} for one text")
        if not items or items[0] is None:
            raise BadImage("no picture in the column", "image missing")
        path = _path_in(items[0])
        return cell(0 if isinstance(value, list) else -1) if path is None else self.folder.find(path)

    def _layout(self, record: dict, value, cell) -> Document:
        """A row in one of the JSON layouts.

        Pictures of a column are found by their number; the names only say which there are.
        """
        several = isinstance(value, list)
        items = value if several else [] if value is None else [value]
        if items:
            names = [None if item is None else str(number) for number, item in enumerate(items)]
            record |= {"images": names} | ({"image": names[0]} if len(names) == 1 else {})

        def find(name: str, number: int) -> image_io.Source:
            if not items:
                return self.folder.find(name)
            if number >= len(items) or items[number] is None:
                raise BadImage(f"no picture {number} in the column", "image missing")
            path = _path_in(items[number])
            return cell(number if several else -1) if path is None else self.folder.find(path)

        return document_of(record, find, self.min_similarity, self.drop_first_answer)


def _value(path: str, file_version: str, group: int, row: int, column: str):
    """The value of a column in a row; raises Unusable and OSError."""
    try:
        return _column(path, file_version, group, column)[row].as_py()
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, times that Python has none for
        raise Unusable("bad value", f"{column}: {error}") from None


def open_parquet(config: SourceConfig, seed: int = 0) -> Parquet:
    """The rows of the files that the path means.

    Files that cannot be read are skipped; SourceError where none is left.
    """
    try:
        paths = files.expand(config.path, (SUFFIX,))
    except OSError as error:
        raise SourceError(str(error)) from None
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        looked_at = list(pool.map(_look_at, paths))
    skipped = tuple(file for file in looked_at if isinstance(file, BadRecord))
    readable = [file for file in looked_at if not isinstance(file, BadRecord)]
    groups = [(number, group) for number, (_, rows) in enumerate(readable) for group in range(len(rows))]
    ends = np.cumsum([count for _, rows in readable for count in rows], dtype=np.int64)
    if not len(ends) or not ends[-1]:
        raise SourceError(f"{config.path}: there is no row to read{f': {skipped[0]}' if skipped else ''}")
    return Parquet(
        tuple(file for file, _ in readable),
        np.array(groups),
        ends,
        skipped,
        Folder(config.images or os.path.dirname(paths[0]), config.allow_outside),
        config.text_key,
        config.image_key,
        config.min_similarity,
        config.drop_first_answer,
    )


def _look_at(path: str) -> tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], list[int]] | BadRecord:
    """(name, stamp, columns, those looked at with the text) of a file, and the rows of its groups."""
    try:
        file_version = files.file_version(path)
        with _open(path) as parquet:
            rows = [parquet.metadata.row_group(group).num_rows for group in range(parquet.metadata.num_row_groups)]
            schema = parquet.schema_arrow
            return (
                path,
                file_version,
                tuple(schema.names),
                tuple(field.name for field in schema if _is_read_at_once(field.type)),
            ), rows
    except Unreadable as error:
        return BadRecord(path, error.reason)
    except UnicodeEncodeError:
        return BadRecord(path, "file cannot be read", "its name is not UTF-8; rename it")
    except (pyarrow.ArrowException, OSError) as error:
        return BadRecord(path, "file damaged", str(error))
