"""COCO annotations: images with human boxes, masks and categories, and captions where there are some."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pad_pipeline.errors import UserError
from pad_pipeline.sources import Planned, path_problem, read_json, require_folder
from pad_pipeline.sources.llava import caption_of, read_conversations


class CocoSource:
    """The images of an `instances.json`, in the order of their ids, each with its annotations.

    Args:
        annotations: the file: `images`, `annotations` (polygons, RLE, crowd; or captions) and `categories`.
        images: the folder that `file_name` is relative to.
        captions: a second file with captions: COCO's `captions.json`, or a LLaVA JSON joined by file name.
    """

    def __init__(self, annotations: Path, images: Path, captions: Path | None = None) -> None:
        self.root = require_folder("--images", images)
        self.counts: Counter[str] = Counter()
        field = "--annotations"
        data = read_json(field, annotations)
        for part in ("images", "annotations"):
            if not isinstance(data, dict) or not isinstance(data.get(part), list):
                raise UserError(field, annotations, f"it has no list {part!r}", "give a COCO instances.json")
        categories = data.get("categories", [])
        if not isinstance(categories, list) or not all(
            isinstance(entry, dict) and "id" in entry and str(entry.get("name", "")).strip() for entry in categories
        ):
            raise UserError(field, annotations, "categories should be a list of {id, name}", "mend the file")
        self.images = [entry for entry in data["images"] if isinstance(entry, dict) and "file_name" in entry]
        if len(self.images) < len(data["images"]):
            raise UserError(field, annotations, "every entry of images should be {id, file_name}", "mend the file")
        self._names = {entry["id"]: str(entry["name"]).strip() for entry in categories}
        self._regions: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        self._captions: dict[Any, str] = {}
        self._conversations: dict[str, list[dict[str, str]]] = {}
        known = {entry.get("id") for entry in self.images}
        self._sort(data["annotations"], known)
        if captions is not None:
            self._read_captions(captions, known)

    def _sort(self, entries: list[Any], known: set[Any]) -> None:
        for entry in entries:
            if not isinstance(entry, dict) or entry.get("image_id") not in known:
                self.counts["annotations of no listed image"] += 1
            elif "caption" in entry:
                self._captions.setdefault(entry["image_id"], str(entry["caption"]))  # the first of COCO's five
            else:
                self._regions[entry["image_id"]].append(entry)

    def _read_captions(self, path: Path, known: set[Any]) -> None:
        data = read_json("--captions", path)
        if isinstance(data, list):
            for record in data:
                if isinstance(record, dict) and isinstance(record.get("image"), str):
                    try:
                        turns = read_conversations(record.get("conversations", []))
                    except ValueError:
                        self.counts["captions that can't be read"] += 1
                        continue
                    self._conversations.setdefault(Path(record["image"]).name, turns)
        elif isinstance(data, dict) and isinstance(data.get("annotations"), list):
            self._sort([entry for entry in data["annotations"] if "caption" in entry], known)
        else:
            raise UserError("--captions", path, "it is neither COCO captions nor a LLaVA JSON", "give one of the two")

    def __iter__(self) -> Iterator[Planned]:
        """The images in the order of their ids."""
        for entry in sorted(self.images, key=lambda entry: (str(type(entry.get("id"))), entry.get("id", ""))):
            source = str(entry["file_name"])
            conversations = self._conversations.get(Path(source).name, [])
            caption = self._captions.get(entry.get("id")) or str(entry.get("caption", "")) or caption_of(conversations)
            regions = [self._annotation(annotation) for annotation in self._regions[entry.get("id")]]
            problem = path_problem(source) or next((r["problem"] for r in regions if "problem" in r), "")
            size = {"width": entry.get("width"), "height": entry.get("height")}
            for region in regions:
                region.update(size)
            yield Planned(
                Path(source).stem, source, caption.strip(), conversations, [] if problem else regions, problem
            )

    def _annotation(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Label, box and segmentation of one annotation; the masks are made later, where the image's size is known."""
        label = self._names.get(entry.get("category_id"))
        if label is None:
            return {
                "problem": f"annotation {entry.get('id')}: category {entry.get('category_id')} is not in categories"
            }
        return {
            "id": str(entry.get("id")),
            "label": label,
            "box": entry.get("bbox"),
            "segmentation": entry.get("segmentation"),
            "crowd": bool(entry.get("iscrowd", 0)),
        }
