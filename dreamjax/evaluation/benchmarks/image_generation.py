"""What is to be drawn: captions of MS-COCO and of LN-COCO, places in the documents of InstructMMC4; and how, as data.

    coco_fid         annotations/captions_val2014.json, pictures below (val2014/): captions drawn at random, 30,000 of
                     them
    lncoco_fid       localized narratives of COCO, *.jsonl with image_id and caption, pictures below (val2017/): every
                     narrative
    instructmmc4_fid *.jsonl or *.json of instructions as the source `instruct` reads them, pictures below: each picture
    of an answer

A wish has the id of its caption (of LN-COCO the picture's and the annotator's, of InstructMMC4 the document's and the
picture's number), and so have its pictures, whatever they are called by.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from dreamjax.config import SourceConfig
from dreamjax.data.registry import open_source
from dreamjax.document import Document, Image, Text
from dreamjax.errors import BadRecord, ConfigError, SourceError
from dreamjax.evaluation.files import expected_form, find_file, read_json, shown
from dreamjax.evaluation.prompts import of_profile
from dreamjax.evaluation.questions import ImageFolder, beside

CAPTIONS = 30_000  # of MS-COCO
SIDE = 256  # pixels of compared pictures


@dataclasses.dataclass(frozen=True, eq=False)
class GenerationPrompt:
    """One picture to draw.

    Right after the prompt. `texts` are what it should fit, its own first; `real` is the true picture.
    """

    id: str
    prompt: Document
    texts: tuple[str, ...]
    real: Image


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """How pictures are drawn: `candidates` each, with the seeds from `seed` on, of which CLIP keeps one."""

    candidates: int = 1
    seed: int = 0
    all_texts: bool = False  # a candidate counts as its best fit to any caption of the picture, not only to its own
    drawing: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # fields of sampling.options.Options


_DDIM = {"sampler": "ddim", "num_steps": 50}

MANNERS: dict[str, dict[str, GenerationSettings]] = {
    "clean": {
        "coco_fid": GenerationSettings(8, drawing={**_DDIM, "guidance_scale": 2.0}),
        "lncoco_fid": GenerationSettings(drawing={**_DDIM, "guidance_scale": 3.0}),
        "instructmmc4_fid": GenerationSettings(drawing={**_DDIM, "guidance_scale": 3.0}),
    },
    "official": {
        "coco_fid": GenerationSettings(8, 42, True, {"sampler": "ddpm", "num_steps": 150, "guidance_scale": 2.0}),
        "lncoco_fid": GenerationSettings(1, 42, drawing={"sampler": "ddpm", "num_steps": 100, "guidance_scale": 3.0}),
    },
}


def manner_of(profile: str, task: str) -> GenerationSettings:
    """The manner of a task; raises ConfigError, naming what there is."""
    return of_profile(MANNERS, profile, task)


# ----------------------------------------------------------------------------------------------------------------------
# Files


@dataclasses.dataclass(frozen=True, eq=False)
class GenerationPrompts:
    """The wishes of a task, and what was said about its files."""

    generation_prompts: list[GenerationPrompt]
    warnings: tuple[str, ...] = ()


def load_coco(data: epath.PathLike, images: str = "", count: int | None = None, seed: int = 0) -> GenerationPrompts:
    """`count` captions (30,000, or all where there are fewer) in an order drawn by the seed."""
    data = epath.Path(data)
    path = find_file(
        data / "annotations" if (data / "annotations").is_dir() else data, "captions_val2014.json", "captions_*.json"
    )
    content = read_json(path)
    with expected_form(path, "file of COCO's captions"):
        files = {row["id"]: row["file_name"] for row in content["images"]}
        of_image: dict = {}
        for row in content["annotations"]:
            of_image.setdefault(row["image_id"], []).append((row["id"], row["caption"].strip()))
        rows = [(row["id"], row["image_id"], row["caption"].strip()) for row in content["annotations"]]
        order = np.random.default_rng(seed).permutation(len(rows))[: count or CAPTIONS]
        chosen = [rows[i] for i in order]
        names = [files[image] for _, image, _ in chosen]
    folder = ImageFolder(images or data).require_names(names)

    def others(image, key):
        return [text for other, text in of_image[image] if other != key]

    generation_prompts = [
        GenerationPrompt(str(key), Document((Text(text),)), (text, *others(image, key)), folder[name])
        for (key, image, text), name in zip(chosen, names, strict=True)
    ]
    return _unique(generation_prompts, path)


def load_lncoco(data: epath.PathLike, images: str = "", count: int | None = None, seed: int = 0) -> GenerationPrompts:
    """The (first `count`) narratives, in the file's order."""
    path = find_file(data, "coco_val*.jsonl", "*narratives*.jsonl", "*.jsonl")
    with expected_form(path, "file of localized narratives"):
        rows = [(str(row["image_id"]), row.get("annotator_id"), row["caption"].strip()) for row in read_json(path)][
            :count
        ]
    folder = ImageFolder(images or data).require_names([image for image, _, _ in rows])

    def name(image, annotator):
        return image if annotator is None else f"{image}-{annotator}"

    return _unique(
        [
            GenerationPrompt(name(image, by), Document((Text(text),)), (text,), folder[image])
            for image, by, text in rows
        ],
        path,
    )


def load_instructmmc4(
    data: epath.PathLike, images: str = "", count: int | None = None, seed: int = 0
) -> GenerationPrompts:
    """Each picture of the (first `count`) documents' answers, after all that stands before it.

    Records that cannot be used are counted.
    """
    path = find_file(data, "*.jsonl", "*.json")
    source = open_source(SourceConfig("instruct", path=str(path), images=images or beside(path)))
    generation_prompts, bad = [], [str(record) for record in source.skipped]
    for number in range(len(source) if count is None else min(count, len(source))):
        try:
            parts = source[number].parts
        except BadRecord as error:
            bad.append(str(error))
            continue
        for i, part in enumerate(parts):
            if isinstance(part, Image):
                before = [other.text for other in parts[:i] if isinstance(other, Text)]
                prompt = tuple(
                    dataclasses.replace(other, is_target=False) if isinstance(other, Image) else other
                    for other in parts[:i]
                )
                generation_prompts.append(GenerationPrompt(f"{number}-{i}", Document(prompt), (before[-1],), part))
    if bad and not generation_prompts:
        raise SourceError(
            f"{path}: holds nothing to draw; the first of {len(bad)} documents that cannot be used is {bad[0]}"
        )
    warnings = (
        (
            f"{len(bad)} of {len(source) + len(source.skipped)} documents cannot be used and are left "
            f"out; the first is {bad[0]}",
        )
        if bad
        else ()
    )
    return dataclasses.replace(_unique(generation_prompts, path), warnings=warnings)


def _unique(generation_prompts: list[GenerationPrompt], path: epath.Path) -> GenerationPrompts:
    if not generation_prompts:
        raise SourceError(f"{path}: holds nothing to draw")
    for generation_prompt in generation_prompts:
        if (
            "/" in generation_prompt.id
            or len(generation_prompt.id.encode("utf-8", "replace")) > 200
            or not generation_prompt.id.isprintable()
        ):  # it names the picture's file
            raise SourceError(f"{path}: the id {shown(generation_prompt.id)} cannot be the name of a file")
    if len({generation_prompt.id for generation_prompt in generation_prompts}) < len(generation_prompts):
        twice = next(
            generation_prompt.id
            for i, generation_prompt in enumerate(generation_prompts)
            if generation_prompt.id in {other.id for other in generation_prompts[:i]}
        )
        raise SourceError(f"{path}: the id {twice} stands there twice")
    return GenerationPrompts(generation_prompts)


TASKS: dict[str, Callable[..., GenerationPrompts]] = {
    "coco_fid": load_coco,
    "lncoco_fid": load_lncoco,
    "instructmmc4_fid": load_instructmmc4,
}


def shortened(generation_prompt: GenerationPrompt, fits: Callable[[Document], bool]) -> tuple[GenerationPrompt, bool]:
    """The wish with the latest parts of its prompt that fit, after the first.

    And whether any was left out. ConfigError where the last alone does not fit.
    """
    parts = generation_prompt.prompt.parts
    for left_out in range(len(parts)):
        kept = Document((*parts[:1], *parts[1 + left_out :]))
        if fits(kept):
            return dataclasses.replace(generation_prompt, prompt=kept), left_out > 0
    raise ConfigError(
        f"{generation_prompt.id}: its prompt is longer than the model's context, even alone: "
        f"{math.ceil(len(generation_prompt.prompt.text) / 1000)} thousand characters"
    )
