"""Records of every format with each value replaced by one of another type: a document, or one named reason."""

import copy
import functools
import json

import pytest
from format_records import JSON_FORMATS, STORY, VALUES, record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_data import jpeg, mmc4

from dreamjax.data.sources import (
    array_record,
    conversations,
    interleaved,
    json_documents,
    pairs,
    storybook,
)
from dreamjax.data.sources.records import Folder, Unusable, bad_record, parse_json
from dreamjax.document import Document, Text
from dreamjax.errors import BadRecord


def places(node, path=()):
    """Where every value of a record stands, itself included."""
    yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def with_value(node, path, value):
    if not path:
        return value
    changed = copy.copy(node)
    changed[path[0]] = with_value(node[path[0]], path[1:], value)
    return changed


PARTS = [
    {"text": "a", "supervised": True, "role": None},
    {"bytes": 3, "is_input": True, "is_target": False, "role": "user"},
]
HEAD = {"version": 1, "id": "d", "kind": "", "key": "k", "parts": PARTS}
COCO = {"images": [{"id": 7, "file_name": "1.jpg"}], "annotations": [{"image_id": 7, "id": 1, "caption": "a"}]}


def packed(head) -> bytes:
    data = json.dumps(head).encode()
    return len(data).to_bytes(4, "little") + data + b"abc"


def read_story(data: bytes):
    story = storybook._parse(data)
    storybook.assign_splits([story])
    return Document((Text(story.title), *(Text(text) for text, _ in story.pages)))


def read_any(folder: str, data: bytes) -> Document:
    """As a table's row or a tar's JSON are read."""
    content = parse_json(data)
    if not json_documents.is_document(content):
        raise Unusable("no text")
    return json_documents.document_of(content, Folder(folder).find)


def readers(folder: str) -> list[tuple[object, object]]:
    """(a record, what reads its JSON) of every format."""
    by_form = {
        "pairs": pairs.parse,
        "mmc4": interleaved.mmc4_document,
        "obelics": interleaved.obelics_document,
        "llava": conversations.conversation,
    }

    def read(form, data):
        return by_form[form](parse_json(data), Folder(folder) if form == "pairs" else Folder(folder).find)

    def instruct(data):
        return conversations.instruction(parse_json(data), Folder(folder).find)

    found = [(record(form, "1.jpg"), functools.partial(read, form)) for form in by_form]
    found += [
        ({"image": "1.jpg", "text": ["a", "b"]}, functools.partial(read, "pairs")),
        (record("llava", ["1.jpg"]), functools.partial(read, "llava")),
    ]
    answers = [mmc4(1, 2, [1]), record("instruct", "1.jpg"), {"image": "1.jpg", "text": "x"}]
    found += [(answer | {"instruction": "Draw."}, instruct) for answer in answers]
    found += [(record(form, "1.jpg"), functools.partial(read_any, folder)) for form in JSON_FORMATS[1:]]
    return found + [(STORY, read_story), (HEAD, lambda data: array_record.decode(packed(json.loads(data))))]


def outcome(read, data: bytes) -> str:
    """ "" for a document, or the reason that there is none."""
    try:
        with bad_record("r"):
            document = read(data)
    except BadRecord as error:
        assert error.reason and "\n" not in str(error) and len(str(error)) < 500
        return error.reason
    assert isinstance(document, Document) and all(
        isinstance(part.text, str) if isinstance(part, Text) else part.source for part in document.parts
    )
    return ""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("1.jpg", "1-0.jpg"):
        (folder / name).write_bytes(jpeg(1))
    return str(folder)


def test_every_value_of_every_format_replaced_by_others(images):
    tried = set()
    for content, read in readers(images):
        assert outcome(read, json.dumps(content).encode()) == "", content
        for place in places(content):
            for value in VALUES:
                tried.add(outcome(read, json.dumps(with_value(content, place, value)).encode()))
    assert {
        "",
        "wrong type",
        "missing key",
        "outside the folder",
        "not downloaded",
        "bad index",
        "no document",
    } <= tried


SOME_KEYS = st.sampled_from(["image", "text", "from", "value", "bytes", "matched_text_index", "x"])
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SOME_KEYS, inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, derandomize=True, max_examples=100, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_records_of_any_form(images, data):
    content, read = data.draw(st.sampled_from(readers(images)))
    for _ in range(data.draw(st.integers(1, 3))):
        content = with_value(content, data.draw(st.sampled_from(list(places(content)))), data.draw(ANY))
    outcome(read, json.dumps(content).encode())
