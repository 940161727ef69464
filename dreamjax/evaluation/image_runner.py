"""Draws a task's pictures, keeps the best of each wish's candidates, and measures them against real ones.

    out/TASK/predictions.jsonl    a row a wish: question_id, prompt, text (the picture's file), seeds, scores of the
                                  candidates
    out/TASK/pictures/ID.png      the picture that was kept, 256 pixels
    out/TASK/baseline/...         the same of Stable Diffusion with its own text encoder

A picture is written before its row, so a run that was interrupted draws again what has no row. Its noise comes from the
seed and the wish's id alone: what is drawn beside it changes nothing.
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
from dreamjax.errors import ConfigError, SourceError
from dreamjax.evaluation import paper, runner
from dreamjax.evaluation.benchmarks import image_generation
from dreamjax.evaluation.benchmarks.image_generation import (
    SIDE,
    GenerationPrompt,
    GenerationPrompts,
    GenerationSettings,
)
from dreamjax.evaluation.metrics import features, frechet
from dreamjax.evaluation.metrics.features import Extractor, Towers
from dreamjax.evaluation.predictions import Score
from dreamjax.evaluation.report import Result, Shown, sample
from dreamjax.evaluation.stable_diffusion import StableDiffusion
from dreamjax.filesystem import atomic
from dreamjax.progress import bar
from dreamjax.sampling import text_to_image
from dreamjax.sampling.options import Options
from dreamjax.sampling.prompts import prompt_tokens

SHOWN = 12  # of a task

ImageGenerator = Callable[[Sequence[GenerationPrompt], Sequence[int]], list[PIL.Image.Image]]
"""Wishes and as many seeds -> a picture for each."""


@dataclasses.dataclass(frozen=True)
class Measures:
    """What is measured, and beside what."""

    features: str = "inception"  # features.py says which there are
    inception: str = ""  # file of weights
    reference: str = ""  # npz or folder; nothing: the task's own real pictures
    baseline: str = ""  # folder of a Stable Diffusion to draw the same
    clip: str = ""  # folder of the CLIP that ranks and measures; nothing: the model's own towers

    def check(self):
        """Raises what is wrong with it before anything is loaded or drawn."""
        features.check(self.features, self.inception)
        for name in ("reference", "baseline", "clip"):
            path = getattr(self, name)
            if path and not epath.Path(path).exists():
                raise ConfigError(f"--{name}: {path}: no such file or folder")


def run(model: DreamLLM, task: str, data: epath.Path, out: epath.Path, how, settings: dict) -> Result:
    """Draws what out/TASK lacks, measures, and says what to show; `how` is a benchmarks.How."""
    measures, manner, out = how.measures, image_generation.manner_of(how.profile, task), out / task
    asked = image_generation.TASKS[task](data, how.images, how.count, how.seed)
    towers, extractor = (
        features.towers(model, measures.clip),
        features.extractor(measures.features, measures.inception, model),
    )
    warnings = list(asked.warnings)
    if manner.candidates > 1 and towers is None:
        warnings.append(
            f"no CLIP text tower is there to rank {manner.candidates} candidates with: one picture is "
            "drawn; --clip=DIR names a CLIP with both"
        )
        manner = dataclasses.replace(manner, candidates=1)
    asked, note = _fitting(model, asked)
    warnings += note
    settings = settings | {
        "task": task,
        "data": str(data),
        "profile": how.profile,
        "seed": how.seed,
        "candidates": manner.candidates,
        "clip": measures.clip,
    }
    folder = draw(
        _painter(model, manner), asked.generation_prompts, manner, towers, out, settings, how.batch_size, task
    )
    real = _real(asked.generation_prompts, measures.reference, extractor)
    score = measure(folder, asked.generation_prompts, real, extractor, towers)
    drawn, beside = {"ours": folder}, {}
    if measures.baseline:
        painter = _baseline_painter(measures.baseline, manner)
        drawn["baseline"] = draw(
            painter,
            asked.generation_prompts,
            manner,
            towers,
            out / "baseline",
            settings | {"model": measures.baseline},
            how.batch_size,
            "baseline",
        )
        beside = {
            "Stable Diffusion, measured": measure(
                drawn["baseline"], asked.generation_prompts, real, extractor, towers
            ).metrics
        }
    shown = [_shown(generation_prompt, drawn) for generation_prompt in sample(asked.generation_prompts, SHOWN)]
    words = [
        f"profile {how.profile}",
        f"{manner.candidates} candidates ranked by CLIP" if manner.candidates > 1 else "one picture each",
    ]
    words += [
        f"features of {extractor.name}",
        f"reference {measures.reference or 'the real pictures of the same wishes'}",
    ]
    score = dataclasses.replace(score, warnings=(*warnings, *score.warnings))
    files = {"predictions": str(out / "predictions.jsonl"), "pictures": str(folder)}
    return Result(task, score, paper.figures(task), files, shown, how=", ".join(words), measured=beside)


def _fitting(model: DreamLLM, asked: GenerationPrompts) -> tuple[GenerationPrompts, list[str]]:
    """The wishes with prompts that the context holds, and a warning where some were shortened."""
    room = model.config.llm.max_positions - model.config.dream_queries - 2

    def fits(prompt):
        return prompt_tokens(model.model, model.tokenizer, prompt, model.template) <= room

    done = [image_generation.shortened(generation_prompt, fits) for generation_prompt in asked.generation_prompts]
    count = sum(shortened for _, shortened in done)
    note = (
        [
            f"{count} of {len(done)} prompts are longer than the model's context and lost what is "
            "farthest from the picture"
        ]
        if count
        else []
    )
    return dataclasses.replace(asked, generation_prompts=[generation_prompt for generation_prompt, _ in done]), note


# ----------------------------------------------------------------------------------------------------------------------
# Drawing


def _painter(model: DreamLLM, manner: GenerationSettings) -> ImageGenerator:
    options = model.options(dict(manner.drawing))

    def paint(generation_prompts: Sequence[GenerationPrompt], seeds: Sequence[int]) -> list[PIL.Image.Image]:
        prompts = [generation_prompt.prompt for generation_prompt in generation_prompts]
        return model.decode(text_to_image.draw_after(model.model, model.tokenizer, prompts, seeds, options))

    return paint


def _baseline_painter(folder: str, manner: GenerationSettings) -> ImageGenerator:
    mesh = jax.sharding.get_mesh()
    painter = StableDiffusion.load(folder, None if mesh.empty else mesh)
    options = Options(**manner.drawing)
    return lambda generation_prompts, seeds: painter.draw(
        [generation_prompt.texts[0] for generation_prompt in generation_prompts], seeds, options
    )


def seed_of(generation_prompt: GenerationPrompt, seed: int) -> int:
    """What the noise of a wish's picture is drawn by, 32 bits."""
    return zlib.crc32(f"{seed}/{generation_prompt.id}".encode())


def draw(
    paint: ImageGenerator,
    generation_prompts: Sequence[GenerationPrompt],
    manner: GenerationSettings,
    towers: Towers | None,
    out: epath.Path,
    settings: dict,
    batch_size: int,
    desc: str,
) -> epath.Path:
    """Draws every wish that has no row yet and keeps its best candidate; the folder of pictures."""
    path, folder = out / "predictions.jsonl", out / "pictures"
    runner.check_settings(out, settings)
    folder.mkdir(exist_ok=True)
    done = {row["question_id"] for row in runner.resume(path, question_id=str)}
    waiting = [generation_prompt for generation_prompt in generation_prompts if generation_prompt.id not in done]
    seeds = [manner.seed + k for k in range(manner.candidates)]
    size = max(1, batch_size // manner.candidates)
    with bar(len(generation_prompts), "picture", desc, len(generation_prompts) - len(waiting)) as progress:
        for batch in runner.batched(waiting, size):
            filled = [*batch, *[batch[-1]] * (size - len(batch))]  # the same shapes whatever is left to do
            pairs = [(generation_prompt, seed) for generation_prompt in filled for seed in seeds]
            made = paint([generation_prompt for generation_prompt, _ in pairs], [seed_of(*pair) for pair in pairs])
            for i, generation_prompt in enumerate(batch):
                mine = made[i * len(seeds) : (i + 1) * len(seeds)]
                scores = rank(mine, generation_prompt, manner, towers) if len(mine) > 1 else [0.0]
                best = int(np.argmax(scores))
                name = f"{generation_prompt.id}.png"
                atomic.write_bytes(folder / name, image_io.to_png(image_io.for_decoder(mine[best], SIDE)))
                row = {
                    "question_id": generation_prompt.id,
                    "prompt": generation_prompt.texts[0],
                    "text": f"pictures/{name}",
                    "seed": seeds[best],
                }
                runner.append(path, [row | ({"scores": [float(score) for score in scores]} if len(mine) > 1 else {})])
            progress.update(len(batch))
    return folder


def rank(
    candidates: Sequence[PIL.Image.Image],
    generation_prompt: GenerationPrompt,
    manner: GenerationSettings,
    towers: Towers,
) -> np.ndarray:
    """How well each candidate fits the wish's text, or whichever of all its texts it fits best."""
    texts = generation_prompt.texts if manner.all_texts else generation_prompt.texts[:1]
    pairs = [(image, text) for image in candidates for text in texts]
    scores = towers.scorer()([image for image, _ in pairs], [text for _, text in pairs])
    return np.asarray(scores).reshape(len(candidates), len(texts)).max(1)


# ----------------------------------------------------------------------------------------------------------------------
# Measuring


def _real(
    generation_prompts: Sequence[GenerationPrompt], reference: str, extractor: Extractor
) -> frechet.Statistics | np.ndarray:
    """The given reference, else the real pictures of the wishes, each once, at the size of the drawn ones."""
    if reference:
        return features.reference(reference, extractor, SIDE)
    real = list(
        {
            generation_prompt.real.source
            if isinstance(generation_prompt.real.source, (str, bytes))
            else str(generation_prompt.real.source): generation_prompt.real
            for generation_prompt in generation_prompts
        }.values()
    )
    return features.collect(
        extractor, (features.square(image.pil(), SIDE) for image in real), len(real), "real pictures"
    )


def measure(
    folder: epath.Path,
    generation_prompts: Sequence[GenerationPrompt],
    real: frechet.Statistics | np.ndarray,
    extractor: Extractor,
    towers: Towers | None,
) -> Score:
    """Distances of the wishes' pictures in a folder to the real ones, and `clip_score`, the mean of 100 cosines of
    picture and caption.
    """
    missing = [
        generation_prompt
        for generation_prompt in generation_prompts
        if not (folder / f"{generation_prompt.id}.png").exists()
    ]
    if missing:
        first = f"{missing[0].id}.png; use another --out, or delete {folder.parent}"
        raise SourceError(
            f"{folder}: {len(missing)} of {len(generation_prompts)} pictures are missing, the first is {first}"
        )
    opened = (image_io.open_rgb(folder / f"{generation_prompt.id}.png") for generation_prompt in generation_prompts)
    drawn = features.collect(extractor, opened, len(generation_prompts), "drawn pictures")
    metrics, warnings = features.compare(real, drawn, extractor.name)
    if towers:
        fits = []
        for batch in runner.batched(generation_prompts, features.BATCH):
            fits += list(
                towers.stop_consensus(
                    [image_io.open_rgb(folder / f"{generation_prompt.id}.png") for generation_prompt in batch],
                    [generation_prompt.texts[0] for generation_prompt in batch],
                )
            )
        metrics["clip_score"] = float(np.mean(fits))
    counts = {"pictures": len(generation_prompts)} | (
        {} if isinstance(real, frechet.Statistics) else {"real_pictures": len(real)}
    )
    return Score(metrics, counts, warnings)


def _shown(generation_prompt: GenerationPrompt, drawn: dict[str, epath.Path]) -> Shown:
    """The prompt, what was drawn (the baseline's second), and the real picture last."""
    shown = tuple(Image(folder / f"{generation_prompt.id}.png") for folder in drawn.values())
    names = " | ".join([*drawn, "real"])
    return Shown(
        generation_prompt.id, Document(generation_prompt.prompt.parts), names, images=(*shown, generation_prompt.real)
    )
