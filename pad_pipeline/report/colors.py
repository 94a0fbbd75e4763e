"""Gives each label one color, which is the same in all images and in the HTML report."""

from __future__ import annotations

from PIL import ImageColor

COLORS = (
    "#5ac3c3", "#f0f03c", "#a53cff", "#e13c0f", "#87ffff", "#c3b400", "#1e9687", "#b487ff",
    "#a5e1b4", "#d20fc3", "#ffa5ff", "#96c387", "#78a569", "#d269c3", "#d2d24b", "#c3ffa5",
)  # fmt: skip
"""The colors of labels, as in `web/colors.js`. Color-blind people can distinguish any two of them: the smallest
distance in OKLab, with normal sight and with each of the three kinds of color blindness, is 0.08."""


def label_hash(label: str) -> int:
    """Return a 32-bit number for a label: FNV-1a over its UTF-16 units, which JavaScript can calculate as well."""
    found = 0x811C9DC5
    units = label.encode("utf-16-le", "surrogatepass")
    for at in range(0, len(units), 2):
        found = ((found ^ int.from_bytes(units[at : at + 2], "little")) * 0x01000193) & 0xFFFFFFFF
    return found ^ found >> 15


def color_of(label: str) -> tuple[int, ...]:
    """Return the color of a label: red, green and blue, 0..255."""
    return ImageColor.getrgb(COLORS[label_hash(label) % len(COLORS)])


def name_color_of(label: str) -> tuple[int, ...]:
    """Return the color of a label's name on an image: lighter, so that it is legible with a dark edge."""
    return tuple(round(0.6 * part + 0.4 * 255) for part in color_of(label))
