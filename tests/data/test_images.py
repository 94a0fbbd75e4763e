"""What becomes of odd files: decoded sensibly, once upright, or refused with a reason."""

from __future__ import annotations

import csv
import io
import re

import numpy as np
import pytest
from PIL import Image, ImageCms

from pad_pipeline.images import BadImage, DecodeSettings, decode
from tests.conftest import SHARED, shared

SETTINGS = DecodeSettings()


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image, _ = decode(data, SETTINGS)
    assert image.mode == "RGB"
    return np.asarray(image)


def corners() -> Image.Image:
    """40 x 24 with a color of its own in each quarter, so that every turn and mirror shows."""
    image = np.zeros((24, 40, 3), np.uint8)
    image[:12, :20], image[:12, 20:], image[12:, :20], image[12:, 20:] = (
        (250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0),
    )  # fmt: skip
    return Image.fromarray(image)


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}
"""What EXIF orientation says to do with the stored pixels."""


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_orientation_is_applied_once(kind: str, orientation: int) -> None:
    """All eight, in three formats without loss; Pillow turns TIFFs by itself, and a second turn would show here."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    data = encode(corners(), kind, exif=exif, **options)
    assert (pixels(data) == TURNS[orientation](np.asarray(corners()))).all()


def test_deep_grey_is_scaled_not_clipped() -> None:
    """convert("RGB") of 16-bit grey clips all above 255 to white; 12-bit values in 16 bits should span the range."""
    ramp = np.linspace(0, 4095, 64, dtype=np.uint16)[None].repeat(8, 0)
    for kind in ("PNG", "TIFF"):
        found = pixels(encode(Image.fromarray(ramp), kind))[0, :, 0].astype(int)
        assert np.abs(found - np.rint(ramp[0] / 4095 * 255)).max() <= 1
    floats = Image.fromarray(np.linspace(-1, 3, 32, dtype=np.float32)[None].repeat(2, 0))
    assert pixels(encode(floats, "TIFF"))[0, [0, -1], 0].tolist() == [0, 255]


def test_transparency_is_composited_on_white() -> None:
    """Alpha, palette alpha and key colors: what can't be seen is white, not the hidden color below."""
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    clear.putpixel((0, 0), (10, 20, 30, 255))
    assert pixels(encode(clear, "PNG"))[0, :2].tolist() == [[10, 20, 30], [255, 255, 255]]
    key = encode(Image.new("RGB", (3, 3), (7, 8, 9)), "PNG", transparency=(7, 8, 9))
    assert (pixels(key) == 255).all()
    palette = Image.new("P", (3, 3), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert (pixels(encode(palette, "PNG", transparency=1)) == 255).all()


def test_modes_become_rgb() -> None:
    grey = encode(Image.new("L", (3, 3), 77), "PNG")
    assert (pixels(grey) == 77).all()
    bits = encode(Image.new("1", (3, 3), 1), "PNG")
    assert (pixels(bits) == 255).all()
    cmyk = pixels(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"))
    assert cmyk[0, 0].tolist() == [255, 0, 0]
    lab = ImageCms.applyTransform(
        corners(),
        ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"),
    )
    assert np.abs(pixels(encode(lab, "TIFF")).astype(int) - np.asarray(corners())).mean() < 12


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (6, 6), color) for color in ("red", "lime")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.abs(pixels(data)[0, 0].astype(int) - [255, 0, 0]).max() < 10, kind


def test_damaged_and_oversized_files_are_refused_with_a_reason() -> None:
    """Truncated files must not pass with half an image; a claim of gigapixels must not be allocated."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for kind in ("PNG", "JPEG", "WEBP"):
        data = encode(noise, kind)
        with pytest.raises(BadImage, match="no readable image"):
            decode(data[: len(data) // 2], SETTINGS)
    with pytest.raises(BadImage, match="no readable image"):
        decode(b"", SETTINGS)
    header = b"BM" + bytes(8) + bytes([54, 0, 0, 0, 40, 0, 0, 0])
    huge = header + (12000).to_bytes(4, "little") * 2 + bytes([1, 0, 24, 0]) + bytes(24)
    with pytest.raises(BadImage, match="max_pixels"):
        decode(huge, SETTINGS)
    with pytest.raises(BadImage, match="max_aspect"):
        decode(encode(Image.new("L", (500, 2)), "PNG"), SETTINGS)


def odd_files() -> list[dict[str, str]]:
    table = SHARED / "data/odd_images/TABLE.tsv"
    if not table.exists():
        return [{"file": "TABLE.tsv", "correct_reader": ""}]
    with table.open() as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


@pytest.mark.parametrize("row", odd_files(), ids=lambda row: row["file"])
def test_odd_images_come_out_as_the_table_says(row: dict[str, str]) -> None:
    """Each of the 43 files of the check data: rejected, or decoded, turned to the stated size, and not washed out."""
    data = shared(f"odd_images/{row['file']}").read_bytes()
    wanted = row["correct_reader"]
    if wanted.startswith("REJECT"):
        with pytest.raises(BadImage):
            decode(data, SETTINGS)
        return
    image, _ = decode(data, SETTINGS)
    assert image.mode == "RGB"
    stated = re.search(r"(\d+)x(\d+)$", wanted)
    if stated:
        assert image.size == tuple(map(int, stated.groups()))
    if "SCALE" in wanted:
        assert 0 < np.asarray(image).min() < np.asarray(image).max() < 255
    if row["file"].startswith("hopper_orientation"):
        upright = decode(shared("odd_images/hopper_idat_after_image_end.png").read_bytes(), SETTINGS)[0]
        assert np.abs(np.asarray(image, int) - np.asarray(upright, int)).mean() < 8
    if row["file"] == "g4_orientation_6.tif":
        with Image.open(io.BytesIO(data)) as stored:
            assert image.size == (stored.tag_v2[257], stored.tag_v2[256])  # turned by 90 degrees, once
