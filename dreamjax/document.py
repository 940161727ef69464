"""The one type of the whole house: a document is a tuple of parts, each text or a picture.

Sources yield documents, training packs them into rows, `DreamLLM.generate` takes one and returns one, evaluation builds
and reads them. Parts carry marks (what is learned, seen, dreamed) and, in conversations, the role of who speaks. Here
are also a document's two faces: JSON for programs and a self-contained HTML page for people.
"""

import base64
import collections.abc
import dataclasses
import html
import itertools
import json
import os
import re
import reprlib

import numpy as np
import PIL.Image

from dreamjax import atomic, images, paths

ROLES = ("system", "user", "assistant")
KINDS = ("", "pair")
_PNG_URI = "data:image/png;base64,"


@dataclasses.dataclass(frozen=True)
class Text:
    """A stretch of text; `learned` says whether it is a target of the language loss."""

    text: str
    learned: bool = True
    role: str | None = None  # one of ROLES, or None outside conversations

    def __post_init__(self):
        if not isinstance(self.text, str):
            raise TypeError(f"a text is a str, not {type(self.text).__name__}")
        _check_role(self.role)


@dataclasses.dataclass(frozen=True, eq=False)
class Image:
    """A picture: a Pillow image, a uint8 [height, width, 3] array, the bytes of an encoded file, a path, or what is
    images.Stored.

    Nothing is opened before `pil` is called, and nothing is kept: a document of a thousand files is small.
    """

    source: images.Source
    seen: bool = True  # the encoder shows it to what follows
    dreamed: bool = True  # it is a target of the denoising loss
    role: str | None = None

    def __post_init__(self):
        if not _is_picture(self.source) and not isinstance(self.source, str):
            raise TypeError(f"a picture is a Pillow image, an array, bytes or a path, not {type(self.source).__name__}")
        _check_role(self.role)

    def pil(self, draft: int = 0) -> PIL.Image.Image:
        """The picture as upright RGB on white (`images.open_rgb`, which explains `draft`); raises BadImage."""
        return images.open_rgb(self.source, draft)


Part = Text | Image


@dataclasses.dataclass(frozen=True)
class Document:
    """Interleaved text and pictures, in reading order.

    A "pair" is a picture and its caption, of which either can be learned from the other: training chooses. Of all other
    documents the marks of their parts say all.
    """

    parts: tuple[Part, ...]
    id: str = ""
    notes: tuple[str, ...] = ()  # what the sampler says about how it ended, such as "stopped: token limit"
    kind: str = ""  # one of KINDS
    left_out: tuple[images.BadImage, ...] = dataclasses.field(
        default=(), compare=False, repr=False
    )  # pictures that its source could not give, and why

    def __post_init__(self):
        object.__setattr__(self, "parts", tuple(self.parts))
        object.__setattr__(self, "notes", tuple(self.notes))
        if self.kind not in KINDS:
            raise ValueError(f"kind: {self.kind!r} is none of {', '.join(map(repr, KINDS))}")
        for i, part in enumerate(self.parts):
            if not isinstance(part, Part):
                raise TypeError(
                    f"parts[{i}]: {_describe(part)} is neither Text nor Image; Document.of takes plain "
                    "strings and pictures"
                )

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
                parts.append({"type": "text", "text": part.text, "learned": part.learned, "role": part.role})
            else:
                source = _data_uri(part.pil()) if image_files is None else os.fspath(next(names))
                parts.append(
                    {"type": "image", "image": source, "seen": part.seen, "dreamed": part.dreamed, "role": part.role}
                )
        return {"id": self.id, "kind": self.kind, "parts": parts, "notes": list(self.notes)}

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
        headline = f"<h1>{html.escape(self.id)}</h1>\n" if self.id else ""
        page = html_page(
            self.id or _shorten(self.text, 60) or "A document",
            headline + html_article(self),
            _RELOAD if growing else "",
        )
        atomic.write_text(path, page, errors="replace")

    def save_images(self, folder: str | os.PathLike) -> list:
        """Writes the pictures as image_0.png, image_1.png, ... and returns their paths in order."""
        folder = _path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = []
        for i, picture in enumerate(self.images):
            names.append(folder / f"image_{i}.png")
            atomic.write_bytes(names[-1], images.to_png(picture))
        return names


def _check_role(role: str | None):
    if role is not None and role not in ROLES:
        raise ValueError(f"role: {role!r} is none of {', '.join(ROLES)}")


def _is_picture(item) -> bool:
    return isinstance(item, (PIL.Image.Image, np.ndarray, bytes, os.PathLike, images.Stored))


def _as_part(item, where: str) -> Part:
    if isinstance(item, Part):
        return item
    if isinstance(item, str):
        return Text(item)
    if _is_picture(item):
        return Image(item)
    raise TypeError(
        f"{where}: {_describe(item)} is neither text nor a picture (str, Text, Image, Pillow image, uint8 "
        "array, bytes, pathlib.Path)"
    )


def _describe(item) -> str:
    return f"{reprlib.repr(item)} ({type(item).__name__})"


def _part_from_json(part, where: str, root, allow_outside: bool) -> Part:
    kind = part.get("type") if isinstance(part, dict) else part
    content = part.get(kind) if kind in ("text", "image") and isinstance(part, dict) else None
    if not isinstance(content, str):
        raise ValueError(
            f"{where}: {reprlib.repr(part)} is neither {{'type': 'text', 'text': ...}} nor {{'type': "
            f"'image', 'image': ...}}"
        )
    marks = {name: part.get(name, True) for name in (("learned",) if kind == "text" else ("seen", "dreamed"))}
    for name, mark in marks.items():
        if not isinstance(mark, bool):
            raise ValueError(f"{where}: {name}: {reprlib.repr(mark)} is neither true nor false")
    try:
        if kind == "text":
            return Text(content, role=part.get("role"), **marks)
        return Image(_source_from_json(content, root, allow_outside), role=part.get("role"), **marks)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


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
    return paths.inside(root, name)


def _data_uri(picture: PIL.Image.Image) -> str:
    return _PNG_URI + base64.b64encode(images.to_png(picture)).decode("ascii")


def _shorten(text: str, length: int) -> str:
    words = " ".join(text.split())
    return words if len(words) <= length else words[: length - 1].rstrip() + "…"


def _path(path: str | os.PathLike):
    from etils import epath  # gs:// and local paths alike

    return epath.Path(path)


# ----------------------------------------------------------------------------------------------------------------------
# HTML

_SMALL = 128  # pixels; a picture with a shorter side below it is shown enlarged, each pixel a crisp square
_ENLARGED = 288

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --ink: #23211d; --quiet: #6f6a61; --line: #e4dfd5; --card: #fff;
    --accent: #8a4b2a; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #171614; --ink: #e9e5dc; --quiet: #a09a8e; --line: #34312c; --card: #1f1e1b; --accent: #e0a37e; }
}
* { box-sizing: border-box; }
body { margin: 0; padding: clamp(1.5rem, 6vw, 5rem) clamp(1rem, 4vw, 2rem); background: var(--paper); color: var(--ink);
  font: 1.1875rem/1.65 Charter, "Bitstream Charter", "Iowan Old Style", "Source Serif 4", Cambria, Georgia, serif;
  text-rendering: optimizeLegibility; }
main { max-width: 40rem; margin: 0 auto; }
h1, h2 { font-weight: 600; line-height: 1.2; letter-spacing: -0.01em; text-wrap: balance; overflow-wrap: anywhere; }
h1 { margin: 0 0 2.5rem; font-size: clamp(1.6rem, 5vw, 2.3rem); }
h2 { margin: 0 0 1.5rem; font-size: 1.25rem; color: var(--quiet); }
article + article { margin-top: 4rem; padding-top: 3rem; border-top: 1px solid var(--line); }
p { margin: 0 0 1.1em; white-space: pre-line; hyphens: auto; overflow-wrap: break-word; }
.pictures { display: flex; flex-wrap: wrap; justify-content: center; gap: 1rem; margin: 2rem 0; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
img { display: block; max-width: 100%; height: auto; max-height: 85vh; border-radius: 10px;
  box-shadow: 0 1px 2px rgb(0 0 0 / .12), 0 12px 32px -12px rgb(0 0 0 / .28); }
img.small { image-rendering: pixelated; border-radius: 4px; }
.turn { margin: 0 0 1.25rem; padding: 1.1rem 1.4rem; border: 1px solid var(--line); border-radius: 14px; background:
    var(--card); }
.turn.user { margin-left: clamp(0rem, 8vw, 4rem); }
.turn.assistant { margin-right: clamp(0rem, 8vw, 4rem); }
.turn > :last-child { margin-bottom: 0; }
.role, .notes, .empty { font-family: system-ui, sans-serif; font-size: .8125rem; color: var(--quiet); }
.role { margin: 0 0 .4rem; font-weight: 600; letter-spacing: .04em; color: var(--accent); }
.notes { margin: 2.5rem 0 0; padding: 0; list-style: none; }
@media print { body { padding: 0; background: none; } img { box-shadow: none; } }
"""


def render_html(documents: collections.abc.Iterable[Document], title: str) -> str:
    """One self-contained page with all documents below each other.

    Text as paragraphs, pictures embedded, turns labelled by role.
    """
    articles = "\n".join(
        html_article(document, f"<h2>{html.escape(document.id)}</h2>" if document.id else "") for document in documents
    )
    return html_page(title, f"<h1>{html.escape(title)}</h1>\n{articles}")


_RELOAD = '<meta http-equiv="refresh" content="1">\n'


def html_page(title: str, body: str, head: str = "") -> str:
    """A whole page around a body of HTML, in the house's style; `head` is HTML for its head."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" '
        'content="width=device-width, initial-scale=1">\n'
        f"{head}<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def html_article(document: Document, heading: str = "") -> str:
    """A document as an HTML article that needs no other file; `heading` is HTML that goes before it."""
    numbers = itertools.count(1)
    blocks = [heading] if heading else []
    for role, parts in itertools.groupby(document.parts, key=lambda part: part.role):
        content = _flow(list(parts), numbers)
        label = f'<p class="role">{role.capitalize()}</p>' if role else ""
        blocks.append(f'<section class="turn {role}">\n{label}\n{content}\n</section>' if role else content)
    if not document.parts:
        blocks.append('<p class="empty">An empty document.</p>')
    if document.notes:
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in document.notes)
        blocks.append(f'<ul class="notes">{notes}</ul>')
    return "<article>\n" + "\n".join(blocks) + "\n</article>"


def _flow(parts: list[Part], numbers: collections.abc.Iterator[int]) -> str:
    """Parts of one role.

    Texts that follow each other are one text, pictures that follow each other stand side by side.
    """
    blocks, before = [], ""
    visible = [part for part in parts if isinstance(part, Image) or part.text.strip()]
    for is_picture, run in itertools.groupby(visible, key=lambda part: isinstance(part, Image)):
        if is_picture:
            figures = "".join(_figure(part.pil(), next(numbers), before) for part in run)
            blocks.append(f'<div class="pictures">{figures}</div>')
        else:
            before = "".join(part.text for part in run)
            paragraphs = [paragraph.strip() for paragraph in re.split(r"\n\s*\n", before)]
            blocks += [f'<p dir="auto">{html.escape(paragraph)}</p>' for paragraph in paragraphs if paragraph]
    return "\n".join(blocks)


def _figure(picture: PIL.Image.Image, number: int, before: str) -> str:
    """A picture; its alt text says which one it is and what the text before it ends with."""
    words = " ".join(before.split())
    context = f", after the words: {words if len(words) <= 120 else '…' + words[-119:]}" if words else ""
    alt = html.escape(f"Picture {number}{context}")
    width, height = picture.size
    small = min(width, height) < _SMALL
    if small:
        factor = max(2, round(_ENLARGED / max(width, height)))
        width, height = width * factor, height * factor
    kind = ' class="small"' if small else ""
    return f'<figure><img{kind} src="{_data_uri(picture)}" alt="{alt}" width="{width}" height="{height}"></figure>'
