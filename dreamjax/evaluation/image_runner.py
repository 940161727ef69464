"""Generates a task's images, chooses the best of each prompt's candidates, and measures them against real ones.

    out/TASK/predictions.jsonl    a row a prompt: question_id, prompt, text (the image's file), seed, scores of the
                                  candidates
    out/TASK/pictures/ID.png      the chosen image, 256 pixels
    out/TASK/baseline/...         the same of Stable Diffusion with its own text encoder

An image is written before its row, so an interrupted run generates again what has no row. Its noise comes from the
seed and the prompt's id alone: the images beside it change nothing.
"""

import dataclasses
import zlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
import PIL.Image
from etils import epath

from dreamjax.api import DreamLLM
from dreamjax.document import Document, Image, image_io
from dreamjax.errors import SourceError
from dreamjax.evaluation.benchmarks import image_generation
from dreamjax.evaluation.benchmarks.image_generation import SIDE, GenerationPrompt, GenerationSettings
from dreamjax.evaluation.metrics import features, frechet
from dreamjax.evaluation.metrics.features import Extractor, Towers
from dreamjax.evaluation.predictions import Score
from dreamjax.evaluation.report import Result, Sample, evenly_spread
from dreamjax.evaluation.run_files import append_rows, batched, check_settings, read_rows
from dreamjax.evaluation.settings import EvaluationSettings
from dreamjax.evaluation.stable_diffusion import StableDiffusion
from dreamjax.filesystem import atomic
from dreamjax.progress import bar
from dreamjax.sampling import text_to_image
from dreamjax.sampling.options import Options
from dreamjax.sampling.prompts import prompt_tokens

SAMPLES = 12  # of a task, on the page

ImageGenerator = Callable[[Sequence[GenerationPrompt], Sequence[int]], list[PIL.Image.Image]]
"""Prompts and as many seeds -> an image for each."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class GenerationJob:
    """Prompts, the settings of sampling, and the CLIP that ranks candidates (None for a single one)."""

    prompts: Sequence[GenerationPrompt]
    settings: GenerationSettings
    towers: Towers | None = None
    batch_size: int = 16
    desc: str = ""


def run(
    model: DreamLLM, task: str, data: epath.PathLike, out: epath.Path, settings: EvaluationSettings, stored: dict
) -> Result:
    """Generates the images that `out` lacks, measures all, and chooses samples for the report."""
    measures, generation = settings.measures, image_generation.settings_of(settings.profile, task)
    prompts, warnings = image_generation.TASKS[task](data, settings.images, settings.count, settings.seed)
    towers = features.towers(model, measures.clip)
    extractor = features.extractor(measures.features, measures.inception, model)
    if generation.candidates > 1 and towers is None:
        warnings += (
            f"no CLIP text tower is there to rank {generation.candidates} candidates with: one picture is "
            "drawn; --clip=DIR names a CLIP with both",
        )
        generation = dataclasses.replace(generation, candidates=1)
    prompts, shortened = _shorten(model, prompts)
    stored |= {
        "profile": settings.profile,
        "seed": settings.seed,
        "candidates": generation.candidates,
        "clip": measures.clip,
    }
    job = GenerationJob(prompts=prompts, settings=generation, towers=towers, batch_size=settings.batch_size, desc=task)
    folders = {"ours": generate(_generator(model, generation), job, out, stored)}
    real = _real(prompts, measures.reference, extractor)
    score = measure(folders["ours"], prompts, real, extractor, towers)
    baselines = {}
    if measures.baseline:
        generator = _baseline_generator(measures.baseline, generation)
        job = dataclasses.replace(job, desc="baseline")
        folders["baseline"] = generate(generator, job, out / "baseline", stored | {"model": measures.baseline})
        baseline = measure(folders["baseline"], prompts, real, extractor, towers)
        baselines["Stable Diffusion, measured"] = baseline.metrics
    setting = (
        f"profile {settings.profile}",
        f"{generation.candidates} candidates ranked by CLIP" if generation.candidates > 1 else "one picture each",
        f"features of {extractor.name}",
        f"reference {measures.reference or 'the real pictures of the same prompts'}",
    )
    return Result(
        task,
        dataclasses.replace(score, warnings=(*warnings, *shortened, *score.warnings)),
        paper=image_generation.PAPER.get(task, {}),
        files={"predictions": str(out / "predictions.jsonl"), "pictures": str(folders["ours"])},
        samples=[_sample(prompt, folders) for prompt in evenly_spread(prompts, SAMPLES)],
        setting=", ".join(setting),
        measured=baselines,
    )


def _shorten(model: DreamLLM, prompts: Sequence[GenerationPrompt]) -> tuple[list[GenerationPrompt], tuple[str, ...]]:
    """The prompts as far as the context holds them, and a warning of shortened ones."""
    room = model.model.llm.config.max_positions - model.config.dream_queries - 2

    def fits(prompt: Document) -> bool:
        return prompt_tokens(model.model, model.tokenizer, prompt, model.template) <= room

    shortened = [image_generation.shorten(prompt, fits) for prompt in prompts]
    count = sum(is_shorter for _, is_shorter in shortened)
    warnings = (
        f"{count} of {len(shortened)} prompts are longer than the model's context and lost what is farthest from the "
        "picture",
    )
    return [prompt for prompt, _ in shortened], warnings if count else ()


# ----------------------------------------------------------------------------------------------------------------------
# Generation


def _generator(model: DreamLLM, settings: GenerationSettings) -> ImageGenerator:
    options = model.options(dict(settings.sampling))

    def generate_images(prompts: Sequence[GenerationPrompt], seeds: Sequence[int]) -> list[PIL.Image.Image]:
        documents = [prompt.prompt for prompt in prompts]
        request = text_to_image.ImageRequest(prompts=documents, seeds=seeds, options=options)
        return model.decode(text_to_image.image_latents(model.model, model.tokenizer, request))

    return generate_images


def _baseline_generator(folder: str, settings: GenerationSettings) -> ImageGenerator:
    mesh = jax.sharding.get_mesh()
    baseline = StableDiffusion.load(folder, None if mesh.empty else mesh)
    options = Options(**settings.sampling)
    return lambda prompts, seeds: baseline.draw([prompt.texts[0] for prompt in prompts], seeds, options)


def seed_of(prompt: GenerationPrompt, seed: int) -> int:
    """The seed of a prompt's noise, 32 bits."""
    return zlib.crc32(f"{seed}/{prompt.id}".encode())


def generate(generate_images: ImageGenerator, job: GenerationJob, out: epath.Path, stored: dict) -> epath.Path:
    """Generates an image for every prompt that has no row yet, the best of its candidates; the folder of images."""
    path, folder = out / "predictions.jsonl", out / "pictures"
    check_settings(out, stored)
    folder.mkdir(exist_ok=True)
    done = {row["question_id"] for row in read_rows(path, question_id=str)}
    waiting = [prompt for prompt in job.prompts if prompt.id not in done]
    count = job.settings.candidates
    seeds = [job.settings.seed + k for k in range(count)]
    size = max(1, job.batch_size // count)
    with bar(len(job.prompts), "picture", job.desc, len(job.prompts) - len(waiting)) as progress:
        for batch in batched(waiting, size):
            filled = [*batch, *[batch[-1]] * (size - len(batch))]  # the same shapes for a batch that is not full
            pairs = [(prompt, seed) for prompt in filled for seed in seeds]
            images = generate_images([prompt for prompt, _ in pairs], [seed_of(*pair) for pair in pairs])
            for i, prompt in enumerate(batch):
                append_rows(path, [_choose(images[i * count : (i + 1) * count], prompt, job, folder)])
            progress.update(len(batch))
    return folder


def _choose(
    candidates: Sequence[PIL.Image.Image], prompt: GenerationPrompt, job: GenerationJob, folder: epath.Path
) -> dict:
    """Writes the best candidate and returns the prompt's row."""
    best, ranked = 0, {}
    if len(candidates) > 1 and job.towers:
        scores = rank(candidates, prompt, job.settings, job.towers)
        best, ranked = int(np.argmax(scores)), {"scores": [float(score) for score in scores]}
    name = f"{prompt.id}.png"
    atomic.write_bytes(folder / name, image_io.to_png(image_io.for_decoder(candidates[best], SIDE)))
    row = {"question_id": prompt.id, "prompt": prompt.texts[0], "text": f"pictures/{name}"}
    return row | {"seed": job.settings.seed + best} | ranked


def rank(
    candidates: Sequence[PIL.Image.Image], prompt: GenerationPrompt, settings: GenerationSettings, towers: Towers
) -> np.ndarray:
    """Each candidate's fit to the prompt's text, or to whichever of all its texts it fits best, [candidates]."""
    texts = prompt.texts if settings.all_texts else prompt.texts[:1]
    pairs = [(image, text) for image in candidates for text in texts]
    scores = towers.scorer()([image for image, _ in pairs], [text for _, text in pairs])
    return np.asarray(scores).reshape(len(candidates), len(texts)).max(1)


# ----------------------------------------------------------------------------------------------------------------------
# Measuring


def _real(prompts: Sequence[GenerationPrompt], reference: str, extractor: Extractor) -> frechet.Statistics | np.ndarray:
    """The given reference, else the real images of the prompts, each once, at the size of the generated ones."""
    if reference:
        return features.reference(reference, extractor, SIDE)
    images = {}
    for prompt in prompts:
        source = prompt.real.source
        images[source if isinstance(source, str | bytes) else str(source)] = prompt.real
    squares = (features.square(image.pil(), SIDE) for image in images.values())
    return features.collect(extractor, squares, len(images), "real pictures")


def measure(
    folder: epath.Path,
    prompts: Sequence[GenerationPrompt],
    real: frechet.Statistics | np.ndarray,
    extractor: Extractor,
    towers: Towers | None,
) -> Score:
    """Distances of the images in a folder to the real ones, and `clip_score`, the mean of 100 cosines of image and
    caption.
    """
    paths = [folder / f"{prompt.id}.png" for prompt in prompts]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise SourceError(
            f"{folder}: {len(missing)} of {len(prompts)} pictures are missing, the first is {missing[0]}; use another "
            f"--out, or delete {folder.parent}"
        )
    opened = (image_io.open_rgb(path) for path in paths)
    generated = features.collect(extractor, opened, len(paths), "drawn pictures")
    metrics, warnings = features.compare(real, generated, extractor.name)
    if towers:
        cosines: list[float] = []
        for batch in batched(list(zip(paths, prompts, strict=True)), features.BATCH):
            images, texts = [image_io.open_rgb(path) for path, _ in batch], [prompt.texts[0] for _, prompt in batch]
            cosines += list(towers.similarity(images, texts))
        metrics["clip_score"] = float(np.mean(cosines))
    counts = {"images": len(prompts)}
    if not isinstance(real, frechet.Statistics):
        counts["real_images"] = len(real)
    return Score(metrics, counts, warnings)


def _sample(prompt: GenerationPrompt, folders: dict[str, epath.Path]) -> Sample:
    """The prompt, our image, the baseline's if there is one, and the real image last."""
    generated = (Image(folder / f"{prompt.id}.png") for folder in folders.values())
    names = " | ".join([*folders, "real"])
    return Sample(prompt.id, Document(prompt.prompt.parts), names, images=(*generated, prompt.real))
