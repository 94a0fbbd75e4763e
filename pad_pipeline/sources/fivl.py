"""FiVL's records (Intel/fivl-instruct): LLaVA's conversations, with a patch grid for each key phrase."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.records import Planned
from pad_pipeline.sources.annotated import Shape, label
from pad_pipeline.sources.base import path_problem, require_folder
from pad_pipeline.sources.llava import LlavaSource

VIEW = View(size=336, patch=14, fit="pad")
"""The view of FiVL's grids: the image padded to a square, 24 x 24 patches."""


class FivlSource(LlavaSource):
    """The images of a FiVL JSON, each with its conversations and its phrases.

    A phrase that can't be used is left out and counted; its image keeps the others. Images without a phrase are kept.

    Args:
        annotations: the JSON, such as fivl_instruct.json.
        images: the folder of LLaVA's images, or its URL.
        grids: the folder of the grids, dataset_grounded.

    Raises:
        UserError: one of them is not there, or the JSON can't be read.
    """

    def __init__(self, annotations: Path, images: str, grids: Path) -> None:
        if not grids.is_dir():
            rule = "it is a file" if grids.exists() else "there is no such folder"
            raise UserError("grids", grids, rule, "unpack dataset_grounded.tar, and name the folder of that name")
        self.grids = Path(require_folder(grids)).resolve()
        super().__init__(annotations, images)

    def __iter__(self) -> Iterator[Planned]:
        self.counts.clear()
        for number, record in self.records():
            rows = self.fields.rows(number, record)
            for planned in rows:
                planned.annotations = [*self._phrases(record, planned.id)]
                if not planned.annotations:
                    self.counts.note("images without a phrase, which become images without regions", planned.id)
            yield from rows

    def _phrases(self, record: Any, name: str) -> Iterator[Shape]:
        """Yield a region for each phrase of a record, once for each grid."""
        seen = set[tuple[str, str]]()
        segments = record.get("segment") if isinstance(record, dict) else None
        for segment in segments if isinstance(segments, list) else []:
            phrases = segment.get("prompts") if isinstance(segment, dict) else None
            for phrase in phrases if isinstance(phrases, list) else []:
                try:
                    shape = self._shape(phrase)
                except ValueError as error:
                    self.counts.note(f"phrases left out, because {error}", name)
                    continue
                if (found := (shape["label"], shape["segmentation"]["grid"])) not in seen:
                    seen.add(found)
                    yield shape | {"id": f"{name}: {len(seen)}"}

    def _shape(self, phrase: Any) -> Shape:
        if not isinstance(phrase, dict):
            raise ValueError("they are no objects")
        path = phrase.get("mask_rel")
        if not isinstance(path, str) or not path:
            raise ValueError("they name no grid (`mask_rel`)")
        if problem := path_problem(path):
            raise ValueError(f"the path of their grid can't be used: {problem}")
        grid = {"grid": str(self.grids / path)}
        usual: Shape = {"box": None, "crowd": False, "width": None, "height": None}
        return usual | label(phrase.get("prompt")) | {"segmentation": grid}


def check_view(view: View) -> None:
    """Refuse another view than that of the grids, of which no mask at full size is known.

    Raises:
        UserError: the view differs.
    """
    if view != VIEW:
        rule = f"FiVL's grids are made for size {VIEW.size}, patch {VIEW.patch} and fit {VIEW.fit}"
        remedy = "leave these options out; `pad retarget` then changes the view, with masks as coarse as the grids"
        given = f"size {view.size}, patch {view.patch}, fit {view.fit}"
        raise UserError("view", given, rule, remedy)
