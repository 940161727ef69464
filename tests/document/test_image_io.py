"""Pictures.

Pixels of transformers' processor, every mode and orientation, and what broken files say; tests/parity has recorded
pixels.
"""

import io
import pathlib
import pickle
import subprocess

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamjax.document import image_io
from dreamjax.document.image_io import for_decoder, for_encoder, open_rgb, to_png
from dreamjax.errors import BadImage


def make_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


# ----------------------------------------------------------------------------------------------------------------------
# Sizes


def test_encoder_pixels_equal_transformers():
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    processor = module.CLIPImageProcessorPil(
        size={"shortest_edge": 14}, crop_size={"height": 14, "width": 14}, do_rescale=False, do_normalize=False
    )
    for i, (height, width) in enumerate([(14, 14), (15, 14), (9, 30), (31, 17), (100, 101), (14, 21), (3, 90)]):
        source = PIL.Image.fromarray(make_image(height, width, seed=i))
        expected = processor(source, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        np.testing.assert_array_equal(for_encoder(source, 14), expected)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(height=st.integers(2, 70), width=st.integers(2, 70), size=st.integers(2, 24))
def test_any_size_fits(height, width, size):
    source = make_image(height, width)
    for array in (for_encoder(source, size), for_decoder(source, size)):
        assert array.shape == (size, size, 3) and array.dtype == np.uint8 and array.flags.writeable
    np.testing.assert_array_equal(for_decoder(source, size, flip=True)[:, ::-1], for_decoder(source, size))


def test_crop_takes_the_middle_and_rounds_as_torchvision():
    source = np.zeros((8, 11, 3), np.uint8)
    source[:, :, 0] = np.arange(11)
    assert for_encoder(source, 8)[0, :, 0].tolist() == list(range(1, 9))
    assert for_decoder(source, 8)[0, :, 0].tolist() == list(range(2, 10))


def test_extreme_strips_stay_small(monkeypatch):
    inputs = []
    resize = PIL.Image.Image.resize
    monkeypatch.setattr(
        PIL.Image.Image, "resize", lambda self, size, *rest: inputs.append(size) or resize(self, size, *rest)
    )
    strip = np.zeros((2, 5000, 3), np.uint8)
    strip[:, 2400:2600] = 200
    for source in (strip, strip.swapaxes(0, 1)):
        assert (for_encoder(source, 32) == 200).all() and (for_decoder(source, 32) == 200).all()
    assert max(max(size) for size in inputs) == 32 * image_io.MAX_ASPECT


# ----------------------------------------------------------------------------------------------------------------------
# Modes


def test_every_kind_of_source(tmp_path):
    array = make_image(5, 4)
    image = PIL.Image.fromarray(array)
    (tmp_path / "a.png").write_bytes(encoded(image))
    for source in (array, image, encoded(image), to_png(array), tmp_path / "a.png", str(tmp_path / "a.png")):
        opened = open_rgb(source)
        assert opened.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(opened), array)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparency_becomes_white(mode):
    colours = [(200, 200, 200, 255), (0, 0, 0, 0), (0, 0, 0, 102), (0, 0, 0, 0)]
    image = PIL.Image.new("RGBA", (2, 2))
    image.putdata(colours)
    if mode == "P":
        image = PIL.Image.new("P", (2, 2))
        image.putpalette([200, 200, 200, 0, 0, 0])
        image.putdata([0, 1, 1, 1])
        data = encoded(image, transparency=bytes([255, 0]))
    elif mode in ("RGB", "L"):
        key = (0, 0, 0) if mode == "RGB" else 0
        data = encoded(image.convert(mode), transparency=key)
    else:
        data = encoded(image.convert(mode))
    pixels = np.asarray(open_rgb(data))
    assert pixels[0, 0].tolist() == [200] * 3 and pixels[0, 1].tolist() == [255] * 3
    if mode in ("RGBA", "LA"):
        assert pixels[1, 0].tolist() == [153] * 3  # 40 % black on white


def test_other_modes():
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    stacked = np.repeat(grey[:, :, None], 3, axis=2)
    for image in (
        PIL.Image.fromarray(grey),
        PIL.Image.fromarray(grey.astype(np.uint16) * 256),
        PIL.Image.fromarray(grey.astype(np.int32)),
    ):
        np.testing.assert_array_equal(np.asarray(open_rgb(encoded(image, "TIFF"))), stacked)
    np.testing.assert_array_equal(
        np.asarray(open_rgb(encoded(PIL.Image.fromarray(grey.astype(np.uint16) * 256)))), stacked
    )
    red = PIL.Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(np.asarray(open_rgb(encoded(red, "JPEG"))).astype(int) - [255, 0, 0]).max() < 8
    assert np.asarray(open_rgb(PIL.Image.new("1", (2, 2), 1))).min() == 255


def test_exif_orientation_is_applied_and_broken_exif_ignored():
    image = PIL.Image.fromarray(np.repeat(np.repeat(make_image(2, 3), 16, 0), 16, 1))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate clockwise to see it upright
    turned = np.asarray(open_rgb(encoded(image, exif=exif)))
    np.testing.assert_array_equal(turned, np.rot90(np.asarray(image), -1))
    broken = open_rgb(encoded(image, exif=b"Exif\x00\x00junk"))
    np.testing.assert_array_equal(np.asarray(broken), np.asarray(image))


def test_first_frame_of_an_animation():
    frames = [PIL.Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_rgb(data).getpixel((0, 0)) == (255, 0, 0)


# ----------------------------------------------------------------------------------------------------------------------
# Drafts and what is stored


def test_a_draft_is_a_smaller_jpeg_and_nothing_else():
    height, width = np.mgrid[0:600, 0:800]
    smooth = PIL.Image.fromarray(np.stack([width / 4, height / 3, (width + height) / 7], axis=-1).astype(np.uint8))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    for data, sizes in [
        (encoded(smooth, "JPEG"), [(200, 150), (400, 300), (800, 600)]),
        (encoded(smooth, "JPEG", exif=exif), [(150, 200), (300, 400), (600, 800)]),
    ]:
        assert [open_rgb(data, draft).size for draft in (150, 151, 301)] == sizes and open_rgb(
            data, 601
        ).size == open_rgb(data).size
        whole, draft = (for_encoder(open_rgb(data, draft), 75).astype(int) for draft in (0, 150))
        assert 0 < np.abs(whole - draft).max() <= 3  # smooth pictures lose next to nothing
    assert open_rgb(encoded(smooth), draft=75).size == (800, 600)  # a PNG
    with pytest.raises(BadImage, match="20,000 at most") as caught:
        open_rgb(encoded(PIL.Image.new("L", (20_001, 16)), "JPEG"), draft=2)
    assert caught.value.reason == "image too large"


def test_what_is_stored_is_read_when_opened():
    class Stored:
        def __init__(self, data):
            self.data = data

        def read_bytes(self):
            if isinstance(self.data, Exception):
                raise self.data
            return self.data

        def __str__(self):
            return "shard.tar/7.jpg"

    np.testing.assert_array_equal(np.asarray(open_rgb(Stored(to_png(make_image(5, 4))))), make_image(5, 4))
    for data, reason in [
        (b"x", "image in no known format"),
        (FileNotFoundError(), "image missing"),
        (OSError("torn"), "image cannot be read"),
    ]:
        with pytest.raises(BadImage, match="^shard.tar/7.jpg: ") as caught:
            open_rgb(Stored(data))
        assert caught.value.reason == reason
        travelled = pickle.loads(pickle.dumps(caught.value))
        assert (str(travelled), travelled.reason) == (str(caught.value), reason)


# ----------------------------------------------------------------------------------------------------------------------
# Bad pictures


def test_bad_files_are_named(tmp_path):
    whole = to_png(make_image(40, 40))
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    reasons = {
        "cut.png": "does not decode",
        "text.png": "no format",
        "empty.png": "no format",
        "none.png": "no such file",
        ".": "cannot be read",
    }
    for name, reason in reasons.items():
        with pytest.raises(BadImage, match=reason) as caught:
            open_rgb(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_sizes_out_of_range():
    small, long, bomb = "needs at least 2", "20,000 at most", "bomb"
    for width, height, reason in [
        (1, 9, small),
        (9, 1, small),
        (20_001, 2, long),
        (10_000, 10_000, bomb),
        (19_000, 19_000, bomb),
    ]:
        header = PIL.Image.new("1", (width, height))
        with pytest.raises(BadImage, match=f"^picture given as bytes: .*{reason}"):
            open_rgb(encoded(header))
    with pytest.raises(BadImage, match="picture given as an array: 1 x 3"):
        open_rgb(make_image(3, 1))
    assert open_rgb(make_image(2, 20_000)).size == (20_000, 2)


def test_arrays_are_checked():
    for array in (
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4, 3), bool),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
    ):
        with pytest.raises(BadImage, match="needs uint8"):
            open_rgb(array)
    with pytest.raises(TypeError, match="not int"):
        open_rgb(3)


@pytest.mark.parametrize(
    "kind", ["EPS", "PDF", "ICO", "ICNS", "TGA", "PCX", "SGI", "JPEG2000", "DDS", "IM", "DIB", "MSP", "XBM", "SPIDER"]
)
def test_no_other_decoder_sees_a_byte(kind, tmp_path, monkeypatch):
    data = encoded(
        PIL.Image.fromarray(make_image(32, 32)).convert({"MSP": "1", "XBM": "1", "SPIDER": "F"}.get(kind, "RGB")), kind
    )
    monkeypatch.setattr(
        subprocess, "Popen", lambda *_, **__: pytest.exit("a program was started")
    )  # as Ghostscript is, for EPS
    (tmp_path / "a.png").write_bytes(data)
    for source, open_it in ((data, open_rgb), (tmp_path / "a.png", open_rgb), (data, image_io.size_of)):
        with pytest.raises(BadImage, match="is read|is not read") as caught:
            open_it(source)
        assert caught.value.reason == "image in no known format" and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data, name",
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "EPS"),
        (b"8BPS\0\1", "PSD"),
        (b"\0\0\1\0\1\0", "ICO"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"<svg xmlns=''>", "SVG"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    ],
)
def test_a_file_of_another_kind_is_named(data, name):
    with pytest.raises(BadImage, match=f"is .*{name}.*, which is not read; the formats that are: JPEG, PNG"):
        open_rgb(data)


@pytest.mark.parametrize("kind", image_io.FORMATS)
def test_formats_are_read_whatever_a_file_is_called(kind, tmp_path):
    (tmp_path / "a.eps").write_bytes(encoded(PIL.Image.new("RGB", (16, 16), "red"), kind))
    assert np.abs(np.asarray(open_rgb(tmp_path / "a.eps")).astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_shares_of_white(dtype):
    levels = make_image(5, 4)
    np.testing.assert_array_equal(np.asarray(open_rgb((levels / 255).astype(dtype))), levels)
    assert np.asarray(open_rgb(np.ones((2, 2, 3), dtype))).min() == 255


def test_floats_in_a_file_are_shares_of_white():
    grey = make_image(5, 4)[..., 0]
    tiff = encoded(PIL.Image.fromarray((grey / 255).astype(np.float32)), "TIFF")
    np.testing.assert_array_equal(np.asarray(open_rgb(tiff)), np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(for_encoder(tiff, 4), for_encoder(np.repeat(grey[..., None], 3, axis=2), 4))


@settings(deadline=None, max_examples=30)
@given(value=st.floats(width=32).filter(lambda value: not 0 <= value <= 1), colour=st.booleans())
def test_other_floats_are_refused(value, colour):
    array = np.full((3, 3, 3) if colour else (3, 3), 0.5, np.float32)
    array[1, 1] = value
    with pytest.raises(BadImage, match="floats from .* to .*, must be in") as caught:
        open_rgb(array if colour else encoded(PIL.Image.fromarray(array), "TIFF"))
    assert caught.value.reason == "image of floats beyond [0, 1]"


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP"]),
    place=st.floats(0, 1),
    value=st.integers(0, 255),
    cut=st.booleans(),
)
def test_damaged_bytes_decode_or_are_bad_images(kind, place, value, cut):
    data = bytearray(encoded(PIL.Image.fromarray(make_image(6, 6)), kind))
    at = int(place * (len(data) - 1))
    data[at] = value
    try:
        open_rgb(bytes(data[:at] if cut else data))
    except BadImage as error:
        assert "\n" not in str(error)


def test_images_are_opened_in_one_place():
    root = pathlib.Path(image_io.__file__).parents[2]
    files = [file for folder in ("dreamjax", "benchmarks") for file in (root / folder).rglob("*.py")]
    assert [file.name for file in files if "Image.open(" in file.read_text(encoding="utf-8")] == ["image_io.py"]
