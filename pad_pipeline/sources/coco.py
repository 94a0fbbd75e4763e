"""COCO annotations and their dialects: images with human boxes, masks and categories, and captions if there are any."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.images import DecodeSettings, decode
from pad_pipeline.records import Planned
from pad_pipeline.sources.base import Tally, ending_of, path_problem, read_json, require_folder
from pad_pipeline.sources.conversations import without_mark
from pad_pipeline.sources.fields import Fields, Record, id_text, name_as_words
from pad_pipeline.sources.manifest import TABLES, ManifestSource
from pad_pipeline.threads import map_ahead

_UNREADABLE = "captions that can't be read"
_ORPHANS = "annotations of no listed image"
_FACTS = {"id", "pad", "license", "width", "height", "date_captured", "flickr_url"}
"""Names in an entry of `images` that say nothing of its texts."""
_LISTS = {".jsonl", ".ndjson", *TABLES}


class CocoSource:
    """The images of an `instances.json`, in the order of their ids, each with its annotations.

    An annotation that can't be used is left out and counted; its image keeps the others.

    Args:
        annotations: the file: `images`, `annotations` (polygons, RLE, crowd; or captions) and `categories`.
        images: the folder that `file_name` is relative to.
        captions: a second file with captions: COCO's `captions.json`, or any list that `open_source` reads. Images are
            joined by path; by the bare file name only where the names of both sides are unique.
        masks: the folder of the PNG files of a panoptic JSON; by default the path of that JSON without `.json`.

    Raises:
        UserError: a file can't be read, most annotations belong to no image, or no caption belongs to one.
    """

    def __init__(
        self, annotations: Path, images: Path | str, captions: Path | None = None, masks: Path | None = None
    ) -> None:
        self.origin, self.root = str(annotations), require_folder(images)
        self.counts = Tally()
        self._fields = Fields(self.root, images, self.counts, unit="image")
        self._texts = Fields(self.root, images, Tally())  # an image of COCO has URLs and dates, which are no captions
        data = read_json("annotations", annotations)
        for part in ("images", "annotations"):
            if not isinstance(data, dict) or not isinstance(data.get(part), list):
                raise _malformed(annotations, f"it has no list {part!r}", "give a COCO instances.json")
        self.images = data["images"]
        if not all(isinstance(entry, dict) and _is_id(entry.get("id")) for entry in self.images):
            raise _malformed(annotations, "every entry of images should be {id, file_name}")
        ids = Counter(id_text(entry["id"]) for entry in self.images)
        if repeated := [number for number, count in ids.items() if count > 1]:
            raise _malformed(annotations, f"the image id {repeated[0]} stands there more than once")
        self._names = self._categories(annotations, data.get("categories") or [])
        self._paths = [self._path(entry) for entry in self.images]
        edges = ((id_text(one["id"]), _edge(one.get("height")), _edge(one.get("width"))) for one in self.images)
        self._sizes = {number: [height, width] for number, height, width in edges if height and width}
        self._regions: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._captions: dict[str, str] = {}
        self._others: dict[str, Record] = {}
        self._panoptic: dict[str, dict[str, Any]] = {}
        self._masks = annotations.with_suffix("") if masks is None else masks
        self._sort(data["annotations"], ids)
        if self._panoptic and not self._masks.is_dir():
            rule = "it is a panoptic file, and the folder of its PNG files is not there"
            raise UserError("masks", self._masks, rule, "name the folder")
        if 2 * self.counts[_ORPHANS] > len(data["annotations"]):
            rule = f"{self.counts[_ORPHANS]} of its {len(data['annotations'])} annotations belong to no listed image"
            example = f"the first is {self.counts.examples[_ORPHANS]}"
            raise _malformed(annotations, f"{rule}; {example}", "give a file whose image_id are ids of its images")
        if captions is not None:
            self._read_captions(captions, ids)
        self.counts.keep()

    def _categories(self, path: Path, categories: Any) -> dict[str, str]:
        """Return the name of each category, by its id."""
        if not isinstance(categories, list) or not all(map(_is_category, categories)):
            raise _malformed(path, "categories should be a list of {id, name}")
        names: dict[str, str] = {}
        for entry in categories:
            number, name = id_text(entry["id"]), name_as_words(str(entry["name"]))
            if names.setdefault(number, name) != name:
                rule = f"the category id {number} stands for {names[number]!r} and for {name!r}"
                raise _malformed(path, rule, "give each category an id of its own")
        return names

    def _path(self, entry: Mapping[str, Any]) -> tuple[str, str]:
        """Return the path of an image, and what is wrong with it. LVIS has a `coco_url` and no `file_name`: its folder
        and name are the path."""
        source = entry.get("file_name")
        if source is None and isinstance(entry.get("coco_url"), str):
            source = "/".join(entry["coco_url"].split("/")[-2:])
            if not Path(self.root, source).is_file() and Path(self.root, Path(source).name).is_file():
                source = Path(source).name
        images = [source] if isinstance(source, str) else self._fields.read(entry).images
        if len(images) != 1:
            return "", f"image {entry['id']}: file_name should be one path"
        return self._fields.path(images[0])

    def _sort(self, entries: list[Any], known: Mapping[str, int]) -> None:
        """Put each annotation to its image."""
        for entry in entries:
            number = id_text(entry["image_id"]) if isinstance(entry, dict) and _is_id(entry.get("image_id")) else None
            if number is None or number not in known:
                self.counts.note(_ORPHANS, _named(entry))
            elif isinstance(entry.get("segments_info"), list):
                self._panoptic[number] = entry
            elif "caption" not in entry or any(entry.get(part) for part in ("bbox", "segmentation")):
                if "caption" in entry:
                    self.counts.note("captions of single annotations, which are not used", _named(entry))
                if problem := self._problem(entry):
                    self.counts.note(f"annotations left out, because {problem}", _named(entry))
                else:
                    self._regions[number].append(entry)
            elif isinstance(entry["caption"], str):
                self._captions[number] = self._captions.get(number) or entry["caption"]  # the first of COCO's five
            else:
                self.counts.note(_UNREADABLE, _named(entry))

    def _problem(self, entry: Mapping[str, Any]) -> str:
        """Return why an annotation can't be used, as far as that shows without its image; empty if it can."""
        category = entry.get("category_id")
        if not _is_id(category) or id_text(category) not in self._names:
            return "their category is not in categories"
        box, segmentation = entry.get("bbox") or None, _segmentation(entry.get("segmentation"))
        if box is not None and not (_are_numbers(box) and len(box) == 4 and min(box[2:]) >= 0):
            return "their bbox is not four numbers [x, y, width, height]"
        if segmentation is None:
            return "" if box else "they have neither a segmentation nor a bbox"
        if isinstance(segmentation, dict):
            size, stated = segmentation.get("size"), self._sizes.get(id_text(entry["image_id"]))
            if not _are_numbers(size) or not isinstance(segmentation.get("counts"), str | list):
                return "their RLE is not {size, counts}"
            fits = stated is None or stated == size
            return "" if fits else "the size of their RLE is not the height and the width of the image"
        if not isinstance(segmentation, list) or not all(map(_are_numbers, segmentation)):
            return "their polygons are not lists of numbers"
        if any(len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation):
            return "a polygon has fewer than three points"
        return ""

    def _read_captions(self, path: Path, known: Mapping[str, int]) -> None:
        if ending_of(str(path)) in _LISTS:
            records = self._listed(path)
        else:
            data = read_json("captions", path)
            of_ids = isinstance(data, list) and any(isinstance(one, dict) and "image_id" in one for one in data[:100])
            data = {"annotations": data} if of_ids and not any("image" in one for one in data[:100]) else data
            if isinstance(data, dict) and isinstance(data.get("annotations"), list):
                self._join_captions(path, data, known)
                return
            if not isinstance(data, list):
                rule = "it is neither COCO captions nor a list of records"
                raise UserError("captions", path, rule, "give one of the two")
            records = [self._fields.read(record) for record in data]
        self._join(path, records)

    def _join_captions(self, path: Path, data: dict[str, Any], known: Mapping[str, int]) -> None:
        """Join the captions of a COCO file: by the path of the image, if the file lists its images, or else by id."""
        entries = [one for one in data["annotations"] if isinstance(one, dict) and isinstance(one.get("caption"), str)]
        listed = data.get("images")
        names = {
            id_text(one["id"]): one["file_name"]
            for one in (listed if isinstance(listed, list) else [])
            if isinstance(one, dict) and _is_id(one.get("id")) and isinstance(one.get("file_name"), str)
        }
        if names:
            ids = [id_text(one["image_id"]) if _is_id(one.get("image_id")) else "" for one in entries]
            captions = [one["caption"] for one in entries]
            of_images = [(names[number], text) for number, text in zip(ids, captions, strict=True) if number in names]
            self._join(path, [Record("", [name], text, []) for name, text in of_images])
            return
        before = len(self._captions)
        self._sort([{"image_id": one.get("image_id"), "caption": one["caption"]} for one in entries], known)
        if entries and len(self._captions) == before:
            self._refuse(path, f"none of its {len(entries)} captions belongs to a listed image")

    def _listed(self, path: Path) -> list[Record]:
        from pad_pipeline.sources.llava import LlavaSource

        with rename_field(images="captions"):
            table = ending_of(str(path)) in TABLES
            source = ManifestSource(str(path), self.root) if table else LlavaSource(path, self.root)
            planned = list(source)
        self.counts.add(source.counts)
        return [
            Record(one.id, [one.source], one.caption, [*map(dict, one.conversations)], one.problem) for one in planned
        ]

    def _join(self, path: Path, records: list[Record]) -> None:
        """Give each image the texts of the record with its path, or else with its name, if that name is unique."""
        by_path: dict[str, Record] = {}
        for number, record in enumerate(records):
            if record.problem:
                self.counts.note(_UNREADABLE, f"record {number}: {record.problem}")
            elif len(record.images) == 1 and isinstance(record.images[0], str):
                source = os.path.normpath(self._fields.path(record.images[0])[0])
                if source not in by_path or not by_path[source].caption:
                    by_path[source] = record
        names = Counter(Path(name).name for name in by_path)
        own_names = Counter(Path(source).name for source, _ in self._paths)
        by_name = {Path(name).name: record for name, record in by_path.items() if names[Path(name).name] == 1}
        for entry, (source, _) in zip(self.images, self._paths, strict=True):
            name = Path(source).name
            found = by_path.get(os.path.normpath(source)) or (by_name.get(name) if own_names[name] == 1 else None)
            if found:
                self._others[id_text(entry["id"])] = found
        used = {id(record) for record in self._others.values()}
        for source, record in by_path.items():
            if record.caption and id(record) not in used:
                self.counts.note("captions of no listed image", source)
        if by_path and not self._others:
            self._refuse(path, f"none of its {len(by_path)} images is one of {self.origin}")

    def _refuse(self, path: Path, rule: str) -> None:
        raise UserError("captions", path, rule, "give the captions of these images")

    def __iter__(self) -> Iterator[Planned]:
        self.counts.clear()
        listed = zip(self.images, self._paths, strict=True)
        ordered = sorted(listed, key=lambda one: (isinstance(one[0]["id"], str), one[0]["id"]))
        segments = map_ahead(self._segments, (id_text(entry["id"]) for entry, _ in ordered), 8, 64)
        for (entry, (source, problem)), (drawn, failures) in zip(ordered, segments, strict=True):
            number = id_text(entry["id"])
            for reason, example in failures:
                self.counts.note(f"annotations left out, because {reason}", example)
            if not source:
                yield Planned(f"image-{number}", "", problem=problem)
                continue
            # `pad export coco` writes the image's id and conversations under `pad`.
            exported = entry["pad"] if isinstance(entry.get("pad"), dict) else {}
            name = exported["id"] if isinstance(exported.get("id"), str) else ""
            other = self._others.get(number) or self._texts.texts({"conversations": exported.get("conversations")})
            own = self._texts.texts({name: value for name, value in entry.items() if name not in _FACTS})
            caption = self._captions.get(number) or own.caption or other.caption
            size = {"width": _edge(entry.get("width")), "height": _edge(entry.get("height"))}
            regions = (
                []
                if problem
                else [self._annotation(annotation) | size for annotation in [*self._regions[number], *drawn]]
            )
            turns = own.conversations or other.conversations
            yield Planned(name or Path(source).stem, source, without_mark(caption), turns, regions, problem=problem)

    def _segments(self, number: str) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
        """Read the segments of an image from its PNG file: each pixel holds the id of its segment, R + 256 G + 65536 B.

        Returns:
            The segments as annotations, and a reason and an example for each that can't be used.
        """
        entry = self._panoptic.get(number)
        if entry is None:
            return [], []
        name, segments = entry.get("file_name"), entry["segments_info"]
        try:
            if not isinstance(name, str) or path_problem(name):
                raise ValueError("the name of their PNG file is no path below the folder")
            drawn, _ = decode((self._masks / name).read_bytes(), DecodeSettings())
        except (OSError, ValueError) as error:
            what = error.strerror if isinstance(error, OSError) else error
            return [], [(f"their PNG file can't be used ({what})", f"image {number}, with {len(segments)} segments")]
        ids = np.asarray(drawn, np.int64) @ np.array([1, 256, 65536])
        found, failures = [], []
        for segment in segments:
            mask = ids == segment.get("id") if isinstance(segment, dict) else np.zeros(1, bool)
            whole = segment | {"bbox": None, "segmentation": None} if isinstance(segment, dict) else {}
            if not mask.any():
                failures.append(("no pixel has their id", _named(whole | {"image_id": number})))
            elif problem := self._problem(whole | {"bbox": [0, 0, 1, 1]}):
                failures.append((problem, _named(whole | {"image_id": number})))
            else:
                rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
                found.append(whole | {"segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")}})
        return found, failures

    def _annotation(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Return label, box and segmentation. Masks are made later, when the image's size is known."""
        return {
            "id": str(entry.get("id")),
            "label": self._names[id_text(entry["category_id"])],
            "box": entry.get("bbox") or None,
            "segmentation": _segmentation(entry.get("segmentation")),
            "crowd": str(entry.get("iscrowd", 0)).lower() in ("1", "1.0", "true"),
            "score": entry.get("score"),
            "pad": entry.get("pad"),
        }


def _segmentation(value: Any) -> Any:
    """Return a segmentation in COCO's form: without empty polygons, None if nothing is left. A flat list of numbers is
    one polygon."""
    if isinstance(value, list) and value and not any(isinstance(part, list | dict) for part in value):
        return [value]
    if isinstance(value, list):
        return [part for part in value if part != []] or None
    return value or None


def _edge(value: Any) -> Any:
    """Return the width or height that an image states; None if it is unknown: not positive, or missing."""
    if isinstance(value, str):
        text = id_text(value)
        value = int(text) if text.lstrip("-").isdecimal() else value
    unknown = value is None or (isinstance(value, int | float) and not value > 0)
    return None if unknown else int(value) if isinstance(value, float) and value.is_integer() else value


def _named(entry: Any) -> str:
    if not isinstance(entry, dict):
        return "an annotation that is no object"
    return f"annotation {entry.get('id')} of image {entry.get('image_id')!r}"


def _are_numbers(value: Any) -> bool:
    """Return whether a value is a list of numbers of a size that can occur."""
    return isinstance(value, list) and all(type(v) in (int, float) and -1e308 < v < 1e308 for v in value)


def _is_id(value: Any) -> bool:
    return type(value) in (int, float, str) and value == value


def _is_category(entry: Any) -> bool:
    if not isinstance(entry, dict) or not _is_id(entry.get("id")):
        return False
    return isinstance(entry.get("name"), str | int) and bool(name_as_words(str(entry["name"])))


def _malformed(path: Path, rule: str, remedy: str = "repair the file") -> UserError:
    return UserError("annotations", path, rule, remedy)
