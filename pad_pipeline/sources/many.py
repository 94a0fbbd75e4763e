"""Several lists of records in JSON as one source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pad_pipeline.records import Planned
from pad_pipeline.sources.base import Tally
from pad_pipeline.sources.llava import LlavaSource, image_folder
from pad_pipeline.sources.patterns import Files
from pad_pipeline.storage import is_url


class ListsSource:
    """The images of several JSON or JSONL files, one file after another.

    Args:
        images: the user's pattern.
        files: the files.
        image_root: the folder or URL that paths are relative to; by default the folder of each file.
        columns: see `open_source`.

    Raises:
        UserError: the first file can't be read.
    """

    def __init__(
        self,
        images: str,
        files: Files,
        image_root: str | Path | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        self.origin, self.files, self.image_root, self.columns = images, files, image_root, columns
        self.root = files.root if image_root is None else image_folder(image_root)
        self.counts = Tally()
        self._opened(files.names[0]).check_names()  # a file of another kind is reported at once

    def _opened(self, name: str) -> LlavaSource:
        return LlavaSource(f"{self.files.root}/{name}", self.image_root, self.columns)

    def __iter__(self) -> Iterator[Planned]:
        self.counts.clear()
        for name in self.files.names:
            source = self._opened(name)
            below = "" if self.image_root is not None else name.rpartition("/")[0]
            for planned in source:
                if below and not is_url(planned.source) and not planned.problem:
                    planned.source = f"{below}/{planned.source}"
                yield planned
            self.counts.add(source.counts, f"{name}: ")
