"""Pictures: from anything Pillow reads to uint8 arrays for the encoder and the decoder, and back to PNG.

Arrays are uint8 [height, width, 3]. What the models want beyond that (floats, normalised) is made on the device.
"""

import contextlib
import io
import math
import os
import typing

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps


@typing.runtime_checkable
class Stored(typing.Protocol):
    """The bytes of an encoded picture that lie somewhere, read only when asked for; its str is its name in messages.

    A pathlib.Path is one. `read_bytes` raises OSError or BadImage.
    """

    def read_bytes(self) -> bytes:
        """The whole encoded file."""


Source = PIL.Image.Image | np.ndarray | bytes | str | os.PathLike | Stored

MIN_SIDE = 2  # pixels; one-pixel pictures are trackers and placeholders
MAX_SIDE = 20_000
MAX_PIXELS = 1024**3 // 12  # a quarter of a GiB as RGB, Pillow's own limit
MAX_ASPECT = 32


class BadImage(ValueError):
    """A picture that cannot be used; the message is one line: which picture, and why. `reason` is a fixed phrase to count by."""

    def __init__(self, message: str, reason: str = "bad image"):
        super().__init__(message, reason)  # both as arguments, so that it travels between processes
        self.reason = reason

    def __str__(self) -> str:
        return self.args[0]


def open_rgb(source: Source, draft: int = 0) -> PIL.Image.Image:
    """The picture as mode RGB, decoded, upright as its EXIF orientation says, transparency laid on white; a plain RGB picture itself.

    `source` is a Pillow image, a uint8 [height, width, 3] array, the bytes of an encoded file, its path (with `gs://` and
    the like through fsspec), or what is Stored. Of an animation it is the first frame, of 16-bit greys the upper 8 bits.

    With `draft` > 0 a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, the smallest whose shorter side still has
    `draft` pixels: up to ten times as fast, but the resized pixels are then not those of the whole picture. On photographs
    they differ by 0.3 to 3 of 255 levels on average, and by up to 60 at edges, where `draft` is twice the side wanted.

    Raises BadImage.
    """
    name = _name(source)
    if isinstance(source, (str, os.PathLike, Stored)) and not isinstance(source, PIL.Image.Image):
        source = _read(source, name)
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise BadImage(f"{name}: {source.dtype} {list(source.shape)}, needs uint8 [height, width, 3]")
        _check_size(source.shape[1], source.shape[0], name)
    with _bad_image(name):
        if isinstance(source, bytes):
            source = PIL.Image.open(io.BytesIO(source))
        if isinstance(source, np.ndarray):
            return PIL.Image.fromarray(source)
        _check_size(*source.size, name)
        if draft and source.format == "JPEG":
            scale = draft / min(source.size)
            source.draft(None, tuple(math.ceil(side * scale) for side in source.size))
        return _to_rgb(source)


def for_encoder(image: Source, size: int) -> np.ndarray:
    """uint8 [size, size, 3] as transformers' CLIPImageProcessor makes it, before rescaling and normalisation.

    The shorter side to `size` with bicubic resampling, then the middle, its corner rounded down.
    """
    image = _resize_shorter(open_rgb(image), size, PIL.Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.array(image.crop((left, top, left + size, top + size)))


def for_decoder(image: Source, size: int, flip: bool = False) -> np.ndarray:
    """uint8 [size, size, 3] as DreamLLM's Stable Diffusion processor makes it (torchvision Resize, CenterCrop, flip).

    The shorter side to `size` with bilinear resampling, then the middle, its corner rounded half to even, then mirrored
    left to right where `flip` is set.
    """
    image = _resize_shorter(open_rgb(image), size, PIL.Image.Resampling.BILINEAR)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    pixels = np.array(image.crop((left, top, left + size, top + size)))
    return np.ascontiguousarray(pixels[:, ::-1]) if flip else pixels


def to_png(image: np.ndarray | PIL.Image.Image) -> bytes:
    """The bytes of a PNG file with exactly these RGB pixels and no metadata."""
    pixels = np.asarray(open_rgb(image))
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def file_bytes(source: Source) -> bytes:
    """The encoded file of a picture, as it is; of a Pillow image or an array a PNG. Raises BadImage."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, (PIL.Image.Image, np.ndarray)):
        return to_png(source)
    return _read(source, _name(source))


def size_of(data: bytes) -> tuple[int, int]:
    """(width, height) of an encoded picture as it is stored, from its header alone. Raises BadImage."""
    name = _name(data)
    with _bad_image(name), PIL.Image.open(io.BytesIO(data)) as image:
        return image.size


@contextlib.contextmanager
def _bad_image(name: str):
    """Whatever Pillow raises as a BadImage: on broken files its decoders raise almost anything."""
    try:
        yield
    except BadImage:
        raise
    except PIL.UnidentifiedImageError:
        raise BadImage(f"{name}: in no format that Pillow reads", "image in no known format") from None
    except PIL.Image.DecompressionBombError:
        raise BadImage(f"{name}: more than {MAX_PIXELS:,} pixels, a decompression bomb", "image too large") from None
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadImage(f"{name}: does not decode: {reason}", "image does not decode") from error


def _name(source: Source) -> str:
    if isinstance(source, bytes):
        return "picture given as bytes"
    if isinstance(source, np.ndarray):
        return "picture given as an array"
    if isinstance(source, PIL.Image.Image):
        return str(getattr(source, "filename", "")) or "picture given as a Pillow image"
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, Stored):
        return str(source)
    raise TypeError(f"a picture is a Pillow image, an array, bytes or a path, not {type(source).__name__}")


def _read(path: str | os.PathLike | Stored, name: str) -> bytes:
    try:
        if not isinstance(path, (str, os.PathLike)):
            return path.read_bytes()
        if "://" in name:
            import fsspec  # only needed for remote files

            return fsspec.filesystem(name.partition("://")[0]).cat_file(name)
        with open(path, "rb") as file:
            return file.read()
    except BadImage:
        raise
    except FileNotFoundError:
        raise BadImage(f"{name}: no such file", "image missing") from None
    except (OSError, ValueError, ImportError) as error:
        reason = getattr(error, "reason", "image cannot be read")
        raise BadImage(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}", reason) from error


def _check_size(width: int, height: int, name: str):
    if min(width, height) < MIN_SIDE:
        raise BadImage(f"{name}: {width} x {height} pixels, each side needs at least {MIN_SIDE}", "image too small")
    if max(width, height) > MAX_SIDE:
        raise BadImage(f"{name}: {width} x {height} pixels, a side may have {MAX_SIDE:,} at most", "image too large")
    if width * height > MAX_PIXELS:
        raise BadImage(f"{name}: {width} x {height} pixels are more than {MAX_PIXELS:,}, a decompression bomb", "image too large")


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    image.load()
    image = _upright(image)
    if image.mode.startswith("I"):
        image = _grey_to_8_bits(image)
    if image.has_transparency_data:
        canvas = PIL.Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
    return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    try:
        if image.getexif().get(PIL.ExifTags.Base.Orientation, 1) == 1:
            return image  # exif_transpose would copy
        return PIL.ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF says nothing about the pixels: keep the picture as it is stored
        return image


def _grey_to_8_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Modes I;16 and I, which Pillow would clip to white above 255. 32-bit integers are taken as 16-bit where any exceeds 255."""
    grey = np.clip(np.asarray(image).astype(np.int64), 0, 2**16 - 1)
    if image.mode != "I" or grey.max() > 255:
        grey = grey >> 8
    return PIL.Image.fromarray(grey.astype(np.uint8))


def _resize_shorter(image: PIL.Image.Image, size: int, resampling: PIL.Image.Resampling) -> PIL.Image.Image:
    short, long = sorted(image.size)
    if long > MAX_ASPECT * short:
        # Only the middle survives the crop: without this a 2 x 20,000 strip grows to millions of pixels first.
        keep = (MAX_ASPECT * short, short) if image.width > image.height else (short, MAX_ASPECT * short)
        left, top = (image.width - keep[0]) // 2, (image.height - keep[1]) // 2
        image, long = image.crop((left, top, left + keep[0], top + keep[1])), MAX_ASPECT * short
    resized = int(size * long / short)
    return image.resize((resized, size) if image.width > image.height else (size, resized), resampling)
