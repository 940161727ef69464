"""report.html of a run: for each task its metrics beside the paper's, and a sample of questions with their answers."""

import dataclasses
import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import PIL.Image

from dreamjax.document import Document, Image, Text, html_article
from dreamjax.document.html import html_page
from dreamjax.evaluation import metric_names
from dreamjax.evaluation.predictions import Exported, Score

T = TypeVar("T")

SAMPLES = 24  # questions of a task
SIDE = 320  # pixels of an image's longer side on the page
PIXEL_ART = 64

_TABLE = (
    "width: 100%; border-collapse: collapse; margin: 0 0 2rem; font: 1rem/1.5 system-ui, sans-serif; "
    "font-variant-numeric: tabular-nums"
)
_CELL = "padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: "


@dataclasses.dataclass(frozen=True)
class Sample:
    """One question on the page: the prompt as the model got it, its prediction, and the references."""

    id: str
    prompt: Document
    text: str
    raw: str = ""
    references: tuple[str, ...] = ()
    images: tuple[Image, ...] = ()  # the generated image, others beside it, the real one; `text` names them
    continuation: Document | None = None  # a generated document, shown right after the prompt in place of `text`


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a task; `score` is None if it is scored elsewhere, and `note` says why."""

    task: str
    score: Score | None = None
    paper: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)  # {metric: {model: figure}}
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    samples: Sequence[Sample] = ()
    note: str = ""
    setting: str = ""  # profile, examples, count
    measured: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)  # {other model: {metric: ..}}
    export: Callable[[], Exported] | None = None  # writes the file for the benchmark's server, once results are safe


def evenly_spread(values: Sequence[T], count: int = SAMPLES) -> list[T]:
    """`count` of the values, evenly spread, in order."""
    return [values[i * len(values) // count] for i in range(count)] if len(values) > count else list(values)


def columns(result: Result) -> list[str]:
    """The models beside ours: those that were measured here, and those of the paper's figures."""
    models = dict.fromkeys(f"{model} (paper)" for by_model in result.paper.values() for model in by_model)
    return [*result.measured, *models]


def rows(result: Result) -> list[tuple[str, float | None, list[float | None]]]:
    """(metric, our figure, the others' by `columns`) of a task; metrics of the paper alone come last."""
    ours = result.score.metrics if result.score else {}

    def figure(model: str, metric: str) -> float | None:
        if model in result.measured:
            return result.measured[model].get(metric)
        return result.paper.get(metric, {}).get(model.removesuffix(" (paper)"))

    metrics = dict.fromkeys([*ours, *result.paper])
    return [(metric, ours.get(metric), [figure(model, metric) for model in columns(result)]) for metric in metrics]


def format_summary(result: Result) -> str:
    """A task's metrics as a table of text, the paper's beside them."""
    lines = [f"{result.task} ({result.setting})" if result.setting else result.task]
    models = columns(result)
    width = max([12, *map(len, models)])
    if models:
        lines.append(f"  {'':34s} {'ours':>{width}s} " + " ".join(f"{model:>{width}s}" for model in models))
    for metric, ours, others in rows(result):
        figures = " ".join(f"{'' if value is None else f'{value:.2f}':>{width}s}" for value in (ours, *others))
        lines.append(f"  {metric:34s} {figures}".rstrip())
    lines.append(f"  {format_counts(result.score.counts) if result.score else f'not scored: {result.note}'}")
    return "\n".join(lines)


def format_counts(counts: Mapping[str, int]) -> str:
    """Counts such as "of 6 questions, 6 predictions, 1 neither yes nor no", without those that are 0."""
    return "of " + ", ".join(f"{count:,d} {name.replace('_', ' ')}" for name, count in counts.items() if count)


# ----------------------------------------------------------------------------------------------------------------------
# The page


def render(title: str, results: Sequence[Result], details: Sequence[str] = ()) -> str:
    """The page, self-contained. `details` of the run, such as its model and date, stand below the title."""
    links = "".join(
        f'<li><a href="#{html.escape(result.task)}" style="color: inherit">{html.escape(result.task)}</a></li>'
        for result in results
    )
    contents = f"<ul>{links}</ul>" if len(results) > 1 else ""
    about = f'<p class="role">{html.escape(" · ".join(details))}</p>\n' if details else ""
    return html_page(title, f"<h1>{html.escape(title)}</h1>\n{about}{contents}\n" + "\n".join(map(_section, results)))


def _section(result: Result) -> str:
    setting = f'<p class="role">{html.escape(result.setting)}</p>' if result.setting else ""
    score = result.score
    notes = [format_counts(score.counts), *score.warnings] if score else [f"not scored: {result.note}"]
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    samples = ""
    if result.samples:
        articles = "\n".join(
            html_article(_document(sample), f"<h2>{html.escape(sample.id)}</h2>") for sample in result.samples
        )
        summary = f"<summary>{len(result.samples)} questions and answers</summary>"
        samples = f"<details>{summary}\n{articles}\n</details>"
    return (
        f'<section id="{html.escape(result.task)}">\n<h1>{html.escape(result.task)}</h1>\n'
        f'{setting}\n{_table(result)}<ul class="notes">{items}</ul>\n{samples}\n</section>'
    )


def _table(result: Result) -> str:
    def cell(kind: str, text: str, side: str) -> str:
        return f'<{kind} style="{_CELL}{side}">{html.escape(text)}</{kind}>'

    def number(value: float | None) -> str:
        return cell("td", "" if value is None else f"{value:.2f}", "right")

    head = "".join(cell("th", model, "right") for model in ("unit", "ours", *columns(result)))
    body = "".join(
        f"<tr>{cell('td', metric_names.name_of(metric), 'left')}"
        f"{cell('td', metric_names.unit_of(result.task, metric), 'right')}{''.join(map(number, (ours, *others)))}</tr>"
        for metric, ours, others in rows(result)
    )
    return f'<table style="{_TABLE}"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>'


def _document(sample: Sample) -> Document:
    """Prompt and prediction as one document. An answer that the prompt begins goes on in the model's own words."""
    parts = _shrunk(sample.prompt.parts)
    if sample.images:
        return Document(
            parts + tuple(Image(_jpeg(image)) for image in sample.images), notes=(f"pictures: {sample.text}",)
        )
    references = ("reference: " + " | ".join(dict.fromkeys(sample.references)),) if sample.references else ()
    if sample.continuation:
        continuation = sample.continuation
        return Document(parts + _shrunk(continuation.parts), notes=(*continuation.notes, *references))
    role = "assistant" if any(part.role for part in parts) else None
    text = (sample.raw or sample.text).strip()
    has_prefix = bool(parts) and parts[-1].role == "assistant"
    notes = (f"prediction: {sample.text}",) if sample.text != text or has_prefix else ()
    answer = Text((" " if has_prefix else "") + text or "(nothing)", role=role)
    return Document((*parts, answer), notes=(*notes, *references))


def _shrunk(parts: Sequence[Text | Image]) -> tuple[Text | Image, ...]:
    return tuple(dataclasses.replace(part, source=_jpeg(part)) if isinstance(part, Image) else part for part in parts)


def _jpeg(image: Image) -> bytes:
    """A JPEG with the longer side at most SIDE, or a PNG of a tiny image, where JPEG's blocks would show."""
    small = image.pil()
    small.thumbnail((SIDE, SIDE), PIL.Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if max(small.size) < PIXEL_ART:
        small.save(file, "PNG")
    else:
        small.save(file, "JPEG", quality=85)
    return file.getvalue()
