"""Pictures and texts as the official pipeline drew and wrote them, through the calls that a user makes."""

import re
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pytest
from parity.bundles import Bundle, channels_first, channels_last, open_bundle

from dreamjax.api import DreamLLM
from dreamjax.convert.formats import official
from dreamjax.document import Document, Image, Text
from dreamjax.document.templates import TEMPLATES
from dreamjax.models import dreamllm
from dreamjax.sampling import decode, denoise, interleave, text_to_image
from dreamjax.sampling.options import Options
from dreamjax.sampling.prompts import prompt_row

# What each recorded run was asked for beside the bundle's own guidance; `rows`: of the prompts, latents and noise.
RUNS = {
    "ddpm": {},
    "ddpm_nocfg": {"guidance_scale": 1.0},
    "ddpm_rescale": {"guidance_rescale": 0.7},
    "ddpm_noneg": {"negatives": False},
    "ddpm_single": {"guidance_scale": 7.5, "rows": 1},
    "ddim": {"sampler": "ddim"},
}


@pytest.fixture(scope="module")
def model(bundle) -> DreamLLM:
    opened = open_bundle(bundle)
    return DreamLLM(opened.model, opened.tokenizer)


# ----------------------------------------------------------------------------------------------------------------------
# Pictures


def test_images(bundle, model):
    """Latents after every step, and what the VAE makes of the last ones."""
    opened = open_bundle(bundle)
    runs = {name.split("/")[0] for name in opened.arrays("prompt") if name.endswith("/latents")}
    assert runs <= set(RUNS), f"runs that these tests do not know: {sorted(runs - set(RUNS))}"
    if not runs:
        pytest.skip(f"{bundle.name} has no recorded pictures")
    drawn = {f"{run}/{name}": array for run in sorted(runs) for name, array in draw(opened, model, run).items()}
    opened.compare("prompt", "test_sampling", drawn)


def draw(bundle: Bundle, model: DreamLLM, run: str) -> dict[str, np.ndarray]:
    """A recorded run again, from its own noise."""
    asked = {"sampler": "ddpm", "negatives": True, "rows": None} | RUNS[run]
    recorded, settings = bundle.arrays("prompt"), bundle.record("prompt")
    rows = slice(asked["rows"])
    height, width = (
        side * model.config.vae.downsampling for side in recorded["init_latents"].shape[-2:]
    )  # the U-Net's own size, not the training's
    options = {
        "sampler": asked["sampler"],
        "num_steps": settings["num_inference_steps"],
        "spacing": bundle.spacing,
        "height": height,
        "width": width,
        "guidance_scale": asked.get("guidance_scale", settings["guidance_scale"]),
        "guidance_rescale": asked.get("guidance_rescale", 0.0),
        "padding": "right",
    }
    prompts, negatives = settings["prompts"][rows], settings["negative_prompts"][rows] if asked["negatives"] else None
    given = {
        "latents": channels_last(recorded["init_latents"][rows]),
        "step_noise": channels_last(recorded["step_noise"][:, rows]),
    }
    latents = model.text_to_latents(prompts, negative=negatives, **given, **options)

    def documents(texts):
        return [Document.of(text) for text in texts or ()]

    request = text_to_image.ImageRequest(
        prompts=documents(prompts),
        seeds=[0] * len(prompts),
        options=Options(**options),
        negatives=documents(negatives),
        **given,
    )
    *steps, _ = text_to_image.image_steps(model.model, model.tokenizer, request, every=1)
    states = [channels_first(step.progress.x) for step in steps]
    final = channels_first(latents)
    found = {"latents": final, "latents_per_step": np.stack([*states, final])}
    found["timesteps"] = denoise.denoising_plan(model.config, Options(**options)).sampler.timestep[
        : options["num_steps"]
    ]
    if f"{run}/image_u8" in recorded:
        found["image_u8"] = np.stack([np.asarray(image) for image in model.decode(latents)])
        np.testing.assert_allclose(found["image_u8"].astype(int), recorded[f"{run}/image_u8"], atol=1)
        scaled = jnp.asarray(latents) / model.config.vae.scaling_factor
        pixels = model.model.apply("vae", scaled, method="decode")
        found["image_np"] = np.clip(np.asarray(pixels) / 2 + 0.5, 0, 1)
    return found


# ----------------------------------------------------------------------------------------------------------------------
# Texts


def test_texts(bundle, model):
    """Greedy writing after chats, alone and in batches, which ours pads nowhere."""
    opened = open_bundle(bundle)
    runs = [run for run in opened.record("generate") if f"{run}/sequences" in opened.arrays("generate")]
    opened.compare("generate", "test_sampling", {f"{run}/sequences": write(opened, model, run) for run in runs})


def write(bundle: Bundle, model: DreamLLM, run: str) -> np.ndarray:
    """A recorded run again: its prompts, what follows them, and pads behind </s>."""
    recorded = bundle.arrays("generate")
    images = iter(recorded[f"image{number}_u8"] for number in range(100))
    prompts = [prompt_of(words, images) for words in bundle.record("generate")[run]["texts"]]
    ids, mask, sequences = (recorded[f"{run}/{name}"] for name in ("input_ids", "attention_mask", "sequences"))
    new = sequences[:, ids.shape[1] :]
    calls = (new == bundle.tokenizer.dream_start).sum(axis=1).max()
    options = Options(max_tokens=new.shape[1], max_images=int(calls), unmasked=True, template=official.TEMPLATE)
    for number, prompt in enumerate(prompts):
        row = prompt_row(model.model, model.tokenizer, prompt, options.template)
        np.testing.assert_array_equal(row.tokens, ids[number][mask[number] == 1], err_msg=f"{run}: prompt {number}")
    task, state = interleave.begin(
        model.model,
        model.tokenizer,
        interleave.GenerationRequest(prompts=prompts, seeds=[0] * len(prompts), options=options),
    )
    written = as_tokens(task, state)
    count = np.asarray(written.written)[: len(prompts), None]
    made = np.where(
        np.arange(new.shape[1]) < count,
        np.asarray(written.tokens)[: len(prompts), : new.shape[1]],
        bundle.tokenizer.pad,
    )
    return np.concatenate([ids, made], axis=1)


def prompt_of(words: str, images: Iterator[np.ndarray]) -> Document:
    """A recorded prompt, which is a chat.

    There the words behind a picture continue the turn, which is not how a page's are read without roles.
    """
    template = TEMPLATES[official.TEMPLATE]
    opening, closing, role = template.system + template.system_to_user, template.user_to_assistant.rstrip(), None
    if words.startswith(opening) and words.endswith(closing):
        words, role = words[len(opening) : -len(closing)], "user"
    before, *after = re.split(r"<im_start>(?:<im_patch>)*<im_end>", words)
    shown = [
        part for words in after for part in (Image(next(images), is_target=False, role=role), Text(words, role=role))
    ]
    return Document((Text(before, role=role), *shown))


def as_tokens(task: interleave.Task, state: decode.State) -> decode.State:
    """Writes to the end. The official generation draws nothing: <dream_start> is a token like others there."""
    opening = dreamllm.embed(task.model, np.full((len(state.length), 1), task.tokenizer.dream_start))
    while True:
        state = decode.write(task.model, state, task.settings, task.special, interleave.ENDLESS)
        waiting = state.status == decode.DREAMING
        if not waiting.any():
            return state
        state, _ = decode.extend(task.model, state, opening, waiting.astype(np.int32))
        state = state._replace(status=jnp.where(waiting, decode.WRITING, state.status))
