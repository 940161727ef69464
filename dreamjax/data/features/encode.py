"""Images through the frozen encoders once, into the files of data/features/stored.py: CLIP's features and the moments
of the latents.
"""

import concurrent.futures
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import progress
from dreamjax.config import ModelConfig
from dreamjax.data.features.stored import EncodedImage, card_of, write_encoded
from dreamjax.data.source import Source
from dreamjax.document import Image, image_io
from dreamjax.document.batch import encoded_of
from dreamjax.errors import BadImage, BadRecord, ConfigError
from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Model
from dreamjax.training import checkpoint, model_folder
from dreamjax.training.state import cast

Pixels = tuple[np.ndarray, np.ndarray]  # uint8, as the encoder and as the decoder take them


def load_encoders(model: ModelConfig, path: str) -> dict:
    """CLIP and VAE of a folder in the compute dtype; ConfigError where they are not those of `model`."""
    folder = checkpoint.open_folder(path)
    stored = model_folder.read_card(folder).model
    for name in ("clip", "vae"):
        if getattr(stored, name) != getattr(model, name):
            raise ConfigError(f"--model: {path} has another model.{name} than the config")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {name: tree for name, tree in checkpoint.parameter_shapes(model).items() if name in ("clip", "vae")}
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)
    return cast(checkpoint.read_params(folder, abstract), model.dtype)


def make_encode(config: ModelConfig, params: dict, size: int) -> Callable[[list[Pixels]], list[EncodedImage]]:
    """`encode(pixels) -> images` of at most `size` images at a time; compiled once."""
    model = Model(config, params)

    @jax.jit
    def run(inputs: jax.Array, targets: jax.Array):
        features = dreamllm.patch_features(model, inputs) if config.clip else None
        both = [dreamllm.latent_moments(model, side) for side in (targets, targets[:, :, ::-1])] if config.vae else None
        return features, jnp.stack(both, axis=1) if both else None

    def encode(pixels: list[Pixels]) -> list[EncodedImage]:
        padded = pixels + [pixels[0]] * (size - len(pixels))
        features, moments = map(np.asarray, run(*(np.stack(side) for side in zip(*padded, strict=True))))
        return [
            EncodedImage(features[i] if config.clip else None, moments[i] if config.vae else None)
            for i in range(len(pixels))
        ]

    return encode


def write(source: Source, folder: str, model: ModelConfig, encode: Callable, size: int, encoders: str):
    """Fills a folder with the encoded images of a source, `size` at a time."""
    card = card_of(source.fingerprint, encoded_of(model), encoders, len(source))
    with progress.bar(len(source), "document", folder) as bar, concurrent.futures.ThreadPoolExecutor(4) as pool:

        def documents(numbers: range) -> Iterator[list[EncodedImage | None]]:
            bar.update(numbers.start - bar.n)
            few = (
                numbers[start : start + size] for start in range(0, len(numbers), size)
            )  # all at once would not fit into memory
            opened = (pixels for part in few for pixels in pool.map(lambda i: pixels_of(source, i, model), part))
            for images in _encoded(opened, encode, size):
                bar.update()
                yield images

        write_encoded(folder, card, documents)


def pixels_of(source: Source, index: int, model: ModelConfig) -> list[Pixels | None]:
    """The images of a document at the sizes of the encoders, None for one that does not open; [] of a broken record."""
    try:
        parts = [part for part in source[index].parts if isinstance(part, Image)]
    except BadRecord:
        return []
    pixels: list[Pixels | None] = []
    for part in parts:
        try:
            opened = part.pil()
            sides = (
                model.clip.image_size if model.clip else image_io.MIN_SIDE,
                model.decoder_size if model.unet else image_io.MIN_SIDE,
            )
            pixels.append((image_io.for_encoder(opened, sides[0]), image_io.for_decoder(opened, sides[1])))
        except BadImage:
            pixels.append(None)
    return pixels


def _encoded(
    documents: Iterator[list[Pixels | None]], encode: Callable, size: int
) -> Iterator[list[EncodedImage | None]]:
    """The images of each document, encoded in batches that documents share."""
    waiting: list[list] = []  # documents in order; images that are not encoded yet are Pixels

    def flush() -> Iterator[list[EncodedImage | None]]:
        flat = [pixels for images in waiting for pixels in images if pixels is not None]
        encoded = iter([image for start in range(0, len(flat), size) for image in encode(flat[start : start + size])])
        for images in waiting:
            yield [None if pixels is None else next(encoded) for pixels in images]
        waiting.clear()

    for images in documents:
        waiting.append(images)
        if sum(len(image) for image in waiting) >= size:
            yield from flush()
    yield from flush()
