"""What may be asked for: numbers that cannot be are one ConfigError that names them, before anything is computed."""

import dataclasses
import math
import warnings

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from small_model import LATENT, PIXEL, run_config

from dreamjax.api import DreamLLM
from dreamjax.config import ModelConfig
from dreamjax.config.model import UNetConfig, VaeConfig
from dreamjax.config.validation import require_seed
from dreamjax.errors import ConfigError
from dreamjax.models.dreamllm import Model
from dreamjax.sampling import denoise, interleave, memory, text_to_image
from dreamjax.sampling.options import RANGES, Options

WRONG = [
    True,
    None,
    "1",
    [1],
    1j,
    math.nan,
    math.inf,
    -math.inf,
    10**5000,
    -(10**5000),
    np.float32("nan"),
    np.bool_(True),
]
NOT_SEEDS = [-1, 2**32, 10**5000, 1.0, True, None, "7", math.nan, np.int64(-5), [0]]
SIZES = ModelConfig(
    llm=LATENT.llm, clip=LATENT.clip, unet=UNetConfig(), vae=VaeConfig(), dream_queries=3
)  # Stable Diffusion's


@pytest.mark.parametrize("name", RANGES)
def test_numbers_that_cannot_be(name):
    for value in WRONG:
        with pytest.raises(ConfigError, match=f"^{name}: ") as caught:
            Options(**{name: value})
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "name, values",
    {
        "temperature": [1e-40, 1e30],
        "guidance_scale": [1e30, 0.99],
        "length_penalty": [1e6, -1e6],
        "repetition_penalty": [0.0, -1.0, 1e-30, 1e30],
        "eta": [1.01],
        "guidance_rescale": [-0.1],
        "top_p": [0.0, 1.1, 1e-0 + 1e-3],
        "max_tokens": [10**12, 2.0],
        "num_steps": [10**9, 0, 20.0],
        "height": [10**9, -8],
        "beams": [10**6],
        "max_images": [2**40],
        "top_k": [2**31],
        "context": [2**31],
        "stop": [3, (3,), None, b"x"],
        "sampler": [None, 3, ["ddim"]],
        "template": ["nobody's", 3],
        "unmasked": [1, "no"],
        "negative": ["a text", 3],
    }.items(),
)
def test_absurd_values(name, values):
    for value in values:
        with pytest.raises(ConfigError, match=f"^{name}: "):
            Options(**{name: value})


def test_numbers_of_numpy_are_numbers():
    given = Options(
        temperature=np.float32(0.5), top_k=np.int64(3), num_steps=np.uint8(7), guidance_scale=2, top_p=np.float16(0.5)
    )
    assert given == Options(temperature=0.5, top_k=3, num_steps=7, guidance_scale=2.0, top_p=0.5)
    assert {type(getattr(given, name)) for name in ("temperature", "guidance_scale", "top_p")} == {float} and type(
        given.top_k
    ) is int


@hypothesis.given(st.sampled_from(sorted(RANGES)), st.one_of(st.floats(), st.integers(), st.none(), st.booleans()))
def test_an_option_is_finite_or_refused(name, value):
    try:
        accepted = getattr(
            Options(**{name: value, "min_images": 0} if name != "min_images" else {name: value, "max_images": 2**20}),
            name,
        )
    except ConfigError:
        return
    assert (
        math.isfinite(accepted)
        and RANGES[name][0] <= accepted <= RANGES[name][1]
        and math.isfinite(np.float32(accepted))
    )


@pytest.mark.parametrize("seed", NOT_SEEDS, ids=range(len(NOT_SEEDS)))
def test_a_seed_that_is_none_is_one_error_in_every_entry(seed):
    model = DreamLLM(Model(PIXEL, {}), None)  # nothing is computed
    entries = [
        lambda: require_seed("seed", seed),
        lambda: model.generate("a", seed=seed),
        lambda: model.generate_batch(["a", "b"], [0, seed]),
        lambda: model.stream("a", seed=seed),
        lambda: model.text_to_image("a", seed=seed),
        lambda: model.text_to_latents("a", seed=seed),
        lambda: model.attention_maps("a", seed=seed),
        lambda: interleave.GenerationRequest(prompts=["a"], seeds=[seed], options=Options()),
        lambda: text_to_image.ImageRequest(prompts=["a"], seeds=[seed], options=Options()),
        lambda: run_config(seed=seed),
    ]
    for entry in entries:
        with pytest.raises(ConfigError, match=r"^seeds?(\[\d\])?: "):
            entry()


def test_seeds_that_count_up_stay_seeds():
    model = DreamLLM(Model(PIXEL, {}), None)
    with pytest.raises(ConfigError, match="seed: 4294967295 leaves no seeds for 2 pictures"):
        model.text_to_image("a", 2, seed=2**32 - 1)
    for last in (np.uint32(2**32 - 1), np.array(2**32 - 1, np.uint32)[()]):  # whose own sums wrap around
        with pytest.raises(ConfigError, match="seed: 4294967295 leaves no seeds for 3 pictures"):
            model.text_to_latents("a", np.uint8(3), seed=last)
    with pytest.raises(ConfigError, match="seeds: 1 seeds for 2 prompts"):
        model.generate_batch(["a", "b"], [0])


def test_more_steps_than_the_schedule_has():
    for entry in (
        lambda options: denoise.check(PIXEL, options, 1),
        lambda options: interleave.begin(
            Model(PIXEL, {}), None, interleave.GenerationRequest(prompts=["a"], seeds=[0], options=options)
        ),
    ):
        with pytest.raises(ConfigError, match="num_steps: 1001 is not between 1 and 1000"):
            entry(Options(num_steps=1001))


@pytest.mark.parametrize(
    "height, width, what", [(2**20, 2**20, "VAE|U-Net"), (2**19, 512, "VAE|U-Net"), (64_000, 64_000, "VAE|U-Net")]
)
def test_sizes_that_no_memory_holds(height, width, what):
    with pytest.raises(
        ConfigError,
        match=rf"height, width: 4 pictures of {width} x {height} pixels at once take more than .* GiB "
        rf"\(.*({what})\), there are \d+ GiB",
    ):
        denoise.check(SIZES, Options(height=height, width=width), 4)


def test_room_for_images_and_documents(monkeypatch):
    monkeypatch.setattr(memory, "there_is", lambda: 8 * 2**30)
    memory.require_room_for_images(SIZES, (64, 64, 4), 8, 2)
    with pytest.raises(ConfigError, match="self-attention"):
        memory.require_room_for_images(SIZES, (256, 256, 4), 8, 2)  # 65,536 positions: 16 GiB of scores for one picture
    memory.require_room_for_documents(SIZES, 8, 64)
    with pytest.raises(ConfigError, match="batch_size, max_tokens: 1048576 documents of up to 8,192 tokens"):
        memory.require_room_for_documents(SIZES, 2**20, 8192)


def test_memory_that_does_not_suffice_after_all():
    with (
        pytest.raises(ConfigError, match="^memory: RESOURCE_EXHAUSTED: .*; ask for smaller pictures") as caught,
        memory.exhausted_is_said(),
    ):
        jax.block_until_ready(jax.numpy.zeros(2**44, np.uint8))
    assert "\n" not in str(caught.value)
    with pytest.raises(jax.errors.JaxRuntimeError), memory.exhausted_is_said():
        raise jax.errors.JaxRuntimeError("INTERNAL: a fault of the program")


def test_a_size_far_from_the_training_size_is_said():
    for side in (8, 10, 16, 4):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            denoise.check(PIXEL, Options(height=side, width=side), 1)
    for height, width in ((24, 8), (8, 2), (32, 32)):
        with pytest.warns(
            UserWarning, match=f"height, width: {width} x {height} pixels, and the model was trained on 8 x 8"
        ):
            denoise.check(PIXEL, Options(height=height, width=width), 1)


def test_fields_that_are_checked_are_all_that_are_numbers():
    kinds = {field.name for field in dataclasses.fields(Options) if field.type in (int, float)}
    assert kinds == set(RANGES)
