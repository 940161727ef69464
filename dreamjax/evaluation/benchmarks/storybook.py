"""Does the text of a real picture story steer its images? Measured on held-out stories by the denoising loss.

For each held-out page the image loss is measured at fixed noise and timesteps under the page's own condition and under
those of pages of other stories, a few for each. `text` conditions on the page's text alone; `context` on all of the
story up to the image, earlier images included. The difference is paired: same image, same noise, same timesteps.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from tqdm import tqdm

from dreamjax.api import DreamLLM
from dreamjax.config import LossConfig
from dreamjax.data.sources.storybook import Storybook
from dreamjax.document import Document, Image, Text, image_io, render_html
from dreamjax.evaluation.report import Sample
from dreamjax.filesystem import atomic
from dreamjax.models.dreamllm import Model
from dreamjax.progress import bar
from dreamjax.sampling import prefill
from dreamjax.sampling.prompts import prompt_tokens
from dreamjax.training import losses

TIMESTEPS = 8
BATCH = 16
OTHERS = 4  # pages of other stories that each page is compared with; their mean differs less by chance than one does
SHOWN = 4  # stories on the page


@dataclasses.dataclass(frozen=True)
class Page:
    """A held-out page with an image: its text alone, all of its story before the image, and the image."""

    story: int
    text: Document
    context: Document
    image: Image


def evaluate(model: DreamLLM, data: epath.Path, out: epath.Path) -> tuple[dict, list[Sample]]:
    """Runs the comparison on all held-out pages that fit the context and continues some held-out stories.

    (results, these stories).
    """
    stories = Storybook(data, "eval")
    pages = collect_pages(model, stories)
    numbers = [page.story for page in pages]
    progress = bar(2 * (1 + OTHERS) * len(pages), "page", "evaluating")
    results: dict[str, Any] = {"pages": len(pages), "stories": len(stories), "timesteps": TIMESTEPS}
    for name in ("text", "context"):
        prompts = [getattr(page, name) for page in pages]
        own = page_losses(model, prompts, pages, progress)
        others = [
            page_losses(model, [prompts[i] for i in another_story(numbers, seed)], pages, progress)
            for seed in range(OTHERS)
        ]
        swapped = np.mean(others, axis=0)
        results |= {f"{name}_{key}": value for key, value in compare(own, swapped, numbers).items()}
    progress.close()
    results["html"], samples = write_stories(model, stories, out)
    atomic.write_text(out / "storybook.json", json.dumps(results, indent=1) + "\n")
    return results, samples


def collect_pages(model: DreamLLM, stories: Storybook) -> list[Page]:
    """Every held-out page with text and an image whose story up to there fits the model's context."""
    pages = []
    room = model.model.llm.config.max_positions - model.config.dream_queries - 2
    for number in range(len(stories)):
        parts = stories[number].parts
        for i in range(1, len(parts)):
            image = parts[i]
            if isinstance(image, Image) and isinstance(parts[i - 1], Text):
                page = Page(number, Document((parts[i - 1],)), Document(parts[:i]), image)
                if prompt_tokens(model.model, model.tokenizer, page.context, model.template) <= room:
                    pages.append(page)
    return pages


def another_story(stories: Sequence[int], seed: int = 0) -> list[int]:
    """For each page the number of a page of another story, sampled with a fixed seed."""
    rng = np.random.default_rng(seed)
    numbers = np.asarray(stories)
    return [int(rng.choice(np.flatnonzero(numbers != story))) for story in numbers]


def page_losses(model: DreamLLM, prompts: Sequence[Document], pages: Sequence[Page], progress: tqdm) -> np.ndarray:
    """Image loss of each page's image under the condition read after each prompt.

    [pages, TIMESTEPS], noise fixed per page and timestep.
    """
    rows = []
    for start in range(0, len(pages), BATCH):
        chosen = slice(start, start + BATCH)
        hidden = prefill.condition_after(model.model, model.tokenizer, prompts[chosen], model.template, BATCH)
        targets = [image_io.for_decoder(page.image.pil(), model.config.decoder_size) for page in pages[chosen]]
        padded = np.stack(targets + [targets[-1]] * (BATCH - len(targets)))
        rows.append(np.asarray(_errors(model.model, padded, hidden, np.arange(start, start + BATCH)))[: len(targets)])
        progress.update(len(targets))
    return np.concatenate(rows)


@jax.jit
def _errors(model: Model, images: jax.Array, hidden: jax.Array, numbers: jax.Array) -> jax.Array:
    """[B, TIMESTEPS] errors of images [B, H, W, 3] under hidden [B, Q, D].

    Timesteps lie in the middle of equal shares of the schedule.
    """
    total = model.config.diffusion.timesteps

    def at(k: jax.Array) -> jax.Array:
        samples = losses.sample(model.config, LossConfig(), jax.random.fold_in(jax.random.key(0), k), numbers)
        samples = samples._replace(timesteps=jnp.full(len(images), (2 * k + 1) * total // (2 * TIMESTEPS)))
        return losses.denoising_loss(model, LossConfig(), images, hidden, samples)

    return jax.lax.map(at, jnp.arange(TIMESTEPS)).T


def compare(own: np.ndarray, swapped: np.ndarray, stories: Sequence[int]) -> dict:
    """Mean losses and the paired difference (swapped - own) in standard errors, over pages and, more strictly, over
    stories.
    """
    difference = (swapped - own).mean(axis=1)
    by_story = np.array([difference[np.asarray(stories) == story].mean() for story in sorted(set(stories))])

    def in_errors(values: np.ndarray) -> float:
        return float(values.mean() / (values.std(ddof=1) / np.sqrt(len(values))))

    return {
        "own": float(own.mean()),
        "other": float(swapped.mean()),
        "difference": float(difference.mean()),
        "standard_errors": in_errors(difference),
        "standard_errors_by_story": in_errors(by_story),
    }


def write_stories(model: DreamLLM, stories: Storybook, out: epath.Path) -> tuple[str, list[Sample]]:
    """stories.html: the titles and first pages of held-out stories, continued by the model."""
    prompts = [Document(stories[i].parts[:2]) for i in range(min(SHOWN, len(stories)))]
    prompts = [Document(tuple(part for part in prompt.parts if isinstance(part, Text))) for prompt in prompts]
    documents = model.generate_batch(prompts, max_tokens=160, max_images=4, temperature=0.8, top_p=0.9, min_images=1)
    page = render_html(
        [Document(p.parts + m.parts, notes=m.notes) for p, m in zip(prompts, documents, strict=True)],
        title="Held-out stories, continued by DreamJAX",
    )
    path = out / "stories.html"
    atomic.write_text(path, page, "backslashreplace")
    return str(path), [
        Sample(p.text.strip(), p, m.text, m.text, continuation=m) for p, m in zip(prompts, documents, strict=True)
    ]


def format_summary(results: dict) -> str:
    """The results as a table of text."""
    lines = [
        f"image loss on {results['pages']} held-out pages of {results['stories']} stories, "
        f"{results['timesteps']} timesteps"
    ]
    for name, label in (("text", "page's text alone"), ("context", "story up to the image")):
        r = {
            key: results[f"{name}_{key}"]
            for key in ("own", "other", "difference", "standard_errors", "standard_errors_by_story")
        }
        lines.append(
            f"{label:24s} own {r['own']:.5f}  another story's {r['other']:.5f}  difference {r['difference']:.5f} = "
            f"{r['standard_errors']:.1f} standard errors over pages, {r['standard_errors_by_story']:.1f} over stories"
        )
    return "\n".join(lines)
