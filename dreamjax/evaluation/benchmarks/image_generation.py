"""Image generation from captions of MS-COCO and LN-COCO, and at the images of InstructMMC4's documents.

    coco_fid          annotations/captions_val2014.json, images below (val2014/): captions sampled at random, 30,000
    lncoco_fid        localized narratives of COCO, *.jsonl with image_id and caption, images below (val2017/): all
    instructmmc4_fid  *.jsonl or *.json of instructions as the source `instruct` reads them, images below: each image
                      of an answer

A generation prompt has the id of its caption (of LN-COCO the image's and the annotator's, of InstructMMC4 the
document's and the image's number), and so has its image, whatever the real one is called.
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
from dreamjax.evaluation.benchmark import Figures
from dreamjax.evaluation.files import expected_form, find_file, quote, read_json
from dreamjax.evaluation.image_folder import ImageFolder, images_beside

CAPTIONS = 30_000  # of MS-COCO
SIDE = 256  # pixels of compared images


@dataclasses.dataclass(frozen=True, eq=False)
class GenerationPrompt:
    """An image to generate right after the prompt. `texts` are captions of the `real` image, its own first."""

    id: str
    prompt: Document
    texts: tuple[str, ...]
    real: Image


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """Sampling of images: `candidates` each, with the seeds from `seed` on, of which CLIP chooses one."""

    candidates: int = 1
    seed: int = 0
    all_texts: bool = False  # a candidate is ranked by its best fit to any caption of the image, not by its own alone
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # fields of sampling.options.Options


_DDIM = {"sampler": "ddim", "num_steps": 50}

SETTINGS: dict[str, dict[str, GenerationSettings]] = {
    "clean": {
        "coco_fid": GenerationSettings(8, sampling={**_DDIM, "guidance_scale": 2.0}),
        "lncoco_fid": GenerationSettings(sampling={**_DDIM, "guidance_scale": 3.0}),
        "instructmmc4_fid": GenerationSettings(sampling={**_DDIM, "guidance_scale": 3.0}),
    },
    "official": {
        "coco_fid": GenerationSettings(8, 42, True, {"sampler": "ddpm", "num_steps": 150, "guidance_scale": 2.0}),
        "lncoco_fid": GenerationSettings(1, 42, sampling={"sampler": "ddpm", "num_steps": 100, "guidance_scale": 3.0}),
    },
}


PAPER: dict[str, Figures] = {
    "coco_fid": {"fid": {"DreamLLM": 8.46, "stage I": 8.76, "SD 2.1": 12.43, "SD 2.1 fine-tuned": 11.91}},
    "lncoco_fid": {"fid": {"DreamLLM": 20.53, "stage I": 22.42, "SD 2.1": 34.26, "SD 2.1 fine-tuned": 25.35}},
}


def settings_of(profile: str, task: str) -> GenerationSettings:
    """The settings of a task in a profile; raises ConfigError, naming those that there are."""
    if profile not in SETTINGS:
        raise ConfigError(f"--profile: {profile!r} is unknown; there are {', '.join(SETTINGS)}")
    if task not in SETTINGS[profile]:
        raise ConfigError(
            f"--profile: {task} has no profile {profile!r}, which there is for {', '.join(SETTINGS[profile])}"
        )
    return SETTINGS[profile][task]


# ----------------------------------------------------------------------------------------------------------------------
# Files


def load_coco(
    data: epath.PathLike, images: str = "", count: int | None = None, seed: int = 0
) -> tuple[list[GenerationPrompt], tuple[str, ...]]:
    """`count` captions (30,000, or all if there are fewer) in an order sampled by the seed; and warnings."""
    data = epath.Path(data)
    annotations = data / "annotations"
    path = find_file(annotations if annotations.is_dir() else data, "captions_val2014.json", "captions_*.json")
    content = read_json(path)
    with expected_form(path, "file of COCO's captions"):
        files = {row["id"]: row["file_name"] for row in content["images"]}
        captions = [(row["id"], row["image_id"], row["caption"].strip()) for row in content["annotations"]]
        of_image: dict[Any, list[tuple[Any, str]]] = {}
        for key, image, text in captions:
            of_image.setdefault(image, []).append((key, text))
        order = np.random.default_rng(seed).permutation(len(captions))[: count or CAPTIONS]
        chosen = [(key, files[image], image, text) for key, image, text in (captions[i] for i in order)]
    real = ImageFolder(images or data).require(name for _, name, _, _ in chosen)
    prompts = [
        GenerationPrompt(
            str(key),
            Document((Text(text),)),
            (text, *(other_text for other, other_text in of_image[image] if other != key)),
            real[name],
        )
        for key, name, image, text in chosen
    ]
    return _with_unique_ids(prompts, path), ()


def load_lncoco(
    data: epath.PathLike, images: str = "", count: int | None = None, seed: int = 0
) -> tuple[list[GenerationPrompt], tuple[str, ...]]:
    """The (first `count`) narratives, in the file's order; and warnings."""
    path = find_file(data, "coco_val*.jsonl", "*narratives*.jsonl", "*.jsonl")
    with expected_form(path, "file of localized narratives"):
        rows = [(str(row["image_id"]), row.get("annotator_id"), row["caption"].strip()) for row in read_json(path)]
    rows = rows[:count]
    real = ImageFolder(images or data).require(image for image, _, _ in rows)
    prompts = [
        GenerationPrompt(
            image if annotator is None else f"{image}-{annotator}", Document((Text(text),)), (text,), real[image]
        )
        for image, annotator, text in rows
    ]
    return _with_unique_ids(prompts, path), ()


def load_instructmmc4(
    data: epath.PathLike, images: str = "", count: int | None = None, seed: int = 0
) -> tuple[list[GenerationPrompt], tuple[str, ...]]:
    """Each image of the (first `count`) documents' answers, after everything before it; and warnings.

    Unusable records are counted.
    """
    path = find_file(data, "*.jsonl", "*.json")
    source = open_source(SourceConfig("instruct", path=str(path), images=images or images_beside(path)))
    prompts, unusable = [], [str(record) for record in source.skipped]
    for number in range(len(source) if count is None else min(count, len(source))):
        try:
            document = source[number]
        except BadRecord as error:
            unusable.append(str(error))
        else:
            prompts += _prompts_of(document, number)
    if unusable and not prompts:
        raise SourceError(
            f"{path}: holds nothing to draw; the first of {len(unusable)} documents that cannot be used is "
            f"{unusable[0]}"
        )
    prompts = _with_unique_ids(prompts, path)
    if not unusable:
        return prompts, ()
    return prompts, (
        f"{len(unusable)} of {len(source) + len(source.skipped)} documents cannot be used and are left out; the "
        f"first is {unusable[0]}",
    )


def _prompts_of(document: Document, number: int) -> list[GenerationPrompt]:
    """A prompt for each image of a document: all parts before it, their images as inputs alone."""
    prompts = []
    for i, part in enumerate(document.parts):
        if isinstance(part, Image):
            before = document.parts[:i]
            texts = [other.text for other in before if isinstance(other, Text)]
            inputs = tuple(
                dataclasses.replace(other, is_target=False) if isinstance(other, Image) else other for other in before
            )
            prompts.append(GenerationPrompt(f"{number}-{i}", Document(inputs), (texts[-1],), part))
    return prompts


def _with_unique_ids(prompts: list[GenerationPrompt], path: epath.Path) -> list[GenerationPrompt]:
    """The prompts; raises SourceError for none, an id that cannot name a file, and one that stands there twice."""
    if not prompts:
        raise SourceError(f"{path}: holds nothing to draw")
    ids: set[str] = set()
    for prompt in prompts:
        if "/" in prompt.id or len(prompt.id.encode("utf-8", "replace")) > 200 or not prompt.id.isprintable():
            raise SourceError(f"{path}: the id {quote(prompt.id)} cannot be the name of a file")
        if prompt.id in ids:
            raise SourceError(f"{path}: the id {prompt.id} stands there twice")
        ids.add(prompt.id)
    return prompts


TASKS: dict[str, Callable[..., tuple[list[GenerationPrompt], tuple[str, ...]]]] = {
    "coco_fid": load_coco,
    "lncoco_fid": load_lncoco,
    "instructmmc4_fid": load_instructmmc4,
}


def shorten(prompt: GenerationPrompt, fits: Callable[[Document], bool]) -> tuple[GenerationPrompt, bool]:
    """(prompt with its first part and the latest other ones that fit, true if any was left out).

    Raises ConfigError if the last part alone does not fit.
    """
    parts = prompt.prompt.parts
    for left_out in range(len(parts)):
        document = Document((*parts[:1], *parts[1 + left_out :]))
        if fits(document):
            return dataclasses.replace(prompt, prompt=document), left_out > 0
    raise ConfigError(
        f"{prompt.id}: its prompt is longer than the model's context, even alone: "
        f"{math.ceil(len(prompt.prompt.text) / 1000)} thousand characters"
    )
