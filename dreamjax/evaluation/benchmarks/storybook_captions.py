"""Held-back picture stories as captions: does it help a model to have seen the pages before?

For each held-back page with at least four pages before it, after k = 0, 2 and 4 of these:

    perplexity    of the page's text after k pages as they stand in the story (text, then picture), by the tokens of all
                  pages
    CIDEr         of what the model writes about the page's picture after k pages with the picture before the text, as
                  in-context
                  examples; against the page's own text, on plain tokens

The pages are the same for every k. Each is written to out/captions/predictions.jsonl as it comes; the same model goes
on there.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from etils import epath

from dreamjax.api import DreamLLM
from dreamjax.data.sources.storybook import Story, Storybook
from dreamjax.document import Document, Image, Text
from dreamjax.evaluation import runner
from dreamjax.evaluation.benchmarks import captions
from dreamjax.evaluation.report import Shown
from dreamjax.progress import bar
from dreamjax.sampling.prompts import prompt_tokens

CONTEXTS = (0, 2, 4)
BATCH = 16
WRITING = {"max_tokens": 64, "max_images": 0}
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

    And how many do not fit.
    """
    pages, left_out, room = [], 0, model.config.llm.max_positions - WRITING["max_tokens"]

    def fits(document):
        return prompt_tokens(model.model, model.tokenizer, document, model.template) <= room

    for story in stories.stories:
        whole = [page for page in story.pages if all(page) and stories.may_show(page[1])]
        for number in range(max(CONTEXTS), len(whole)):
            found = [_page(stories, story, whole, number, shots) for shots in CONTEXTS]
            if all(fits(Document((*page.before.parts, Text(page.text)))) and fits(page.examples) for page in found):
                pages += found
            else:
                left_out += 1
            if count and len(pages) >= count * len(CONTEXTS):
                return pages, left_out
    return pages, left_out


def _page(stories: Storybook, story: Story, whole: Sequence[tuple[str, str]], number: int, shots: int) -> Page:
    shown = [(Text(text), epath.Path(stories.place(image))) for text, image in whole[number - shots : number + 1]]
    before = [part for text, image in shown[:-1] for part in (text, Image(image))]
    examples = [part for text, image in shown for part in (Image(image, is_target=False), text)]
    return Page(
        f"{story.id}/{number}", shots, whole[number][0], Document(tuple(before)), Document(tuple(examples[:-1]))
    )


def evaluate(model: DreamLLM, data: epath.Path, out: epath.Path, settings: dict, count: int | None = None) -> dict:
    """perplexity_kN and cider_kN (times 100) for each N of CONTEXTS, the pages and how many the context does not
    hold.
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
        mine = [rows[page.id, page.shots] for page in pages if page.shots == shots]
        results[f"perplexity_k{shots}"] = float(
            np.exp(-sum(row["log_probability"] for row in mine) / sum(row["tokens"] for row in mine))
        )
    for shots in CONTEXTS:
        mine = [page for page in pages if page.shots == shots]
        references = {page.id: [page.text] for page in mine}
        said = {page.id: rows[page.id, shots]["text"] for page in mine}
        results[f"cider_k{shots}"] = 100 * captions.measure(references, said, java=False).figures["CIDEr"]
    return results | counts


def _write(model: DreamLLM, pages: Sequence[Page], out: epath.Path, settings: dict) -> list[dict]:
    """The rows of all pages; what another model left there is put away."""
    path = out / "predictions.jsonl"
    runner.begin(out, settings)
    done = {(row["question_id"], row["shots"]) for row in runner.resume(path, **FIELDS)}
    waiting = [page for page in pages if (page.id, page.shots) not in done]
    with bar(len(pages), "page", "captions", len(pages) - len(waiting)) as progress:
        for batch in runner.batched(waiting, BATCH):
            pairs = [(page.before, page.text) for page in batch]
            likely = model.log_probabilities([*pairs, *pairs[-1:] * (BATCH - len(pairs))], BATCH)
            made = model.generate_batch([page.examples for page in batch], batch_size=BATCH, **WRITING)
            rows = [
                {"question_id": page.id, "shots": page.shots, "text": document.text.strip(), "reference": page.text,
                 "log_probability": float(shares.sum(dtype=np.float64)), "tokens": len(shares)}
                for page, shares, document in zip(batch, likely, made, strict=True)
            ]  # fmt: skip
            runner.append(path, rows)
            progress.update(len(batch))
    return runner.resume(path)


def shown(model: DreamLLM, data: epath.Path, out: epath.Path, pages: int) -> list[Shown]:
    """The first `pages` pages with their examples, for a report, each once for every k; after `evaluate`."""
    said = {
        (row["question_id"], row["shots"]): row["text"] for row in runner.resume(out / "captions" / "predictions.jsonl")
    }
    first, _ = collect(model, Storybook(data, "eval"), pages)
    return [
        Shown(f"{p.id}, k = {p.shots}", p.examples, said[p.id, p.shots], references=(p.text,))
        for p in first
        if (p.id, p.shots) in said
    ]


def format_summary(results: dict) -> str:
    """The figures as lines for a person."""
    if not results["caption_pages"]:
        return "no page has four pages before it that the context holds: no captions with context"
    lines = [
        f"texts of {results['caption_pages']} held-back pages after k pages "
        f"({results['caption_pages_left_out']} more do not fit the context)"
    ]
    lines += [
        f"k = {k}: perplexity {results[f'perplexity_k{k}']:8.2f}   CIDEr of captions {results[f'cider_k{k}']:6.2f}"
        for k in CONTEXTS
    ]
    return "\n".join(lines)
