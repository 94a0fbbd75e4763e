"""COCO annotations: images with human boxes, masks and categories, and captions where there are some."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pad_pipeline.errors import UserError
from pad_pipeline.records import Planned
from pad_pipeline.sources.base import path_problem, read_json, require_folder
from pad_pipeline.sources.llava import caption_of, read_conversations


class CocoSource:
    """The images of an `instances.json`, in the order of their ids, each with its annotations.

    Args:
        annotations: the file: `images`, `annotations` (polygons, RLE, crowd; or captions) and `categories`.
        images: the folder that `file_name` is relative to.
        captions: a second file with captions: COCO's `captions.json`, or a LLaVA JSON joined by file name.
    """

    def __init__(self, annotations: Path, images: Path | str, captions: Path | None = None) -> None:
        self.origin, self.root = str(annotations), require_folder(images)
        self.counts: Counter[str] = Counter()
        data = read_json("annotations", annotations)
        for part in ("images", "annotations"):
            if not isinstance(data, dict) or not isinstance(data.get(part), list):
                raise _malformed(annotations, f"it has no list {part!r}", "give a COCO instances.json")
        self.images = data["images"]
        if not all(isinstance(entry, dict) and _is_id(entry.get("id")) for entry in self.images):
            raise _malformed(annotations, "every entry of images should be {id, file_name}")
        repeated = [number for number, count in Counter(entry["id"] for entry in self.images).items() if count > 1]
        if repeated:
            raise _malformed(annotations, f"the image id {repeated[0]} stands there more than once")
        categories = data.get("categories", [])
        if not isinstance(categories, list) or not all(
            isinstance(entry, dict) and _is_id(entry.get("id")) and _is_name(entry.get("name")) for entry in categories
        ):
            raise _malformed(annotations, "categories should be a list of {id, name}")
        self._names = {entry["id"]: entry["name"].strip() for entry in categories}
        self._regions: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        self._captions: dict[Any, str] = {}
        self._conversations: dict[str, list[dict[str, str]]] = {}
        self._sort(data["annotations"])
        if captions is not None:
            self._read_captions(captions)

    def _sort(self, entries: list[Any]) -> None:
        known = {entry["id"] for entry in self.images}
        for entry in entries:
            if not isinstance(entry, dict) or not _is_id(entry.get("image_id")) or entry["image_id"] not in known:
                self.counts["annotations of no listed image"] += 1
            elif "caption" not in entry:
                self._regions[entry["image_id"]].append(entry)
            elif isinstance(entry["caption"], str):
                self._captions.setdefault(entry["image_id"], entry["caption"])  # the first of COCO's five
            else:
                self.counts["captions that can't be read"] += 1

    def _read_captions(self, path: Path) -> None:
        data = read_json("captions", path)
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
            self._sort([entry for entry in data["annotations"] if isinstance(entry, dict) and "caption" in entry])
        else:
            raise UserError("captions", path, "it is neither COCO captions nor a LLaVA JSON", "give one of the two")

    def __iter__(self) -> Iterator[Planned]:
        """The images in the order of their ids."""
        for entry in sorted(self.images, key=lambda entry: (isinstance(entry["id"], str), entry["id"])):
            source = entry.get("file_name")
            if not isinstance(source, str):
                yield Planned(f"image-{entry['id']}", "", problem=f"image {entry['id']}: file_name should be one path")
                continue
            conversations = self._conversations.get(Path(source).name) or _exported_turns(entry)
            own = entry.get("caption")
            caption = (
                self._captions.get(entry["id"]) or (own if isinstance(own, str) else "") or caption_of(conversations)
            )
            size = {"width": entry.get("width"), "height": entry.get("height")}
            regions = [self._annotation(annotation) | size for annotation in self._regions[entry["id"]]]
            problem = path_problem(source) or next((r["problem"] for r in regions if "problem" in r), "")
            yield Planned(
                _exported_id(entry) or Path(source).stem,
                source,
                caption=caption,
                conversations=conversations,
                annotations=[] if problem else regions,
                problem=problem,
            )

    def _annotation(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Label, box and segmentation of one annotation; the masks are made later, where the image's size is known."""
        category = entry.get("category_id")
        label = self._names.get(category) if _is_id(category) else None
        if label is None:
            return {"problem": f"annotation {entry.get('id')}: category {category} is not in categories"}
        return {
            "id": str(entry.get("id")),
            "label": label,
            "box": entry.get("bbox"),
            "segmentation": entry.get("segmentation"),
            "crowd": entry.get("iscrowd", 0) in (1, True),
            "score": entry.get("score"),
            "pad": entry.get("pad"),
        }


def _exported_id(entry: dict[str, Any]) -> str:
    """The id that the image had where `pad export coco` took it from; empty for other files."""
    own = entry.get("pad")
    return own["id"] if isinstance(own, dict) and isinstance(own.get("id"), str) else ""


def _exported_turns(entry: dict[str, Any]) -> list[dict[str, str]]:
    """Its dialogue, likewise."""
    own = entry.get("pad")
    try:
        return read_conversations(own.get("conversations", [])) if isinstance(own, dict) else []
    except ValueError:
        return []


def _is_id(value: Any) -> bool:
    return type(value) in (int, str)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _malformed(path: Path, rule: str, remedy: str = "mend the file") -> UserError:
    return UserError("annotations", path, rule, remedy)
