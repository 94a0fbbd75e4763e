"""Plan -> pictures: reads each file once and notes what is in it."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from pad_pipeline.pictures import DecodeSettings, decode, read_file
from pad_pipeline.records import ImageRecord
from stages.base import Stage


class Decode(Stage):
    """Reads each file, keeps its bytes untouched, and notes the size of the upright picture.

    Decoded pixels do not travel with the shard: a shard of photographs would take gigabytes. Later stages decode again
    (`picture`), in threads ahead of the model.
    """

    name = "decode"

    def __init__(self, settings: DecodeSettings, root: Path) -> None:
        super().__init__()
        self.settings, self.root = settings, root

    def prepare(self, row: ImageRecord) -> tuple[bytes, str, int, int]:
        """The file's bytes, their format, and the upright width and height."""
        data = read_file(self.root / row.source, self.settings.max_file_bytes)
        image, kind = decode(data, self.settings)
        return data, kind, image.width, image.height

    def finish(self, row: ImageRecord, output: tuple[bytes, str, int, int]) -> None:
        """Keep what `prepare` found."""
        row.data, row.format, row.width, row.height = output


def picture(row: ImageRecord, settings: DecodeSettings) -> Image.Image:
    """The upright RGB picture of a row that has been through `Decode`."""
    return decode(row.data, settings)[0]
