"""A folder of picture stories: `stories.jsonl` and the pictures it names.

The folder may be in a bucket. One JSON object per line: id, title, pages [{text, image}], and where known cover,
summary, text_by, illustration_by, license. Paths are relative to the folder; a page's image may be null and its text
empty. Pictures are opened when a document is used, not before.

Stories share pictures (a series, a cover used again). Those that share one, directly or through others, always lie in
the same split; otherwise a model would be tested on pictures that it was trained on.
"""

import dataclasses
import hashlib
import os
import pathlib
import posixpath
from collections.abc import Iterable, Sequence

from dreamjax.config import SourceConfig
from dreamjax.data.source import SPLITS
from dreamjax.data.sources.records import BOM, Folder, Unusable, bad_record, parse_json, with_id
from dreamjax.data.storage import files
from dreamjax.document import Document, Image, Part, Text
from dreamjax.errors import BadImage, BadRecord, SourceError

EVAL_SHARE = 0.1  # of the stories, at most


@dataclasses.dataclass(frozen=True)
class Story:
    """One record. `pages` are (text, path of the image in the folder), either may be empty; `cover` may be."""

    id: str
    title: str
    pages: tuple[tuple[str, str], ...]
    cover: str = ""
    text_by: str = ""
    illustration_by: str = ""
    license: str = ""

    @property
    def images(self) -> set[str]:
        """Paths of all pictures in the folder, the cover's included."""
        return {image for _, image in self.pages if image} | ({self.cover} if self.cover else set())


@dataclasses.dataclass(frozen=True)
class Storybook:
    """The stories of one split, in the order of the file. Raises SourceError where no story can be read."""

    path: str | os.PathLike
    split: str = "train"
    allow_outside: bool = False  # pictures may lie outside the folder
    stories: tuple[Story, ...] = dataclasses.field(init=False, repr=False)
    keys: tuple[str, ...] = dataclasses.field(
        init=False, repr=False
    )  # of the stories: the same where they share pictures
    skipped: tuple[BadRecord, ...] = dataclasses.field(init=False, repr=False)  # of the whole file, not of the split

    def __post_init__(self):
        if self.split not in SPLITS:
            raise SourceError(f"storybook: split {self.split!r} is none of {', '.join(SPLITS)}")
        stories, skipped = read_stories(self.path)
        chosen = tuple(
            story for story, split in zip(stories, assign_splits(stories), strict=True) if split == self.split
        )
        if not chosen:
            raise SourceError(
                f"storybook: no story of {self.path} falls into the split {self.split!r}, since the "
                f"{len(stories)} that can be read "
                "are few or share pictures; add stories, or leave this split out of the config"
            )
        first = {story_id: min(group) for group in _connected(chosen) for story_id in group}
        object.__setattr__(self, "stories", chosen)
        object.__setattr__(self, "keys", tuple(first[story.id] for story in chosen))
        object.__setattr__(self, "skipped", skipped)

    def __len__(self) -> int:
        return len(self.stories)

    def __getitem__(self, index: int) -> Document:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has stories 0 to {len(self) - 1} in the split {self.split!r}, not {index}")
        story = self.stories[index]
        parts: list[Part] = [Text(_heading(story.title))]
        left_out = []
        for text, image in story.pages:
            if text:  # adjoining texts are read as one string
                parts.append(Text(f" {text}" if isinstance(parts[-1], Text) else text))
            if image:
                try:
                    parts.append(Image(self.place(image)))
                except BadImage as error:
                    left_out.append(error)
        return Document(tuple(parts), id=story.id, left_out=tuple(left_out))

    def may_show(self, image: str) -> bool:
        """True if an image lies in the folder, or anywhere else that it may."""
        try:
            return bool(self.place(image))
        except BadImage:
            return False

    def place(self, image: str) -> str | pathlib.Path:
        """The path that an image would have. Raises BadImage for one that may not be read."""
        path = Folder(os.fspath(self.path), self.allow_outside).place(image)
        return path if files.is_remote(path) else pathlib.Path(path)

    @property
    def fingerprint(self) -> str:
        """A hash of the stories of this split."""
        return hashlib.sha256(repr(self.stories).encode()).hexdigest() + "-outside" * self.allow_outside

    def key(self, index: int) -> str:
        """The smallest id of the stories that share pictures with this one."""
        return self.keys[index]

    def texts(self) -> Iterable[str]:
        """Titles and pages, as they stand in the documents."""
        for story in self.stories:
            yield _heading(story.title)
            yield from (text for text, _ in story.pages if text)

    def credits(self, index: int) -> str:
        """The attribution that the licence asks for wherever this story is shown."""
        story = self.stories[index]
        text_by, images_by = story.text_by or "unknown", story.illustration_by or "unknown"
        return (
            f'"{story.title}" ({story.id}), text by {text_by}, pictures by {images_by}, licence '
            f"{story.license or 'unknown'}"
        )


def _heading(title: str) -> str:
    return title if title.endswith((".", "!", "?")) else title + "."


@dataclasses.dataclass(frozen=True)
class StorybookPages:
    """The illustrated pages of one split, each a Document of its own.

    Its text, then its image, a target and no input.
    """

    path: str | os.PathLike
    split: str = "train"
    allow_outside: bool = False
    book: Storybook = dataclasses.field(init=False, repr=False)
    pages: tuple[tuple[str, str, str], ...] = dataclasses.field(init=False, repr=False)  # id, text, image
    keys: tuple[str, ...] = dataclasses.field(init=False, repr=False)  # of the pages' stories

    def __post_init__(self):
        book = Storybook(self.path, self.split, self.allow_outside)
        pages = [
            ((f"{story.id}/{number}", *page), key)
            for story, key in zip(book.stories, book.keys, strict=True)
            for number, page in enumerate(story.pages, 1)
            if all(page)
        ]
        object.__setattr__(self, "book", book)
        object.__setattr__(self, "pages", tuple(page for page, _ in pages))
        object.__setattr__(self, "keys", tuple(key for _, key in pages))

    @property
    def skipped(self) -> tuple[BadRecord, ...]:
        """Records left out of the whole file."""
        return self.book.skipped

    @property
    def fingerprint(self) -> str:
        """A hash of the stories."""
        return f"pages-{self.book.fingerprint}"

    def __len__(self) -> int:
        return len(self.pages)

    def __getitem__(self, index: int) -> Document:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has pages 0 to {len(self) - 1} in the split {self.split!r}, not {index}")
        number, text, image = self.pages[index]
        with bad_record(number):
            return with_id(Document((Text(text), Image(self.book.place(image), is_input=False))), number)

    def key(self, index: int) -> str:
        """The key of the page's story."""
        return self.keys[index]

    def texts(self) -> Iterable[str]:
        """As the stories'."""
        return self.book.texts()


def open_storybook(config: SourceConfig, seed: int = 0) -> Storybook:
    """The stories of a folder. Raises SourceError."""
    return Storybook(config.path, config.split, config.allow_outside)


def open_storybook_pages(config: SourceConfig, seed: int = 0) -> StorybookPages:
    """The pages of a folder's stories. Raises SourceError."""
    return StorybookPages(config.path, config.split, config.allow_outside)


# ----------------------------------------------------------------------------------------------------------------------
# Reading


def read_stories(path: str | os.PathLike) -> tuple[tuple[Story, ...], tuple[BadRecord, ...]]:
    """All stories of a folder, and the records that were left out. Raises SourceError where none is left."""
    folder = os.fspath(path)
    file = files.join(folder, "stories.jsonl")
    if not files.is_folder(folder):
        raise SourceError(f"storybook: {folder} is no folder; give the one that holds stories.jsonl")
    try:
        lines = files.read_bytes(file).splitlines()
    except OSError as error:
        raise SourceError(
            f"storybook: cannot read {file}: {getattr(error, 'reason', '') or error.strerror}; give the "
            "folder that holds stories.jsonl"
        ) from None
    stories, skipped = {}, []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            story = _parse(line)
            if story.id in stories:
                raise Unusable("repeated id", f"id {story.id} occurs twice")
            stories[story.id] = story
        except Unusable as error:
            skipped.append(BadRecord(f"{file}:{number}", *error.args))
    if not stories:
        reason = f"the first of {len(skipped)} bad records is {skipped[0]}" if skipped else "the file is empty"
        raise SourceError(
            f"storybook: no story in {file}: {reason}; each line is a JSON object with id, title and pages"
        )
    return tuple(stories.values()), tuple(skipped)


def _parse(line: bytes) -> Story:
    """One line of the file; raises Unusable."""
    record = parse_json(line)
    if not isinstance(record.get("pages"), list):
        raise Unusable("missing key", "pages is missing or no list")
    pages = tuple((_string(page, "text"), _image(page, "image")) for page in record["pages"])
    pages = tuple(page for page in pages if any(page))
    if not pages:
        raise Unusable("empty", "no page has text or a picture")
    others = {key: _string(record, key) for key in ("text_by", "illustration_by", "license")}
    return Story(
        _string(record, "id", needed=True),
        _string(record, "title", needed=True),
        pages,
        _image(record, "cover"),
        **others,
    )


def _string(record, key: str, needed: bool = False) -> str:
    value = record.get(key) if isinstance(record, dict) else None
    if value is None and isinstance(record, dict) and not needed:
        return ""
    if not isinstance(value, str) or (needed and not value.strip()):
        raise Unusable("missing key", f"{key} is missing or no string")
    return value.replace(BOM, "").strip()


def _image(record, key: str) -> str:
    """A path with one spelling, so that stories that share a picture are found."""
    value = _string(record, key)
    return posixpath.normpath(value) if value and not files.is_remote(value) else value


# ----------------------------------------------------------------------------------------------------------------------
# Splits


def assign_splits(stories: Sequence[Story]) -> list[str]:
    """The split of each story.

    Groups of stories that share pictures are ordered by a hash of their smallest id; eval takes, in this order, those
    that still fit into its share, and at least one story where there are groups enough. So a group larger than the
    share, as real folders have, is trained on, and the order of the file does not matter.
    """
    groups = sorted(
        _connected(stories), key=lambda group: hashlib.sha256(min(group).encode("utf-8", "surrogatepass")).digest()
    )
    left = max(1, int(EVAL_SHARE * len(stories))) if len(groups) > 1 else 0
    heldout = set()
    for group in groups:
        if len(group) <= left:
            heldout |= group
            left -= len(group)
    return ["eval" if story.id in heldout else "train" for story in stories]


def _connected(stories: Sequence[Story]) -> list[set[str]]:
    """The ids of stories, in groups that share pictures transitively (union-find over stories and pictures)."""
    parents: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        parents.setdefault(node, node)
        while parents[node] != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    for story in stories:
        for image in story.images:
            parents[root(("picture", image))] = root(("story", story.id))
    groups: dict[tuple[str, str], set[str]] = {}
    for story in stories:
        groups.setdefault(root(("story", story.id)), set()).add(story.id)
    return list(groups.values())
