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

from dreamjax.errors import BadImage


@typing.runtime_checkable
class EncodedFile(typing.Protocol):
    """The bytes of an encoded picture that lie somewhere, read only when asked for; its str is its name in messages.

    A pathlib.Path is one. `read_bytes` raises OSError or BadImage.
    """

    def read_bytes(self) -> bytes:
        """The whole encoded file."""


Source = PIL.Image.Image | np.ndarray | bytes | str | os.PathLike | EncodedFile

FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "PPM",
    "AVIF",
)  # no other decoder sees a byte, whatever a file is called; EPS would start Ghostscript
MIN_SIDE = 2  # pixels; one-pixel pictures are trackers and placeholders
MAX_SIDE = 20_000
MAX_PIXELS = 1024**3 // 12  # a quarter of a GiB as RGB, Pillow's own limit
MAX_ASPECT = 32

# What files of other kinds begin with: (what it is, offset, bytes). Such files get a name, they are not opened.
_SIGNATURES = (
    ("EPS or PostScript", 0, b"%!PS"),
    ("EPS", 0, b"\xc5\xd0\xd3\xc6"),
    ("PDF", 0, b"%PDF"),
    ("SVG", 0, b"<svg"),
    ("XML", 0, b"<?xml"),
    ("HTML", 0, b"<!DOCTYPE"),
    ("HTML", 0, b"<!doctype"),
    ("HTML", 0, b"<html"),
    ("a pointer of Git LFS", 0, b"version https://git-lfs"),
    ("HEIC", 4, b"ftyphei"),
    ("HEIC", 4, b"ftyphev"),
    ("HEIC", 4, b"ftypmif1"),
    ("JPEG XL", 0, b"\0\0\0\x0cJXL "),
    ("JPEG XL", 0, b"\xff\x0a"),
    ("JPEG 2000", 0, b"\0\0\0\x0cjP  "),
    ("JPEG 2000", 0, b"\xff\x4f\xff\x51"),
    ("Photoshop's PSD", 0, b"8BPS"),
    ("OpenEXR", 0, b"\x76\x2f\x31\x01"),
    ("an icon (ICO)", 0, b"\0\0\1\0"),
    ("a cursor (CUR)", 0, b"\0\0\2\0"),
    ("an icon (ICNS)", 0, b"icns"),
    ("DDS", 0, b"DDS "),
    ("QOI", 0, b"qoif"),
    ("FITS", 0, b"SIMPLE  ="),
    ("HDF5", 0, b"\x89HDF\r\n"),
    ("WMF", 0, b"\xd7\xcd\xc6\x9a"),
    ("EMF", 0, b"\1\0\0\0\x58\0\0\0"),
    ("SGI", 0, b"\x01\xda"),
    ("a video", 4, b"ftypisom"),
    ("a video", 4, b"ftypmp4"),
    ("a video", 4, b"ftypqt"),
    ("a video", 0, b"\x1aE\xdf\xa3"),
)


def open_rgb(source: Source, draft: int = 0) -> PIL.Image.Image:
    """The picture as mode RGB, decoded, upright as its EXIF orientation says, transparency laid on white; a plain RGB
    picture itself.

    `source` is a Pillow image, a [height, width, 3] array (uint8, or floats in [0, 1]), the bytes of an encoded file in
    one of FORMATS, its path (with `gs://` and the like through fsspec), or an EncodedFile. Of an animation it is the
    first frame, of 16-bit greys the upper 8 bits; greys stored as floats are in [0, 1] too.

    With `draft` > 0 a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, the smallest whose shorter side still has
    `draft` pixels: up to ten times as fast, but the resized pixels are then not those of the whole picture. On
    photographs they differ by 0.3 to 3 of 255 levels on average, and by up to 60 at edges, where `draft` is twice the
    side wanted.

    Raises BadImage.
    """
    name = _name(source)
    if isinstance(source, (str, os.PathLike, EncodedFile)) and not isinstance(source, PIL.Image.Image):
        source = _read(source, name)
    if isinstance(source, np.ndarray):
        is_float = np.issubdtype(source.dtype, np.floating)
        if not (source.dtype == np.uint8 or is_float) or source.ndim != 3 or source.shape[2] != 3:
            raise BadImage(
                f"{name}: {source.dtype} {list(source.shape)}, needs uint8, or floats in [0, 1], [height, width, 3]"
            )
        _check_size(source.shape[1], source.shape[0], name)
        source = _levels(source, name) if is_float else source
    with _bad_image(name):
        if isinstance(source, bytes):
            source = _open_encoded(source, name)
        if isinstance(source, np.ndarray):
            return PIL.Image.fromarray(source)
        _check_size(*source.size, name)
        if draft and source.format == "JPEG":
            scale = draft / min(source.size)
            width, height = (math.ceil(side * scale) for side in source.size)
            source.draft(None, (width, height))
        return _to_rgb(source, name)


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
    with _bad_image(name), _open_encoded(data, name) as image:
        return image.size


def _open_encoded(data: bytes, name: str) -> PIL.Image.Image:
    """The picture by its header, in one of FORMATS, which its content decides.

    Raises BadImage, which says what it is instead.
    """
    PIL.Image.init()  # else Pillow asks for the decoder of a format that this build of it may not have
    try:
        return PIL.Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in PIL.Image.ID])
    except PIL.UnidentifiedImageError:
        what = next((kind for kind, at, begins in _SIGNATURES if data.startswith(begins, at)), None)
        known = ", ".join(FORMATS)
        description = (
            f"is {what}, which is not read; the formats that are: {known}"
            if what
            else f"in no format that is read ({known}), or damaged at its beginning"
        )
        raise BadImage(f"{name}: {description}", "image in no known format") from None


@contextlib.contextmanager
def _bad_image(name: str):
    """Raises whatever Pillow raises as a BadImage: on broken files its decoders raise almost anything."""
    try:
        yield
    except BadImage:
        raise
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
    if isinstance(source, EncodedFile):
        return str(source)
    raise TypeError(f"a picture is a Pillow image, an array, bytes or a path, not {type(source).__name__}")


def _read(path: str | os.PathLike | EncodedFile, name: str) -> bytes:
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
        raise BadImage(
            f"{name}: {width} x {height} pixels are more than {MAX_PIXELS:,}, a decompression bomb", "image too large"
        )


def _to_rgb(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    image.load()
    image = _upright(image)
    if image.mode == "F":
        image = PIL.Image.fromarray(_levels(np.asarray(image), name))
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


def _levels(values: np.ndarray, name: str) -> np.ndarray:
    """Floats in [0, 1] as uint8; raises BadImage for others, of which nobody knows what white is."""
    low, high = float(values.min()), float(values.max())
    if not (0 <= low and high <= 1):  # nor where either is NaN
        raise BadImage(f"{name}: floats from {low:g} to {high:g}, must be in [0, 1]", "image of floats beyond [0, 1]")
    return np.rint(values * np.float32(255)).astype(np.uint8)


def _grey_to_8_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Modes I;16 and I, which Pillow would clip to white above 255.

    32-bit integers are taken as 16-bit where any exceeds 255.
    """
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
