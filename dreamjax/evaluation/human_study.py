"""The paper's study of interleaved documents: people see written and real ones mixed, without names, and say which they
support.

The data are instructions as the source `instruct` reads them, with a `topic` each: of every topic five are taken, 150
in all. The model answers each instruction; the record's own answer is the real document. Written to out/study:

    predictions.jsonl, drawn/    the model's documents as they come, a row each; a run that was interrupted goes on
    judge.html, pictures/        the page to judge: give judges the two, nothing else
    key.json                     which code stands for which document; not for judges

Each judge sends back the file that the page makes; `score --task=study --predictions=FOLDER --data=OUT/study` counts
them.
"""

import collections
import dataclasses
import hashlib
import io
import json
from collections.abc import Sequence

import numpy as np
import PIL.Image
from etils import epath

from dreamjax.api import DreamLLM
from dreamjax.data.sources import instruct
from dreamjax.data.sources.records import Folder, Unusable
from dreamjax.document import Document, Image, Text, image_io
from dreamjax.errors import BadImage, SourceError
from dreamjax.evaluation import human_study_page, runner
from dreamjax.evaluation.files import expected_form, find_file, read_json, shown_name, without_repeats
from dreamjax.evaluation.files import shown as in_message
from dreamjax.evaluation.metrics import features
from dreamjax.evaluation.metrics.features import Extractor, Towers
from dreamjax.evaluation.predictions import Score, first, percent
from dreamjax.evaluation.questions import beside
from dreamjax.evaluation.report import Result, Shown, sample
from dreamjax.filesystem import atomic
from dreamjax.progress import bar

DOCUMENTS = 150
OF_A_TOPIC = 5
WRITING = {"max_tokens": 512, "max_images": 8, "temperature": 0.8, "top_p": 0.9}
PAPER = {"support": {"DreamLLM": 60.68}, "real_support": {"DreamLLM": 77.24}}
SIDE = 320  # pixels of the pictures on the page, of both kinds, so that their size tells nothing


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """One instruction with its real answer."""

    id: str
    topic: str
    prompt: Document
    real: Document


def load(
    data: epath.PathLike, folder: str = "", count: int | None = None, seed: int = 0
) -> tuple[list[Asked], tuple[str, ...]]:
    """Five instructions of each topic, drawn by the seed, `count` (150) in all; and warnings. Raises SourceError."""
    path = find_file(data, "*.jsonl", "*.json")
    images = Folder(folder or beside(path))
    usable, bad = [], []
    with expected_form(path, "file of instructions"):
        rows = [(str(number), str(row.get("topic", "")), row) for number, row in enumerate(read_json(path))]
    for key, topic, row in rows:
        try:
            document = instruct.parse(row, images, None)
        except (Unusable, BadImage) as error:
            bad.append(f"record {key}: {error}")
            continue
        usable.append(Asked(key, topic, Document(document.parts[:1], key), Document(_plain(document.parts[1:]), key)))
    if not usable:
        raise SourceError(f"{path}: holds no document that can be used" + (f"; the first is {bad[0]}" if bad else ""))
    topics = {asked.topic for asked in usable}
    order = [usable[i] for i in np.random.default_rng(seed).permutation(len(usable))]
    chosen = order if len(topics) == 1 else first(order, OF_A_TOPIC, lambda asked: asked.topic)
    chosen = _whole_topics(chosen, count or DOCUMENTS)
    warnings = (
        [f"{len(bad)} of {len(rows)} documents cannot be used and are left out; the first is {bad[0]}"] if bad else []
    )
    if len(topics) == 1:
        warnings.append("the documents have no topics, which the paper's study has 30 of; they are drawn from all")
    return chosen, tuple(warnings)


def _whole_topics(chosen: list[Asked], count: int) -> list[Asked]:
    """The first `count`, topic after topic in the order of their first appearance."""
    places = {topic: place for place, topic in enumerate(dict.fromkeys(asked.topic for asked in chosen))}
    return sorted(chosen, key=lambda asked: places[asked.topic])[:count]


def _plain(parts) -> tuple:
    return tuple(dataclasses.replace(part, role=None) for part in parts)


# ----------------------------------------------------------------------------------------------------------------------
# The kit


def run(model: DreamLLM, data: epath.Path, out: epath.Path, how, settings: dict) -> Result:
    """Writes the documents that are missing, then the kit.

    Automatic measures of them are the score. `how` is a benchmarks.How.
    """
    out = out / "study"
    asked, warnings = load(data, how.images, how.count, how.seed)
    extractor, towers = (
        features.extractor(how.measures.features, how.measures.inception, model),
        features.towers(model, how.measures.clip),
    )
    made = write(model, asked, out, settings | {"task": "study", "data": str(data), "seed": how.seed}, how.batch_size)
    side = model.config.decoder_size
    key = make_kit(asked, made, out, how.seed, min(side, SIDE))
    metrics, noted = measure(made, [one.real for one in asked], extractor, towers)
    score = Score(metrics, {"documents": len(asked), "topics": len({one.topic for one in asked})}, (*warnings, *noted))
    shown = [
        Shown(one.id, one.prompt, document.text, images=())
        for one, document in sample(list(zip(asked, made, strict=True)))
    ]
    files = {"judge": str(out / human_study_page.NAME), "key": str(key)}
    return Result(
        "study", score, PAPER, files, shown, how="answers to instructions; support is counted by score --task=study"
    )


def write(model: DreamLLM, asked: Sequence[Asked], out: epath.Path, settings: dict, batch_size: int) -> list[Document]:
    """The model's answer to each instruction, without roles."""
    path, folder = out / "predictions.jsonl", out / "drawn"
    runner.check_settings(out, settings)
    folder.mkdir(exist_ok=True)
    done = {row["question_id"] for row in runner.resume(path, question_id=str, document=dict)}
    waiting = [(number, one) for number, one in enumerate(asked) if one.id not in done]
    with bar(len(asked), "document", "study", len(asked) - len(waiting)) as progress:
        for batch in runner.batched(waiting, batch_size):
            made = model.generate_batch(
                [one.prompt for _, one in batch], [number for number, _ in batch], batch_size=batch_size, **WRITING
            )
            for (_, one), document in zip(batch, made, strict=True):
                names = [f"{one.id}-{k}.png" for k in range(len(document.images))]
                for name, image in zip(names, document.images, strict=True):
                    atomic.write_bytes(folder / name, image_io.to_png(image))
                plain = dataclasses.replace(document, parts=_plain(document.parts), id=one.id)
                runner.append(
                    path,
                    [
                        {
                            "question_id": one.id,
                            "prompt": one.prompt.text,
                            "text": document.text,
                            "document": plain.to_json(names),
                        }
                    ],
                )
            progress.update(len(batch))
    rows = {row["question_id"]: row for row in runner.resume(path)}
    return [runner.document_of(rows[one.id]["document"], folder, str(path)) for one in asked]


def make_kit(asked: Sequence[Asked], made: Sequence[Document], out: epath.Path, seed: int, side: int) -> epath.Path:
    """judge.html with its pictures and key.json, whose path is returned.

    All documents of both kinds, in an order and under numbers drawn by the seed.
    """
    both = [("written", one, document) for one, document in zip(asked, made, strict=True)] + [
        ("real", one, one.real) for one in asked
    ]
    order = np.random.default_rng([seed, len(both)]).permutation(len(both))
    (out / "pictures").mkdir(exist_ok=True)
    key, pages = {}, []
    for number, i in enumerate(order, 1):
        kind, one, document = both[i]
        code = f"{number:03d}"
        key[code] = {"kind": kind, "topic": one.topic, "id": one.id}
        parts: list = []
        for k, part in enumerate(document.parts):
            if isinstance(part, Image):
                name = f"pictures/{code}-{k}.jpg"
                file = io.BytesIO()
                PIL.Image.fromarray(image_io.for_decoder(part.pil(), side)).save(file, "JPEG", quality=90)
                atomic.write_bytes(out / name, file.getvalue())
                parts.append((name, ""))
            else:
                parts.append(("", part.text))
        pages.append((code, one.prompt.text, parts))
    path = out / "key.json"
    atomic.write_text(path, json.dumps(key, indent=1) + "\n")
    atomic.write_text(out / human_study_page.NAME, human_study_page.render(pages, kit_of(key)), "backslashreplace")
    return path


def kit_of(key: dict) -> str:
    """What tells a kit from another one, where codes mean other documents."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


# ----------------------------------------------------------------------------------------------------------------------
# Measures without people


def measure(
    made: Sequence[Document], real: Sequence[Document], extractor: Extractor, towers: Towers | None
) -> tuple[dict[str, float], tuple[str, ...]]:
    """(metrics, warnings): where pictures come, how far they lie from the real documents', how well they fit the text
    before them.

    `placed` is the share, in percent, of documents with pictures in which each has text of its own before it. What
    begins with real_ is the same of the real documents.
    """
    metrics = {}
    for name, documents in (("", made), ("real_", real)):
        counts = [sum(isinstance(part, Image) for part in document.parts) for document in documents]
        metrics[f"{name}with_pictures"] = percent(count > 0 for count in counts)
        metrics[f"{name}pictures_per_document"] = sum(counts) / len(counts)
        metrics[f"{name}placed"] = percent(
            is_placed(document) for document, count in zip(documents, counts, strict=True) if count
        )
        pairs = [pair for document in documents for pair in illustrated(document)]
        if towers and pairs:
            fits = [
                towers.stop_consensus([image.pil() for image, _ in now], [text for _, text in now])
                for now in runner.batched(pairs, features.BATCH)
            ]
            metrics[f"{name}clip_agreement"] = float(np.mean(np.concatenate(fits)))
    drawn, true = (
        [part for document in documents for part in document.parts if isinstance(part, Image)]
        for documents in (made, real)
    )
    if min(len(drawn), len(true)) < 2:
        return metrics, (f"{len(drawn)} pictures are drawn and {len(true)} are real: too few for a distance",)
    found = [
        features.collect(
            extractor, (features.square(part.pil(), 256) for part in parts), len(parts), f"{name} pictures"
        )
        for parts, name in ((true, "real"), (drawn, "drawn"))
    ]
    distances, warnings = features.compare(*found, extractor.name)
    return metrics | distances, warnings


def is_placed(document: Document) -> bool:
    """Whether each picture comes after text that no other picture follows."""
    written = [part for part in document.parts if isinstance(part, Image) or part.text.strip()]
    return all(
        not isinstance(part, Image) or i > 0 and isinstance(written[i - 1], Text) for i, part in enumerate(written)
    )


def illustrated(document: Document) -> list[tuple[Image, str]]:
    """Each picture with the text between it and the picture before; those without any are left out."""
    pairs, words = [], ""
    for part in document.parts:
        if isinstance(part, Text):
            words += part.text
        else:
            pairs += [(part, words.strip())] if words.strip() else []
            words = ""
    return pairs


# ----------------------------------------------------------------------------------------------------------------------
# The tally


def tally(judgements: epath.PathLike, data: epath.PathLike) -> Score:
    """`support` of the written documents and `real_support`, in percent of judgements; by topic too; and how far judges
    agree.

    `judgements` is a judge's file or a folder of them, `data` the kit's folder or its key.json. A document that a judge
    left out is counted and warned of, not judged for. `agreement`: Fleiss' kappa over documents that all judges judged.
    """
    key = _read_key(find_file(data, "key.json"))
    folder = epath.Path(judgements)
    files = sorted(folder.glob("*.json")) if folder.is_dir() else [folder]
    if not files:
        raise SourceError(f"{folder}: holds no judge's file *.json")
    by_judge: dict[str, dict[str, bool]] = {}
    for file in files:
        content = read_json(file, without_repeats)
        with expected_form(file, "file that the page makes"):
            judge, said = (
                _name(content["judge"]),
                {str(code): _vote(support) for code, support in content["support"].items()},
            )
        if content.get("kit", kit_of(key)) != kit_of(key):
            raise SourceError(f"{file}: judges the documents of another kit than {data}")
        if judge in by_judge:
            raise SourceError(f"{file}: is of judge {in_message(judge)}, whose file was counted already")
        strange = [code for code in said if code not in key]
        if strange:
            raise SourceError(
                f"{file}: judges document {shown_name(strange[0])}, which {data} does not have: is it of another kit?"
            )
        by_judge[judge] = said
    votes = collections.defaultdict(list)
    for said in by_judge.values():
        for code, support in said.items():
            votes[code].append(support)
    if not votes:
        raise SourceError(f"{folder}: holds no judgements")

    def of(chosen):
        return percent(vote for code in key if chosen(key[code]) for vote in votes[code])

    metrics = {
        "support": of(lambda row: row["kind"] == "written"),
        "real_support": of(lambda row: row["kind"] == "real"),
    }
    metrics["agreement"] = kappa([tuple(given) for given in votes.values() if len(given) == len(by_judge)])
    for topic in dict.fromkeys(row["topic"] for row in key.values() if row["topic"]):
        metrics[f"topic/{topic}"] = of(lambda row, topic=topic: row["kind"] == "written" and row["topic"] == topic)
    given = sum(map(len, votes.values()))
    missing = len(key) * len(by_judge) - given
    warnings = (
        (f"{missing} of {len(key) * len(by_judge)} judgements are missing: judges left documents out",)
        if missing
        else ()
    )
    return Score(
        metrics, {"documents": len(key), "judges": len(by_judge), "judgements": given, "missing": missing}, warnings
    )


def _read_key(path: epath.Path) -> dict[str, dict]:
    key = read_json(path)
    with expected_form(path, "key of a kit"):
        if not all(isinstance(row[name], str) for row in key.values() for name in ("kind", "topic")):
            raise ValueError("a kind or a topic is no text")
    return key


def _name(judge) -> str:
    if not str(judge).strip():
        raise ValueError("the judge has no name")
    return str(judge).strip()


def _vote(support) -> bool:
    if not isinstance(support, bool):
        raise ValueError(f"{in_message(support)} is neither true nor false")
    return support


def kappa(votes: Sequence[tuple[bool, ...]]) -> float:
    """Fleiss' kappa of yes-or-no votes, as many for each document.

    Nan for one judge, and where all votes are the same.
    """
    if not votes or len(votes[0]) < 2:
        return float("nan")
    judges, yes = len(votes[0]), np.array([sum(given) for given in votes])
    observed = np.mean((yes * (yes - 1) + (judges - yes) * (judges - yes - 1)) / (judges * (judges - 1)))
    share = yes.sum() / (judges * len(votes))
    by_chance = share**2 + (1 - share) ** 2
    return float((observed - by_chance) / (1 - by_chance)) if by_chance < 1 else float("nan")
