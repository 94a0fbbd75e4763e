"""Drawn stand-ins for web photographs: their sizes, and JPEG files with about as many bytes as photographs have."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from PIL import Image

from pad_pipeline.records import ImageRecord

Size = tuple[int, int]
"""Width and height in pixels."""
ONE_SIZE = (640, 480)
"""Grounding DINO resizes it to 1066 x 800, the size of published FLOP counts."""
FORMS = {4 / 3: 0.3, 3 / 2: 0.3, 1.0: 0.12, 16 / 9: 0.08}
"""Long edge by short edge, and its share. The rest, a fifth, has free forms up to 2 by 1."""
PORTRAIT = 0.3
"""Share of the images that are not square that stand upright."""
WIDTHS = (320, 400, 450, 480, 500, 600, 640, 700, 800, 1000, 1024, 1200)
"""Long edges that web sites like to give; half of the images have one of them."""
EDGES = (300, 1200)
"""Range of the other long edges, whose logarithm is uniform."""
_BASE = 1280


def draw_sizes(count: int, seed: int = 0) -> list[Size]:
    """Draw the sizes of web photographs such as LLaVA-558K's.

    That data set's sizes are not published; it is a part of LAION, Conceptual Captions and SBU, whose images come from
    web pages. So these are assumptions: the forms of cameras and screens (`FORMS`), a fifth of free forms as people
    crop them, 30% portraits; long edges of 300 to 1200 pixels, half of them the usual widths of pages and thumbnails.
    """
    rng = np.random.default_rng(seed)
    sizes = []
    for _ in range(count):
        edge = int(rng.choice(WIDTHS)) if rng.random() < 0.5 else round(float(np.exp(rng.uniform(*np.log(EDGES)))))
        form = float(rng.choice([*FORMS, 0.0], p=[*FORMS.values(), 1 - sum(FORMS.values())]))
        short = round(edge / (form or float(rng.uniform(1, 2))))
        sizes.append((short, edge) if rng.random() < PORTRAIT else (edge, short))
    return sizes


@cache
def _base() -> Image.Image:
    """Draw a large image whose amplitudes fall with the frequency, about as those of photographs do."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(_BASE)[:, None], np.fft.rfftfreq(_BASE)[None])
    fields = []
    for _ in range(2):
        spectrum = np.fft.rfft2(rng.standard_normal((_BASE, _BASE)))
        field = np.fft.irfft2(spectrum / np.maximum(frequency, 1 / _BASE) ** 1.35)
        fields.append((field - field.mean()) / field.std())
    light, color = 128 + 55 * fields[0], 20 * fields[1]
    return Image.fromarray(np.clip(np.stack([light + color, light, light - color], -1), 0, 255).astype(np.uint8))


def photographs(sizes: Sequence[Size], quality: int = 85) -> list[bytes]:
    """Return a JPEG file of each size: a place of its own in one large drawn texture."""
    base = _base()

    def draw(number: int) -> bytes:
        width, height = sizes[number]
        rng = np.random.default_rng([1, number])
        x, y = (int(rng.integers(0, _BASE - edge + 1)) for edge in (width, height))
        stream = io.BytesIO()
        base.crop((x, y, x + width, y + height)).save(stream, "JPEG", quality=quality)
        return stream.getvalue()

    with ThreadPoolExecutor() as threads:
        return list(threads.map(draw, range(len(sizes))))


def as_records(files: Sequence[bytes], sizes: Sequence[Size], kind: str = "JPEG") -> list[ImageRecord]:
    """Return new rows of a shard for files that are read already."""
    return [
        ImageRecord(f"{n:05d}", f"{n:05d}", key=f"{n:05d}", data=data, format=kind, width=width, height=height)
        for n, (data, (width, height)) in enumerate(zip(files, sizes, strict=True))
    ]
