"""File bytes -> the upright RGB image. The one place where images are opened."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

_CALLED_AS_THEY_END = (
    "AVIF", "BLP", "BMP", "BUFR", "CUR", "DCX", "DDS", "DIB", "EPS", "FITS", "FLI", "FPX", "GBR", "GIF", "GRIB", "ICNS",
    "ICO", "IM", "IMT", "MIC", "MPO", "MSP", "PCD", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "TGA", "WEBP", "WMF",
    "XBM", "XPM",
)  # fmt: skip
ENDINGS = {name: name.lower() for name in _CALLED_AS_THEY_END} | {
    "FTEX": "ftc", "HDF5": "h5", "IPTC": "iim", "JPEG": "jpg", "JPEG2000": "jp2", "MCIDAS": "area", "MPEG": "mpg",
    "PIXAR": "pxr", "SPIDER": "spi", "SUN": "ras", "TIFF": "tif", "XVTHUMB": "xv",
}  # fmt: skip
"""Format, as Pillow calls it -> how its files end. There are no others: what a shard says of an image's format is no
part of a file's name unless it stands here."""


class DecodeSettings(BaseModel):
    """Which images are taken."""

    model_config = ConfigDict(extra="forbid")

    max_file_bytes: int = Field(256 << 20, gt=0)
    """Larger files are refused before they are read."""
    max_pixels: int = Field(100_000_000, gt=0, le=178_000_000)
    """Larger images are refused before they are decoded: a small file can claim gigapixels. (Pillow itself refuses
    those above 178 million.)"""
    max_aspect: float = Field(100.0, ge=1)
    """Long edge over short edge; beyond it no square view shows anything."""
    background: tuple[int, int, int] = (255, 255, 255)
    """RGB, 0..255: what stands behind transparent pixels."""


class BadImage(ValueError):
    """This file is not an image that can be used, and why."""


def decode(data: bytes, settings: DecodeSettings) -> tuple[Image.Image, str]:
    """The first frame, upright, RGB, transparency composited, 16 bits scaled to 8; and the format's name.

    Raises:
        BadImage: the bytes are no image, a damaged one, or one beyond the limits.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # corrupt EXIF and large images: both are dealt with here
        try:
            image = Image.open(io.BytesIO(data))
            kind = image.format or "unknown"
            _check_size(image, settings)
            # Pixels before EXIF: after a getexif() that failed, load() can pass with half an image.
            image.load()
        except BadImage:
            raise
        except Exception as error:  # Pillow's decoders raise a dozen kinds, SyntaxError among them
            detail = (
                "unknown format" if isinstance(error, UnidentifiedImageError) else f"{type(error).__name__}: {error}"
            )
            raise BadImage(f"this is no readable image ({detail})") from error
        return _to_rgb(_upright(image), settings.background), kind


def _check_size(image: Image.Image, settings: DecodeSettings) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise BadImage(f"the image claims {width} x {height} pixels")
    if width * height > settings.max_pixels:
        raise BadImage(f"{width} x {height} pixels; decode.max_pixels allows {settings.max_pixels}")
    if max(width, height) > settings.max_aspect * min(width, height):
        raise BadImage(f"{width} x {height} pixels; decode.max_aspect allows {settings.max_aspect:g} to 1")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says, once. (Pillow turns TIFFs on load and drops the tag.) Unreadable EXIF says nothing."""
    try:
        return ImageOps.exif_transpose(image) or image
    except Exception:
        return image


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    if image.mode == "LAB":
        lab_to_rgb = ImageCms.buildTransform(
            ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
        )
        return ImageCms.applyTransform(image, lab_to_rgb) or image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale deep grey images to 8 bits; Pillow's own conversion would clip them to white.

    Cameras put 10, 12 or 14 bits into 16, so white is the first of these depths that holds the brightest pixel.
    Images outside 0..65535 (32-bit and float) are stretched from their darkest to their brightest pixel.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    low, high = values.min(), values.max()
    integral = not image.mode.startswith("F")
    if integral and low >= 0 and high <= 65535:
        low, high = 0.0, next(2.0**bits - 1 for bits in (8, 10, 12, 14, 16) if high < 2**bits)
    scale = 255.0 / (high - low) if high > low else 0.0
    return Image.fromarray(np.rint((values - low) * scale).astype(np.uint8))
