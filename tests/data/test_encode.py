"""Encoders run once instead of in every step: the same losses, from batches that need no picture file any more."""

import dataclasses
import json

import jax
import numpy as np
import PIL.Image
import pytest
from small_model import LATENT, parameters

from dreamjax.config import DataConfig, LossConfig, OptimConfig, RunConfig, SourceConfig
from dreamjax.data.features import encode
from dreamjax.data.pipeline.loader import Loader
from dreamjax.data.registry import open_source
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.document.tokenizer_training import train_tokenizer
from dreamjax.errors import ConfigError, SourceError
from dreamjax.models.dreamllm import Model
from dreamjax.training import losses
from dreamjax.training.initialize import check_encoders, encoders_of

MODEL = dataclasses.replace(LATENT, llm=dataclasses.replace(LATENT.llm, vocab_size=320))


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """Ten stories of pages with pictures, one of which does not open."""
    folder, rng = tmp_path_factory.mktemp("stories"), np.random.default_rng(0)
    lines = []
    for s in range(10):
        pages = [{"text": "a red goat", "image": f"{s}_{p}.png"} for p in range(1 + s % 3)]
        for page in pages:
            PIL.Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).save(folder / page["image"])
        lines.append(json.dumps({"id": f"story {s}", "title": f"Goat {s}", "pages": pages}))
    (folder / "4_1.png").write_bytes(b"no picture")
    (folder / "stories.jsonl").write_text("\n".join(lines))
    return folder


def run_config(folder, encoded="", flip=True):
    data = DataConfig(
        (SourceConfig("storybook", str(folder), encoded=encoded),),
        length=64,
        rows_per_group=2,
        input_slots=5,
        target_slots=6,
        flip=flip,
    )
    return RunConfig(model=MODEL, data=data, optim=OptimConfig(trainable=(".",)), batch_size=4, seed=1)


@pytest.fixture(scope="module")
def made(stories, tmp_path_factory):
    """(batches with pictures, the folder of encoded ones, parameters, tokenizer), after which the pictures are gone."""
    params, folder = parameters(MODEL), str(tmp_path_factory.mktemp("encoded") / "pictures")
    config = run_config(stories)
    tokenizer = Tokenizer.from_model(train_tokenizer(open_source(config.data.train[0]).texts(), 300))
    assert tokenizer.size <= MODEL.llm.vocab_size
    images = [Loader(config, config.data.train, tokenizer).load(number) for number in range(3)]
    run_encoders = encode.make_encode(MODEL, params, 4)
    encode.write(open_source(config.data.train[0]), folder, MODEL, run_encoders, 4, encoders_of(params))
    for image in stories.glob("*.png"):
        image.unlink()
    return images, folder, params, tokenizer


def test_losses_are_those_of_the_images(stories, made):
    images, folder, params, tokenizer = made
    model = Model(MODEL, params)
    ids = losses.SpecialIds(tokenizer.bos, tokenizer.dream_start, tokenizer.im_patch)
    loss = jax.jit(lambda batch: losses.loss_sums(model, LossConfig(), ids, batch, jax.random.key(0)))
    config = run_config(stories, folder)
    loader = Loader(config, config.data.train, tokenizer)
    for number, one in enumerate(images):
        encoded = loader.load(number)
        assert encoded.documents == one.documents and len(encoded.skipped) == len(one.skipped)
        assert encoded.batch.target_images.dtype == np.float32 and encoded.batch.input_images.shape[2:] == (
            MODEL.clip.patches,
            MODEL.clip.width,
        )
        for name in (
            "tokens",
            "loss_mask",
            "segments",
            "input_start",
            "input_valid",
            "target_start",
            "target_valid",
            "target_draw",
        ):
            assert np.array_equal(getattr(encoded.batch, name), getattr(one.batch, name)), name
        ours, theirs = loss(encoded.batch), loss(one.batch)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
        assert float(theirs[0]) > 1 and float(theirs[1]) > 0.1
    assert any(one.skipped for one in images)


def test_a_mirrored_image_has_moments_of_its_own(stories, made):
    _, folder, _, tokenizer = made
    batches = [
        Loader(config, config.data.train, tokenizer).load(0).batch
        for config in (run_config(stories, folder), run_config(stories, folder, flip=False))
    ]
    mirrored = [
        not np.array_equal(*pair)
        for pair in zip(*(batch.target_images[batch.target_valid] for batch in batches), strict=True)
    ]
    assert any(mirrored) and not all(mirrored) and np.array_equal(*(batch.input_images for batch in batches))


def test_images_of_another_source_or_of_other_encoders_are_refused(stories, made, tmp_path):
    _, folder, params, tokenizer = made
    config = run_config(stories, folder)
    loader = Loader(config, config.data.train, tokenizer)
    frozen = {"clip": params["clip"], "vae": params["vae"], "unet": params["unet"]}
    check_encoders(loader.encoders, frozen)
    check_encoders(set(), {})
    for other in (
        {"clip": params["clip"]},
        {"clip": params["clip"], "vae": jax.tree.map(lambda leaf: leaf + 1, params["vae"])},
    ):
        with pytest.raises(ConfigError, match="encoded by other encoders than this run's clip and vae"):
            check_encoders(loader.encoders, other)
    wider = dataclasses.replace(
        config, model=dataclasses.replace(MODEL, clip=dataclasses.replace(MODEL.clip, patch_size=2))
    )
    with pytest.raises(
        SourceError, match="is of another layout than this run's; write it anew with python -m dreamjax.precompute"
    ):
        Loader(wider, config.data.train, tokenizer)
    lines = (stories / "stories.jsonl").read_text().split("\n")
    (tmp_path / "stories.jsonl").write_text("\n".join(lines[:5]))
    moved = run_config(tmp_path, folder)
    with pytest.raises(SourceError, match="is of another source"):
        Loader(moved, moved.data.train, tokenizer)
    missing = run_config(stories, str(tmp_path))
    with pytest.raises(SourceError, match="has no encoded.json; python -m dreamjax.precompute writes it"):
        Loader(missing, missing.data.train, tokenizer)
