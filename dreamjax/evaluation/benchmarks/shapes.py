"""What a model trained on the embedded shapes data can do, judged exactly: on documents it did not train on.

* stories: the model goes on after a first sentence; its pictures should come where they belong and show what the
  sentence
  before them names. Prompts cover all combinations evenly; those that training leaves out are reported apart.
* questions about a picture, whose answer is in the picture alone; asked again with the pictures swapped.
* recalls: "The same again, in blue." must be drawn from an earlier picture and the text together.
"""

import dataclasses
import json
import math
import re
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from etils import epath

from dreamjax.api import DreamLLM
from dreamjax.data.sources import shapes
from dreamjax.document import Document, Image, Text, image_io, render_html
from dreamjax.evaluation import resumable
from dreamjax.evaluation.metrics.shapes_judge import Judgement, judge
from dreamjax.evaluation.predictions import Score
from dreamjax.evaluation.report import Result, Shown, sample
from dreamjax.filesystem import atomic
from dreamjax.progress import bar

SHOWN = 12  # stories on the page
SHOWN_OF_A_KIND = 6  # documents in the report
BATCH = 64


@dataclasses.dataclass(frozen=True)
class Item:
    """One judged document: what was asked, what the model made, and whether each thing judged is right."""

    task: str  # story | question | question_swapped | recall
    prompt: Document
    made: Document
    named: tuple  # per picture (colour, shape), or the one right answer
    judged: tuple  # per picture (colour, shape), or the answer given
    placed: bool | None = None  # stories: every picture where it belongs and nowhere else


def evaluate(model: DreamLLM, out: epath.Path, settings: dict, count: int = 512, **options) -> tuple[dict, list[Item]]:
    """Runs all tasks on `count` documents each, writes items.jsonl, pictures, stories.html and stories.png to `out`;
    the figures and what was judged.

    Documents are written to predictions.jsonl as they come; the same model, by `settings`, goes on there.
    """
    options = {"sampler": "ddim", "num_steps": 16} | options
    model = resumable.keep(model, out, settings)
    progress = bar(4 * count, "document", "evaluating")
    items = stories(model, count, progress, options)
    items += questions(model, count, progress, options)
    items += recalls(model, count, progress, options)
    progress.close()
    write_items(items, out)
    shown = [item for item in items if item.task == "story"][:SHOWN]
    page = render_html(
        [Document(item.prompt.parts + item.made.parts, notes=item.made.notes) for item in shown],
        title="Stories by DreamJAX",
    )
    atomic.write_text(out / "stories.html", page, "backslashreplace")
    save_image([item for item in items if item.task == "story"], out / "stories.png")
    return figures(items) | {"judge_accuracy": judge_accuracy(count), "documents": count}, items


# ----------------------------------------------------------------------------------------------------------------------
# Tasks


def stories(model: DreamLLM, count: int, progress, options: dict) -> list[Item]:
    """Stories told on from a first sentence; a story without its first picture counts as drawn wrong."""
    prompts = [prompt for prompt, _ in shapes.story_prompts(count)]
    items = []
    for prompt, made in zip(
        prompts,
        _generate(model, prompts, progress, {"max_tokens": 64, "max_images": 4, "temperature": 1.0} | options),
        strict=True,
    ):
        whole = Document(prompt.parts + made.parts)
        judged = _judge(made.images)
        named = _named_before_images(whole) or (shapes.named(prompt.text),)
        judged = judged or ((None, None),)
        items.append(Item("story", prompt, made, named, judged, is_well_placed(whole)))
    return items


def questions(model: DreamLLM, count: int, progress, options: dict) -> list[Item]:
    """Questions with their own picture, and the same ones with the next document's picture."""
    asked = shapes.questions(count)
    prompts = [prompt for prompt, *_ in asked]
    order = np.random.default_rng(0).permutation(count)
    other = dict(zip(order, np.roll(order, 1), strict=True))  # a permutation that leaves none in place
    swapped = [Document((prompts[other[i]].parts[0], *prompt.parts[1:])) for i, prompt in enumerate(prompts)]
    items = []
    for task, given in (("question", prompts), ("question_swapped", swapped)):
        made = _generate(model, given, progress, options | {"max_tokens": 8, "max_images": 0})
        items += [
            Item(task, p, m, (right,), (_first_word(m.text),))
            for p, m, (_, right, *_) in zip(given, made, asked, strict=True)
        ]
    return items


def recalls(model: DreamLLM, count: int, progress, options: dict) -> list[Item]:
    """Pictures that need an earlier picture: its shape, in the colour that the text names."""
    asked = shapes.recalls(count)
    prompts = [prompt for prompt, _ in asked]
    made = _generate(model, prompts, progress, {"max_tokens": 8, "max_images": 1} | options)
    named = [((scene.colour, scene.shape),) for _, scene in asked]
    return [
        Item("recall", p, m, n, _judge(m.images)[:1] or ((None, None),))
        for p, m, n in zip(prompts, made, named, strict=True)
    ]


def _generate(model: DreamLLM, prompts: Sequence[Document], progress, options: dict) -> list[Document]:
    made = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        made += model.generate_batch(batch, range(start, start + len(batch)), **options)
        progress.update(len(batch))
    return made


def _judge(images: list) -> tuple[tuple[str | None, str | None], ...]:
    return tuple((what.colour, what.shape) for what in _judgements(images))


def _judgements(images: list) -> list[Judgement]:
    return judge(np.stack([np.asarray(image) for image in images])) if images else []


def _first_word(text: str) -> str:
    words = re.findall(r"\w+", text.lower())
    return words[0] if words else ""


def _named_before_images(story: Document) -> tuple:
    """For each picture, the (colour, shape) of the last sentence before it."""
    named, text = [], ""
    for part in story.parts:
        if isinstance(part, Image):
            named.append(shapes.named(text))
        else:
            text += part.text
    return tuple(named)


def is_well_placed(story: Document) -> bool:
    """Whether each sentence that names a shape is followed at once by one picture, no other picture comes, and the
    story ends as stories do.
    """
    expected = []
    for part in story.parts:
        if isinstance(part, Image):
            expected.append("picture")
        else:
            expected += [
                "named" if shapes.named(sentence) else sentence.strip()
                for sentence in re.findall(r"[^.]+\.?", part.text)
                if sentence.strip()
            ]
    pages = len(expected) // 2
    return pages > 0 and expected == ["named", "picture"] * pages + [shapes.ENDING]


# ----------------------------------------------------------------------------------------------------------------------
# Figures


def figures(items: Sequence[Item]) -> dict:
    """Shares of what is right, each beside what chance gives."""

    def share(task):
        return _right([(item.named, item.judged) for item in items if item.task == task])

    values = {"colour": len(shapes.COLOURS), "shape": len(shapes.SHAPES), "place": len(shapes.PLACES)}
    return figures_of_stories([item for item in items if item.task == "story"]) | {
        "answer_accuracy": share("question"),
        "answer_chance": float(np.mean([1 / values[kind] for kind in shapes.QUESTIONS])),
        "answer_swapped": share("question_swapped"),
        "recall_agreement": share("recall"),
        "recall_chance": 1 / len(shapes.SHAPES),  # the text names the colour
    }


def figures_of_stories(items: Sequence[Item]) -> dict:
    """What stories show of the pictures and their places; combinations that training leaves out are apart."""
    pairs = [pair for item in items for pair in zip(item.named, item.judged, strict=True)]
    unseen = [pair for pair in pairs if pair[0] in shapes.UNSEEN]
    return {
        "picture_agreement": _right([pair for pair in pairs if pair[0] not in shapes.UNSEEN]),
        "picture_chance": 1 / len(shapes.COMBINATIONS),
        "unseen_agreement": _right(unseen),
        "placement": float(np.mean([item.placed for item in items])),
        "placement_chance": float(np.mean([_placement_chance(item) for item in items])),
        "pictures": len(pairs),
        "unseen_pictures": len(unseen),
    }


def _right(pairs: Sequence[tuple]) -> float:
    """Share of pairs (named, judged) that agree."""
    return float(np.mean([named == judged for named, judged in pairs])) if pairs else math.nan


def _placement_chance(item: Item) -> float:
    """The chance that this story's pictures, put between its words at random, stand where they do."""
    words = len(re.findall(r"\w+", item.prompt.text + item.made.text))
    return 1 / math.comb(words + 1, max(1, len(item.made.images)))


def judge_accuracy(count: int) -> float:
    """Share of true pictures, those of `count` evaluation prompts, that the judge names right."""
    scenes = [scene for _, scene in shapes.story_prompts(count)]
    found = _judge([scene.image() for scene in scenes])
    return float(np.mean([judged == (scene.colour, scene.shape) for judged, scene in zip(found, scenes, strict=True)]))


def result(task: str, results: dict, items: Sequence[Item], files: dict) -> Result:
    """The figures, in percent, and of each kind of document some, for a report."""
    counts = {name: results[name] for name in ("documents", "pictures", "unseen_pictures")}
    score = Score({name: 100 * value for name, value in results.items() if name not in counts}, counts)
    shown = []
    for kind in dict.fromkeys(item.task for item in items):
        for number, item in sample(list(enumerate(one for one in items if one.task == kind)), SHOWN_OF_A_KIND):
            said, right = (
                ", ".join(" ".join(map(str, one)) if isinstance(one, tuple) else str(one) for one in side)
                for side in (item.judged, item.named)
            )
            words = f"the judge sees: {said}" if item.made.images else f"prediction: {said}"
            made = dataclasses.replace(item.made, notes=(*item.made.notes, words))
            shown.append(
                Shown(
                    f"{kind.replace('_', ' ')} {number}", item.prompt, item.made.text, references=(right,), goes_on=made
                )
            )
    return Result(task, score, {}, files, shown, how="documents that were not trained on")


def format_summary(results: dict) -> str:
    """The figures as a table for a person."""
    lines = [
        ("pictures show what the text names", "picture_agreement", "picture_chance"),
        ("the same, combinations never seen", "unseen_agreement", "picture_chance"),
        ("questions answered right", "answer_accuracy", "answer_chance"),
        ("the same, pictures swapped", "answer_swapped", "answer_chance"),
        ("drawn right from an earlier picture", "recall_agreement", "recall_chance"),
        ("pictures placed where they belong", "placement", "placement_chance"),
    ]
    table = "\n".join(
        f"{label:38s} {results[value]:7.1%}   chance {results[chance]:.1%}" for label, value, chance in lines
    )
    return f"{table}\n{'true pictures the judge names right':38s} {results['judge_accuracy']:7.1%}"


# ----------------------------------------------------------------------------------------------------------------------
# Files


def write_items(items: Sequence[Item], out: epath.Path):
    """items.jsonl, a line per document, and its drawn pictures as PNG in pictures/ at their own size."""
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, item in enumerate(items):
        files = []
        for k, image in enumerate(item.made.images):
            file = out / "pictures" / f"{number:05d}_{k}.png"
            atomic.write_bytes(file, image_io.to_png(image))
            files.append(f"pictures/{file.name}")
        whole = Document(item.prompt.parts + item.made.parts)
        lines.append(
            {
                "task": item.task,
                "text": _marked(whole),
                "pictures": files,
                "named": item.named,
                "judged": item.judged,
                "right": [named == judged for named, judged in zip(item.named, item.judged, strict=True)],
                "placed": item.placed,
                "notes": item.made.notes,
            }
        )
    atomic.write_text(out / "items.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def _marked(document: Document) -> str:
    """The text with <picture> where a picture stands."""
    return " ".join(part.text.strip() if isinstance(part, Text) else "<picture>" for part in document.parts)


def save_image(stories: Sequence[Item], path: epath.Path, rows: int = 4, pages: int = 3, side: int = 176):
    """Stories as one PNG, a row each: every picture enlarged, over the words before it."""
    chosen = [item for item in stories if len(item.made.images) == pages][:rows]
    sheet = PIL.Image.new("RGB", (pages * (side + 70), max(len(chosen), 1) * (side + 44)), "white")
    pen, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(size=14)
    for y, item in enumerate(chosen):
        words, x = "", 0
        for part in item.prompt.parts + item.made.parts:
            if isinstance(part, Text):
                words += part.text
                continue
            corner = (x * (side + 70) + 35, y * (side + 44) + 8)
            sheet.paste(part.pil().resize((side, side), PIL.Image.Resampling.NEAREST), corner)
            pen.text((corner[0] + side // 2, corner[1] + side + 6), words.strip(), fill="black", font=font, anchor="ma")
            words, x = "", x + 1
    atomic.write_bytes(path, image_io.to_png(sheet))
