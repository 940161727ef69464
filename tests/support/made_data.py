"""Small files in the layouts that training data come in: pictures, tars, JSON, each picture telling which it is."""

import io
import json
import pathlib
import tarfile

import numpy as np
import PIL.Image

from dreamjax.errors import BadRecord


def make_image(number: int, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    """uint8 [height, width, 3] of one colour, another for each number below 1,000."""
    colour = (number % 10 * 25, number // 10 % 10 * 25, number // 100 % 10 * 25)
    return np.full((*size, 3), colour, np.uint8)


def number_of(image) -> int:
    """The number of a picture, also after JPEG."""
    return int(np.rint(np.asarray(image.pil()).mean((0, 1)) / 25) @ [1, 10, 100])


def encoded(image, kind: str = "JPEG", **options) -> bytes:
    """The bytes of an encoded file of an array or a Pillow image."""
    file = io.BytesIO()
    (PIL.Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, format=kind, **options)
    return file.getvalue()


def jpeg(number: int) -> bytes:
    """picture(number) as a JPEG file."""
    return encoded(make_image(number), quality=95)


def write_tar(path, members) -> pathlib.Path:
    """A tar of (name, bytes or str or what becomes JSON)."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            data = (
                content
                if isinstance(content, bytes)
                else content.encode()
                if isinstance(content, str)
                else json.dumps(content).encode()
            )
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return pathlib.Path(path)


def pairs(numbers):
    """Members as img2dataset writes them: for each number a picture, its caption and facts about it."""
    for number in numbers:
        caption = f"caption {number}"
        yield f"{number:09d}.jpg", jpeg(number)
        yield (
            f"{number:09d}.json",
            {"caption": caption, "key": f"{number:09d}", "similarity": number / 100, "width": 32, "height": 24},
        )
        yield f"{number:09d}.txt", caption


def write_jsonl(path, records) -> pathlib.Path:
    """One line for each record; bytes stand as they are."""
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    path = pathlib.Path(path)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def mmc4(number: int, sentences: int, matched, similarity: float = 0.3) -> dict:
    """A record of MMC4 whose picture i is named number-i.jpg and belongs to sentence matched[i]."""
    infos = [
        {
            "image_name": f"{number}-{i}.jpg",
            "raw_url": f"http://nowhere/{i}.jpg",
            "matched_text_index": index,
            "matched_sim": similarity,
            "face_detections": None,
        }
        for i, index in enumerate(matched)
    ]
    texts = [f"Sentence {i} of {number}." for i in range(sentences)]
    return {
        "url": "http://nowhere",
        "text_list": texts,
        "image_info": infos,
        "similarity_matrix": [],
        "could_have_url_duplicate": 0,
    }


def write_stories(folder: pathlib.Path, stories: int, most_pages: int, size: tuple[int, int]) -> pathlib.Path:
    """A storybook of noise: story s has 1 + s % most_pages pages, whose pictures are called s_page.png."""
    rng = np.random.default_rng(0)
    records = []
    for s in range(stories):
        pages = []
        for p in range(1 + s % most_pages):
            PIL.Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{s}_{p}.png")
            pages.append({"text": "a red goat " * (1 + (s + p) % 3), "image": f"{s}_{p}.png"})
        records.append({"id": f"story {s}", "title": f"Goat {s}", "pages": pages})
    write_jsonl(folder / "stories.jsonl", records)
    return folder


def told(document) -> list:
    """What a document shows: its texts, and the numbers of its pictures."""
    from dreamjax.document import Text

    return [part.text if isinstance(part, Text) else number_of(part) for part in document.parts]


def reasons(source) -> list[str]:
    """Of each record of a source the reason that it cannot be used, or an empty string."""
    found = []
    for i in range(len(source)):
        try:
            source[i]
            found.append("")
        except BadRecord as error:
            assert error.name.endswith(
                source.index.name(i) if hasattr(source, "index") else source.key(i)
            ) and "\n" not in str(error)
            found.append(error.reason)
    return found
