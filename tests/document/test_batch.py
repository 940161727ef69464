"""Documents placed into a batch, drawn by hand, and the batches that stand in for data."""

import dataclasses

import numpy as np
import pytest

from dreamjax.config import DataConfig, OptimConfig, RunConfig, SourceConfig, dreamllm_7b, tiny
from dreamjax.document.batch import Batch, Encoded, Shape, empty_batch, fake_batch, place, shape_of
from dreamjax.document.tokenize import TokenSequence

SHAPE = Shape(groups=2, rows=2, length=10, inputs=3, targets=2, encoder_size=2, decoder_size=3)


def row(tokens: str, supervised: str, inputs=(), targets=()):
    return TokenSequence(
        np.array([int(t) for t in tokens], np.int32),
        np.array([mark == "+" for mark in supervised]),
        inputs,
        targets,
        truncated=False,
    )


def grey(value, size):
    return np.full((size, size, 3), value, np.uint8)


def digits(array):
    return ["".join(str(int(value)) for value in line) for line in array]


def run_config(model=None, groups=2, **data):
    data = DataConfig(train=(SourceConfig("shapes"),), **data)
    return RunConfig(
        model=model or tiny(), data=data, optim=OptimConfig(trainable=(".",)), batch_size=groups * data.rows_per_group
    )


def test_documents_one_behind_the_other():
    batch = empty_batch(SHAPE)
    place(batch, (1, 0), row("172", "-++"), [], [])
    place(batch, (1, 1), row("1599962", "-+----+", inputs=((2, 0),)), [grey(10, 2)], [])
    place(
        batch,
        (1, 0),
        row("1899892", "-+---++", inputs=((5, 4),), targets=((2, 1),)),
        [grey(20, 2)],
        [grey(30, 3)],
        draw=512,
    )
    place(batch, (1, 1), row("192", "-++", targets=((1, 0),)), [], [None], draw=2**32)

    assert digits(batch.tokens[1]) == ["1721899892", "1599962192"]
    assert digits(batch.loss_mask[1]) == ["0110100011", "0100001011"]
    assert digits(batch.positions[1]) == ["0120123456", "0123456012"]
    assert digits(batch.segments[1]) == ["1112222222", "1111111222"]
    # The group's slots go to its documents in the order of placing, whatever their rows.
    assert batch.input_valid[1].tolist() == [True, True, False]
    assert batch.input_start[1].tolist() == [10 + 2, 3 + 5, 0]
    assert batch.input_images[1, :, 0, 0, 0].tolist() == [10, 20, 0]
    assert batch.target_valid[1].tolist() == [True, True]
    assert batch.target_start[1].tolist() == [3 + 2, 10 + 7 + 1]
    assert batch.target_images[1, :, 0, 0, 0].tolist() == [30, 0]
    assert batch.target_draw[1].tolist() == [512, 0]  # modulo 2**32

    untouched = empty_batch(SHAPE)
    assert all(np.array_equal(ours[0], theirs[0]) for ours, theirs in zip(batch, untouched, strict=True))


def test_the_images_of_one_document_are_drawn_by_consecutive_numbers():
    batch = empty_batch(SHAPE)
    place(batch, (0, 0), row("19892", "-+-++", targets=((1, 0), (3, 1))), [], [grey(1, 3), grey(2, 3)], draw=256)
    assert batch.target_draw[0].tolist() == [256, 257]


def test_an_image_too_few_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        place(empty_batch(SHAPE), (0, 0), row("192", "-++", inputs=((1, 0),)), [], [])


def test_an_empty_batch_is_padding():
    batch = empty_batch(SHAPE)
    assert not any(field.any() for field in batch)
    assert [field.shape[0] for field in batch] == [2] * len(Batch._fields)
    assert {name: str(field.dtype) for name, field in batch._asdict().items()} == {
        "tokens": "int32",
        "loss_mask": "bool",
        "positions": "int32",
        "segments": "int32",
        "input_images": "uint8",
        "input_start": "int32",
        "input_valid": "bool",
        "target_images": "uint8",
        "target_start": "int32",
        "target_valid": "bool",
        "target_draw": "uint32",
    }


def test_shape_of_a_run():
    config = run_config(groups=3, rows_per_group=2, length=64, input_slots=5, target_slots=4)
    assert shape_of(config) == Shape(3, 2, 64, 5, 4, 16, 16)
    text_alone = dataclasses.replace(tiny(), clip=None, unet=None)
    assert shape_of(run_config(text_alone, input_slots=0, target_slots=0, length=64)) == Shape(2, 1, 64, 0, 0, 1, 1)
    assert shape_of(run_config(dreamllm_7b()))[-3:] == (224, 512, None)
    assert shape_of(run_config(dreamllm_7b()), encoded=True).encoded == Encoded((256, 1024), (64, 64, 8), "bfloat16")


def test_a_batch_of_encoded_images():
    shape = Shape(2, 1, 16, 3, 4, 8, 8, Encoded((5, 6), (2, 2, 4), "bfloat16"))
    batch = empty_batch(shape)
    assert (batch.input_images.shape, batch.input_images.dtype.name) == ((2, 3, 5, 6), "bfloat16")
    assert (batch.target_images.shape, batch.target_images.dtype) == ((2, 4, 2, 2, 4), np.float32)
    row = TokenSequence(np.arange(9, dtype=np.int32), np.zeros(9, bool), ((1, 0),), ((7, 0),), False)
    place(batch, (1, 0), row, [np.full((5, 6), 0.5)], [np.full((2, 2, 4), 0.25, np.float32)])
    assert (
        batch.input_images[1, 0].astype(np.float32).sum() == 15
        and batch.target_images[1, 0].sum() == 4
        and not batch.target_images[0].any()
    )


def spans(batch, config, g):
    """[(first, last)] of every valid slot of a group, seen and dreamed, as positions in its rows laid end to end."""
    sizes = [
        (batch.input_start, batch.input_valid, config.model.clip.patches),
        (batch.target_start, batch.target_valid, config.model.dream_queries),
    ]
    return [(start, start + size - 1) for starts, valid, size in sizes for start in starts[g][valid[g]].tolist()]


@pytest.mark.parametrize(
    "changes",
    [
        None,
        {"length": 48, "input_slots": 4, "target_slots": 4, "rows_per_group": 2},
        {"length": 50, "input_slots": 1, "target_slots": 6, "rows_per_group": 3},
    ],
)
def test_fake_batches_are_such_as_the_loader_makes(quickstart, changes):
    config = (
        run_config(**changes) if changes else quickstart
    )  # of `tiny`, whose pictures take 24 positions: 48 holds exactly two
    batch, shape = fake_batch(config), shape_of(config)
    assert [(field.shape, field.dtype) for field in batch] == [
        (field.shape, field.dtype) for field in empty_batch(shape)
    ]
    assert (
        batch.tokens.max() < config.model.llm.vocab_size and not batch.loss_mask[..., 0].any() and batch.loss_mask.any()
    )
    for g in range(shape.groups):
        taken = spans(batch, config, g)
        assert all(
            0 < first % shape.length <= last % shape.length for first, last in taken
        )  # within one row, behind its first token
        positions = [position for first, last in taken for position in range(first, last + 1)]
        assert len(positions) == len(set(positions)) and max(positions) < shape.rows * shape.length
    assert batch.input_valid.mean() > 0.5 and batch.target_valid.mean() > 0.5
    assert len(np.unique(batch.target_draw)) == batch.target_draw.size
    assert all(np.array_equal(one, other) for one, other in zip(batch, fake_batch(config), strict=True))
    assert not np.array_equal(batch.tokens, fake_batch(config, seed=1).tokens)


def test_fake_batches_at_the_papers_size_and_without_images():
    config = run_config(dreamllm_7b(), groups=1)
    assert len(spans(fake_batch(config), config, 0)) > 2
    text_alone = run_config(dataclasses.replace(tiny(), clip=None, unet=None), input_slots=0, target_slots=0, length=8)
    assert fake_batch(text_alone).input_start.shape == (2, 0)


def test_a_fake_batch_that_cannot_hold_its_images():
    for length, rows in ((47, 1), (23, 8)):  # the second has room for two in all, but in no row
        with pytest.raises(
            ValueError, match=f"rows of {rows} x {length} tokens cannot hold the 2 target and 0 input images"
        ):
            fake_batch(run_config(length=length, rows_per_group=rows, input_slots=0, target_slots=2))
