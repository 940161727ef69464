"""Does the text of a real picture story steer its pictures? Measured on held-back stories by the denoising loss.

For each held-back page the image loss is measured at fixed noise and timesteps under the page's own condition and under
those of pages of other stories, a few for each. `text` conditions on the page's text alone; `context` on all of the
story up to the picture, earlier pictures included. The difference is paired: same picture, same noise, same timesteps.
"""

import dataclasses
import json
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from dreamjax.api import DreamLLM
from dreamjax.config import LossConfig
from dreamjax.data.sources.storybook import Storybook
from dreamjax.document import Document, Image, Text, image_io, render_html
from dreamjax.evaluation.report import Shown
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
    """A held-back page with a picture: its text alone, all of its story before the picture, and the picture."""

    story: int
    text: Document
    context: Document
    image: Image


def evaluate(model: DreamLLM, data: epath.Path, out: epath.Path) -> tuple[dict, list[Shown]]:
    """Runs the comparison on all held-back pages that fit the context, tells some held-back stories on.

    The figures and these stories.
    """
    stories = Storybook(data, "eval")
    pages = collect_pages(model, stories)
    numbers = [page.story for page in pages]
    progress = bar(2 * (1 + OTHERS) * len(pages), "page", "evaluating")
    results = {"pages": len(pages), "stories": len(stories), "timesteps": TIMESTEPS}
    for name in ("text", "context"):
        prompts = [getattr(page, name) for page in pages]
        own = page_losses(model, prompts, pages, progress)
        draws = [
            page_losses(model, [prompts[i] for i in another_story(numbers, seed)], pages, progress)
            for seed in range(OTHERS)
        ]
        swapped = np.mean(draws, axis=0)
        results |= {f"{name}_{key}": value for key, value in compare(own, swapped, numbers).items()}
    progress.close()
    results["html"], told = write_stories(model, stories, out)
    atomic.write_text(out / "storybook.json", json.dumps(results, indent=1) + "\n")
    return results, told


def collect_pages(model: DreamLLM, stories: Storybook) -> list[Page]:
    """Every held-back page with text and a picture whose story up to there fits the model's context."""
    pages = []
    room = model.config.llm.max_positions - model.config.dream_queries - 2
    for number in range(len(stories)):
        parts = stories[number].parts
        for i in range(1, len(parts)):
            if isinstance(parts[i], Image) and isinstance(parts[i - 1], Text):
                page = Page(number, Document((parts[i - 1],)), Document(parts[:i]), parts[i])
                if prompt_tokens(model.model, model.tokenizer, page.context, model.template) <= room:
                    pages.append(page)
    return pages


def another_story(stories: Sequence[int], seed: int = 0) -> list[int]:
    """For each page the number of a page of another story, drawn with a fixed seed."""
    rng = np.random.default_rng(seed)
    numbers = np.asarray(stories)
    return [int(rng.choice(np.flatnonzero(numbers != story))) for story in numbers]


def page_losses(model: DreamLLM, prompts: Sequence[Document], pages: Sequence[Page], progress) -> np.ndarray:
    """Image loss of each page's picture under the condition read after each prompt.

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
def _errors(model: Model, images, hidden, numbers) -> jax.Array:
    """[B, TIMESTEPS] errors of pictures [B, H, W, 3] under hidden [B, Q, D].

    Timesteps lie in the middle of equal shares of the schedule.
    """
    total = model.config.diffusion.timesteps

    def at(k):
        draws = losses.draw(model.config, LossConfig(), jax.random.fold_in(jax.random.key(0), k), numbers)
        draws = draws._replace(timesteps=jnp.full(len(images), (2 * k + 1) * total // (2 * TIMESTEPS)))
        return losses.image_errors(model, LossConfig(), images, hidden, None, draws)

    return jax.lax.map(at, jnp.arange(TIMESTEPS)).T


def compare(own: np.ndarray, swapped: np.ndarray, stories: Sequence[int]) -> dict:
    """Mean losses and the paired difference (swapped - own) in standard errors, over pages and, more strictly, over
    stories.
    """
    difference = (swapped - own).mean(axis=1)
    by_story = np.array([difference[np.asarray(stories) == story].mean() for story in sorted(set(stories))])

    def in_errors(values):
        return float(values.mean() / (values.std(ddof=1) / np.sqrt(len(values))))

    return {
        "own": float(own.mean()),
        "other": float(swapped.mean()),
        "difference": float(difference.mean()),
        "standard_errors": in_errors(difference),
        "standard_errors_by_story": in_errors(by_story),
    }


def write_stories(model: DreamLLM, stories: Storybook, out: epath.Path) -> tuple[str, list[Shown]]:
    """stories.html: the titles and first pages of held-back stories, told on by the model."""
    prompts = [Document(stories[i].parts[:2]) for i in range(min(SHOWN, len(stories)))]
    prompts = [Document(tuple(part for part in prompt.parts if isinstance(part, Text))) for prompt in prompts]
    made = model.generate_batch(prompts, max_tokens=160, max_images=4, temperature=0.8, top_p=0.9, min_images=1)
    page = render_html(
        [Document(p.parts + m.parts, notes=m.notes) for p, m in zip(prompts, made, strict=True)],
        title="Held-back stories, told on by DreamJAX",
    )
    path = out / "stories.html"
    atomic.write_text(path, page, "backslashreplace")
    return str(path), [Shown(p.text.strip(), p, m.text, m.text, goes_on=m) for p, m in zip(prompts, made, strict=True)]


def format_summary(results: dict) -> str:
    """The figures as a table for a person."""
    lines = [
        f"image loss on {results['pages']} held-back pages of {results['stories']} stories, "
        f"{results['timesteps']} timesteps"
    ]
    for name, label in (("text", "page's text alone"), ("context", "story up to the picture")):
        r = {
            key: results[f"{name}_{key}"]
            for key in ("own", "other", "difference", "standard_errors", "standard_errors_by_story")
        }
        lines.append(
            f"{label:24s} own {r['own']:.5f}  another story's {r['other']:.5f}  difference {r['difference']:.5f} = "
            f"{r['standard_errors']:.1f} standard errors over pages, {r['standard_errors_by_story']:.1f} over stories"
        )
    return "\n".join(lines)
