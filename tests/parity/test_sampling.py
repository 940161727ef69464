"""Pictures and texts as the official pipeline drew and wrote them, through the calls that a user makes."""

import re

import numpy as np
import pytest
from parity.bundles import IMAGES, Bundle, channels_first, channels_last, encoder_pictures, open_bundle

from dreamjax.api import DreamLLM
from dreamjax.document import Document, Image, Text
from dreamjax.sampling import image, interleave, pictures
from dreamjax.sampling.options import Options

# A recorded run is called after its scheduler and after what it changes of the bundle's own settings: ddpm, ddpm_nocfg ...
SCHEDULERS = {"ddpm": "ddpm", "ddim": "ddim", "dpm": "dpm_solver"}
CHANGES = {
    "": {}, "nocfg": {"guidance_scale": 1.0}, "rescale": {"guidance_rescale": 0.7}, "noneg": {"negative_prompts": None},
    "single": {"guidance_scale": 7.5, "rows": 1},
}


@pytest.fixture(scope="module")
def model(bundle) -> DreamLLM:
    opened = open_bundle(bundle)
    return DreamLLM(opened.parts, opened.params, opened.tokenizer)


# ----------------------------------------------------------------------------------------------------------------------
# Pictures


def test_pictures(bundle, model):
    opened = open_bundle(bundle)
    runs: dict[str, set] = {}
    for name in opened.recorded("prompt", "test_sampling"):
        run, _, field = name.partition("/")
        runs.setdefault(run, set()).add(field)
    ours = {f"{run}/{field}": array for run, fields in runs.items() for field, array in drawn(opened, model, run, fields).items()}
    opened.compare("prompt", "test_sampling", ours, IMAGES)


def drawn(opened: Bundle, model: DreamLLM, run: str, fields: set[str]) -> dict[str, np.ndarray]:
    """Our side of a run, of the recorded fields; an unknown scheduler or change is a KeyError that names it."""
    scheduler, _, change = run.partition("_")
    recorded, record = opened.arrays("prompt"), opened.record("prompt")
    own = record.get(run, {}) if isinstance(record.get(run), dict) else {}
    asked = {"rows": None, "guidance_rescale": 0.0, "eta": 0.0} | record | CHANGES[change] | own
    steps = next((len(recorded[f"{run}/{name}"]) for name in ("timesteps", "latents_per_step") if name in fields), asked["num_inference_steps"])
    rows = slice(asked["rows"])
    options = {
        "sampler": SCHEDULERS[scheduler], "num_steps": steps, "spacing": record["scheduler_config"].get("timestep_spacing", "leading"), "padding": "right",
        "guidance_scale": asked["guidance_scale"], "guidance_rescale": asked["guidance_rescale"], "eta": asked["eta"],
    }
    prompts, negatives = (asked[name] and asked[name][rows] for name in ("prompts", "negative_prompts"))
    given = {"latents": channels_last(recorded["init_latents"][rows]), "step_noise": channels_last(recorded["step_noise"][:steps, rows])}
    latents = model.text_to_latents(prompts, negative=negatives, **given, **options)
    found = {"latents": channels_first(latents), "timesteps": image.drawing(opened.parts.config, Options(**options)).plan.timestep[:steps]}
    if "latents_per_step" in fields:
        states: list[np.ndarray] = []
        watch = lambda moment: states.append(channels_first(moment.progress.x))
        documents = lambda texts: [Document.of(text) for text in texts or ()]
        parts = (model.parts, model.params, model.tokenizer)
        pictures.draw_after(*parts, documents(prompts), [0] * len(prompts), Options(**options), documents(negatives), **given, watch=watch, every=1)
        found["latents_per_step"] = np.stack([*states, found["latents"]])
    if "image_np" in fields:
        scaled = latents / opened.parts.config.vae.scaling_factor
        pixels = np.asarray(model.parts.vae.apply({"params": model.params["vae"]}, scaled, method="decode"))
        found["image_np"] = np.clip(pixels / 2 + 0.5, 0, 1)
    if "image_u8" in fields:
        whole, theirs = np.stack([np.asarray(picture) for picture in model.decode(latents)]), recorded[f"{run}/image_u8"]
        # Where a value lies between two whole numbers the last bit decides.
        found["image_u8"] = np.where(np.abs(whole.astype(int) - theirs) <= 1, theirs, whole)
    return {name: array for name, array in found.items() if name in fields}


# ----------------------------------------------------------------------------------------------------------------------
# Texts


def test_texts(bundle, model):
    """Greedy writing after chats, alone and in batches, which ours pads nowhere."""
    opened = open_bundle(bundle)
    runs = [name.partition("/")[0] for name in opened.recorded("generate", "test_sampling")]
    opened.compare("generate", "test_sampling", {f"{run}/sequences": written(opened, model, run) for run in runs})


def written(opened: Bundle, model: DreamLLM, run: str) -> np.ndarray:
    """Prompts and continuations [B, length] of a run, as the official code leaves them: pads follow </s>."""
    recorded = opened.arrays("generate")
    ids, mask, sequences = (recorded[f"{run}/{name}"] for name in ("input_ids", "attention_mask", "sequences"))
    prompts, new = prompts_of(opened, run), sequences[:, ids.shape[1] :]
    options = Options(max_tokens=new.shape[1], max_images=0, unmasked=True)
    task, state = interleave.begin(model.parts, model.params, model.tokenizer, prompts, [0] * len(prompts), options)
    np.testing.assert_array_equal(np.asarray(state.length)[: len(prompts)], mask.sum(axis=1), err_msg=f"{run}: prompts have other lengths")
    for event in interleave.run(task, state):
        state = event.state if isinstance(event, interleave.Wrote) else state
    at = np.arange(new.shape[1])
    ours = np.where(at < np.asarray(state.written)[: len(prompts), None], np.asarray(state.tokens)[: len(prompts), : len(at)], opened.tokenizer.pad)
    # The official loop goes on behind a <dream_start>, where ours draws or, as here, may not write it.
    wishes = np.cumsum(new == opened.tokenizer.dream_start, axis=1) > 0
    return np.concatenate([ids, np.where(wishes, new, ours)], axis=1)


def prompts_of(opened: Bundle, run: str) -> list[Document]:
    """The prompts of a run with their pictures, which the texts name by their tokens."""
    recorded, placeholder = opened.arrays("generate"), re.compile(r"<im_start>(?:<im_patch>)*<im_end>")
    names = sorted((name for name in recorded if re.fullmatch(r"image\d+_u8", name)), key=lambda name: int(re.sub(r"\D", "", name.removesuffix("_u8"))))
    images = iter([recorded[name] for name in names] or encoder_pictures(opened, recorded.get("pixel_values", np.zeros((0, 3, 1, 1)))))
    prompts = []
    for text in opened.record("generate")[run]["texts"]:
        before, *after = placeholder.split(text)
        parts = [Text(before)] + [part for words in after for part in (Image(next(images), dreamed=False), Text(words))]
        prompts.append(Document(tuple(parts)))
    return prompts
