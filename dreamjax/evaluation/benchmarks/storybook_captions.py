"""Held-out picture stories as captions: do the pages before a page help the model with it?

For each held-out page with at least four pages before it, after k = 0, 2 and 4 of these:

    perplexity    of the page's text after k pages as they stand in the story (text, then image), by the tokens of all
                  pages
    CIDEr         of the model's caption of the page's image after k pages with the image before the text, as examples
                  in context; against the page's own text, on plain tokens

The pages are the same for every k. Each is written to out/captions/predictions.jsonl as it comes; the same model goes
on there.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from dreamjax.api import DreamLLM
from dreamjax.data.sources.storybook import Story, Storybook
from dreamjax.document import Document, Image, Text
from dreamjax.evaluation.metrics import captions
from dreamjax.evaluation.report import Sample
from dreamjax.evaluation.run_files import append_rows, batched, begin, read_rows
from dreamjax.progress import bar
from dreamjax.sampling.prompts import prompt_tokens

CONTEXTS = (0, 2, 4)
BATCH = 16
WRITING: dict[str, Any] = {"max_tokens": 64, "max_images": 0}
FIELDS = {"question_id": str, "shots": int, "text": str, "log_probability": float, "tokens": int}  # of a row


@dataclasses.dataclass(frozen=True, eq=False)
class Page:
    """A page after `shots` pages: the story up to its text, and the examples up to its picture."""

    id: str
    shots: int
    text: str
    before: Document
    examples: Document


def collect(model: DreamLLM, stories: Storybook, count: int | None = None) -> tuple[list[Page], int]:
    """The (first `count`) pages that fit the model's context with four pages before them, each once for every k.

    And the number of those that do not fit.
    """
    pages, left_out, room = [], 0, model.model.llm.config.max_positions - WRITING["max_tokens"]

    def fits(document: Document) -> bool:
        return prompt_tokens(model.model, model.tokenizer, document, model.template) <= room

    for story in stories.stories:
        complete = [page for page in story.pages if all(page) and stories.may_show(page[1])]
        for number in range(max(CONTEXTS), len(complete)):
            versions = [_page(stories, story, complete, number, shots) for shots in CONTEXTS]
            if all(fits(Document((*page.before.parts, Text(page.text)))) and fits(page.examples) for page in versions):
                pages += versions
            else:
                left_out += 1
            if count and len(pages) >= count * len(CONTEXTS):
                return pages, left_out
    return pages, left_out


def _page(stories: Storybook, story: Story, complete: Sequence[tuple[str, str]], number: int, shots: int) -> Page:
    pages = [(Text(text), epath.Path(stories.place(image))) for text, image in complete[number - shots : number + 1]]
    before = [part for text, image in pages[:-1] for part in (text, Image(image))]
    examples = [part for text, image in pages for part in (Image(image, is_target=False), text)]
    return Page(
        f"{story.id}/{number}", shots, complete[number][0], Document(tuple(before)), Document(tuple(examples[:-1]))
    )


def evaluate(model: DreamLLM, data: epath.Path, out: epath.Path, settings: dict, count: int | None = None) -> dict:
    """perplexity_kN and cider_kN (times 100) for each N of CONTEXTS, and the counts of pages that fit the context and
    that do not.
    """
    pages, left_out = collect(model, Storybook(data, "eval"), count)
    counts = {"caption_pages": len(pages) // len(CONTEXTS), "caption_pages_left_out": left_out}
    if not pages:
        return counts
    rows = {
        (row["question_id"], row["shots"]): row
        for row in _write(model, pages, out / "captions", settings | {"data": str(data)})
    }
    results = {}
    for shots in CONTEXTS:
        of_shots = [rows[page.id, page.shots] for page in pages if page.shots == shots]
        results[f"perplexity_k{shots}"] = float(
            np.exp(-sum(row["log_probability"] for row in of_shots) / sum(row["tokens"] for row in of_shots))
        )
    for shots in CONTEXTS:
        references = {page.id: [page.text] for page in pages if page.shots == shots}
        written = {key: rows[key, shots]["text"] for key in references}
        results[f"cider_k{shots}"] = 100 * captions.measure_plain(references, written).values["CIDEr"]
    return results | counts


def _write(model: DreamLLM, pages: Sequence[Page], out: epath.Path, settings: dict) -> list[dict]:
    """The rows of all pages; those of another model are deleted."""
    path = out / "predictions.jsonl"
    begin(out, settings)
    done = {(row["question_id"], row["shots"]) for row in read_rows(path, **FIELDS)}
    waiting = [page for page in pages if (page.id, page.shots) not in done]
    with bar(len(pages), "page", "captions", len(pages) - len(waiting)) as progress:
        for batch in batched(waiting, BATCH):
            pairs = [(page.before, page.text) for page in batch]
            filled = [*pairs, *pairs[-1:] * (BATCH - len(pairs))]
            log_probs = model.log_probabilities(filled, BATCH)[: len(batch)]
            documents = model.generate_batch([page.examples for page in batch], batch_size=BATCH, **WRITING)
            rows = [
                {"question_id": page.id, "shots": page.shots, "text": document.text.strip(), "reference": page.text,
                 "log_probability": float(tokens.sum(dtype=np.float64)), "tokens": len(tokens)}
                for page, tokens, document in zip(batch, log_probs, documents, strict=True)
            ]  # fmt: skip
            append_rows(path, rows)
            progress.update(len(batch))
    return read_rows(path)


def samples(model: DreamLLM, data: epath.Path, out: epath.Path, pages: int) -> list[Sample]:
    """The first `pages` pages with their examples, for a report, each once for every k; after `evaluate`."""
    texts = {
        (row["question_id"], row["shots"]): row["text"] for row in read_rows(out / "captions" / "predictions.jsonl")
    }
    first, _ = collect(model, Storybook(data, "eval"), pages)
    return [
        Sample(f"{p.id}, k = {p.shots}", p.examples, texts[p.id, p.shots], references=(p.text,))
        for p in first
        if (p.id, p.shots) in texts
    ]


def format_summary(results: dict) -> str:
    """The results as lines of text."""
    if not results["caption_pages"]:
        return "no page has four pages before it that the context holds: no captions with context"
    lines = [
        f"texts of {results['caption_pages']} held-out pages after k pages "
        f"({results['caption_pages_left_out']} more do not fit the context)"
    ]
    lines += [
        f"k = {k}: perplexity {results[f'perplexity_k{k}']:8.2f}   CIDEr of captions {results[f'cider_k{k}']:6.2f}"
        for k in CONTEXTS
    ]
    return "\n".join(lines)
