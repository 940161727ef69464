"""Documents: building them, their text, JSON there and back, and the HTML page."""

import html.parser
import io
import json
import pathlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamjax.document import KINDS, ROLES, Document, Image, Text, render_html
from dreamjax.document.image_io import to_png
from dreamjax.errors import BadImage


def make_image(side=4, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def assert_same(one, other):
    assert (one.id, one.notes, one.kind, len(one.parts)) == (other.id, other.notes, other.kind, len(other.parts))
    for a, b in zip(one.parts, other.parts, strict=True):
        if isinstance(a, Text):
            assert a == b
        else:
            assert (a.is_input, a.is_target, a.role) == (b.is_input, b.is_target, b.role)
            np.testing.assert_array_equal(np.asarray(a.pil()), np.asarray(b.pil()))


# ----------------------------------------------------------------------------------------------------------------------
# Building


def test_of_takes_what_people_have(tmp_path):
    (tmp_path / "a.png").write_bytes(to_png(make_image()))
    pil = PIL.Image.fromarray(make_image())
    items = [
        "a str is text.png",
        pil,
        make_image(),
        to_png(make_image()),
        tmp_path / "a.png",
        Text("x", role="user"),
        Image("file.png"),
    ]
    document = Document.of(items)
    assert [type(part) for part in document.parts] == [Text, Image, Image, Image, Image, Text, Image]
    for part in document.parts[1:5]:
        np.testing.assert_array_equal(np.asarray(part.pil()), make_image())
    assert Document.of(document) is document
    assert Document.of("hello").parts == (Text("hello"),)
    assert isinstance(Document.of(pil).parts[0], Image)
    assert Document.of([]).parts == ()


def test_wrong_items_are_named():
    with pytest.raises(TypeError, match=r"item 1: 3\.5 \(float\)"):
        Document.of(["a", 3.5])
    with pytest.raises(TypeError, match=r"content: None \(NoneType\)"):
        Document.of(None)
    with pytest.raises(TypeError, match=r"parts\[0\]: 'a' \(str\).*Document\.of"):
        Document(("a",))
    with pytest.raises(TypeError, match="not bytes"):
        Text(b"a")
    with pytest.raises(TypeError, match="not int"):
        Image(3)
    for part in (lambda: Text("a", role="robot"), lambda: Image("a.png", role="robot")):
        with pytest.raises(ValueError, match="'robot' is none of system, user, assistant"):
            part()
    with pytest.raises(ValueError, match="kind: 'film' is none of '', 'pair'"):
        Document((), kind="film")


def test_images_open_late():
    document = Document.of(["a", pathlib.Path("nowhere.png")])
    assert document.text == "a"
    with pytest.raises(BadImage, match="nowhere.png: no such file"):
        document.images  # noqa: B018


def test_text_has_single_spaces_where_images_stood():
    image = Image(make_image())
    for parts, text in [
        (["A cat.", image, "A dog."], "A cat. A dog."),
        (["A cat. ", image, "A dog."], "A cat. A dog."),
        (["A cat.", image, image, " A dog."], "A cat. A dog."),
        (["A c", Text("at", supervised=False)], "A cat"),
        (["A", image, "", "B"], "A B"),
        ([image, "A", image], "A"),
        ([image], ""),
    ]:
        assert Document.of(parts).text == text
    assert [opened.size for opened in Document.of(["A", image, image]).images] == [(4, 4), (4, 4)]


# ----------------------------------------------------------------------------------------------------------------------
# JSON

roles = st.sampled_from([None, *ROLES])
any_text = st.text(st.characters(), max_size=20)
parts = st.one_of(
    st.builds(Text, any_text, st.booleans(), roles),
    st.builds(Image, st.integers(2, 5).map(make_image), st.booleans(), st.booleans(), roles),
)
documents = st.builds(
    Document,
    st.lists(parts, max_size=5).map(tuple),
    any_text,
    st.lists(any_text, max_size=2).map(tuple),
    st.sampled_from(KINDS),
)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(documents)
def test_json_round_trip(document):
    assert_same(Document.from_json(json.loads(json.dumps(document.to_json()))), document)


def test_saved_files_round_trip(tmp_path):
    document = Document(
        (Text("naïve 日本\ud800"), Image(make_image(seed=1)), Image(make_image(seed=2), is_target=False)),
        "é",
        ("stopped: token limit",),
    )
    document.save_json(tmp_path / "d.json")
    assert_same(Document.from_json(json.loads((tmp_path / "d.json").read_text())), document)
    paths = document.save_images(tmp_path / "pictures")
    assert [path.name for path in paths] == ["image_0.png", "image_1.png"]
    names = [path.name for path in paths]
    record = document.to_json(names)
    assert [part["image"] for part in record["parts"][1:]] == names
    assert_same(Document.from_json(record, root=tmp_path / "pictures"), document)
    with pytest.raises(ValueError, match="1 names for 2 pictures"):
        document.to_json(names[:1])


def test_defaults_may_be_left_out_of_json():
    assert Document.from_json({"parts": [{"type": "text", "text": "a"}]}) == Document((Text("a"),))


def test_wrong_json_is_named():
    for record, message in [
        ([], "list under the key 'parts'"),
        ({"parts": "a"}, "list under the key 'parts'"),
        ({"parts": [{"type": "video", "video": "a"}]}, r"parts\[0\]: .*neither"),
        ({"parts": [{"type": "text", "text": "a"}, {"type": "image"}]}, r"parts\[1\]: .*neither"),
        ({"parts": ["a"]}, r"parts\[0\]: 'a' is neither"),
        ({"parts": [{"type": "text", "text": "a", "role": "robot"}]}, r"parts\[0\]: role: 'robot'"),
        ({"parts": [{"type": "image", "image": "data:image/png;base64,%%"}]}, r"parts\[0\]: "),
        ({"parts": [{"type": "image", "image": "data:image/png,abc"}]}, r"parts\[0\]: .*not base64"),
    ]:
        with pytest.raises(ValueError, match=message):
            Document.from_json(record)


# ----------------------------------------------------------------------------------------------------------------------
# HTML


class Page(html.parser.HTMLParser):
    """The tags with their attributes and the visible text; fails on tags that do not nest."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.stack = [], [], []
        self.feed(page)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] not in ("style", "title"):
            self.texts.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def test_page_is_escaped_and_self_contained(tmp_path):
    evil = "<script>alert(\"x\")</script> & 'quotes'"
    document = Document((Text(evil), Image(make_image())), evil, (evil,))
    document.save_html(tmp_path / "d.html")
    page = Page((tmp_path / "d.html").read_text(encoding="utf-8"))
    assert not page.all("script") and not page.all("link")
    assert "".join(page.texts).count(evil) == 3  # headline, text, note
    [image] = page.all("img")
    assert image["src"].startswith("data:image/png;base64,") and evil in image["alt"]
    assert page.all("html") == [{"lang": "en"}]


@settings(deadline=None, derandomize=True, max_examples=30)
@given(documents)
def test_any_document_renders(document):
    page = Page(render_html([document, document], document.id))
    assert len(page.all("article")) == 2
    assert len(page.all("img")) == 2 * len(document.images)


def test_page_embeds_the_very_pixels():
    page = Page(render_html([Document((Image(make_image(9)),))], "t"))
    payload = Document.from_json({"parts": [{"type": "image", "image": page.all("img")[0]["src"]}]})
    np.testing.assert_array_equal(np.asarray(payload.images[0]), make_image(9))
    assert PIL.Image.open(io.BytesIO(payload.parts[0].source)).format == "PNG"


def test_small_images_are_enlarged_in_whole_steps():
    page = Page(render_html([Document.of([make_image(16), make_image(128)])], "t"))
    small, large = page.all("img")
    assert (small["class"], small["width"], small["height"]) == ("small", "288", "288")
    assert ("class" not in large, large["width"]) == (True, "128")


def test_paragraphs_and_turns():
    parts = (
        Text("One.", role="user"),
        Image(make_image(), role="user"),
        Text("Two\n\nthree ", role="assistant"),
        Text("four.", role="assistant"),
    )
    page = Page(render_html([Document(parts)], "t"))
    assert [attrs["class"] for attrs in page.all("section")] == ["turn user", "turn assistant"]
    assert [text for text in page.texts if text.strip()] == ["t", "User", "One.", "Assistant", "Two", "three four."]
    assert page.all("img")[0]["alt"] == "Picture 1, after the words: One."


# ----------------------------------------------------------------------------------------------------------------------
# Without a picture


def test_a_document_without_one_of_its_images():
    first, second = Image(b"1"), Image(b"2")
    document = Document((Text("A goat."), first, second, Text("The end.")), id="goat")
    assert document.without(1).parts == (document.parts[0], second, document.parts[3])
    assert (
        document.without(1).without(1).parts == (Text("A goat."), Text(" The end."))
        and document.without(1).id == "goat"
    )
    assert Document((Text("A "), first, Text("goat."))).without(1).parts == (Text("A "), Text("goat."))
    assert Document((first, Text("goat."))).without(0).parts == (Text("goat."),)
    turns = Document((Text("A?", role="user"), Image(b"1", role="user"), Text("B.", role="assistant")))
    assert turns.without(1).parts == (turns.parts[0], turns.parts[2])


def test_a_document_is_one_line_and_shown_in_notebooks():
    image = Image(np.zeros((64, 64, 3), np.uint8), is_target=False)
    document = Document((Text("Once a red goat jumps up. " * 99), image), id="goat")
    assert (
        repr(document) == "Document('Once a red goat jumps up. Once a red goat jumps up. Once a…', 2 parts, id='goat')"
    )
    assert repr(image) == "Image(<uint8 [64, 64, 3]>, is_target=False)"
    assert repr(Image(b"x" * 5000, role="user")) == "Image(<5,000 bytes>, role='user')"
    page = document._repr_html_()
    assert page.startswith("<article>") and "Once a red goat" in page and "data:image/png" in page
