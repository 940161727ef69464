"""Stories, questions and recalls of the embedded shapes data, judged exactly, on held-out documents.

* stories: the model continues a first sentence; its images should come where they belong and show what the sentence
  before them names. Prompts cover all combinations evenly; those that training leaves out are reported apart.
* questions about an image, whose answer is in the image alone; asked again with the images swapped.
* recalls: "The same again, in blue." must be generated from an earlier image and the text together.
"""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from etils import epath
from tqdm import tqdm

from dreamjax.api import DreamLLM
from dreamjax.data.sources import shapes
from dreamjax.document import Document, Image, Text, image_io, render_html
from dreamjax.evaluation.metrics.shapes_judge import judge
from dreamjax.evaluation.predictions import Score
from dreamjax.evaluation.report import Result, Sample, evenly_spread
from dreamjax.evaluation.resumable import ResumableModel, open_resumable
from dreamjax.filesystem import atomic
from dreamjax.progress import bar

STORIES = 12  # on the page
SAMPLES_OF_A_TASK = 6  # documents in the report
BATCH = 64


@dataclasses.dataclass(frozen=True)
class Item:
    """One judged document: the prompt, the model's continuation, the right answers and the given ones."""

    task: str  # story | question | question_swapped | recall
    prompt: Document
    continuation: Document
    named: tuple  # per image (colour, shape), or the one right answer
    judged: tuple  # per image (colour, shape), or the answer given
    placed: bool | None = None  # stories: every image where it belongs and nowhere else


def evaluate(
    model: DreamLLM, out: epath.Path, settings: dict, count: int = 512, **options: Any
) -> tuple[dict, list[Item]]:
    """Runs all tasks on `count` documents each, writes items.jsonl, pictures/, stories.html and stories.png to `out`;
    (results, judged items).

    Documents are written to predictions.jsonl as they come; the same model, by `settings`, goes on there.
    """
    options = {"sampler": "ddim", "num_steps": 16} | options
    resumable = open_resumable(model, out, settings)
    with bar(4 * count, "document", "evaluating") as progress:
        items = stories(resumable, count, progress, options)
        items += questions(resumable, count, progress, options)
        items += recalls(resumable, count, progress, options)
    write_items(items, out)
    story_items = [item for item in items if item.task == "story"]
    documents = [
        Document(item.prompt.parts + item.continuation.parts, notes=item.continuation.notes)
        for item in story_items[:STORIES]
    ]
    page = render_html(documents, title="Stories by DreamJAX")
    atomic.write_text(out / "stories.html", page, "backslashreplace")
    save_image(story_items, out / "stories.png")
    return metrics(items) | {"judge_accuracy": judge_accuracy(count), "documents": count}, items


# ----------------------------------------------------------------------------------------------------------------------
# Tasks


def stories(model: ResumableModel, count: int, progress: tqdm, options: dict) -> list[Item]:
    """Stories continued from a first sentence; a story without its first image counts as generated wrong."""
    prompts = [prompt for prompt, _ in shapes.story_prompts(count)]
    options = {"max_tokens": 64, "max_images": 4, "temperature": 1.0} | options
    items = []
    for prompt, continuation in zip(prompts, _generate(model, prompts, progress, options), strict=True):
        story = Document(prompt.parts + continuation.parts)
        named = _named_before_images(story) or (shapes.named(prompt.text),)
        judged = _judge(continuation.images) or ((None, None),)
        items.append(Item("story", prompt, continuation, named, judged, is_well_placed(story)))
    return items


def questions(model: ResumableModel, count: int, progress: tqdm, options: dict) -> list[Item]:
    """Questions with their own image, and the same ones with another question's image."""
    examples = shapes.questions(count)
    prompts = [prompt for prompt, *_ in examples]
    order = np.random.default_rng(0).permutation(count)
    other = dict(zip(order, np.roll(order, 1), strict=True))  # a permutation that leaves none in place
    swapped = [Document((prompts[other[i]].parts[0], *prompt.parts[1:])) for i, prompt in enumerate(prompts)]
    items = []
    options = options | {"max_tokens": 8, "max_images": 0}
    for task, task_prompts in (("question", prompts), ("question_swapped", swapped)):
        answers = _generate(model, task_prompts, progress, options)
        items += [
            Item(task, prompt, answer, (right,), (_first_word(answer.text),))
            for prompt, answer, (_, right, *_) in zip(task_prompts, answers, examples, strict=True)
        ]
    return items


def recalls(model: ResumableModel, count: int, progress: tqdm, options: dict) -> list[Item]:
    """Images that need an earlier image: its shape, in the colour that the text names."""
    examples = shapes.recalls(count)
    prompts = [prompt for prompt, _ in examples]
    documents = _generate(model, prompts, progress, {"max_tokens": 8, "max_images": 1} | options)
    named = [((scene.colour, scene.shape),) for _, scene in examples]
    return [
        Item("recall", prompt, document, right, _judge(document.images)[:1] or ((None, None),))
        for prompt, document, right in zip(prompts, documents, named, strict=True)
    ]


def _generate(model: ResumableModel, prompts: Sequence[Document], progress: tqdm, options: dict) -> list[Document]:
    documents: list[Document] = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        documents += model.generate_batch(batch, range(start, start + len(batch)), **options)
        progress.update(len(batch))
    return documents


def _judge(images: Sequence[PIL.Image.Image | np.ndarray]) -> tuple[tuple[str | None, str | None], ...]:
    """(colour, shape) of each image."""
    judgements = judge(np.stack([np.asarray(image) for image in images])) if images else []
    return tuple((judgement.colour, judgement.shape) for judgement in judgements)


def _first_word(text: str) -> str:
    words = re.findall(r"\w+", text.lower())
    return words[0] if words else ""


def _named_before_images(story: Document) -> tuple:
    """(colour, shape) of the last sentence before each image."""
    named, text = [], ""
    for part in story.parts:
        if isinstance(part, Image):
            named.append(shapes.named(text))
        else:
            text += part.text
    return tuple(named)


def is_well_placed(story: Document) -> bool:
    """True if each sentence that names a shape is followed at once by one image, no other image comes, and the story
    ends as stories do.
    """
    expected = []
    for part in story.parts:
        if isinstance(part, Image):
            expected.append("image")
        else:
            expected += [
                "named" if shapes.named(sentence) else sentence.strip()
                for sentence in re.findall(r"[^.]+\.?", part.text)
                if sentence.strip()
            ]
    pages = len(expected) // 2
    return pages > 0 and expected == ["named", "image"] * pages + [shapes.ENDING]


# ----------------------------------------------------------------------------------------------------------------------
# Metrics


def metrics(items: Sequence[Item]) -> dict:
    """Shares of right answers, each beside that of chance."""

    def share(task: str) -> float:
        return _right([(item.named, item.judged) for item in items if item.task == task])

    values = {"colour": len(shapes.COLOURS), "shape": len(shapes.SHAPES), "place": len(shapes.PLACES)}
    return story_metrics([item for item in items if item.task == "story"]) | {
        "answer_accuracy": share("question"),
        "answer_chance": float(np.mean([1 / values[kind] for kind in shapes.QUESTIONS])),
        "answer_swapped": share("question_swapped"),
        "recall_agreement": share("recall"),
        "recall_chance": 1 / len(shapes.SHAPES),  # the text names the colour
    }


def story_metrics(items: Sequence[Item]) -> dict:
    """Shares of right images and places in stories; combinations that training leaves out are apart."""
    pairs = [pair for item in items for pair in zip(item.named, item.judged, strict=True)]
    unseen = [pair for pair in pairs if pair[0] in shapes.UNSEEN]
    return {
        "image_agreement": _right([pair for pair in pairs if pair[0] not in shapes.UNSEEN]),
        "image_chance": 1 / len(shapes.COMBINATIONS),
        "unseen_agreement": _right(unseen),
        "placement": float(np.mean([item.placed for item in items])),
        "placement_chance": float(np.mean([_placement_chance(item) for item in items])),
        "images": len(pairs),
        "unseen_images": len(unseen),
    }


def _right(pairs: Sequence[tuple]) -> float:
    """Share of pairs (named, judged) that agree."""
    return float(np.mean([named == judged for named, judged in pairs])) if pairs else math.nan


def _placement_chance(item: Item) -> float:
    """The chance that this story's images, put between its words at random, stand where they do."""
    words = len(re.findall(r"\w+", item.prompt.text + item.continuation.text))
    return 1 / math.comb(words + 1, max(1, len(item.continuation.images)))


def judge_accuracy(count: int) -> float:
    """Share of true images, those of `count` evaluation prompts, that the judge names right."""
    scenes = [scene for _, scene in shapes.story_prompts(count)]
    judgements = _judge([scene.image() for scene in scenes])
    return float(
        np.mean([judged == (scene.colour, scene.shape) for judged, scene in zip(judgements, scenes, strict=True)])
    )


def result(task: str, results: dict, items: Sequence[Item], files: dict) -> Result:
    """The metrics, in percent, and samples of each kind of document, for a report."""
    counts = {name: results[name] for name in ("documents", "images", "unseen_images")}
    score = Score({name: 100 * value for name, value in results.items() if name not in counts}, counts)
    samples = []
    for kind in dict.fromkeys(item.task for item in items):
        of_kind = list(enumerate(item for item in items if item.task == kind))
        samples += [_sample(number, item) for number, item in evenly_spread(of_kind, SAMPLES_OF_A_TASK)]
    return Result(task, score, files=files, samples=samples, setting="held-out documents")


def _sample(number: int, item: Item) -> Sample:
    def words(answers: tuple) -> str:
        return ", ".join(" ".join(map(str, answer)) if isinstance(answer, tuple) else answer for answer in answers)

    kind = "the judge sees" if item.continuation.images else "prediction"
    notes = (*item.continuation.notes, f"{kind}: {words(item.judged)}")
    return Sample(
        f"{item.task.replace('_', ' ')} {number}",
        item.prompt,
        item.continuation.text,
        references=(words(item.named),),
        continuation=dataclasses.replace(item.continuation, notes=notes),
    )


def format_summary(results: dict) -> str:
    """The results as a table of text."""
    lines = [
        ("images show what the text names", "image_agreement", "image_chance"),
        ("the same, combinations never seen", "unseen_agreement", "image_chance"),
        ("questions answered right", "answer_accuracy", "answer_chance"),
        ("the same, images swapped", "answer_swapped", "answer_chance"),
        ("generated right from an earlier image", "recall_agreement", "recall_chance"),
        ("images placed where they belong", "placement", "placement_chance"),
    ]
    table = "\n".join(
        f"{label:38s} {results[value]:7.1%}   chance {results[chance]:.1%}" for label, value, chance in lines
    )
    return f"{table}\n{'true images the judge names right':38s} {results['judge_accuracy']:7.1%}"


# ----------------------------------------------------------------------------------------------------------------------
# Files


def write_items(items: Sequence[Item], out: epath.Path):
    """items.jsonl, a line per document, and its generated images as PNG in pictures/ at their own size."""
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, item in enumerate(items):
        files = []
        for k, image in enumerate(item.continuation.images):
            file = out / "pictures" / f"{number:05d}_{k}.png"
            atomic.write_bytes(file, image_io.to_png(image))
            files.append(f"pictures/{file.name}")
        document = Document(item.prompt.parts + item.continuation.parts)
        lines.append(
            {
                "task": item.task,
                "text": _marked(document),
                "images": files,
                "named": item.named,
                "judged": item.judged,
                "right": [named == judged for named, judged in zip(item.named, item.judged, strict=True)],
                "placed": item.placed,
                "notes": item.continuation.notes,
            }
        )
    atomic.write_text(out / "items.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def _marked(document: Document) -> str:
    """The text with <picture> in the place of each image."""
    return " ".join(part.text.strip() if isinstance(part, Text) else "<picture>" for part in document.parts)


def save_image(stories: Sequence[Item], path: epath.Path, rows: int = 4, pages: int = 3, side: int = 176):
    """Stories as one PNG, a row each: every image enlarged, over the words before it."""
    chosen = [item for item in stories if len(item.continuation.images) == pages][:rows]
    sheet = PIL.Image.new("RGB", (pages * (side + 70), max(len(chosen), 1) * (side + 44)), "white")
    pen, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(size=14)
    for y, item in enumerate(chosen):
        words, x = "", 0
        for part in item.prompt.parts + item.continuation.parts:
            if isinstance(part, Text):
                words += part.text
                continue
            corner = (x * (side + 70) + 35, y * (side + 44) + 8)
            sheet.paste(part.pil().resize((side, side), PIL.Image.Resampling.NEAREST), corner)
            pen.text((corner[0] + side // 2, corner[1] + side + 6), words.strip(), fill="black", font=font, anchor="ma")
            words, x = "", x + 1
    atomic.write_bytes(path, image_io.to_png(sheet))
