"""Two stages with a model that pad does not have, as a contributor would write them; and where they are entered."""

JUDGE = '''"""Image -> how bright it is, against a limit from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pad_pipeline.images import DecodeSettings
from pad_pipeline.records import ImageRecord
from pad_pipeline.stages.base import Stage
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.decode import image
from pad_pipeline.stages.settings import StageSettings
from pad_pipeline.weights import ModelFile, fetch_file, file_sha256


class JudgeSettings(StageSettings):
    """Settings of the judge."""

    section, paths = "judge", ("limit",)

    limit: str
    """A text file with one number."""

    def path(self) -> Path:
        """Return the path of the file."""
        return fetch_file("judge.limit", self.limit)

    def files(self) -> list[ModelFile]:
        """See `StageSettings`."""
        return [ModelFile("judge.limit", self.limit)]

    def fingerprints(self) -> dict[str, str]:
        """See `StageSettings`."""
        return {"judge": file_sha256(self.path())}

    def check(self) -> str:
        """See `StageSettings`."""
        return f"a limit of {float(self.path().read_text())}"

    def make(self, decoding: DecodeSettings, compute: ComputeSettings) -> Judge:
        """Make a `Judge`."""
        return Judge(self, decoding)


class Judge(Stage[float, float]):
    """Says how bright an image is, in parts of the limit."""

    name = "judge"
    statuses = frozenset({"ok", "empty"})

    def __init__(self, settings: JudgeSettings, decoding: DecodeSettings) -> None:
        super().__init__()
        self.limit, self.decoding = float(settings.path().read_text()), decoding

    def prepare(self, row: ImageRecord) -> float:
        """Return the mean of all pixels, 0..255."""
        return float(np.asarray(image(row, self.decoding)).mean())

    def finish(self, row: ImageRecord, output: float) -> None:
        """Set the brightness."""
        row.brightness = output / self.limit
'''

FINDER = '''"""Tags -> boxes and masks at once: each tag is the whole image."""

from __future__ import annotations

import numpy as np

from pad_pipeline.images import DecodeSettings
from pad_pipeline.records import ImageRecord, Region
from pad_pipeline.stages.base import Stage
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.rle import encode_mask
from pad_pipeline.stages.settings import StageSettings
from pad_pipeline.weights import ModelFile


class FinderSettings(StageSettings):
    """Settings of the finder."""

    section = "finder"

    most: int = 2
    """Tags that are looked for."""

    def files(self) -> list[ModelFile]:
        """See `StageSettings`."""
        return []

    def fingerprints(self) -> dict[str, str]:
        """See `StageSettings`."""
        return {"finder": "0" * 64}

    def check(self) -> str:
        """See `StageSettings`."""
        return "no file"

    def make(self, decoding: DecodeSettings, compute: ComputeSettings) -> Finder:
        """Make a `Finder`."""
        return Finder(self)


class Finder(Stage[None, None]):
    """Finds every tag everywhere."""

    name = "segment"

    def __init__(self, settings: FinderSettings) -> None:
        super().__init__()
        self.most = settings.most

    def finish(self, row: ImageRecord, output: None) -> None:
        """Set the regions."""
        everywhere = encode_mask(np.ones((row.height, row.width), bool))
        box = (0.0, 0.0, float(row.width), float(row.height))
        row.regions = [Region(tag.label, box, rle=everywhere) for tag in row.tags[: self.most]]
'''

NEW = {"stages/judge.py": JUDGE, "stages/finder.py": FINDER}
"""File -> its text."""
CHANGED = {
    "pad_pipeline/roles.py": [
        ('"segment", "patchify"]', '"segment", "judge", "patchify"]'),
        ('"segment": "masks"}', '"segment": "masks", "judge": "brightness"}'),
        ('    "grounder":', '    "judge": ("judge",),\n    "finder": ("ground", "segment"),\n    "grounder":'),
    ],
    "pad_pipeline/records.py": [
        ("    tags: list[TagJson]\n", "    brightness: float\n    tags: list[TagJson]\n"),
        ("    tags: list[Tag] =", "    brightness: float = 0.0\n    tags: list[Tag] ="),
        ('            "tags": [{', '            "brightness": self.brightness,\n            "tags": [{'),
        (
            "            self.regions = []\n            for region in meta",
            '            self.brightness = _finite(meta["brightness"])\n'
            "            self.regions = []\n            for region in meta",
        ),
        (
            '        if step == "tag":',
            '        if step == "judge":\n            self.brightness = 0.0\n        elif step == "tag":',
        ),
    ],
    "workflows/models/settings.py": [
        (
            "KINDS: tuple[type[StageSettings], ...] = (\n",
            "KINDS: tuple[type[StageSettings], ...] = (\n    JudgeSettings, FinderSettings,\n",
        ),
        (
            "from pad_pipeline.stages.ground import",
            "from pad_pipeline.stages.finder import FinderSettings\n"
            "from pad_pipeline.stages.judge import JudgeSettings\n"
            "from pad_pipeline.stages.ground import",
        ),
    ],
}
"""File -> what is replaced in it by what."""
