"""A model spread over eight devices writes and draws what it does on one."""

import dataclasses

import jax
import numpy as np
import pytest
from small_model import LATENT, boosted, parameters

from dreamjax.config import MeshConfig
from dreamjax.document import Document, Image, Text
from dreamjax.models.dreamllm import Model
from dreamjax.parallel.mesh import make_mesh
from dreamjax.parallel.param_sharding import parameter_shardings
from dreamjax.sampling import interleave, text_to_image
from dreamjax.sampling.options import Options

OPTIONS = Options(max_tokens=8, max_images=1, num_steps=2, guidance_scale=2.0)
PROMPTS = [
    Document((Text("Once a red circle"), Image(np.full((8, 8, 3), 90, np.uint8), is_target=False), Text("Then"))),
    Document((Text("Now"),)), Document((Text("One day a cross"),)), Document((Text("So"),)),
]  # fmt: skip


@pytest.mark.parametrize("sizes", [(2, 2, 2)], ids=lambda sizes: "x".join(map(str, sizes)))
def test_the_same_on_one_device_and_on_eight(shapes_tokenizer, sizes):
    llm = dataclasses.replace(LATENT.llm, vocab_size=shapes_tokenizer.size, max_positions=128)
    config = dataclasses.replace(LATENT, llm=llm)
    params = boosted(parameters(config), {shapes_tokenizer.eos: -9.0, shapes_tokenizer.dream_start: 1.3})

    def use(params):
        model = Model(config, params)
        options = dataclasses.replace(OPTIONS, min_images=1)
        request = interleave.GenerationRequest(prompts=PROMPTS, seeds=range(4), options=options)
        images = text_to_image.ImageRequest(prompts=PROMPTS, seeds=range(4), options=OPTIONS)
        return (
            interleave.generate(model, shapes_tokenizer, request),
            np.asarray(text_to_image.image_latents(model, shapes_tokenizer, images)),
        )

    documents, latents = use(params)
    mesh = make_mesh(MeshConfig(*sizes))
    with jax.set_mesh(mesh):
        spread = jax.device_put(params, parameter_shardings(params, mesh))
        assert not spread["llm"]["layers"]["mlp"]["up"]["kernel"].is_fully_replicated
        theirs, their_latents = use(spread)
    assert float(np.linalg.norm(latents - their_latents) / np.linalg.norm(latents)) < 1e-4
    for one, eight in zip(documents, theirs, strict=True):
        assert one.text == eight.text and one.notes == eight.notes and len(one.images) == len(eight.images) == 1
        assert np.max(np.abs(np.asarray(one.images[0]).astype(int) - np.asarray(eight.images[0]))) <= 1
