"""COCO annotations: images with human boxes, masks and categories, and captions where there are some."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pad_pipeline.errors import UserError
from pad_pipeline.records import Planned
from pad_pipeline.sources.base import path_problem, read_json, require_folder
from pad_pipeline.sources.llava import caption_of, read_conversations

_UNREADABLE = "captions that can't be read"


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
        ids = Counter(entry["id"] for entry in self.images)
        if repeated := [number for number, count in ids.items() if count > 1]:
            raise _malformed(annotations, f"the image id {repeated[0]} stands there more than once")
        categories = data.get("categories", [])
        if not isinstance(categories, list) or not all(map(_is_category, categories)):
            raise _malformed(annotations, "categories should be a list of {id, name}")
        self._names = {entry["id"]: entry["name"].strip() for entry in categories}
        self._regions: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        self._captions: dict[Any, str] = {}
        self._conversations: dict[str, list[dict[str, str]]] = {}
        self._sort(data["annotations"], ids)
        if captions is not None:
            self._read_captions(captions, ids)

    def _sort(self, entries: list[Any], known: Collection[Any]) -> None:
        for entry in entries:
            if not isinstance(entry, dict) or not _is_id(entry.get("image_id")) or entry["image_id"] not in known:
                self.counts["annotations of no listed image"] += 1
            elif "caption" not in entry:
                self._regions[entry["image_id"]].append(entry)
            elif isinstance(entry["caption"], str):
                self._captions.setdefault(entry["image_id"], entry["caption"])  # the first of COCO's five
            else:
                self.counts[_UNREADABLE] += 1

    def _read_captions(self, path: Path, known: Collection[Any]) -> None:
        data = read_json("captions", path)
        if isinstance(data, list):
            for record in data:
                if isinstance(record, dict) and isinstance(record.get("image"), str):
                    if (turns := _turns(record)) is None:
                        self.counts[_UNREADABLE] += 1
                    else:
                        self._conversations.setdefault(Path(record["image"]).name, turns)
        elif isinstance(data, dict) and isinstance(data.get("annotations"), list):
            self._sort(
                [entry for entry in data["annotations"] if isinstance(entry, dict) and "caption" in entry], known
            )
        else:
            raise UserError("captions", path, "it is neither COCO captions nor a LLaVA JSON", "give one of the two")

    def __iter__(self) -> Iterator[Planned]:
        for entry in sorted(self.images, key=lambda entry: (isinstance(entry["id"], str), entry["id"])):
            source = entry.get("file_name")
            if not isinstance(source, str):
                yield Planned(f"image-{entry['id']}", "", problem=f"image {entry['id']}: file_name should be one path")
                continue
            # `pad export coco` writes the image's id and conversations under `pad`.
            exported = entry["pad"] if isinstance(entry.get("pad"), dict) else {}
            name = exported["id"] if isinstance(exported.get("id"), str) else ""
            conversations = self._conversations.get(Path(source).name) or _turns(exported) or []
            own = entry["caption"] if isinstance(entry.get("caption"), str) else ""
            caption = self._captions.get(entry["id"]) or own or caption_of(conversations)
            size = {"width": entry.get("width"), "height": entry.get("height")}
            regions = [self._annotation(annotation) | size for annotation in self._regions[entry["id"]]]
            problem = path_problem(source) or next((r["problem"] for r in regions if "problem" in r), "")
            annotations = [] if problem else regions
            yield Planned(name or Path(source).stem, source, caption, conversations, annotations, problem=problem)

    def _annotation(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Return label, box and segmentation. Masks are made later, when the image's size is known."""
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


def _turns(record: dict[str, Any]) -> list[dict[str, str]] | None:
    """Return the `conversations` of a record; None if they can't be read."""
    try:
        return read_conversations(record.get("conversations", []))
    except ValueError:
        return None


def _is_id(value: Any) -> bool:
    return type(value) in (int, str)


def _is_category(entry: Any) -> bool:
    if not isinstance(entry, dict) or not _is_id(entry.get("id")):
        return False
    return isinstance(entry.get("name"), str) and bool(entry["name"].strip())


def _malformed(path: Path, rule: str, remedy: str = "repair the file") -> UserError:
    return UserError("annotations", path, rule, remedy)
