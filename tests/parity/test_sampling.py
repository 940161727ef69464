"""Pictures and texts as the official pipeline drew and wrote them, through the calls that a user makes."""

import re

import numpy as np
import pytest
from parity.bundles import IMAGES, channels_first, channels_last, open_bundle

from dreamjax.api import DreamLLM
from dreamjax.document import Document, Image, Text
from dreamjax.sampling import interleave, pictures
from dreamjax.sampling.options import Options

# What each recorded run was asked for beside the bundle's own guidance; `rows`: of the prompts, latents and noise.
RUNS = {
    "ddpm": {}, "ddpm_nocfg": {"guidance_scale": 1.0}, "ddpm_rescale": {"guidance_rescale": 0.7}, "ddpm_noneg": {"negatives": False},
    "ddpm_single": {"guidance_scale": 7.5, "rows": 1}, "ddim": {"sampler": "ddim"},
}


@pytest.fixture(scope="module")
def model(bundle) -> DreamLLM:
    opened = open_bundle(bundle)
    return DreamLLM(opened.parts, opened.params, opened.tokenizer)


@pytest.mark.parametrize("run", RUNS)
def test_pictures(bundle, model, run):
    opened, asked = open_bundle(bundle), {"sampler": "ddpm", "negatives": True, "rows": None} | RUNS[run]
    recorded, settings = opened.arrays("prompt"), opened.record("prompt")
    if f"{run}/latents" not in recorded:
        pytest.skip(f"the bundle has no run {run}")
    rows = slice(asked["rows"])
    options = {
        "sampler": asked["sampler"], "num_steps": settings["num_inference_steps"], "spacing": settings["scheduler_config"]["timestep_spacing"],
        "guidance_scale": asked.get("guidance_scale", settings["guidance_scale"]), "guidance_rescale": asked.get("guidance_rescale", 0.0), "padding": "right",
    }
    prompts, negatives = settings["prompts"][rows], settings["negative_prompts"][rows] if asked["negatives"] else None
    given = {"latents": channels_last(recorded["init_latents"][rows]), "step_noise": channels_last(recorded["step_noise"][:, rows])}
    latents = model.text_to_latents(prompts, negative=negatives, **given, **options)

    states = []
    watch = lambda moment: states.append(channels_first(moment.progress.x))
    documents = lambda texts: [Document.of(text) for text in texts or ()]
    pictures.draw_after(
        model.parts, model.params, model.tokenizer, documents(prompts), [0] * len(prompts), Options(**options), documents(negatives), **given, watch=watch, every=1
    )
    found = {"latents": channels_first(latents), "latents_per_step": np.stack([*states, channels_first(latents)])}
    found["timesteps"] = pictures.image.drawing(model.parts.config, Options(**options)).plan.timestep[: options["num_steps"]]
    opened.check({f"prompt/{run}/{name}": (ours, recorded[f"{run}/{name}"]) for name, ours in found.items()}, IMAGES)
    if f"{run}/image_u8" in recorded:
        drawn = np.stack([np.asarray(picture) for picture in model.decode(latents)])
        opened.check({f"prompt/{run}/image_np": (drawn / np.float32(255), recorded[f"{run}/image_np"])}, 3e-3)  # of which rounding to whole numbers is 2e-3
        assert np.max(np.abs(drawn.astype(int) - recorded[f"{run}/image_u8"])) <= 1


def test_texts(bundle, model):
    """Greedy writing after chats, alone and in batches, which ours pads nowhere."""
    opened, asked = open_bundle(bundle), open_bundle(bundle).record("generate")
    recorded, placeholder = opened.arrays("generate"), re.compile(r"<im_start>(?:<im_patch>)*<im_end>")
    for run in (name for name in asked if f"{name}/sequences" in recorded):
        images, prompts = iter(recorded[f"image{number}_u8"] for number in range(100)), []
        for text in asked[run]["texts"]:
            before, *after = placeholder.split(text)
            parts = [Text(before)] + [part for words in after for part in (Image(next(images), dreamed=False), Text(words))]
            prompts.append(Document(tuple(parts)))
        ids, mask, sequences = (recorded[f"{run}/{name}"] for name in ("input_ids", "attention_mask", "sequences"))
        new = sequences[:, ids.shape[1] :]
        options = Options(max_tokens=new.shape[1], max_images=0, unmasked=True)
        task, state = interleave.begin(model.parts, model.params, model.tokenizer, prompts, [0] * len(prompts), options)
        np.testing.assert_array_equal(np.asarray(state.length)[: len(prompts)], mask.sum(axis=1), err_msg=f"{run}: prompts have other lengths")
        for event in interleave.run(task, state):
            state = event.state if isinstance(event, interleave.Wrote) else state
        opened.check({f"generate/{run}/sequences": (np.asarray(state.tokens)[: len(prompts), : new.shape[1]], new)})
