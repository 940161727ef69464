"""One page of a run.

For each task its figures beside the paper's, and a sample of questions with what the model said to them.
"""

import dataclasses
import html
import io
from collections.abc import Callable, Mapping, Sequence

import PIL.Image

from dreamjax.document import Document, Image, Text, html_article
from dreamjax.document.html import html_page
from dreamjax.evaluation.predictions import Exported, Score

SHOWN = 24  # questions of a task
SIDE = 320  # pixels of a picture's longer side on the page
PIXEL_ART = 64

_TABLE = (
    "width: 100%; border-collapse: collapse; margin: 0 0 2rem; font: 1rem/1.5 system-ui, sans-serif; "
    "font-variant-numeric: tabular-nums"
)
_CELL = "padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: "


@dataclasses.dataclass(frozen=True)
class Shown:
    """One question on the page: the prompt as the model got it, its prediction, and what is right."""

    id: str
    prompt: Document
    text: str
    raw: str = ""
    references: tuple[str, ...] = ()
    images: tuple[Image, ...] = ()  # of a picture that was drawn: it, others beside it, the real one; `text` names them
    goes_on: Document | None = None  # what was made where it is more than words; it stands right after the prompt


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a task; `score` is None where it is scored elsewhere, `note` says why.

    `measured` has the figures {model: {metric: figure}} of others that were measured beside it.
    """

    task: str
    score: Score | None
    paper: Mapping[str, Mapping[str, float]]
    files: Mapping[str, str]
    shown: Sequence[Shown] = ()
    note: str = ""
    how: str = ""  # profile, examples, count
    measured: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    export: Callable[[], Exported] | None = (
        None  # writes the file for the benchmark's server, once the figures are safe
    )


def sample(values: Sequence, count: int = SHOWN) -> list:
    """`count` of the values, evenly spread, in order."""
    return [values[i * len(values) // count] for i in range(count)] if len(values) > count else list(values)


def columns(result: Result) -> list[str]:
    """Whose figures stand beside ours: what was measured here, and the models of the paper's figures."""
    return [
        *result.measured,
        *dict.fromkeys(f"{model} (paper)" for by_model in result.paper.values() for model in by_model),
    ]


def rows(result: Result) -> list[tuple[str, float | None, list[float | None]]]:
    """(metric, our figure, the others' by `columns`) of a task; metrics that the paper alone has come last."""
    ours = result.score.metrics if result.score else {}

    def of_paper(name, model):
        return result.paper.get(name, {}).get(model.removesuffix(" (paper)"))

    def theirs(name):
        return [
            result.measured[model].get(name) if model in result.measured else of_paper(name, model)
            for model in columns(result)
        ]

    return [(name, ours.get(name), theirs(name)) for name in dict.fromkeys([*ours, *result.paper])]


def format_summary(result: Result) -> str:
    """A task's figures as a table for a person, the paper's beside them."""
    lines = [f"{result.task} ({result.how})" if result.how else result.task]
    models = columns(result)
    width = max([12, *map(len, models)])
    if models:
        lines.append(f"  {'':34s} {'ours':>{width}s} " + " ".join(f"{model:>{width}s}" for model in models))
    for name, ours, theirs in rows(result):
        lines.append(
            f"  {name:34s} {_number(ours, width)} {' '.join(_number(value, width) for value in theirs)}".rstrip()
        )
    if result.score is None:
        return "\n".join([*lines, f"  not scored: {result.note}"])
    return "\n".join([*lines, f"  {format_counts(result.score.counts)}"])


def format_counts(counts: Mapping[str, int]) -> str:
    """What figures are of, such as "of 6 questions, 6 predictions, 1 neither yes nor no".

    What is none of is left out.
    """
    return "of " + ", ".join(f"{count:,d} {name.replace('_', ' ')}" for name, count in counts.items() if count)


def _number(value: float | None, width: int) -> str:
    return f"{'':{width}s}" if value is None else f"{value:{width}.2f}"


def render(title: str, results: Sequence[Result]) -> str:
    """The page, self-contained."""
    links = "".join(
        f'<li><a href="#{html.escape(result.task)}" style="color: inherit">{html.escape(result.task)}</a></li>'
        for result in results
    )
    contents = f"<ul>{links}</ul>" if len(results) > 1 else ""
    return html_page(title, f"<h1>{html.escape(title)}</h1>\n{contents}\n" + "\n".join(map(_section, results)))


def _section(result: Result) -> str:
    how = f'<p class="role">{html.escape(result.how)}</p>' if result.how else ""
    notes = (
        [format_counts(result.score.counts), *result.score.warnings] if result.score else [f"not scored: {result.note}"]
    )
    figures = _table(result) + (
        f'<ul class="notes">{"".join(f"<li>{html.escape(note)}</li>" for note in notes)}</ul>' if notes else ""
    )
    articles = "\n".join(html_article(_document(shown), f"<h2>{html.escape(shown.id)}</h2>") for shown in result.shown)
    examples = (
        f"<details><summary>{len(result.shown)} questions and answers</summary>\n{articles}\n</details>"
        if result.shown
        else ""
    )
    return (
        f'<section id="{html.escape(result.task)}">\n<h1>{html.escape(result.task)}</h1>\n'
        f"{how}\n{figures}\n{examples}\n</section>"
    )


def _table(result: Result) -> str:
    models = columns(result)

    def cell(kind, text, side):
        return f'<{kind} style="{_CELL}{side}">{html.escape(text)}</{kind}>'

    head = "".join(cell("th", name, "right") for name in ("ours", *models))

    def number(value):
        return cell("td", "" if value is None else f"{value:.2f}", "right")

    body = "".join(
        f"<tr>{cell('td', name, 'left')}{''.join(map(number, (ours, *theirs)))}</tr>"
        for name, ours, theirs in rows(result)
    )
    return f'<table style="{_TABLE}"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>'


def _document(shown: Shown) -> Document:
    """Prompt and prediction as one document.

    A turn that the prompt opened for the model goes on in the model's own words.
    """
    parts = tuple(
        dataclasses.replace(part, source=_small(part)) if isinstance(part, Image) else part
        for part in shown.prompt.parts
    )
    if shown.images:
        return Document(
            parts + tuple(Image(_small(image)) for image in shown.images), notes=(f"pictures: {shown.text}",)
        )
    references = ("reference: " + " | ".join(dict.fromkeys(shown.references)),) if shown.references else ()
    if shown.goes_on:
        made = tuple(
            dataclasses.replace(part, source=_small(part)) if isinstance(part, Image) else part
            for part in shown.goes_on.parts
        )
        return Document(parts + made, notes=(*shown.goes_on.notes, *references))
    role = "assistant" if any(part.role for part in parts) else None
    words = shown.raw or shown.text
    begun = bool(parts) and parts[-1].role == "assistant"
    notes = [f"prediction: {shown.text}"] if shown.text != words.strip() or begun else []
    notes += references
    said = (Text((" " if begun else "") + words.strip() or "(nothing)", role=role),)
    return Document(parts + said, notes=tuple(notes))


def _small(image: Image) -> bytes:
    """A JPEG with the longer side at most SIDE, or a small picture as it is."""
    opened = image.pil()
    opened.thumbnail((SIDE, SIDE), PIL.Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if max(opened.size) < PIXEL_ART:  # a JPEG of so few pixels shows its own blocks
        opened.save(file, "PNG")
    else:
        opened.save(file, "JPEG", quality=85)
    return file.getvalue()
