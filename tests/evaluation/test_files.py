"""Tables that are read back as they were written, whatever stands in them; and texts by lines."""

import zipfile

import openpyxl
import pytest
from evaluation.test_answers import plain
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreamjax.errors import SourceError
from dreamjax.evaluation.files import LONGEST_CELL, lines_of, read_table, write_table
from dreamjax.evaluation.predictions import read_predictions


@pytest.mark.parametrize("ending", ["tsv", "xlsx"])
def test_tables(tmp_path, ending):
    file = tmp_path / f"a.{ending}"
    write_table(
        file,
        ["index", "question", "answer", "prediction"],
        [[1, 'a "quoted"\nline', "A", "B"], [1000001, "x", "A", None]],
    )
    rows = read_table(file)
    assert [{name: str(cell) for name, cell in row.items()} for row in rows] == [
        {"index": "1", "question": 'a "quoted"\nline', "answer": "A", "prediction": "B"},
        {"index": "1000001", "question": "x", "answer": "A", "prediction": ""},
    ]
    assert plain(read_predictions(file)) == [("1", "B", 'a "quoted"\nline'), ("1000001", "", "x")]


ODD = [
    "=1+1", "=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "#N/A", "007", "TRUE", "\x00\x08\x1f", "\r",
    "a\r\nb", " \t", "\ud800", "\ufffe\uffff", "_x0041_", "_x005F_x0041_", "__x0_", "_x0041\r_", "_x0041\0_x0042\ud800",
]  # fmt: skip
TEXTS = st.text(st.characters(exclude_categories=()) | st.sampled_from('_x0F5\r\n\t"=\x00\ud800'), max_size=12)


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXTS, min_size=1, max_size=20))
def test_a_table_is_read_back_equal(tmp_path, texts):
    rows = [[number, text] for number, text in enumerate([*ODD, *texts])]
    assert write_table(tmp_path / "a.xlsx", ["index", "=text"], rows) == ()
    assert [[row["index"], row["=text"]] for row in read_table(tmp_path / "a.xlsx")] == rows
    warnings = write_table(tmp_path / "a.tsv", ["index", "=text"], rows)
    halves = sum("\ud800" <= letter <= "\udfff" for _, text in rows for letter in text)
    assert len(warnings) == 1 and f"{halves} characters are half a surrogate pair" in warnings[0]
    whole = [
        [str(number), text.encode("utf-8", "backslashreplace").decode()] for number, text in rows
    ]  # UTF-8 has no half of a pair
    assert [[row["index"], row["=text"]] for row in read_table(tmp_path / "a.tsv")] == whole


def test_no_text_is_a_formula_to_a_spreadsheet_program(tmp_path):
    write_table(tmp_path / "a.xlsx", ["text"], [[text] for text in ODD])
    for row in openpyxl.load_workbook(tmp_path / "a.xlsx").active.iter_rows():
        assert [cell.data_type for cell in row] == ["s"]


@pytest.mark.parametrize(
    "text", ["x" * 40_000, "\x00" * 40_000, "x" * (LONGEST_CELL - 3) + "\x00", "\U0001f40e" * 20_000]
)
def test_a_text_over_the_limit_is_cut_with_a_warning(tmp_path, text):
    (warning,) = write_table(tmp_path / "a.xlsx", ["text"], [["a"], [text]])
    assert (
        "1 cells are longer than the 32,767 characters that Excel holds, and are cut; the first is in row 3" in warning
    )
    kept = read_table(tmp_path / "a.xlsx")[1]["text"]
    assert text.startswith(kept) and len(kept) > 4000
    assert write_table(tmp_path / "a.tsv", ["text"], [[text]]) == () and read_table(tmp_path / "a.tsv") == [
        {"text": text}
    ]


def test_texts_that_another_program_took_for_formulas(tmp_path):
    book = openpyxl.Workbook()
    for row in (["index", "prediction"], [1, "=A"], [2, "_x0041_"]):
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    assert plain(read_predictions(tmp_path / "a.xlsx")) == [("1", "=A", ""), ("2", "A", "")]


def test_tables_that_are_none(tmp_path):
    (tmp_path / "a.tsv").write_text("a\ta\n1\t2\n")
    with pytest.raises(SourceError, match="two columns are named 'a'"):
        read_table(tmp_path / "a.tsv")
    write_table(tmp_path / "a.xlsx", ["index"], [[1]])
    with zipfile.ZipFile(tmp_path / "a.xlsx") as whole, zipfile.ZipFile(tmp_path / "b.xlsx", "w") as broken:
        for name in whole.namelist():
            broken.writestr(name, whole.read(name).replace(b"</row>", b"", 1))
    with pytest.raises(SourceError, match="is no XLSX file") as raised:
        read_table(tmp_path / "b.xlsx")
    assert "\n" not in str(raised.value)


def test_lines_of_a_text():
    assert lines_of("a\nb\n") == lines_of("a\nb") == ["a", "b"] and lines_of("\na\n\n") == ["", "a", ""]
    assert (
        lines_of("\na\n", 2) == ["", "a"]
        and lines_of("a\n", 2) == ["a", ""]
        and lines_of("a\nb\n\n\n", 2) == ["a", "b"]
    )
