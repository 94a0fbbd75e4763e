"""What tests of the detector share: settings, a tokenizer that needs no vocabulary, and scenes with tags."""

from __future__ import annotations

from pad_pipeline.images import DecodeSettings
from pad_pipeline.miniature.files import World
from pad_pipeline.records import ImageRecord, Tag
from pad_pipeline.stages.compute import ComputeSettings
from tests.conftest import record

DECODING = DecodeSettings()
TWO = ComputeSettings(threads=2)


def encode(text: str) -> list[int]:
    """A tokenizer with one to four tokens for a word, all above the special ids."""
    return [2000 + ord(letter) for word in text.split() for letter in word[:4]]


def tagged(world: World, count: int, tags: list[str]) -> list[ImageRecord]:
    return [
        record(world.images / f"scene-{index:05d}.png", tags=[Tag(tag, 0.9) for tag in tags[index:]])
        for index in range(count)
    ]
