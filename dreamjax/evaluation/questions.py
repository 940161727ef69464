"""A benchmark's own files as questions: for each the words, the names of its pictures, and what is right, in the files'
order.

Pictures are looked for below the data's folder (or another one) by their names, as benchmarks leave them in folders of
many kinds:

    COCO    val2014/COCO_val2014_000000000042.jpg, by file name or number     TextVQA
            train_images/0054c91397f2fe05.jpg
    VizWiz  val/VizWiz_val_00000000.jpg        GQA     images/n161313.jpg     ScienceQA  test/4/image.png
    MME     artwork/images/10002.jpg           MM-Vet  images/v1_0.png        MMBench    inside of its table
"""

import base64
import binascii
import collections
import dataclasses
import os
import re
from collections.abc import Iterable, Sequence

from etils import epath

from dreamjax.document import Image
from dreamjax.errors import SourceError
from dreamjax.evaluation.benchmarks import captions, gqa, mmbench, mme, mmvet, pope, scienceqa, vqa
from dreamjax.evaluation.files import expected_form, find_file, read_json

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


@dataclasses.dataclass(frozen=True)
class Question:
    """One question of any benchmark. Its predictions are known by (id, text, category)."""

    id: str
    text: str  # "" for captions
    images: tuple[str | bytes, ...]  # names, or the bytes of a file
    choices: tuple[str, ...] = ()
    hint: str = ""
    category: str = ""
    references: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells its prediction from others."""
        return (self.id, self.text, self.category)

    @property
    def answer(self) -> str:
        """The reference that most people gave, the first of equals; "" where there is none."""
        return collections.Counter(self.references).most_common(1)[0][0] if self.references else ""


# ----------------------------------------------------------------------------------------------------------------------
# Benchmarks


def of_vqa(name: str, data: epath.PathLike, count: int | None = None) -> list[Question]:
    """VQAv2, OKVQA, TextVQA, VizWiz."""
    return [Question(q.id, q.text, (q.image,), references=q.answers) for q in vqa.load_questions(data, name, count)]


def of_captions(name: str, data: epath.PathLike, count: int | None = None) -> list[Question]:
    """COCO (Karpathy's test split or a file of annotations), NoCaps, Image2Paragraph."""
    references, names = captions.load_references(data, name, count), _caption_images(data, name)
    lacking = [key for key in references if key not in names]
    if lacking:
        raise SourceError(
            f"{data}: names no picture for {len(lacking)} of {len(references)} captions, such as {lacking[0]}"
        )
    return [Question(key, "", (names[key],), references=tuple(texts)) for key, texts in references.items()]


def _caption_images(data: epath.PathLike, name: str) -> dict[str, str]:
    """{picture's id: file name}."""
    path = captions.find_captions(data, name)
    content = read_json(path)
    with expected_form(path, "file of captions with its pictures"):
        if isinstance(content, list):
            return {str(row["image_id"]): str(row["image_id"]) for row in content}
        if "annotations" in content:
            return {str(row["id"]): row["file_name"] for row in content["images"]}
        return {str(row["cocoid"]): row["filename"] for row in content["images"]}


def of_pope(data: epath.PathLike, count: int | None = None) -> list[Question]:
    return [
        Question(q.id, q.text, (q.image,), category=q.category, references=("yes" if q.yes else "no",))
        for q in pope.load_questions(data, count)
    ]


def of_mme(data: epath.PathLike, count: int | None = None) -> list[Question]:
    """The id is category/picture, which two questions share."""
    questions = []
    for q in mme.load_questions(data, count):
        name = f"{q.category}/{q.image}"
        questions.append(
            Question(name, f"{mme.bare(q.text)} {mme.YES_OR_NO}", (name,), category=q.category, references=(q.answer,))
        )
    return questions


def of_mmbench(data: epath.PathLike, count: int | None = None) -> list[Question]:
    """Every turn; one that shares its picture names the turn that has it."""
    turns = mmbench.load_questions(data, count)
    images = {str(q.index): q.image for q in turns}
    return [
        Question(
            str(q.index),
            q.text,
            (_decoded(_followed(images, q.image), q.index, data),),
            tuple(words for _, words in q.choices),
            q.hint,
            q.category,
            (q.answer,) if q.answer else (),
        )
        for q in turns
    ]


def _followed(images: dict[str, str], image: str) -> str:
    return images.get(image, image) if len(image) < 64 else image


def _decoded(text: str, index: int, data: epath.PathLike) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise SourceError(f"{data}: index {index}: the picture is not base64") from None


def of_mmvet(data: epath.PathLike, count: int | None = None) -> list[Question]:
    return [
        Question(key, row["question"], (row["imagename"],), references=(str(row["answer"]),))
        for key, row in mmvet.load_questions(data, count).items()
    ]


def of_gqa(data: epath.PathLike, count: int | None = None) -> list[Question]:
    return [Question(q.id, q.text, (q.image,), references=(q.answer,)) for q in gqa.load_questions(data, count)]


def of_scienceqa(data: epath.PathLike, count: int | None = None) -> list[Question]:
    """LLaVA's conversations, whose words have the choices already, or the benchmark's problems.json."""
    right = {q.id: q.answer for q in scienceqa.load_questions(data, count)}
    data = epath.Path(data)
    if (data / "problems.json").exists():
        problems = read_json(data / "problems.json")

        def image(key):
            return (f"{key}/{problems[key]['image']}",) if problems[key].get("image") else ()

        with expected_form(data / "problems.json", "file of problems"):
            return [
                Question(
                    key,
                    problems[key]["question"],
                    image(key),
                    tuple(problems[key]["choices"]),
                    problems[key].get("hint", ""),
                    references=(right[key],),
                )
                for key in right
            ]
    path = find_file(data, "llava_test*.json", "*.json")
    with expected_form(path, "file of conversations"):
        return [
            Question(
                str(row["id"]),
                row["conversations"][0]["value"].replace("<image>", "").strip(),
                (row["image"],) if row.get("image") else (),
                references=(right[str(row["id"])],),
            )
            for row in read_json(path)
            if str(row["id"]) in right
        ]


# ----------------------------------------------------------------------------------------------------------------------
# Pictures


def beside(path: epath.Path) -> str:
    """The folder of the pictures that a file names, where none is given: images/ beside it, else its own."""
    near = path.parent / "images"
    return str(near if near.is_dir() else path.parent)


def image_files(folder: epath.PathLike) -> list[str]:
    """The paths of all picture files below a folder, relative to it, in order."""
    walk = os.walk(folder, followlinks=True)
    return sorted(
        os.path.relpath(os.path.join(at, name), folder)
        for at, _, names in walk
        for name in names
        if name.lower().endswith(ENDINGS)
    )


class ImageFolder:
    """The picture files below a folder, found by name.

    With or without ending and folders, or by the number that a name ends with.
    """

    def __init__(self, folder: epath.PathLike):
        self.folder = epath.Path(folder)
        self.root = self.folder.parent if self.folder.is_file() else self.folder
        self._by_stem = collections.defaultdict(list)
        self._by_number = collections.defaultdict(list)
        for path in image_files(self.root):
            stem = os.path.splitext(os.path.basename(path))[0]
            self._by_stem[stem].append(path)
            number = re.search(r"(?<!\d)(\d{6,})$", stem)  # COCO writes numbers with twelve digits
            if number:
                self._by_number[number[1].lstrip("0")].append(path)

    def find(self, name: str | bytes) -> Image | None:
        """The picture as the model sees it; None where there is none of this name."""
        if isinstance(name, bytes):
            return Image(name, is_target=False, role="user")
        path = self._path(name)
        return None if path is None else Image(epath.Path(path), is_target=False, role="user")

    def _path(self, name: str) -> str | None:
        *folders, base = name.split("/")
        stem, ending = os.path.splitext(base) if base.lower().endswith(ENDINGS) else (base, "")
        found = self._by_stem.get(stem) or (self._by_number.get(stem.lstrip("0"), []) if stem.isdecimal() else [])
        found = [
            path for path in found if set(folders) <= set(path.split("/"))
        ]  # MME's artwork/1.jpg is artwork/images/1.jpg
        found = [path for path in found if path.endswith(ending)] or found
        if len(found) > 1:
            raise SourceError(
                f"{self.folder}: {name} may be {found[0]} or {found[1]}; leave the pictures of one split there"
            )
        return str(self.root / found[0]) if found else None

    def require(self, questions: Sequence[Question]) -> dict[str | bytes, Image]:
        """{name: picture} of all questions; raises SourceError, with the count, where some are missing."""
        return self.require_names(name for question in questions for name in question.images)

    def require_names(self, names: Iterable[str | bytes]) -> dict[str | bytes, Image]:
        """{name: picture} of names; raises SourceError, with the count, where some are missing."""
        found = {name: self.find(name) for name in dict.fromkeys(names)}
        missing = [name for name, image in found.items() if image is None]
        if missing:
            raise SourceError(
                f"{self.folder}: {len(missing)} of {len(found)} pictures are missing, the first is "
                f"{missing[0]}; --images names their folder"
            )
        return found
