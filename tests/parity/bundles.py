"""A bundle opened: the model as the package reads it from the official layout, the recorded arrays, and the comparison
with ours.

A bundle is a folder with ckpt/ (the official layout) and golden/ (what the official code computed, .npz and .json).
Nothing of a particular one is assumed: sizes, ids and settings are read from it.
"""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Sequence

import numpy as np
from goldens import name_of, recorded_file

from dreamjax.convert.foreign_config import ForeignConfig
from dreamjax.convert.formats import official
from dreamjax.document.batch import Batch, Shape, empty_batch
from dreamjax.document.tokenize import Slots
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.models.dreamllm import Model
from dreamjax.training.losses import SpecialIds

# Largest relative error: norm of the difference over norm of what was recorded.
ARRAYS = 1e-4
GRADIENTS_AND_IMAGES, ARE_THESE = 1e-3, r"grads_\w+/.*|.*/trainable_grad_norm|.*/image_(np|u8)"

# What the arrays of each file are, by names of files and arrays. INPUTS are given to ours; a test of the named module
# compares the others, and compares all that its pattern finds. An array that these do not know is an error.
FORWARD, GRADS = r"forward_\w+", r"grads_\w+"
INPUTS = {
    "components": r"clip_pixel_values|unet_(sample|timesteps|context)|vae_(images|z)|add_noise_(x0|noise|t)",
    FORWARD: r"input_ids|attention_mask|labels|images|images_dm",
    "vmloss": r"eps_vae|noise|timesteps|offset_noise|pert_noise|drop_mask",
    "prompt": r"mm/(image_u8|pixel_values)|init_latents|step_noise",
    "generate": r"pixel_values|image\d+_u8",
    "preproc": r"\d+/image_u8|collate_in/.*",
}
COMPARED = {
    ("components", "test_components"): (
        r"clip_(hidden_states|embeds)|unet_out|vae_(mean|logvar|decoded)|alphas_cumprod|add_noise_out|velocity_out"
        r"|snr_out|ddpm_timesteps_\d+"
    ),
    (FORWARD, "test_forward"): r"inputs_embeds|hidden_layer1|last_hidden|logits|loss",
    ("vmloss", "test_losses"): (
        r"vae_(mean|std)|latents"
        r"|\w+/(noisy_latents|unet_context|unet_pred|encoder_hidden_states|u_encoder_hidden_states|u_inputs_embeds)"
    ),
    (GRADS, "test_gradients"): r"(model|lm_head|stable_diffusion_head)\..*",
    (
        "prompt",
        "test_prompts",
    ): r"(right|left)/\w+/(input_ids|attention_mask|prompt_embeds)|mm/(inputs_embeds|prompt_embeds)",
    ("prompt", "test_sampling"): r"dd[ip]m\w*/(latents_per_step|latents|timesteps|image_np|image_u8)",
    ("generate", "test_generation"): r"\w+/(input_ids|attention_mask|scores)",
    ("generate", "test_sampling"): r"\w+/sequences",
    ("preproc", "test_preprocessing"): r"\d+/(clip|sd|sd_flip)|collate/.*",
}

REPORT: dict[str, dict[str, float]] = {}  # {bundle: {file/array: error}} of this session


@dataclasses.dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle's model in float32 and its records."""

    path: pathlib.Path
    settings: dict  # config.json of the release
    model: Model
    tokenizer: Tokenizer

    @property
    def slots(self) -> Slots:
        return Slots.of(self.model.config)

    @property
    def ids(self) -> SpecialIds:
        return SpecialIds(self.tokenizer.bos, self.tokenizer.dream_start, self.tokenizer.im_patch)

    def files(self, pattern: str) -> list[str]:
        """Names of the recorded .npz files that a pattern describes."""
        return [file.stem for file in sorted((self.path / "golden").glob("*.npz")) if re.fullmatch(pattern, file.stem)]

    @functools.cache
    def arrays(self, file: str) -> dict[str, np.ndarray]:
        """The arrays of a recorded file; a test that asks for one that the bundle has not is skipped."""
        with np.load(recorded_file(self.path, f"{file}.npz")) as arrays:
            return {name: arrays[name] for name in arrays.files}

    @functools.cache
    def record(self, file: str) -> dict:
        """What stands in a recorded JSON file, likewise."""
        return json.loads(recorded_file(self.path, f"{file}.json").read_text())

    @property
    def spacing(self) -> str:
        """Of the timesteps that the release samples at; diffusers' default where its scheduler says none."""
        file, head = (
            "scheduler/scheduler_config.json",
            ForeignConfig(self.settings["plugins_init_kwargs"]["stable_diffusion_head"], "config.json"),
        )
        home = official.find_component(self.path / "ckpt", head, "diffusion_name_or_path", file)
        return ForeignConfig.of(home / file).get("timestep_spacing", "leading") if home else "leading"

    def compare(self, file: str, module: str, ours: dict[str, np.ndarray], where: np.ndarray | None = None):
        """Compares all arrays of a file that COMPARED gives to a test module: `ours` must have each of them.

        It may have more of that kind, which another bundle records. `where` says which entries of the first axes of
        those that have axes count.
        """
        pattern = next(
            pattern for (files, name), pattern in COMPARED.items() if name == module and re.fullmatch(files, file)
        )
        recorded = {name: array for name, array in self.arrays(file).items() if re.fullmatch(pattern, name)}
        assert set(recorded) <= set(ours), f"{file}: {sorted(set(recorded) - set(ours))} are recorded and not compared"
        unknown = sorted(name for name in ours if not re.fullmatch(pattern, name))
        assert not unknown, f"{file}: {unknown} are no names of recorded arrays"

        def pick(array):
            return np.asarray(array) if where is None or np.ndim(array) == 0 else np.asarray(array)[where]

        self.check({f"{file}/{name}": (pick(ours[name]), pick(array)) for name, array in recorded.items()})

    def check(self, pairs: dict[str, tuple]):
        """Compares {name.

        (ours, recorded)}: floats and bytes by their relative error, ids and texts for equality; notes every error.
        """
        errors = {name: error_of(name, *pair) for name, pair in pairs.items()}
        REPORT.setdefault(name_of(self.path), {}).update(errors)
        wrong = {
            name: f"{error:.2g}, at most {limit_of(name, pairs[name][1]):g}"
            for name, error in errors.items()
            if not error <= limit_of(name, pairs[name][1])
        }
        assert not wrong, f"{self.path.name}: relative errors: {wrong}"


def limit_of(name: str, recorded) -> float:
    """The largest error that an array may have."""
    if not _is_measured(recorded):
        return 0
    return GRADIENTS_AND_IMAGES if re.fullmatch(ARE_THESE, name) else ARRAYS


@functools.cache
def open_bundle(path: pathlib.Path) -> Bundle:
    """Opens a bundle once in a session."""
    release = official.load(path / "ckpt")
    model = Model(dataclasses.replace(release.model, dtype="float32"), release.params)
    return Bundle(path, json.loads((path / "ckpt" / "config.json").read_text()), model, release.tokenizer)


def error_of(name: str, ours, recorded) -> float:
    """Norm of the difference over norm of what was recorded.

    Of ids and texts the share that differs. 0 only where both are.
    """
    if not _is_measured(recorded):
        assert np.shape(ours) == np.shape(recorded), f"{name}: {np.shape(ours)} against {np.shape(recorded)}"
        return float(np.mean(np.asarray(ours) != np.asarray(recorded))) if np.size(recorded) else 0.0
    ours, recorded = np.asarray(ours, np.float64), np.asarray(recorded, np.float64)
    assert ours.shape == recorded.shape, f"{name}: {ours.shape} against {recorded.shape}"
    difference, norm = float(np.linalg.norm(ours - recorded)), float(np.linalg.norm(recorded))
    return difference / norm if norm else (0.0 if difference == 0 else float("inf"))


def _is_measured(value) -> bool:
    """Whether it is an amount: a float, or a byte of a picture. Other whole numbers are ids."""
    dtype = np.asarray(value).dtype
    return dtype.kind == "f" or dtype == np.uint8


# ----------------------------------------------------------------------------------------------------------------------
# Recorded arrays in our form


def channels_last(array: np.ndarray) -> np.ndarray:
    """[..., C, h, w] as [..., h, w, C]."""
    return np.moveaxis(array, -3, -1)


def channels_first(array) -> np.ndarray:
    """[..., h, w, C] as [..., C, h, w]."""
    return np.moveaxis(np.asarray(array), -1, -3)


def encoder_images(bundle: Bundle, pixels: np.ndarray) -> np.ndarray:
    """The uint8 pictures [n, h, w, 3] that recorded CLIP pixels [n, 3, h, w] were made of."""
    clip = bundle.model.config.clip
    return _whole((channels_last(pixels) * np.array(clip.image_std) + np.array(clip.image_mean)) * 255)


def decoder_images(pixels: np.ndarray) -> np.ndarray:
    """The uint8 pictures [n, H, W, 3] that recorded pixels in [-1, 1] [n, 3, H, W] were made of."""
    return _whole((channels_last(pixels) + 1) * 127.5)


def _whole(values: np.ndarray) -> np.ndarray:
    rounded = np.round(values)
    assert np.abs(values - rounded).max() < 1e-3, "these pixels come from no uint8 picture"
    return rounded.astype(np.uint8)


def padded(rows: Sequence[Sequence[int]], pad: int, side: str) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask) [B, longest] of rows that are filled up on the right or on the left."""
    ids, mask = np.full((2, len(rows), max(map(len, rows))), pad)
    mask[:] = 0
    for i, row in enumerate(rows):
        span = slice(0, len(row)) if side == "right" else slice(ids.shape[1] - len(row), None)
        ids[i, span], mask[i, span] = row, 1
    return ids, mask


def recorded_shape(bundle: Bundle) -> Shape:
    """Sizes that hold every recorded batch, so that one program serves them all: a row a group, all of its pictures."""
    batches = [bundle.arrays(file) for file in bundle.files(FORWARD)]

    def most(token):
        return max(int((batch["input_ids"] == token).sum(axis=1).max()) for batch in batches)

    config = bundle.model.config
    rows, length = (max(batch["input_ids"].shape[axis] for batch in batches) for axis in (0, 1))
    return Shape(
        rows,
        1,
        length,
        most(bundle.tokenizer.im_start),
        most(bundle.tokenizer.dream_start),
        config.clip.image_size,
        config.decoder_size,
    )


def to_batch(bundle: Bundle, shape: Shape, ids: np.ndarray, mask: np.ndarray, **recorded) -> Batch:
    """A Batch of recorded rows [B, S], a row a group, at the top left of a batch of the given shape.

    `recorded` may have labels, images and images_dm. Pictures are dealt to the <im_start> (<dream_start>) of all rows
    in reading order, as the official code does; without any, the places keep their tokens' embeddings.
    """
    batch = empty_batch(shape)
    count, length = ids.shape
    batch.tokens[:count, 0, :length] = ids
    batch.segments[:count, 0, :length] = mask
    batch.positions[:] = np.arange(shape.length)
    if (labels := recorded.get("labels")) is not None:
        supervised = (labels != -100) & (np.asarray(mask) == 1)
        np.testing.assert_array_equal(labels[supervised], ids[supervised])
        batch.loss_mask[:count, 0, :length] = supervised
    if (pixels := recorded.get("images")) is not None:
        _deal(
            batch.input_images,
            batch.input_start,
            batch.input_valid,
            ids == bundle.tokenizer.im_start,
            encoder_images(bundle, pixels),
        )
    if (pixels := recorded.get("images_dm")) is not None:
        images = decoder_images(pixels)
        assert (ids == bundle.tokenizer.dream_start).sum() == len(images), (
            "a recorded <dream_start> without its picture"
        )
        _deal(
            batch.target_images,
            batch.target_start,
            batch.target_valid,
            ids == bundle.tokenizer.dream_start,
            images,
        )
    return batch


def _deal(images: np.ndarray, start: np.ndarray, valid: np.ndarray, opens: np.ndarray, values: np.ndarray):
    slots = np.zeros(len(start), int)
    for (row, position), value in zip(np.argwhere(opens), values, strict=False):
        images[row, slots[row]], start[row, slots[row]], valid[row, slots[row]] = value, position + 1, True
        slots[row] += 1


def forward_batch(bundle: Bundle, file: str) -> Batch:
    """The recorded batch of a forward_*.npz."""
    arrays = dict(bundle.arrays(file))
    return to_batch(bundle, recorded_shape(bundle), arrays.pop("input_ids"), arrays.pop("attention_mask"), **arrays)
