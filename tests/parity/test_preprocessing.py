"""Pictures as the official processors prepare them, and rows as the official collator puts them together."""

import itertools

import numpy as np
from parity.bundles import Bundle, channels_first, open_bundle

from dreamjax.document import image_io
from dreamjax.document.batch import Shape, empty_batch, place
from dreamjax.document.tokenize import TokenSequence

IGNORED = -100
PICTURES = ("images", "images_dm")


def test_images_and_collated_rows(bundle):
    opened = open_bundle(bundle)
    opened.compare("preproc", "test_preprocessing", prepared(opened) | collated(opened))


def prepared(bundle: Bundle) -> dict[str, np.ndarray]:
    """Each recorded picture for the encoder, and for the decoder as it is and flipped."""
    config, found = bundle.model.config, {}
    mean, std = np.array(config.clip.image_mean), np.array(config.clip.image_std)
    for name, source in bundle.arrays("preproc").items():
        number, _, kind = name.partition("/")
        if kind == "image_u8":
            found[f"{number}/clip"] = channels_first(
                (image_io.for_encoder(source, config.clip.image_size) / 255 - mean) / std
            )
            for kind, flip in (("sd", False), ("sd_flip", True)):
                found[f"{number}/{kind}"] = channels_first(
                    image_io.for_decoder(source, config.decoder_size, flip=flip) / 127.5 - 1
                )
    return found


def collated(bundle: Bundle) -> dict[str, np.ndarray]:
    """The recorded rows in one Batch, a row a group, read out in the official form: ids filled up with pads, pictures
    in document order. A picture is its number here.
    """
    recorded, tokenizer = bundle.arrays("preproc"), bundle.tokenizer
    numbers = sorted({int(name.split("/")[1]) for name in recorded if name.startswith("collate_in/")})
    given = [
        {name.split("/")[2]: array for name, array in recorded.items() if name.startswith(f"collate_in/{number}/")}
        for number in numbers
    ]
    if not given:
        return {}

    def most(key):
        return max(len(one.get(key, ())) for one in given)

    batch = empty_batch(Shape(len(given), 1, most("input_ids"), most("images"), most("images_dm"), 1, 1))
    counters = {key: itertools.count() for key in PICTURES}
    for group, one in enumerate(given):
        ids, labels = one["input_ids"], one["labels"]
        assert one["attention_mask"].all()
        np.testing.assert_array_equal(np.where(labels != IGNORED, ids, IGNORED), labels)
        numbered = [[np.full((1, 1, 3), next(counters[key])) for _ in one.get(key, ())] for key in PICTURES]
        row = TokenSequence(
            ids, labels != IGNORED, *(tuple((0, part) for part in range(len(images))) for images in numbered), False
        )
        place(batch, (group, 0), row, *numbered)
    tokens, real, supervised = (array[:, 0] for array in (batch.tokens, batch.segments > 0, batch.loss_mask))
    made = {
        "input_ids": np.where(real, tokens, tokenizer.pad),
        "attention_mask": real.astype(int),
        "labels": np.where(supervised, tokens, IGNORED),
    }
    for key, numbers in zip(
        PICTURES, (batch.input_images[batch.input_valid], batch.target_images[batch.target_valid]), strict=False
    ):
        if len(numbers):
            made[key] = np.concatenate([one[key] for one in given if key in one])[numbers[:, 0, 0, 0]]
    return {f"collate/{key}": array for key, array in made.items()}
