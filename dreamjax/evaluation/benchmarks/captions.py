"""Captions: COCO (Karpathy's test split or a file of annotations), NoCaps, Image2Paragraph, plain text."""

import functools
from collections.abc import Sequence

from etils import epath

from dreamjax.errors import SourceError
from dreamjax.evaluation.benchmark import Benchmark
from dreamjax.evaluation.files import expected_form, find_file, lines_of, read_json, read_text
from dreamjax.evaluation.metrics import captions as metrics
from dreamjax.evaluation.predictions import Score, match_ids, read_predictions
from dreamjax.evaluation.prompts import PromptTemplate, capitalise, first_line, official
from dreamjax.evaluation.question import Question, limit

Rows = list[tuple[str, str]]
"""(image's id, caption) for each caption."""


# ----------------------------------------------------------------------------------------------------------------------
# Files


def load_questions(task: str, data: epath.PathLike, count: int | None = None) -> list[Question]:
    """The (first `count`) images with their captions as references; plain text names no images. Raises SourceError.

    Of a folder, the first of these that is there: plain text, a caption a line, in one or more files *ref*.txt;
    dataset_coco.json (Karpathy; split test); a COCO file of annotations (COCO, NoCaps); paragraphs_v1.json with
    test_split.json (Image2Paragraph).
    """
    data = epath.Path(data)
    lines = sorted(data.glob("*ref*.txt")) if data.is_dir() else [data] if data.suffix == ".txt" else []
    questions = _read_lines(lines, data) if lines else _read_captions(_find(task, data))
    if not questions:
        raise SourceError(f"{data if lines else _find(task, data)}: holds no captions")
    return limit(questions, count)


def load_with_images(task: str, data: epath.PathLike, count: int | None = None) -> list[Question]:
    """`load_questions`; raises SourceError for captions without an image."""
    questions = load_questions(task, data, count)
    lacking = [question.id for question in questions if not question.images]
    if lacking:
        raise SourceError(
            f"{data}: names no picture for {len(lacking)} of {len(questions)} captions, such as {lacking[0]}"
        )
    return questions


def _find(task: str, data: epath.Path) -> epath.Path:
    """The JSON file with a task's captions."""
    patterns = ("dataset_coco.json", f"*{task}*.json", "paragraphs_v1.json", "captions_*.json")
    return find_file(data, *patterns, "annotations/captions_val*.json")


def _read_lines(files: Sequence[epath.Path], data: epath.Path) -> list[Question]:
    """Line n of each file is a caption of image n."""
    columns = [lines_of(read_text(file)) for file in files]
    shortest = min(map(len, columns))
    columns = [lines_of(read_text(file), shortest) for file in files]  # one may end in more empty lines than another
    if len(set(map(len, columns))) > 1:
        counts = [f"{file.name} has {len(column)} lines" for file, column in zip(files, columns, strict=True)]
        raise SourceError(f"{data}: {', '.join(counts)}")
    rows = list(zip(*columns, strict=True))
    while rows and not any(text.strip() for text in rows[-1]):
        rows.pop()
    return [Question(str(number), references=texts) for number, texts in enumerate(rows, 1)]


def _read_captions(path: epath.Path) -> list[Question]:
    """The captions of a JSON file and the names of its images, by the file's layout."""
    content = read_json(path)
    with expected_form(path, "file of captions"):
        if isinstance(content, list):
            rows, images = _paragraphs(content, set(read_json(path.parent / "test_split.json")))
        elif "annotations" in content:
            rows, images = _annotations(content)
        else:
            rows, images = _karpathy(content)
        references: dict[str, list[str]] = {}
        for key, text in rows:
            references.setdefault(key, []).append(text)
        return [
            Question(key, images=(images[key],) if key in images else (), references=tuple(texts))
            for key, texts in references.items()
        ]


def _paragraphs(content: list[dict], split: set) -> tuple[Rows, dict[str, str]]:
    """Image2Paragraph: images are named by their ids."""
    rows = [(str(row["image_id"]), row["paragraph"]) for row in content if row["image_id"] in split]
    return rows, {key: key for key, _ in rows}


def _annotations(content: dict) -> tuple[Rows, dict[str, str]]:
    """COCO and NoCaps."""
    rows = [(str(row["image_id"]), row["caption"]) for row in content["annotations"]]
    return rows, {str(row["id"]): row["file_name"] for row in content.get("images", ()) if "file_name" in row}


def _karpathy(content: dict) -> tuple[Rows, dict[str, str]]:
    """The test split of dataset_coco.json."""
    test = [row for row in content["images"] if row["split"] == "test"]
    rows = [(str(row["cocoid"]), sentence["raw"]) for row in test for sentence in row["sentences"]]
    return rows, {str(row["cocoid"]): row["filename"] for row in test if "filename" in row}


# ----------------------------------------------------------------------------------------------------------------------
# Scoring


def score(task: str, predictions: epath.PathLike, data: epath.PathLike, count: int | None = None) -> Score:
    """CIDEr, Bleu_n, ROUGE_L and METEOR, times 100 as they are published. An image without a caption gets an empty one.

    Predictions: COCO results [{"image_id", "caption"}], an answer file, or a .txt with a caption a line (`captions`).
    """
    references = {question.id: question.references for question in load_questions(task, data, count)}
    if epath.Path(predictions).suffix == ".txt":
        texts, warnings = _match_lines(predictions, list(references))
        counts = {"questions": len(texts), "predictions": len(texts), "missing": 0, "unmatched": 0}
    else:
        matched = match_ids(read_predictions(predictions), list(references), str(data))
        texts, counts, warnings = matched.texts, matched.counts, matched.warnings
    measured = metrics.measure(references, {key: texts.get(key, "") for key in references})
    ending = ""
    if measured.tokenizer == "plain":
        ending = "_plain"
        warnings += (
            "no Java here: METEOR is left out, and the others are computed with a plain tokenizer, so "
            "they are not the published measure",
        )
    return Score({f"{name}{ending}": 100 * value for name, value in measured.values.items()}, counts, warnings)


def _match_lines(predictions: epath.PathLike, keys: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The lines of a file by the keys of the references, in their order, and warnings.

    An empty line is an empty caption, also the first and the last.
    """
    text = read_text(predictions)
    if not text:
        raise SourceError(f"{predictions}: holds no predictions")
    lines = lines_of(text, len(keys))
    if len(lines) != len(keys):
        raise SourceError(f"{predictions}: has {len(lines)} lines for {len(keys)} references")
    texts = dict(zip(keys, lines, strict=True))
    empty = [number for number, line in enumerate(lines, 1) if not line.strip()]
    if not empty:
        return texts, ()
    return texts, (
        f"{len(empty)} of {len(lines)} lines are empty captions, which are scored as they are; the first is line "
        f"{empty[0]}",
    )


# ----------------------------------------------------------------------------------------------------------------------
# Benchmarks

_CAPTION = PromptTemplate("Describe the picture in one sentence.", postprocess=first_line, decoding={"max_tokens": 64})
PROMPTS = {
    "coco": {
        "clean": _CAPTION,
        "official": official(
            "Please summarize object in one sentence within 10 words.",
            before_image="Based on the image, give the image caption briefly.",
            answer_prefix="The image depicts",
            postprocess=capitalise,
        ),
    },
    "nocaps": {
        "clean": _CAPTION,
        "official": official("Please summarize object briefly in one sentence within 5 words.", postprocess=capitalise),
    },
    "image2paragraph": {
        "clean": PromptTemplate("Describe the picture in a paragraph.", decoding={"max_tokens": 256}),
        "official": official(
            "Please describe the image in detail.",
            before_image="Based on the image, please describe the image in detail.",
            answer_prefix="The image depicts",
            postprocess=capitalise,
        ),
    },
}
PAPER = {
    "coco": {"CIDEr": {"DreamLLM": 115.4, "+ SFT": 103.7}},
    "image2paragraph": {"CIDEr": {"DreamLLM": 17.4, "+ SFT": 8.4}},
}
BENCHMARKS = (
    *(
        Benchmark(
            name=name,
            questions=functools.partial(load_with_images, name),
            score=functools.partial(score, name),
            prompts=PROMPTS[name],
            paper=PAPER.get(name, {}),
        )
        for name in PROMPTS
    ),
    Benchmark(name="captions", score=functools.partial(score, "captions")),  # plain text; there is nothing to ask
)
