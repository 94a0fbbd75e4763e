"""The records of images, tags and regions that the stages fill, and their forms in JSON and in the index."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypedDict

import numpy as np
import pyarrow as pa

from pad_pipeline.choices import Status

SCHEMA_VERSION = 4
"""Version of all that a run writes: tar members, JSON keys, index columns, run.json."""

MEMBERS = {"image": "jpg", "json": "json", "masks": "masks.npy", "embeds": "embeds.npy"}
"""Member -> ending of its name. Images of every format end in `.jpg`, because readers decode by content, and Hugging
Face `datasets` refuses a tar in which samples differ in their members. The JSON has the true format."""
INDEX_SCHEMA = pa.schema(
    dict.fromkeys(("key", "id", "source", "status", "stage", "reason"), pa.string())
    | dict.fromkeys(("width", "height", "tags", "regions", "labels"), pa.int32())
    # Offset and size of each member in the tar; -1 and 0 for a failed image, which is not in the tar.
    | {f"{member}_{part}": pa.int64() for member in MEMBERS for part in ("at", "bytes")}
    | {"sha256": pa.string()}
)
"""Columns of a shard's index, one row per planned image; `sha256` is over the sample's four members in order."""
IndexRow = dict[str, Any]
"""One row of an index, by column."""

UNKNOWN, MISSING = -1, -2
"""Sizes in a plan: the size was not looked up; there was no such file."""


class Place(NamedTuple):
    """The position of an image's bytes."""

    file: str
    """A path relative to the source's root, or a URL; empty if it is the image's `source`."""
    at: int = -1
    """The first byte in the file; -1 for the whole file."""
    size: int = UNKNOWN
    """The number of bytes."""


class ShardRow(NamedTuple):
    """The position of a finished sample: a row of the index of its shard."""

    file: str
    """The index file: a path relative to the source's root, or a URL."""
    row: int
    size: int = UNKNOWN
    """The number of bytes of the image."""


NOWHERE = Place("")
"""The `place` of an image that is the whole file `source`; the `earlier` of an image without an earlier run."""


@dataclass
class Tag:
    """A name of something in an image."""

    label: str
    score: float
    """How certain it is that the image shows it, 0..1: the tagger's probability; for a tag that only the captions give,
    `CaptionsSettings.score`; 1 from people."""
    sources: list[str] = field(default_factory=list)
    """Who gave the tag: `tagger`, `captions`, both in this order, `grounder` or `human`."""


Box = tuple[float, float, float, float]
"""`x0, y0, x1, y1`: left, top, right, bottom, in pixels of the upright original."""


def as_box(edges: Iterable[float]) -> Box:
    """Make a box of four numbers of any type, rounded as in the JSON. So a segmenter that starts from a box of an
    earlier run gets the same numbers."""
    x0, y0, x1, y1 = (_number(edge) for edge in edges)
    return x0, y0, x1, y1


@dataclass
class Alternate:
    """Another label that is true of a region: a poodle is a dog."""

    label: str
    score: float
    """The detector's highest token score over the label's span."""
    label_score: float
    """The detector's mean token score over the label's span."""


@dataclass
class Region:
    """One labeled thing: label + box + mask."""

    label: str
    box: Box
    """`xyxy` in pixels of the upright original."""
    score: float = 1.0
    """The detector's highest token score of any tag, 0..1, by which the box was kept. 1 for a human region."""
    label_score: float = 1.0
    """The detector's mean token score over the label's span, 0..1, by which the label was chosen."""
    alternates: list[Alternate] = field(default_factory=list)
    """The next best labels, best first."""
    prompt: int = 0
    """Index of the image's prompt that found the region. Scores of different prompts can't be compared."""
    rle: dict[str, Any] = field(default_factory=dict)
    """The mask at the original size as compressed COCO RLE: `{"size": [H, W], "counts": str}`."""
    predicted_iou: float = 1.0
    """The segmenter's estimate of the mask's IoU with the truth."""
    crowd: bool = False
    """Whether the mask covers a group of things that were not separated (COCO's `iscrowd`)."""


TurnJson = TypedDict("TurnJson", {"from": str, "value": str})
"""One turn of a conversation in `SampleJson`."""


class TagJson(TypedDict):
    """A `Tag` in `SampleJson`."""

    label: str
    score: float
    sources: list[str]


class AlternateJson(TypedDict):
    """An `Alternate` in `SampleJson`."""

    label: str
    score: float
    label_score: float
    embedding: int
    """Row of the label in `key.embeds.npy`."""


class RegionJson(AlternateJson):
    """A `Region` in `SampleJson`."""

    alternates: list[AlternateJson]
    prompt: int
    box: list[float]
    rle: dict[str, Any]
    predicted_iou: float
    crowd: bool


class SampleJson(TypedDict):
    """The `key.json` member of a sample. Every key is always present with the same type, because readers that infer a
    schema from the first samples (Hugging Face `datasets`) drop or refuse keys that appear later."""

    schema_version: int
    id: str
    source: str
    format: str
    width: int
    height: int
    caption: str
    conversations: list[TurnJson]
    tags: list[TagJson]
    regions: list[RegionJson]


@dataclass(slots=True)
class Planned:
    """One image as a source lists it, before any file is opened."""

    id: str
    """The name in the source."""
    source: str
    """The path relative to the source's root, or the URL, that messages show for the image."""
    caption: str = ""
    conversations: Sequence[Mapping[str, str]] = ()
    annotations: Sequence[Mapping[str, Any]] = ()
    """Human regions from the source (COCO), not yet decoded."""
    place: Place | ShardRow = NOWHERE
    """The position of the image's bytes, or the row of a sample that is rewritten."""
    earlier: Place = NOWHERE
    """The position of the JSON of an earlier run, if the image of that run is annotated again."""
    content_sha256: str = ""
    """The hash of the image's bytes, if the plan notes it."""
    sample_sha256: str = ""
    """The hash of the sample's four members, for an image that comes from shards."""
    problem: str = ""
    """The reason why the image can't be used. Such an image becomes a failed row, so that no record is lost."""


@dataclass
class ImageRecord(Planned):
    """One planned image, and the results of the stages."""

    key: str = field(kw_only=True)
    """The name in the shard: unique in the run, without a dot."""
    done: bool = False
    """Whether the image is finished already, in a shard that is retried for its failed images. Stages skip it."""

    status: Status = "ok"
    stage: str = ""
    """The stage that failed, or that left a part of the annotations out."""
    reason: str = ""
    """Why it failed, or what is left out."""

    data: bytes = b""
    """The bytes of the image file, unchanged."""
    format: str = ""
    """The file format by Pillow's name, such as `JPEG`."""
    width: int = 0
    """Width of the upright image, in pixels."""
    height: int = 0
    tags: list[Tag] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    coverage: np.ndarray | None = None
    """Coverage of each region, uint8 `[R, grid, grid]`, 0..255."""
    embeds: np.ndarray | None = None
    """Label embeddings, float16 `[L, d]`, one row for each of `labels`."""

    @property
    def labels(self) -> list[str]:
        """The distinct labels of the regions, then of their alternates, in order of first appearance."""
        best = [region.label for region in self.regions]
        return list(dict.fromkeys([*best, *(other.label for region in self.regions for other in region.alternates)]))

    def fail(self, stage: str, reason: str) -> None:
        """Mark the image as failed, with the stage and the reason, and drop the results of earlier stages."""
        self.note(stage, reason)
        self.status = "failed"
        self.data, self.tags, self.regions, self.coverage, self.embeds = b"", [], [], None, None

    def note(self, stage: str, reason: str) -> None:
        """Set the stage and the reason, on one line, without changing the status."""
        reason = re.sub(r" at 0x[0-9a-f]+", "", reason)  # an address would differ from run to run
        self.stage, self.reason = stage, " ".join(reason.split())[:500]

    def add_tags(self, source: str, tags: Iterable[Tag]) -> None:
        """Give the image the tags of one more source: `tagger`, `captions`, `grounder` or `human`.

        The tags of captions stand last. If a name of the captions is already a tag, apart from capital letters, that
        tag gets one more source, and keeps its score.
        """
        new = [replace(tag, sources=[source]) for tag in tags]
        of_captions = [tag for tag in self.tags if tag.sources == ["captions"]]
        first, last = (self.tags, new) if source == "captions" else (new, of_captions)
        self.tags = [*first]
        known = {tag.label.casefold(): tag for tag in first}
        for tag in last:
            same = known.setdefault(tag.label.casefold(), tag)
            if same is tag:
                self.tags.append(tag)
            elif not {*tag.sources} <= {*same.sources}:
                same.sources += tag.sources

    def forget(self, step: str) -> None:
        """Drop the results of one step of annotation, so that the step is done again."""
        if step == "tag":
            self.tags = []
        elif step == "captions":
            self.tags = [tag for tag in self.tags if tag.sources != ["captions"]]
            for tag in self.tags:
                tag.sources = [source for source in tag.sources if source != "captions"]
        elif step == "ground":
            self.regions = []
        elif step == "segment":
            for region in self.regions:
                region.rle, region.predicted_iou = {}, 1.0

    def restore(self, meta: Mapping[str, Any]) -> None:
        """Set the results that an earlier run wrote in `key.json`.

        Raises:
            KeyError, TypeError, ValueError: `meta` does not have the form that `to_json` writes.
        """
        try:
            self.format, self.width, self.height = str(meta["format"]), int(meta["width"]), int(meta["height"])
            self.caption = str(meta["caption"])
            self.conversations = [{"from": str(t["from"]), "value": str(t["value"])} for t in meta["conversations"]]
            self.tags = [
                Tag(str(tag["label"]), _finite(tag["score"]), [str(source) for source in tag["sources"]])
                for tag in meta["tags"]
            ]
            self.regions = []
            for region in meta["regions"]:
                rle = {"size": [int(edge) for edge in region["rle"]["size"]], "counts": str(region["rle"]["counts"])}
                self.regions.append(restored_region(region, rle, bool(region["crowd"])))
        except OverflowError as error:
            raise ValueError(str(error)) from error

    def index_row(self) -> IndexRow:
        """Return the image's row of the index, without the positions of members, as for a failed image."""
        plain = ("key", "id", "source", "status", "stage", "reason", "width", "height")
        row = {name: getattr(self, name) for name in plain}
        for member in MEMBERS:
            row |= {f"{member}_at": -1, f"{member}_bytes": 0}
        counts = {"tags": len(self.tags), "regions": len(self.regions), "labels": len(self.labels)}
        return row | counts | {"sha256": ""}

    def to_json(self) -> bytes:
        """Return the content of the sample's JSON member (`KEY.json` in the tar), a `SampleJson`."""
        rows = {label: row for row, label in enumerate(self.labels)}
        payload: SampleJson = {
            "schema_version": SCHEMA_VERSION,
            "id": self.id,
            "source": self.source,
            "format": self.format,
            "width": self.width,
            "height": self.height,
            "caption": self.caption,
            "conversations": [{"from": turn["from"], "value": turn["value"]} for turn in self.conversations],
            "tags": [{"label": tag.label, "score": _number(tag.score), "sources": tag.sources} for tag in self.tags],
            "regions": [
                {
                    "label": region.label,
                    "score": _number(region.score),
                    "label_score": _number(region.label_score),
                    "alternates": [
                        {
                            "label": other.label,
                            "score": _number(other.score),
                            "label_score": _number(other.label_score),
                            "embedding": rows[other.label],
                        }
                        for other in region.alternates
                    ],
                    "prompt": region.prompt,
                    "box": [_number(edge) for edge in region.box],
                    "rle": {"size": [int(edge) for edge in region.rle["size"]], "counts": region.rle["counts"]},
                    "predicted_iou": _number(region.predicted_iou),
                    "crowd": region.crowd,
                    "embedding": rows[region.label],
                }
                for region in self.regions
            ],
        }
        return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


def restored_region(region: Mapping[str, Any], rle: dict[str, Any], crowd: bool) -> Region:
    """Return a region from its JSON, with the given mask and crowd flag.

    Raises:
        KeyError, TypeError, ValueError: `region` does not have the form that `ImageRecord.to_json` writes.
    """
    alternates = [
        Alternate(str(other["label"]), _finite(other["score"]), _finite(other["label_score"]))
        for other in region["alternates"]
    ]
    box, score, label_score = (
        as_box(map(_finite, region["box"])),
        _finite(region["score"]),
        _finite(region["label_score"]),
    )
    prompt, predicted_iou = int(region["prompt"]), _finite(region["predicted_iou"])
    return Region(str(region["label"]), box, score, label_score, alternates, prompt, rle, predicted_iou, crowd)


def _finite(value: Any) -> float:
    """Return a number of unknown origin as a float; raise a ValueError for one that JSON can't hold."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is no number that JSON has")
    return number


def _number(value: float) -> float:
    """Return a Python float, rounded to the seven digits that a float32 holds."""
    return float(f"{float(value):.7g}")


@dataclass
class Shard:
    """The images of one tar, in plan order; the unit of work, of retry and of commit."""

    number: int
    rows: list[ImageRecord]
    trial: bool = False
    """Whether these rows are a part of a shard that is only tried, and not written."""

    @property
    def name(self) -> str:
        """The stem of the shard's tar and index, such as `pad-000000`."""
        return shard_name(self.number)


def shard_name(number: int) -> str:
    """Return the stem of the files of shard `number`, such as `pad-000000`."""
    return f"pad-{number:06d}"
