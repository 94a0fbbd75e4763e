"""Decode the bytes of an image file to an upright RGB image. No other file of the package opens images."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

_NAMED_LIKE_ENDING = (
    "AVIF", "BLP", "BMP", "BUFR", "CUR", "DCX", "DDS", "DIB", "EPS", "FITS", "FLI", "FPX", "GBR", "GIF", "GRIB", "ICNS",
    "ICO", "IM", "IMT", "MIC", "MPO", "MSP", "PCD", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "TGA", "WEBP", "WMF",
    "XBM", "XPM",
)  # fmt: skip
ENDINGS = {name: name.lower() for name in _NAMED_LIKE_ENDING} | {
    "FTEX": "ftc", "HDF5": "h5", "IPTC": "iim", "JPEG": "jpg", "JPEG2000": "jp2", "MCIDAS": "area", "MPEG": "mpg",
    "PIXAR": "pxr", "SPIDER": "spi", "SUN": "ras", "TIFF": "tif", "XVTHUMB": "xv",
}  # fmt: skip
"""The file ending of each image format, by Pillow's name of the format.

A shard can come from anybody, so only these endings become part of a file's name.
"""


MOST_PIXELS = 178_000_000
"""Pillow itself refuses larger images."""


class DecodeSettings(BaseModel):
    """The limits for images, and the background for transparent ones."""

    model_config = ConfigDict(extra="forbid")

    max_file_bytes: int = Field(256 << 20, gt=0)
    """Larger files are refused before they are read."""
    max_pixels: int = Field(100_000_000, gt=0, le=MOST_PIXELS)
    """Larger images are refused before they are decoded, because a small file can claim gigapixels. Pillow itself
    refuses images above 178 million pixels."""
    max_aspect: float = Field(100.0, ge=1)
    """Images with a higher ratio of long to short edge are refused, because no square view shows them usefully."""
    background: tuple[int, int, int] = (255, 255, 255)
    """The RGB color behind transparent pixels, 0..255."""
    kept_megabytes: int = Field(512, ge=0, exclude=True)
    """Decoded pixels that a worker keeps between its stages with a model, so that only the first of them decodes an
    image. 512 hold 580 images of 640 x 480. Images beyond that are decoded in each stage. run.json omits this value."""


class BadImage(ValueError):
    """A file is not an image that can be used; the message says why."""


def decode(data: bytes, settings: DecodeSettings) -> tuple[Image.Image, str]:
    """Decode the first frame of an image file to an upright 8-bit RGB image; return it and Pillow's format name.

    Raise `BadImage` if the bytes are not an image, or the image is damaged or beyond the limits.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both corrupt EXIF and large images are handled here
        try:
            image = Image.open(io.BytesIO(data))
            format_name = image.format or "unknown"
            _check_size(image, settings)
            # Load the pixels before EXIF is read: after a failed getexif(), load() can accept half an image.
            image.load()
        except (BadImage, MemoryError):
            raise
        except Exception as error:  # Pillow's decoders raise a dozen types, even SyntaxError
            unknown = isinstance(error, UnidentifiedImageError)
            detail = "unknown format" if unknown else f"{type(error).__name__}: {error}"
            raise BadImage(f"this is no readable image ({detail})") from error
        return _to_rgb(_upright(image), settings.background), format_name


def _check_size(image: Image.Image, settings: DecodeSettings) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise BadImage(f"the image claims {width} x {height} pixels")
    if width * height > settings.max_pixels:
        raise BadImage(f"{width} x {height} pixels; decode.max_pixels allows {settings.max_pixels}")
    if max(width, height) > settings.max_aspect * min(width, height):
        raise BadImage(f"{width} x {height} pixels; decode.max_aspect allows {settings.max_aspect:g} to 1")


def _upright(image: Image.Image) -> Image.Image:
    # This does not turn a TIFF twice: Pillow turns it on loading, and drops the EXIF tag.
    try:
        return ImageOps.exif_transpose(image) or image
    except MemoryError:
        raise
    except Exception:  # the EXIF data can't be read
        return image


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    if image.mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB") or image
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale a gray image of more than 8 bits to 8 bits; Pillow's own conversion would clip it to white.

    Cameras store 10, 12 or 14 bits in 16. So white is the highest value of the smallest depth that holds the brightest
    pixel. A float image, or one with values outside 0..65535, is stretched from its darkest to its brightest pixel.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    low, high = values.min(), values.max()
    if not image.mode.startswith("F") and low >= 0 and high <= 65535:
        low, high = 0.0, next(2.0**bits - 1 for bits in (8, 10, 12, 14, 16) if high < 2**bits)
    scale = 255.0 / (high - low) if high > low else 0.0
    return Image.fromarray(np.rint((values - low) * scale).astype(np.uint8))
