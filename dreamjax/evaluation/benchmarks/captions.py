"""Captions and paragraphs: CIDEr, BLEU, METEOR and ROUGE-L through pycocoevalcap, the COCO caption evaluation.

METEOR and the Penn Treebank tokenizer are Java programs. Without Java the rest is computed on `plain_tokens` instead,
and the figures say so: they are close to, but not, the published measure.
"""

import dataclasses
import re
import shutil
from collections.abc import Sequence

from etils import epath

from dreamjax.errors import SourceError
from dreamjax.evaluation.files import expected_form, find_file, lines_of, read_json, read_text
from dreamjax.evaluation.predictions import Score, by_id, first, read_answers

TASKS = ("coco", "nocaps", "image2paragraph", "captions")


@dataclasses.dataclass(frozen=True)
class Measured:
    """Figures of a corpus, as fractions (CIDEr is no share and goes up to 10); `tokenizer` is ptb or plain."""

    figures: dict[str, float]
    tokenizer: str


def measure(references: dict[str, Sequence[str]], captions: dict[str, str], java: bool | None = None) -> Measured:
    """CIDEr, Bleu_1 ..

    Bleu_4, ROUGE_L and, with Java, METEOR of a caption for each key of `references`; `java` None: where it is there.
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    java = shutil.which("java") is not None if java is None else java
    tokenise = _ptb if java else _plain
    truth = tokenise({key: list(texts) for key, texts in references.items()})
    made = tokenise({key: [captions[key]] for key in references})
    figures = {"CIDEr": Cider().compute_score(truth, made)[0]}
    figures |= {f"Bleu_{n}": value for n, value in enumerate(Bleu(4).compute_score(truth, made, verbose=0)[0], 1)}
    figures["ROUGE_L"] = Rouge().compute_score(truth, made)[0]
    if java:
        from pycocoevalcap.meteor.meteor import Meteor

        figures["METEOR"] = Meteor().compute_score(truth, made)[0]
    return Measured({name: float(value) for name, value in figures.items()}, "ptb" if java else "plain")


def plain_tokens(text: str) -> list[str]:
    """Words in lower case without punctuation, n't and what follows an apostrophe parted as Penn Treebank does."""
    return re.findall(r"n't\b|'\w+|\w+?(?=n't\b)|\w+(?:-\w+)*", text.lower())


def _plain(texts: dict[str, list[str]]) -> dict[str, list[str]]:
    return {key: [" ".join(plain_tokens(text)) for text in values] for key, values in texts.items()}


def _ptb(texts: dict[str, list[str]]) -> dict[str, list[str]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # The tokenizer works line by line: every kind of line break inside of a caption has to go.
    return PTBTokenizer().tokenize(
        {key: [{"caption": " ".join(text.split())} for text in values] for key, values in texts.items()}
    )


# ----------------------------------------------------------------------------------------------------------------------
# Files


def load_references(data: epath.PathLike, task: str, count: int | None = None) -> dict[str, list[str]]:
    """{picture's id: reference captions} of all, or the first `count`, pictures; raises SourceError. Of a folder, the
    first of these that is there:

    dataset_coco.json (Karpathy; split test), a COCO file of annotations (COCO, NoCaps), paragraphs_v1.json with
    test_split.json (Image2Paragraph), or plain text, a caption a line, in one or more files *ref*.txt.
    """
    data = epath.Path(data)
    lines = sorted(data.glob("*ref*.txt")) if data.is_dir() else [data] if data.suffix == ".txt" else []
    if lines:
        columns = [lines_of(read_text(file)) for file in lines]
        columns = [
            lines_of(read_text(file), min(map(len, columns))) for file in lines
        ]  # one may end in more empty lines than another
        if len({len(column) for column in columns}) > 1:
            counts = [f"{file.name} has {len(column)} lines" for file, column in zip(lines, columns, strict=True)]
            raise SourceError(f"{data}: {', '.join(counts)}")
        rows = [list(texts) for texts in zip(*columns, strict=True)]
        while rows and not any(text.strip() for text in rows[-1]):
            rows.pop()
        if not rows:
            raise SourceError(f"{data}: holds no captions")
        return dict(first(((str(number), texts) for number, texts in enumerate(rows, 1)), count))
    path = find_captions(data, task)
    content = read_json(path)
    references: dict[str, list[str]] = {}
    with expected_form(path, "file of captions"):
        if isinstance(content, list):
            of_split = set(read_json(path.parent / "test_split.json"))
            pairs = [(row["image_id"], row["paragraph"]) for row in content if row["image_id"] in of_split]
        elif "annotations" in content:
            pairs = [(row["image_id"], row["caption"]) for row in content["annotations"]]
        else:
            pairs = [
                (row["cocoid"], sentence["raw"])
                for row in content["images"]
                if row["split"] == "test"
                for sentence in row["sentences"]
            ]
        for key, text in pairs:
            references.setdefault(str(key), []).append(text)
    if not references:
        raise SourceError(f"{path}: holds no captions")
    return dict(first(references.items(), count))


def _by_line(predictions: epath.PathLike, references: dict[str, list[str]]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The lines of a file by the keys of the references, in their order, and warnings.

    An empty line is an empty caption, also the first and the last.
    """
    text = read_text(predictions)
    if not text:
        raise SourceError(f"{predictions}: holds no predictions")
    lines = lines_of(text, len(references))
    if len(lines) != len(references):
        raise SourceError(f"{predictions}: has {len(lines)} lines for {len(references)} references")
    empty = [number for number, line in enumerate(lines, 1) if not line.strip()]
    warnings = (
        (
            f"{len(empty)} of {len(lines)} lines are empty captions, which are scored as they are; the "
            f"first is line {empty[0]}",
        )
        if empty
        else ()
    )
    return dict(zip(references, lines, strict=True)), warnings


def find_captions(data: epath.PathLike, task: str) -> epath.Path:
    """The JSON file with a task's captions."""
    return find_file(
        data,
        "dataset_coco.json",
        f"*{task}*.json",
        "paragraphs_v1.json",
        "captions_*.json",
        "annotations/captions_val*.json",
    )


def score(task: str, predictions: epath.PathLike, data: epath.PathLike, count: int | None = None) -> Score:
    """CIDEr, Bleu_n, ROUGE_L and METEOR, times 100 as they are published. A picture without a caption gets an empty
    one.

    Predictions: COCO results [{"image_id", "caption"}], an answer file, or a .txt with a caption a line (`captions`).
    """
    references = load_references(data, task, count)
    if epath.Path(predictions).suffix == ".txt":
        texts, warnings = _by_line(predictions, references)
        counts = {"questions": len(texts), "predictions": len(texts), "missing": 0, "unmatched": 0}
    else:
        matched = by_id(read_answers(predictions), list(references), str(data))
        texts, counts, warnings = matched.texts, matched.counts, matched.warnings
    measured = measure(references, {key: texts.get(key, "") for key in references})
    if measured.tokenizer == "plain":
        warnings += (
            "no Java here: METEOR is left out, and the others are computed with a plain tokenizer, so "
            "they are not the published measure",
        )
    metrics = {name: 100 * value for name, value in measured.figures.items()}
    if measured.tokenizer == "plain":
        metrics = {f"{name}_plain": value for name, value in metrics.items()}
    return Score(metrics, counts, warnings)
