"""Files of predictions in every form, and whose answer each is."""

import pytest
from evaluation.files import write_json, write_lines

from dreamjax.errors import SourceError
from dreamjax.evaluation.files import find_file
from dreamjax.evaluation.predictions import Prediction, match_ids, percent, read_predictions

ROWS = [{"question_id": 7, "prompt": "Why?\nIn a word.", "text": "so\u2028so"}, {"question_id": "b", "text": ""}]


def plain(answers):
    return [(answer.id, answer.text, answer.prompt) for answer in answers]


def test_every_form_gives_the_same_rows(tmp_path):
    expected = [("7", "so\u2028so", "Why?\nIn a word."), ("b", "", "")]
    assert plain(read_predictions(write_lines(tmp_path / "a.jsonl", ROWS))) == expected
    assert plain(read_predictions(write_json(tmp_path / "a.json", ROWS))) == expected
    assert (
        plain(
            read_predictions(
                write_json(tmp_path / "b.json", {"7": {"prompt": "Why?\nIn a word.", "answer": "so\u2028so"}, "b": ""})
            )
        )
        == expected
    )
    (tmp_path / "mark.jsonl").write_text("\ufeff" + (tmp_path / "a.jsonl").read_text() + "\n\n")
    assert plain(read_predictions(tmp_path / "mark.jsonl")) == expected


@pytest.mark.parametrize(
    "content, named",
    [
        ("", "holds no predictions"),
        ("[]", "holds no predictions"),
        ('{"question_id": 1, "text": "a"}\n{"question_id"', "line 2 is not JSON"),
        ('{"question_id": 1}\n{"question_id": 2}', "row 1 has no text"),
        ('[{"text": "a"}]', "row 1 has no id"),
        ("[1]", "row 1 is no object"),
        ("[" * 100_000, "nested too deep"),
        ('{"1": "a", "2": "b", "1": "c"}', "key '1' stands there twice"),
        ('[{"id": ' + "9" * 5000 + ', "text": "a"}]', "cannot be read"),
        ('[{"id": true, "text": "a"}]', "True is no id"),
        ('[{"id": NaN, "text": "a"}]', "nan is no id"),
        ('[{"id": 1, "text": Infinity}]', "inf is no text"),
        ('[{"id": 1, "text": "a", "prompt": ["?"]}]', "is no prompt"),
        ('[{"id": 1, "text": {"a\\n": "' + "x" * 9999 + '"}}]', r"xx\.\.\. is no text"),
    ],
)
def test_what_is_no_file_of_predictions(tmp_path, content, named):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(SourceError, match=named) as raised:
        read_predictions(tmp_path / "a.json")
    assert str(tmp_path / "a.json") in str(raised.value)


def test_missing_files(tmp_path):
    with pytest.raises(SourceError, match="nowhere.json: no such file"):
        read_predictions(tmp_path / "nowhere.json")
    with pytest.raises(SourceError, match="is a folder"):
        read_predictions(tmp_path)
    with pytest.raises(SourceError, match="nowhere: no such file or folder"):
        find_file(tmp_path / "nowhere", "*.json")
    (tmp_path / "latin.json").write_bytes(b'{"question_id": 1, "text": "\xe9"}')
    with pytest.raises(SourceError, match="is not UTF-8"):
        read_predictions(tmp_path / "latin.json")
    with pytest.raises(SourceError, match="holds no file x.json or y.json"):
        find_file(tmp_path, "x.json", "y.json")
    (tmp_path / "other.json").touch()
    with pytest.raises(SourceError, match=r"holds 2 files \*.json: latin.json, other.json"):
        find_file(tmp_path, "*.json")


def answers(*ids):
    return [Prediction(key, f"text of {key}", "", "", f"row {number}") for number, key in enumerate(ids, 1)]


def test_the_denominator_never_shrinks_unsaid():
    matched = match_ids(answers("1", "3", "9"), ["1", "2", "3", "4"], "DATA")
    assert matched.texts == {"1": "text of 1", "3": "text of 3"}
    assert matched.counts == {"questions": 4, "predictions": 3, "missing": 2, "unmatched": 1}
    assert len(matched.warnings) == 2
    assert "2 of 4 questions have no prediction and count as wrong; the first is question 2" in matched.warnings[0]
    assert "1 of 3 predictions are of no question in DATA" in matched.warnings[1] and "row 3" in matched.warnings[1]
    assert match_ids(answers("1", "2"), ["1", "2"], "DATA").warnings == ()


def test_duplicates_and_strangers_are_errors():
    with pytest.raises(SourceError, match="row 3: answers question 1 a second time; the first is row 1"):
        match_ids(answers("1", "2", "1"), ["1", "2"], "DATA")
    with pytest.raises(SourceError, match="id '8' is of no question in DATA, and so are all 2 predictions"):
        match_ids(answers("8", "9"), ["1"], "DATA")


def test_percent():
    assert percent([True, False, True, True]) == 75.0
    assert percent([0.1] * 10) == 10.0  # and not 9.999999999999998
    assert percent([]) != percent([])  # nan
