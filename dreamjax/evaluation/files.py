"""Files of benchmarks and of predictions: text, JSON, and tables. A damaged one is a SourceError in one line.

A table is XLSX, TSV or CSV with a header. In XLSX every text is a cell of text, whatever it begins with, so that no
program computes it; characters that XML lacks are written as _xHHHH_, which is Excel's own form, and read back. TSV
and CSV know no types.
"""

import contextlib
import csv
import io
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from dreamjax.errors import SourceError
from dreamjax.filesystem import atomic

LONGEST_CELL = 32_767  # UTF-16 units, of Excel

# ----------------------------------------------------------------------------------------------------------------------
# Finding and checking


def find_file(data: epath.PathLike, *patterns: str) -> epath.Path:
    """`data` itself where it is a file, else the only file in it for the first of `patterns` that has any.

    Raises SourceError.
    """
    data = epath.Path(data)
    if data.is_file():
        return data
    if not data.is_dir():
        raise SourceError(f"{data}: no such file or folder")
    for pattern in patterns:
        files = sorted(data.glob(pattern))
        if len(files) > 1:
            raise SourceError(
                f"{data}: holds {len(files)} files {pattern}: {', '.join(file.name for file in files[:3])}; name one"
            )
        if files:
            return files[0]
    raise SourceError(f"{data}: holds no file {' or '.join(patterns)}")


@contextlib.contextmanager
def expected_form(path: epath.PathLike, form: str) -> Iterator[None]:
    """Turns the errors of reading content of another form into a SourceError: `path` is no `form`."""
    try:
        yield
    except SourceError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError, RecursionError) as error:
        raise SourceError(f"{path}: is no {form} ({type(error).__name__}: {quote_name(str(error), 300)})") from None


# ----------------------------------------------------------------------------------------------------------------------
# Text and JSON


def read_text(path: epath.PathLike) -> str:
    """A file's text, without a byte order mark, lines ended by a line feed; raises SourceError without such a file."""
    return _decoded(path).replace("\r\n", "\n")


def _decoded(path: epath.PathLike) -> str:
    path = epath.Path(path)
    if not path.is_file():
        raise SourceError(f"{path}: {'is a folder, needs a file' if path.is_dir() else 'no such file'}")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: is not UTF-8 text: {error.reason} at byte {error.start}") from None


def lines_of(text: str, count: int | None = None) -> list[str]:
    """A text's lines, empty ones too, of which the last line feed ends the last.

    With a `count`, empty lines beyond it at the end are left out.
    """
    lines = text.removesuffix("\n").split("\n") if count is None else text.split("\n")
    while count is not None and len(lines) > count and not lines[-1]:
        lines.pop()
    return lines


def read_json(path: epath.PathLike, pairs: Callable[[list], dict] | None = None) -> Any:
    """The list or object of a JSON file, or the list of a JSONL file's values, one a line. Raises SourceError.

    `pairs` makes the objects of their keys and values, as object_pairs_hook of json.loads.
    """
    text = read_text(path)
    if epath.Path(path).suffix != ".jsonl":
        try:
            content = _parse(text, path, "", pairs)
        except json.JSONDecodeError:  # lines under another name, such as POPE's .json
            pass
        else:
            if not isinstance(content, list | dict):
                raise SourceError(f"{path}: holds {quote(content)}, needs a list or an object")
            return content
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: it also parts at separators inside strings
        if line.strip():
            try:
                rows.append(_parse(line, path, f"line {number} ", pairs))
            except json.JSONDecodeError as error:
                raise SourceError(f"{path}: line {number} is not JSON: {error.msg}") from None
    return rows


def _parse(text: str, path: epath.PathLike, line: str, pairs: Callable[[list], dict] | None) -> Any:
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise SourceError(f"{path}: {line}is nested too deep") from None
    except ValueError as error:  # of `pairs`, and a number of thousands of digits
        raise SourceError(f"{path}: {line}cannot be read: {error}") from None


def without_repeats(pairs: list) -> dict:
    """An object of pairs.

    Raises ValueError for a key that stands there twice, of which json.loads drops the first in silence.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {quote(next(key for key in keys if keys.count(key) > 1))} stands there twice")
    return values


def quote(value: object, most: int = 80) -> str:
    """A value as messages show it: in one line of at most `most` characters."""
    try:
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    except (RecursionError, ValueError):  # nested deep, or a number of thousands of digits
        return f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def quote_name(text: str, most: int = 80) -> str:
    """A name as messages show it: as it is, or by `quote` if it is long or cannot be printed."""
    return text if text.isprintable() and len(text) <= most else quote(text, most)


def parse_digits(text: str) -> int | None:
    """The number of a text of digits; None for another text and for more digits than an id has."""
    return int(text) if text.isdecimal() and len(text) <= 18 else None


# ----------------------------------------------------------------------------------------------------------------------
# Tables


def read_table(path: epath.PathLike) -> list[dict]:
    """The rows of an XLSX, TSV or CSV file by the names of its first row; empty cells are "". Raises SourceError."""
    path = epath.Path(path)
    header, *rows = (_xlsx_rows if path.suffix == ".xlsx" else _separated_rows)(path) or [[]]
    names = [str(name) for name in header]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise SourceError(f"{path}: two columns are named {quote(twice)}")
    for number, row in enumerate(rows, 2):
        if any(cell != "" for cell in row[len(names) :]):
            raise SourceError(f"{path}: row {number} has more cells than the header names")
    filled = ([*row, *[""] * (len(names) - len(row))] for row in rows if any(cell != "" for cell in row))
    return [dict(zip(names, row, strict=True)) for row in filled]


def _separated_rows(path: epath.Path) -> list[list[str]]:
    csv.field_size_limit(sys.maxsize)  # MMBench keeps its pictures in the table
    return list(csv.reader(io.StringIO(_decoded(path), newline=""), delimiter="\t" if path.suffix == ".tsv" else ","))


def _xlsx_rows(path: epath.Path) -> list[list]:
    import openpyxl  # only tables of this kind need it

    if not path.is_file():
        raise SourceError(f"{path}: {'is a folder, needs a file' if path.is_dir() else 'no such file'}")
    try:
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
            # Not data_only: a text that another program took for a formula is read as it was written.
            sheet = openpyxl.load_workbook(file, read_only=True).active
            sheet.reset_dimensions()  # a size that the file claims would be filled up
            cells = list(sheet.iter_rows(values_only=True))
    except OSError:
        raise
    except Exception as error:  # openpyxl lets through whatever a damaged archive or its XML raises
        raise SourceError(f"{path}: is no XLSX file ({type(error).__name__}: {quote(str(error))})") from None
    return [
        ["" if cell is None else _unescaped(cell) if isinstance(cell, str) else cell for cell in row] for row in cells
    ]


def write_table(path: epath.PathLike, header: Sequence[str], rows: Iterable[Sequence]) -> tuple[str, ...]:
    """Writes an XLSX or TSV file with a header and returns warnings of text that is not written as it is."""
    path, rows = epath.Path(path), [header, *rows]
    if path.suffix == ".xlsx":
        return _write_xlsx(path, rows)
    text = "".join(map(_separated, rows))
    atomic.write_text(path, text, "backslashreplace")
    broken = len(re.findall("[\ud800-\udfff]", text))
    return (
        (f"{path.name}: {broken} characters are half a surrogate pair, which is no text, and are written as \\uHHHH",)
        if broken
        else ()
    )


def _separated(row: Sequence) -> str:
    file = io.StringIO()
    # With this end of lines it quotes a carriage return too, at which a reader parts rows.
    csv.writer(file, delimiter="\t", lineterminator="\r\n").writerow(row)
    return file.getvalue().removesuffix("\r\n") + "\n"


def _write_xlsx(path: epath.Path, rows: list[Sequence]) -> tuple[str, ...]:
    import openpyxl
    from openpyxl.cell import WriteOnlyCell

    book, truncated = openpyxl.Workbook(write_only=True), []
    sheet = book.create_sheet()
    for number, row in enumerate(rows, 1):
        cells = []
        for value in row:
            if isinstance(value, str):
                written, fits = _escaped(value)
                value = WriteOnlyCell(sheet, written)
                value.data_type = "s"  # else what begins with "=" is a formula, and "#N/A" an error
                if not fits:
                    truncated.append(number)
            cells.append(value)
        sheet.append(cells)
    file = io.BytesIO()
    book.save(file)
    atomic.write_bytes(path, file.getvalue())
    if not truncated:
        return ()
    return (
        f"{path.name}: {len(truncated)} cells are longer than the {LONGEST_CELL:,d} characters that Excel holds, "
        f"and are cut; the first is in row {truncated[0]}",
    )


# Characters that XML 1.0 lacks, a carriage return (which XML reads as a line feed), and the underscore of text that
# looks like an escape, or that comes to stand before one.
_NO_XML = "[\0-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]"
_UNWRITABLE = re.compile(f"{_NO_XML}|_(?=x[0-9A-Fa-f]{{4}}(?:_|{_NO_XML}))")
_ESCAPE = re.compile("_x([0-9A-Fa-f]{4})_")


def _escaped(text: str) -> tuple[str, bool]:
    """(a text as a cell holds it, at most LONGEST_CELL long; true if nothing is truncated)."""
    text = _UNWRITABLE.sub(lambda match: f"_x{ord(match[0]):04X}_", text)

    def units(piece: str) -> int:
        return len(piece.encode("utf-16-le")) // 2

    if len(text) <= LONGEST_CELL and units(text) <= LONGEST_CELL:
        return text, True
    # Piece by piece, so that no escape is cut through.
    pieces = re.findall(f"{_ESCAPE.pattern.replace('(', '(?:')}|.", text[: LONGEST_CELL + len("_x0000_")], re.DOTALL)
    fitting, room = [], LONGEST_CELL
    for piece in pieces:
        room -= units(piece)
        if room < 0:
            break
        fitting.append(piece)
    return "".join(fitting), False


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)
