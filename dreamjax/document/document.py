"""Document: a tuple of parts, each text or an image.

Sources yield documents, training packs them into rows, `DreamLLM.generate` takes one and returns one, evaluation builds
and reads them. Parts carry marks (supervised, is_input, is_target) and, in conversations, the role of the speaker. A
document is written as JSON for programs and as a self-contained HTML page for people.
"""

import base64
import collections.abc
import dataclasses
import json
import os
import reprlib
from html import escape

import PIL.Image

from dreamjax.config.aliases import current_names, earlier_names
from dreamjax.document import image_io
from dreamjax.document.html import RELOAD, article, html_page
from dreamjax.document.parts import Image, Part, Text, data_uri, describe, is_image_source
from dreamjax.errors import BadImage
from dreamjax.filesystem import atomic, containment

KINDS = ("", "pair")


@dataclasses.dataclass(frozen=True, repr=False)
class Document:
    """Interleaved text and images, in reading order.

    A "pair" is an image and its caption, of which either can be predicted from the other: training chooses. Of all
    other documents the marks of their parts say all.
    """

    parts: tuple[Part, ...]
    id: str = ""
    notes: tuple[str, ...] = ()  # what the sampler says about how it ended, such as "stopped: token limit"
    kind: str = ""  # one of KINDS
    # images that its source could not give, and why
    left_out: tuple[BadImage, ...] = dataclasses.field(default=(), compare=False)

    def __post_init__(self):
        object.__setattr__(self, "parts", tuple(self.parts))
        object.__setattr__(self, "notes", tuple(self.notes))
        if self.kind not in KINDS:
            raise ValueError(f"kind: {self.kind!r} is none of {', '.join(map(repr, KINDS))}")
        for i, part in enumerate(self.parts):
            if not isinstance(part, Part):
                raise TypeError(
                    f"parts[{i}]: {describe(part)} is neither Text nor Image; Document.of takes plain "
                    "strings and pictures"
                )

    def __repr__(self) -> str:
        """One short line, whatever the document holds: beginning of the text, with <image> for images."""
        words = "".join(part.text if isinstance(part, Text) else " <image> " for part in self.parts)
        facts = [repr(_shorten(words, 60)), f"{len(self.parts)} parts"]
        facts += [
            f"{name}={reprlib.repr(getattr(self, name))}" for name in ("id", "kind", "notes") if getattr(self, name)
        ]
        return f"Document({', '.join(facts)})"

    def _repr_html_(self) -> str:
        """The document as notebooks show it."""
        return html_article(self)

    @classmethod
    def of(cls, content) -> "Document":
        """A document from what people have at hand: a Document, a text, a picture, or a list of texts and pictures.

        A str is text; a picture is an Image, a Pillow image, an array, bytes, or a pathlib.Path. Raises TypeError,
        naming the item.
        """
        if isinstance(content, Document):
            return content
        if isinstance(content, (list, tuple)):
            return cls(tuple(_as_part(item, f"item {i}") for i, item in enumerate(content)))
        return cls((_as_part(content, "content"),))

    @property
    def text(self) -> str:
        """All text without the pictures; a space stands where a picture parted two words."""
        text, parted = "", False
        for part in self.parts:
            if isinstance(part, Image):
                parted = True
            elif part.text:
                needs_space = parted and text and not text[-1].isspace() and not part.text[0].isspace()
                text += " " + part.text if needs_space else part.text
                parted = False
        return text

    def without(self, number: int) -> "Document":
        """The document without the picture parts[number]; a space stands where it parted two words of one speaker."""
        before, after = self.parts[:number], self.parts[number + 1 :]
        if (
            before
            and after
            and isinstance(before[-1], Text)
            and isinstance(after[0], Text)
            and before[-1].role == after[0].role
        ):
            if (
                before[-1].text
                and after[0].text
                and not before[-1].text[-1].isspace()
                and not after[0].text[0].isspace()
            ):
                after = (dataclasses.replace(after[0], text=f" {after[0].text}"), *after[1:])
        return dataclasses.replace(self, parts=before + after)

    @property
    def images(self) -> list[PIL.Image.Image]:
        """All pictures, opened."""
        return [part.pil() for part in self.parts if isinstance(part, Image)]

    def to_json(self, image_files: collections.abc.Sequence[str | os.PathLike] | None = None) -> dict:
        """A dict fit for JSON. Pictures are the given file names, one each, or else PNG data URIs."""
        count = sum(isinstance(part, Image) for part in self.parts)
        if image_files is not None and len(image_files) != count:
            raise ValueError(f"image_files: {len(image_files)} names for {count} pictures")
        names = iter(image_files or ())
        parts = []
        for part in self.parts:
            if isinstance(part, Text):
                parts.append({"type": "text", "text": part.text, "supervised": part.supervised, "role": part.role})
            else:
                source = data_uri(part.pil()) if image_files is None else os.fspath(next(names))
                parts.append(
                    {
                        "type": "image",
                        "image": source,
                        "is_input": part.is_input,
                        "is_target": part.is_target,
                        "role": part.role,
                    }
                )
        return {"id": self.id, "kind": self.kind, "parts": parts, "notes": list(self.notes)}

    def to_earlier_json(self) -> dict:
        """`to_json` with the names of version 0.1, over which stored digests of documents are computed."""
        record = self.to_json()
        kinds = (Text if isinstance(part, Text) else Image for part in self.parts)
        return record | {"parts": [earlier_names(k, part) for k, part in zip(kinds, record["parts"], strict=True)]}

    @classmethod
    def from_json(cls, record: dict, root: str | os.PathLike | None = None, allow_outside: bool = False) -> "Document":
        """The inverse of `to_json`. Raises ValueError, naming the part, for whatever else a record may be.

        File names are looked up under `root` and have to lie there; without one, every picture has to be in the record
        itself. `allow_outside`, for records of one's own, takes absolute names, "..", links and URLs too.
        """
        parts = record.get("parts") if isinstance(record, dict) else None
        if not isinstance(parts, list):
            raise ValueError("a document is an object with a list under the key 'parts'")
        name, notes, kind = record.get("id", ""), record.get("notes", []), record.get("kind", "")
        if not isinstance(name, str | int):
            raise ValueError(f"id: {reprlib.repr(name)} is no text")
        if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
            raise ValueError(f"notes: {reprlib.repr(notes)} is no list of texts")
        decoded = tuple(_part_from_json(part, f"parts[{i}]", root, allow_outside) for i, part in enumerate(parts))
        return cls(decoded, str(name), tuple(notes), kind)

    def save_json(self, path: str | os.PathLike):
        """Writes `to_json()`, pictures embedded."""
        atomic.write_text(path, json.dumps(self.to_json()) + "\n")

    def save_html(self, path: str | os.PathLike, growing: bool = False):
        """Writes a page that needs no other file.

        The id, where there is one, is its headline. A `growing` one reloads itself every second.
        """
        headline = f"<h1>{escape(self.id)}</h1>\n" if self.id else ""
        page = html_page(
            self.id or _shorten(self.text, 60) or "A document",
            headline + html_article(self),
            RELOAD if growing else "",
        )
        atomic.write_text(path, page, errors="replace")

    def save_images(self, folder: str | os.PathLike) -> list:
        """Writes the pictures as image_0.png, image_1.png, ... and returns their paths in order."""
        path = _path(folder)
        path.mkdir(parents=True, exist_ok=True)
        names = []
        for i, image in enumerate(self.images):
            names.append(path / f"image_{i}.png")
            atomic.write_bytes(names[-1], image_io.to_png(image))
        return names


def _as_part(item, name: str) -> Part:
    if isinstance(item, Part):
        return item
    if isinstance(item, str):
        return Text(item)
    if is_image_source(item):
        return Image(item)
    raise TypeError(
        f"{name}: {describe(item)} is neither text nor a picture (str, Text, Image, Pillow image, uint8 "
        "array, bytes, pathlib.Path)"
    )


def _part_from_json(part, name: str, root, allow_outside: bool) -> Part:
    kind = part.get("type") if isinstance(part, dict) else part
    content = part.get(kind) if kind in ("text", "image") and isinstance(part, dict) else None
    if not isinstance(content, str):
        raise ValueError(
            f"{name}: {reprlib.repr(part)} is neither {{'type': 'text', 'text': ...}} nor {{'type': "
            f"'image', 'image': ...}}"
        )
    part = current_names(Text if kind == "text" else Image, part)
    marks = {key: part.get(key, True) for key in (("supervised",) if kind == "text" else ("is_input", "is_target"))}
    for key, mark in marks.items():
        if not isinstance(mark, bool):
            raise ValueError(f"{name}: {key}: {reprlib.repr(mark)} is neither true nor false")
    try:
        if kind == "text":
            return Text(content, role=part.get("role"), **marks)
        return Image(_source_from_json(content, root, allow_outside), role=part.get("role"), **marks)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _source_from_json(name: str, root, allow_outside: bool) -> bytes | str:
    if name.startswith("data:"):
        header, _, payload = name.partition(",")
        if not header.endswith(";base64"):
            raise ValueError(f"data URI {header[:60]!r} is not base64")
        return base64.b64decode(payload, validate=True)
    if allow_outside:
        return name if root is None or "://" in name else os.path.join(root, name)
    if root is None:
        raise ValueError(f"names the file {name[:200]!r}, and no folder is given in which it may lie")
    return containment.inside(root, name)


def _shorten(text: str, length: int) -> str:
    words = " ".join(text.split())
    return words if len(words) <= length else words[: length - 1].rstrip() + "…"


def _path(path: str | os.PathLike):
    from etils import epath  # gs:// and local paths alike

    return epath.Path(path)


def html_article(document: Document, heading: str = "") -> str:
    """A document as an HTML article that needs no other file; `heading` is HTML that goes before it."""
    return article(document.parts, document.notes, heading)


def render_html(documents: collections.abc.Iterable[Document], title: str) -> str:
    """One self-contained page with all documents below each other.

    Text as paragraphs, pictures embedded, turns labelled by role.
    """
    articles = "\n".join(
        html_article(document, f"<h2>{escape(document.id)}</h2>" if document.id else "") for document in documents
    )
    return html_page(title, f"<h1>{escape(title)}</h1>\n{articles}")
