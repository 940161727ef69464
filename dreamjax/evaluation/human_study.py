"""The paper's study of interleaved documents: people see generated and real ones mixed, without names, and say which
they support.

The data are instructions as the source `instruct` reads them, with a `topic` each: of every topic five are taken, 150
in all. The model answers each instruction; the record's own answer is the real document. Written to out/study:

    predictions.jsonl, drawn/    the model's documents as they come, a row each; an interrupted run goes on
    judge.html, pictures/        the page to judge: give judges the two, nothing else
    key.json                     the document behind each code; not for judges

Each judge sends back the file that the page makes; `score --task=study --predictions=FOLDER --data=OUT/study` counts
them.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
from etils import epath

from dreamjax.api import DreamLLM
from dreamjax.data.sources import instruct
from dreamjax.data.sources.records import Folder, Unusable
from dreamjax.document import Document, Image, Text, image_io
from dreamjax.errors import BadImage, SourceError
from dreamjax.evaluation import human_study_page
from dreamjax.evaluation.files import expected_form, find_file, read_json
from dreamjax.evaluation.image_folder import images_beside
from dreamjax.evaluation.metrics import features
from dreamjax.evaluation.metrics.features import Extractor, Towers
from dreamjax.evaluation.predictions import Score, percent
from dreamjax.evaluation.question import limit
from dreamjax.evaluation.report import Result, Sample, evenly_spread
from dreamjax.evaluation.run_files import append_rows, batched, check_settings, read_document, read_rows
from dreamjax.evaluation.settings import EvaluationSettings
from dreamjax.filesystem import atomic
from dreamjax.progress import bar

DOCUMENTS = 150
OF_A_TOPIC = 5
WRITING: dict[str, Any] = {"max_tokens": 512, "max_images": 8, "temperature": 0.8, "top_p": 0.9}
PAPER = {"support": {"DreamLLM": 60.68}, "real_support": {"DreamLLM": 77.24}}
SIDE = 320  # pixels of the images on the page, of both kinds, so that their size tells nothing


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
    """One instruction with its real answer."""

    id: str
    topic: str
    prompt: Document
    real: Document


def load(
    data: epath.PathLike, folder: str = "", count: int | None = None, seed: int = 0
) -> tuple[list[Instruction], tuple[str, ...]]:
    """Five instructions of each topic, sampled by the seed, `count` (150) in all; and warnings. Raises SourceError."""
    path = find_file(data, "*.jsonl", "*.json")
    images = Folder(folder or images_beside(path))
    usable, unusable = [], []
    with expected_form(path, "file of instructions"):
        rows = [(str(number), str(row.get("topic", "")), row) for number, row in enumerate(read_json(path))]
    for key, topic, row in rows:
        try:
            document = instruct.parse(row, images, None)
        except (Unusable, BadImage) as error:
            unusable.append(f"record {key}: {error}")
            continue
        prompt, real = Document(document.parts[:1], key), Document(_without_roles(document.parts[1:]), key)
        usable.append(Instruction(key, topic, prompt, real))
    if not usable:
        first = f"; the first is {unusable[0]}" if unusable else ""
        raise SourceError(f"{path}: holds no document that can be used{first}")
    has_topics = len({instruction.topic for instruction in usable}) > 1
    chosen = [usable[i] for i in np.random.default_rng(seed).permutation(len(usable))]
    if has_topics:
        chosen = limit(chosen, OF_A_TOPIC, lambda instruction: instruction.topic)
    warnings = []
    if unusable:
        warnings.append(
            f"{len(unusable)} of {len(rows)} documents cannot be used and are left out; the first is {unusable[0]}"
        )
    if not has_topics:
        warnings.append("the documents have no topics, which the paper's study has 30 of; they are drawn from all")
    return _by_topic(chosen)[: count or DOCUMENTS], tuple(warnings)


def _by_topic(instructions: list[Instruction]) -> list[Instruction]:
    """Topic after topic in the order of their first appearance."""
    topics = dict.fromkeys(instruction.topic for instruction in instructions)
    places = {topic: place for place, topic in enumerate(topics)}
    return sorted(instructions, key=lambda instruction: places[instruction.topic])


def _without_roles(parts: Sequence[Text | Image]) -> tuple[Text | Image, ...]:
    return tuple(dataclasses.replace(part, role=None) for part in parts)


# ----------------------------------------------------------------------------------------------------------------------
# The kit


def run(
    model: DreamLLM, task: str, data: epath.PathLike, out: epath.Path, settings: EvaluationSettings, stored: dict
) -> Result:
    """Generates the documents that `out` lacks, then the kit. The score has the measures that need no people."""
    instructions, warnings = load(data, settings.images, settings.count, settings.seed)
    extractor = features.extractor(settings.measures.features, settings.measures.inception, model)
    towers = features.towers(model, settings.measures.clip)
    documents = write(model, instructions, out, stored | {"seed": settings.seed}, settings.batch_size)
    side = min(model.config.decoder_size, SIDE)
    key = make_kit(instructions, documents, out, settings.seed, side)
    real = [instruction.real for instruction in instructions]
    metrics, more_warnings = measure(documents, real, extractor, towers)
    topics = {instruction.topic for instruction in instructions}
    pairs = evenly_spread(list(zip(instructions, documents, strict=True)))
    return Result(
        task,
        Score(metrics, {"documents": len(instructions), "topics": len(topics)}, (*warnings, *more_warnings)),
        paper=PAPER,
        files={"judge": str(out / human_study_page.NAME), "key": str(key)},
        samples=[Sample(instruction.id, instruction.prompt, document.text) for instruction, document in pairs],
        setting="answers to instructions; support is counted by score --task=study",
    )


def write(
    model: DreamLLM, instructions: Sequence[Instruction], out: epath.Path, stored: dict, batch_size: int
) -> list[Document]:
    """The model's answer to each instruction, without roles."""
    path, folder = out / "predictions.jsonl", out / "drawn"
    check_settings(out, stored)
    folder.mkdir(exist_ok=True)
    done = {row["question_id"] for row in read_rows(path, question_id=str, document=dict)}
    waiting = [pair for pair in enumerate(instructions) if pair[1].id not in done]
    with bar(len(instructions), "document", "study", len(instructions) - len(waiting)) as progress:
        for batch in batched(waiting, batch_size):
            prompts, seeds = [instruction.prompt for _, instruction in batch], [number for number, _ in batch]
            documents = model.generate_batch(prompts, seeds, batch_size=batch_size, **WRITING)
            for (_, instruction), document in zip(batch, documents, strict=True):
                append_rows(path, [_store(instruction, document, folder)])
            progress.update(len(batch))
    rows = {row["question_id"]: row for row in read_rows(path)}
    return [read_document(rows[instruction.id]["document"], folder, str(path)) for instruction in instructions]


def _store(instruction: Instruction, document: Document, folder: epath.Path) -> dict:
    """Writes the images of a document and returns its row."""
    names = [f"{instruction.id}-{k}.png" for k in range(len(document.images))]
    for name, image in zip(names, document.images, strict=True):
        atomic.write_bytes(folder / name, image_io.to_png(image))
    plain = dataclasses.replace(document, parts=_without_roles(document.parts), id=instruction.id)
    return {
        "question_id": instruction.id,
        "prompt": instruction.prompt.text,
        "text": document.text,
        "document": plain.to_json(names),
    }


def make_kit(
    instructions: Sequence[Instruction], documents: Sequence[Document], out: epath.Path, seed: int, side: int
) -> epath.Path:
    """judge.html with its images and key.json, whose path is returned.

    All documents of both kinds, in an order and under numbers sampled by the seed.
    """
    both = [("written", *pair) for pair in zip(instructions, documents, strict=True)]
    both += [("real", instruction, instruction.real) for instruction in instructions]
    order = np.random.default_rng([seed, len(both)]).permutation(len(both))
    (out / "pictures").mkdir(exist_ok=True)
    key, pages = {}, []
    for number, i in enumerate(order, 1):
        kind, instruction, document = both[i]
        code = f"{number:03d}"
        key[code] = {"kind": kind, "topic": instruction.topic, "id": instruction.id}
        pages.append((code, instruction.prompt.text, _page_parts(document, out, code, side)))
    path = out / "key.json"
    atomic.write_text(path, json.dumps(key, indent=1) + "\n")
    atomic.write_text(out / human_study_page.NAME, human_study_page.render(pages, kit_of(key)), "backslashreplace")
    return path


def _page_parts(document: Document, out: epath.Path, code: str, side: int) -> list[tuple[str, str]]:
    """The parts of a document for the page, (image's file, "") or ("", text), with the files written."""
    parts = []
    for k, part in enumerate(document.parts):
        if isinstance(part, Text):
            parts.append(("", part.text))
            continue
        name, file = f"pictures/{code}-{k}.jpg", io.BytesIO()
        PIL.Image.fromarray(image_io.for_decoder(part.pil(), side)).save(file, "JPEG", quality=90)
        atomic.write_bytes(out / name, file.getvalue())
        parts.append((name, ""))
    return parts


def kit_of(key: dict) -> str:
    """A hash that tells a kit from others, whose codes mean other documents."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


# ----------------------------------------------------------------------------------------------------------------------
# Measures without people


def measure(
    generated: Sequence[Document], real: Sequence[Document], extractor: Extractor, towers: Towers | None
) -> tuple[dict[str, float], tuple[str, ...]]:
    """(metrics, warnings): places of images, their distance from the real documents', their fit to the text before.

    `placed` is the share, in percent, of documents with images in which each has text of its own before it. Metrics
    that begin with real_ are the same of the real documents.
    """
    metrics = _measure_places(generated, towers)
    metrics |= {f"real_{name}": value for name, value in _measure_places(real, towers).items()}
    generated_images, real_images = (
        [part for document in documents for part in document.parts if isinstance(part, Image)]
        for documents in (generated, real)
    )
    if min(len(generated_images), len(real_images)) < 2:
        return metrics, (
            f"{len(generated_images)} pictures are drawn and {len(real_images)} are real: too few for a distance",
        )

    def collect(images: Sequence[Image], name: str) -> np.ndarray:
        squares = (features.square(image.pil(), 256) for image in images)
        return features.collect(extractor, squares, len(images), f"{name} pictures")

    real_features, generated_features = collect(real_images, "real"), collect(generated_images, "drawn")
    distances, warnings = features.compare(real_features, generated_features, extractor.name)
    return metrics | distances, warnings


def _measure_places(documents: Sequence[Document], towers: Towers | None) -> dict[str, float]:
    counts = [sum(isinstance(part, Image) for part in document.parts) for document in documents]
    metrics = {
        "with_images": percent(count > 0 for count in counts),
        "images_per_document": sum(counts) / len(counts),
        "placed": percent(is_placed(document) for document, count in zip(documents, counts, strict=True) if count),
    }
    pairs = [pair for document in documents for pair in illustrated(document)]
    if towers and pairs:
        similarities = [
            towers.similarity([image.pil() for image, _ in batch], [text for _, text in batch])
            for batch in batched(pairs, features.BATCH)
        ]
        metrics["clip_score"] = float(np.mean(np.concatenate(similarities)))
    return metrics


def is_placed(document: Document) -> bool:
    """True if each image comes after text that no other image follows."""
    parts = [part for part in document.parts if isinstance(part, Image) or part.text.strip()]
    return all(not isinstance(part, Image) or i > 0 and isinstance(parts[i - 1], Text) for i, part in enumerate(parts))


def illustrated(document: Document) -> list[tuple[Image, str]]:
    """Each image with the text between it and the image before; images without any are left out."""
    pairs, text = [], ""
    for part in document.parts:
        if isinstance(part, Text):
            text += part.text
        else:
            pairs += [(part, text.strip())] if text.strip() else []
            text = ""
    return pairs
