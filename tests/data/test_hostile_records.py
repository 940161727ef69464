"""Records that nobody meant to write.

Whatever stands in them, a document comes of it or one named reason, and no file from outside the folder.
"""

import dataclasses
import json
import os

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from format_records import JSON_FORMATS, STORY, VALUES, record, talk
from made_data import jpeg, reasons, told, write_jsonl, write_tar

from dreamjax.config import SourceConfig
from dreamjax.data.prepare.filters import Filters, keep
from dreamjax.data.registry import open_source
from dreamjax.data.sources import (
    records,
    storybook,
    tfds,
)
from dreamjax.data.sources.records import Folder, Unusable
from dreamjax.document import Image
from dreamjax.errors import BadImage, BadRecord, ConfigError
from dreamjax.evaluation.image_folder import ImageFolder


def opened(form: str, folder, content, **options):
    write_jsonl(folder / "records.jsonl", content)
    options = {"images": str(folder / "images"), "cache": str(folder / "cache")} | options
    return open_source(SourceConfig(form, str(folder / "records.jsonl"), **options))


@pytest.fixture
def folder(tmp_path):
    """images/ with 1.jpg, and links: sub in it, out and out.jpg to what lies outside."""
    (tmp_path / "images" / "here").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    for path, number in (("images/1.jpg", 1), ("images/here/2.jpg", 2), ("secret/9.jpg", 9)):
        (tmp_path / path).write_bytes(jpeg(number))
    for name, target in (("sub", "here"), ("out", "../secret"), ("out.jpg", "../secret/9.jpg")):
        (tmp_path / "images" / name).symlink_to(target)
    return tmp_path


# ----------------------------------------------------------------------------------------------------------------------
# Containment


def outside(folder) -> list[str]:
    return [str(folder / "secret" / "9.jpg"), "../secret/9.jpg", "here/../../secret/9.jpg", "out/9.jpg", "out.jpg"]


def all_reasons(source) -> list[tuple[str, ...]]:
    """Of each record why it cannot be used, or why pictures of it were left out."""
    found = []
    for index in range(len(source)):
        try:
            found.append(tuple(error.reason for error in keep(source[index], Filters())[1]))
        except (BadRecord, BadImage) as error:
            found.append((error.reason,))
    return found


@pytest.mark.parametrize("form", JSON_FORMATS)
def test_records_reach_no_file_outside_the_folder(folder, form):
    names = outside(folder)
    source = opened(form, folder, [record(form, name) for name in [*names, "1.jpg", "sub/2.jpg"]])
    assert all_reasons(source) == [("outside the folder",)] * len(names) + [()] * 2
    if form in ("mmc4", "obelics"):  # whose documents stay as they are without a picture
        assert told(source[0]) == ["One. Two."] and told(source[6])[1] == 2
    allowed = opened(form, folder, [record(form, name) for name in names], allow_outside=True)
    assert all_reasons(allowed) == [()] * len(names) and all(9 in told(document) for document in allowed)
    assert allowed.fingerprint != opened(form, folder, [record(form, name) for name in names]).fingerprint


def test_coco_storybook_and_tables_neither(folder):
    names = outside(folder)
    coco = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [{"image_id": i, "caption": "a"} for i in range(len(names))],
    }
    (folder / "coco.json").write_text(json.dumps(coco))
    config = SourceConfig(
        "pairs", str(folder / "coco.json"), images=str(folder / "images"), cache=str(folder / "cache")
    )
    assert reasons(open_source(config)) == ["outside the folder"] * len(names)
    assert reasons(open_source(dataclasses.replace(config, allow_outside=True))) == [""] * len(names)

    write_jsonl(
        folder / "images" / "stories.jsonl",
        [
            {"id": f"s{i}", "title": "A story", "pages": [{"text": "Page.", "image": name}]}
            for i, name in enumerate(names)
        ],
    )
    for split in ("train", "eval"):
        book = open_source(SourceConfig("storybook", str(folder / "images"), split))
        assert all_reasons(book) == [("outside the folder",)] * len(book)
        pages = open_source(SourceConfig("storybook_pages", str(folder / "images"), split))
        assert all_reasons(pages) == [("outside the folder",)] * len(book)
    assert told(open_source(SourceConfig("storybook_pages", str(folder / "images"), allow_outside=True))[0]) == [
        "Page.",
        9,
    ]
    assert not any(book.may_show(name) for name in names) and book.may_show("1.jpg")
    listed = ImageFolder(
        str(folder / "secret")
    )  # of a benchmark: what is listed below the folder is found by name, nothing else
    assert listed.find("9.jpg") is not None and all(
        listed.find(name) is None for name in [*names, "../images/1.jpg", "1.jpg"]
    )

    columns = {"a": names, "b": [{"bytes": None, "path": name} for name in names], "c": [[name] for name in names]}
    for name, column in columns.items():
        pyarrow.parquet.write_table(
            pyarrow.table({"image": column, "text": ["x"] * len(names)}), folder / f"{name}.parquet"
        )
        config = SourceConfig("parquet", str(folder / f"{name}.parquet"), images=str(folder / "images"))
        assert all_reasons(open_source(config)) == [("outside the folder",)] * len(names)
        assert all_reasons(open_source(dataclasses.replace(config, allow_outside=True))) == [()] * len(names)


def test_no_image_is_looked_for_where_the_name_is_none(folder):
    os.mkfifo(folder / "images" / "pipe.jpg")  # which would be waited for, for ever
    names = ["", ".", "here", "x" * 100_000, "a\0.jpg", "\ud800.jpg", "gone.jpg", "pipe.jpg"]
    assert set(reasons(opened("pairs", folder, [record("pairs", name) for name in names]))) == {
        "image missing",
        "outside the folder",
    }
    for name in names:
        with pytest.raises(BadImage):
            Folder(str(folder / "images"), allow_outside=True).find(name)


# ----------------------------------------------------------------------------------------------------------------------
# Pictures that were not downloaded


@pytest.mark.parametrize("form", JSON_FORMATS)
@pytest.mark.parametrize("bucket", [False, True])
def test_an_image_with_a_url_costs_no_more_than_it_must(folder, form, bucket):
    urls = ["https://nowhere/1.jpg", "http://nowhere/a/b.png?x=1", "s3://bucket/1.jpg"]
    source = opened(
        form, folder, [record(form, url) for url in urls], **({"images": "memory://pictures"} if bucket else {})
    )
    assert all_reasons(source) == [("not downloaded",)] * len(urls)
    if form in ("mmc4", "obelics"):
        assert told(source[0]) == ["One. Two."]
    else:
        assert reasons(source) == ["not downloaded"] * len(urls)


def test_urls_in_tables(folder):
    urls = ["https://nowhere/1.jpg", None, "1.jpg"]
    table = {"images": [[None, url, None] for url in urls], "texts": [["One.", None, "Two."]] * 3}
    pyarrow.parquet.write_table(pyarrow.table(table), folder / "obelics.parquet")
    source = open_source(SourceConfig("parquet", str(folder / "obelics.parquet"), images=str(folder / "images")))
    assert all_reasons(source) == [("not downloaded",), (), ()] and [told(document) for document in source] == [
        ["One. Two."]
    ] * 2 + [["One.", 1, "Two."]]
    infos = [
        [{"image_name": name, "matched_text_index": 0, "matched_sim": 0.3}]
        for name in ("https://x/y.jpg", "1.jpg", "gone.jpg")
    ]
    pyarrow.parquet.write_table(
        pyarrow.table({"text_list": [["One."]] * 3, "image_info": infos}), folder / "mmc4.parquet"
    )
    source = open_source(SourceConfig("parquet", str(folder / "mmc4.parquet"), images=str(folder / "images")))
    assert all_reasons(source) == [("not downloaded",), (), ("image missing",)] and told(source[1]) == ["One.", 1]
    pyarrow.parquet.write_table(pyarrow.table({"image": urls, "text": ["x"] * 3}), folder / "pairs.parquet")
    assert reasons(
        open_source(SourceConfig("parquet", str(folder / "pairs.parquet"), images=str(folder / "images")))
    ) == ["not downloaded", "image missing", ""]


def test_a_list_column_of_images(folder):
    rows = [
        [{"bytes": jpeg(3), "path": None}],
        [],
        None,
        [{"bytes": jpeg(1)}, {"bytes": jpeg(2)}],
        [{"bytes": None, "path": "1.jpg"}],
        [None],
    ]
    pyarrow.parquet.write_table(pyarrow.table({"images": rows, "text": ["x"] * len(rows)}), folder / "a.parquet")
    source = open_source(SourceConfig("parquet", str(folder / "a.parquet"), images=str(folder / "images")))
    assert reasons(source) == ["", "image missing", "image missing", "several images", "", "image missing"]
    assert told(source[0]) == [3, "x"] and told(source[4]) == [1, "x"]


# ----------------------------------------------------------------------------------------------------------------------
# One record among others


DIGITS, NESTED = b"9" * 5000, b"[" * 5000 + b"]" * 5000
BROKEN = [
    b'{"image": 9%s, "caption": "x"}' % DIGITS,
    b'{"x": %s}' % NESTED,
    b'{"image": "1.jpg", "caption": "x", "caption": "y"}',
    b'{"image": "1.jpg" "caption": "x"}',
    b"{nonsense}",
    b"nonsense",
    b"\xff\xfe",
    b'{"caption": "1\n2"}',
    b"[1, [2], {}]",
    b"1",
    b"null",
    b'"text, [ {"',
    b'{"caption": "\\u00zz"}',
    b"}",
    b"{} {}",
]


@pytest.mark.parametrize("chunk", [64, 2**22])
def test_one_record_that_is_no_json_costs_no_other(folder, monkeypatch, chunk):
    monkeypatch.setattr(records, "CHUNK", chunk)
    good = json.dumps(record("pairs", "1.jpg")).encode()
    content = [good, *(one for broken in BROKEN for one in (broken, good))]
    (folder / "a.json").write_bytes(b" [" + b" ,\n".join(content) + b" ]\n")
    source = open_source(
        SourceConfig("pairs", str(folder / "a.json"), images=str(folder / "images"), cache=str(folder / "cache"))
    )
    wanted = [number for broken in BROKEN for number in ([1, 0] if broken != b"{} {}" else [1, 1, 0])]
    assert source.skipped == () and [int(reason != "") for reason in reasons(source)] == [0, *wanted]
    lines = opened("pairs", folder, [one.replace(b"\n", b" ") for one in content])
    assert [reason == "" for reason in reasons(lines)] == [one is good for one in content]


def test_one_entry_of_coco_costs_no_other(folder):
    images, annotations = (
        [{"id": 7, "file_name": "1.jpg"}, "BAD", 3, {"file_name": "1.jpg"}],
        ["BAD", {"image_id": 7, "caption": "a"}, {"caption": "x"}],
    )
    text = json.dumps({"images": images, "annotations": annotations})
    for bad in (DIGITS, b"{nonsense}", NESTED, b'{"id": %s}' % DIGITS):
        (folder / "coco.json").write_bytes(text.encode().replace(b'"BAD"', bad))
        source = open_source(
            SourceConfig("pairs", str(folder / "coco.json"), images=str(folder / "images"), cache=str(folder / "cache"))
        )
        assert [told(document) for document in source] == [[1, "a"]] and [one.reason for one in source.skipped] == [
            "missing key"
        ] * 2
        (folder / "coco.json").write_bytes(b'{"info": %s, ' % bad + text.encode()[1:])
        source = open_source(
            SourceConfig("pairs", str(folder / "coco.json"), images=str(folder / "images"), cache=str(folder / "cache"))
        )
        assert [told(document) for document in source] == [[1, "a"]]


def test_what_stands_behind_a_list_is_told(folder):
    good = json.dumps([record("pairs", "1.jpg")])
    (folder / "a.json").write_text(f"{good}\n{good}")
    source = open_source(
        SourceConfig("pairs", str(folder / "a.json"), images=str(folder / "images"), cache=str(folder / "cache"))
    )
    assert len(source) == 1 and [one.reason for one in source.skipped] == ["more behind the list"]


def test_ids_that_are_no_text_decide_no_split(folder):
    """Keys and splits of hostile records are asked for as well."""
    content = [record("pairs", value) for value in VALUES] + [record("llava", value) for value in VALUES]
    for form in ("pairs", "llava"):
        source = opened(form, folder, content)
        assert all(isinstance(source.key(index), str) for index in range(len(source)))
    stories = [STORY | {"id": f"\ud800{i}", "cover": f"{i}", "pages": STORY["pages"][1:]} for i in range(3)]
    write_jsonl(folder / "stories.jsonl", stories)
    assert len(open_source(SourceConfig("storybook", str(folder)))) == 2


def test_tables_with_values_of_other_types(folder):
    columns = {
        "text": [["x"], [1], [b"\xff"], [True], [{"a": 1}]],
        "image": [[1], [True], [{"a": 1}], [[1, 2]], [[None]]],
        "texts": [[3], ["x"], [[1]]],
        "images": [[[1]], [5], [{"bytes": b"x"}]],
        "conversations": [[["x"]], [[{"from": 1, "value": "x"}]]],
        "image_info": [["x"], [[1]]],
    }
    for i, (text, image) in enumerate(
        [(text, image) for text in ("text", "texts", "conversations", "image_info") for image in ("image", "images")]
    ):
        for j, (words, shown) in enumerate([(words, shown) for words in columns[text] for shown in columns[image]]):
            table = {text: words, image: shown} | ({"text_list": [["One."]]} if text == "image_info" else {})
            pyarrow.parquet.write_table(pyarrow.table(table), folder / f"{i}-{j}.parquet")
            source = open_source(SourceConfig("parquet", str(folder / f"{i}-{j}.parquet")))
            assert len(all_reasons(source)) == 1
    invalid = pyarrow.StringArray.from_buffers(
        1, pyarrow.py_buffer(np.array([0, 2], np.int32).tobytes()), pyarrow.py_buffer(b"\xff\xfe")
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": invalid}), folder / "bytes.parquet")
    assert reasons(open_source(SourceConfig("parquet", str(folder / "bytes.parquet")))) == ["bad value"]
    for cell in ("1.jpg", 3, {"path": "/etc/passwd"}):
        with pytest.raises(Unusable, match="wrong type"):
            tfds._document({"text": b"x", "image": cell}, "", "")


# ----------------------------------------------------------------------------------------------------------------------
# Similarity, marks, turns


@pytest.mark.parametrize(
    "value, passes",
    [("NaN", False), ("Infinity", False), ("-Infinity", False), ("0.25", True), ("1", True), ("0.2", False)],
)
def test_only_a_number_passes_the_similarity_filter(folder, value, passes):
    def text(form):
        return json.dumps(record(form, "1.jpg")).replace("0.3", value).encode()

    assert all_reasons(opened("pairs", folder, [text("pairs")], min_similarity=0.25)) == [
        () if passes else ("low similarity",)
    ]
    source = opened("mmc4", folder, [text("mmc4")])
    assert all_reasons(source) == [() if passes else ("low similarity",)] and told(source[0]) == (
        ["One.", 1, "Two."] if passes else ["One. Two."]
    )
    write_tar(
        folder / "a.tar", [("1.jpg", jpeg(1)), ("1.json", text("pairs")), ("2.jpg", jpeg(1)), ("2.json", text("mmc4"))]
    )
    config = SourceConfig("webdataset", str(folder / "a.tar"), min_similarity=0.25, cache=str(folder / "cache"))
    assert all_reasons(open_source(config)) == [() if passes else ("low similarity",)] * 2
    pyarrow.parquet.write_table(
        pyarrow.table({"image": [jpeg(1)], "text": ["x"], "similarity": [float(value)]}), folder / "a.parquet"
    )
    assert all_reasons(open_source(SourceConfig("parquet", str(folder / "a.parquet"), min_similarity=0.25))) == [
        () if passes else ("low similarity",)
    ]


def test_a_least_similarity_is_a_number():
    for value in (float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="min_similarity: must be finite"):
            SourceConfig("pairs", "x", min_similarity=value)


def test_byte_order_marks_are_no_words(folder):
    mark = "\ufeff"
    for form, shown in {
        "pairs": [1, "a cat"],
        "mmc4": ["One.", 1, "Two."],
        "obelics": ["One.", 1, "Two."],
        "llava": [1, " What?", "A cat."],
    }.items():
        content = json.loads(
            json.dumps(record(form, "1.jpg"))
            .replace('"a cat"', f'"{mark} a cat"')
            .replace('"One', f'"{mark}One')
            .replace('"Two', f'" {mark}Two')
            .replace('"<image>', f'"{mark}<image>')
            .replace('"A cat', f'"{mark}A cat')
        )
        line = json.dumps(content, ensure_ascii=False).encode()
        (folder / "a.jsonl").write_bytes(mark.encode() + line + b"\n" + mark.encode() + line)
        source = open_source(
            SourceConfig(form, str(folder / "a.jsonl"), images=str(folder / "images"), cache=str(folder / "cache"))
        )
        assert [told(document) for document in source] == [shown] * 2
    write_tar(
        folder / "a.tar",
        [
            ("1.jpg", jpeg(1)),
            ("1.txt", f"{mark}a cat"),
            ("2.jpg", jpeg(1)),
            ("2.json", mark.encode() + b'{"caption": "\\ufeffa cat"}'),
        ],
    )
    assert [
        told(document)
        for document in open_source(SourceConfig("webdataset", str(folder / "a.tar"), cache=str(folder / "cache")))
    ] == [[1, "a cat"]] * 2
    pyarrow.parquet.write_table(pyarrow.table({"image": [jpeg(1)], "text": [f"{mark}a cat"]}), folder / "a.parquet")
    assert told(open_source(SourceConfig("parquet", str(folder / "a.parquet")))[0]) == [1, "a cat"]
    assert told(tfds._document({"text": f"{mark}a cat".encode()}, "", "")) == ["a cat"]
    assert storybook._parse(mark.encode() + json.dumps(STORY | {"title": f"{mark}A story"}).encode()).title == "A story"


def test_speakers_take_turns(folder):
    user, answer = ("human", "What is this?"), ("gpt", "A cat.")
    good = [
        [user, answer],
        [("system", "Be brief."), user, answer, user, answer],
        [answer, user, answer],
        [user, answer, user],
        [("gpt", " "), user, answer, ("human", "")],
    ]
    glued = [
        [user, ("human", "And that?"), answer],
        [user, answer, answer],
        [("system", "a"), ("system", "b"), user, answer],
        [user, ("gpt", ""), ("human", "And that?"), answer],
        [user, answer, ("system", "x"), user, answer],
    ]
    source = opened("llava", folder, [talk(*turns) for turns in [*good, *glued]])
    assert reasons(source) == [""] * len(good) + ["turns do not alternate"] * len(glued)
    assert told(source[2]) == ["A cat.", "What is this?", "A cat."] and told(source[4]) == ["What is this?", "A cat."]
    chats = [good[2], [answer], [answer, user, answer, answer], [("system", "s"), answer, user, answer]]
    dropped = opened("llava", folder, [talk(*turns) for turns in chats], drop_first_answer=True)
    assert (
        reasons(dropped) == ["", "no text", "turns do not alternate", ""]
        and told(dropped[0]) == ["What is this?", "A cat."]
        and len(dropped[3].parts) == 3
    )
    assert dropped.fingerprint.endswith("{'drop_first_answer': True}")
    write_tar(folder / "a.tar", [("1.json", talk(answer, user, answer))])
    pyarrow.parquet.write_table(
        pyarrow.table({"conversations": [talk(answer, user, answer)["conversations"]]}), folder / "a.parquet"
    )
    for form, name in (("webdataset", "a.tar"), ("parquet", "a.parquet")):
        config = SourceConfig(form, str(folder / name), cache=str(folder / "cache"))
        assert (
            len(open_source(config)[0].parts) == 3
            and len(open_source(dataclasses.replace(config, drop_first_answer=True))[0].parts) == 2
        )


def test_images_that_a_source_left_out_are_counted(folder):
    names = {"https://x/y": 0.3, "gone.jpg": 0.3, "/etc/passwd": 0.3, "1.jpg": 0.1}
    infos = [
        {"image_name": name, "matched_text_index": 0, "matched_sim": similarity} for name, similarity in names.items()
    ]
    document = opened("mmc4", folder, [{"text_list": ["One."], "image_info": infos}])[0]
    assert [error.reason for error in keep(document, Filters())[1]] == [
        "not downloaded",
        "image missing",
        "outside the folder",
        "low similarity",
    ]
    assert not any(isinstance(part, Image) for part in document.parts)


# ----------------------------------------------------------------------------------------------------------------------
# Records without end


def test_a_record_without_end_is_left_out(folder, monkeypatch):
    """It takes no memory: a line may be as long as the file, an unclosed record of a list too."""
    monkeypatch.setattr(records, "CHUNK", 64)
    monkeypatch.setattr(records, "LONGEST", 500)
    valid = json.dumps(record("pairs", "1.jpg")).encode()
    source = opened("pairs", folder, [valid, b"\0" * 1000, b" " * 1000, valid])
    assert [told(document)[0] for document in source] == [1, 1] and [bad.reason for bad in source.skipped] == [
        "record too large"
    ]
    assert source.skipped[0].name.endswith(":2") and source.index.name(1).endswith(":4")
    for endless in (b'{"caption": "' + b"x" * 5000, b'{"x":' * 500, b'[{"a": 1}' * 500):
        (folder / "records.jsonl").write_bytes(b"[" + valid + b", " + endless)
        source = open_source(
            SourceConfig(
                "pairs", str(folder / "records.jsonl"), images=str(folder / "images"), cache=str(folder / "cache")
            )
        )
        assert told(source[0])[0] == 1 and "record too large" in [bad.reason for bad in source.skipped], source.skipped
