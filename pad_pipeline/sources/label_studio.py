"""Corrections from Label Studio: the tasks of `pad export label-studio`, in its export format JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pad_pipeline.errors import UserError
from pad_pipeline.sources.annotated import Shape, box, ellipse, label, mask, numbers, polygon, turned
from pad_pipeline.sources.base import read_json
from pad_pipeline.sources.brush import decode_brush
from pad_pipeline.sources.handed import Handed, HandedSource

RUN, KEY, ID = "pad_run", "pad_key", "pad_id"
"""The names in a task's `data` that identify its image."""
_REGION = re.compile(r"pad-(\d{1,9})(?:#.*)?")  # Label Studio may append the id of the annotation


def region_id(number: int) -> str:
    """Return the id in Label Studio of region `number` of an image."""
    return f"pad-{number}"


class LabelStudioSource(HandedSource):
    """The images of the tasks with a completed annotation, each with the shapes of its newest one.

    Skipped tasks and tasks without an annotation are counted and left out, so the models' regions of their images stay.

    Raises:
        UserError: the file is not such an export.
    """

    tool = "label-studio"

    def __init__(self, annotations: Path, shards: str) -> None:
        super().__init__(annotations, shards)
        self._tasks = read_json("annotations", annotations)
        if not isinstance(self._tasks, list) or not all(isinstance(task, dict) for task in self._tasks):
            raise UserError("annotations", annotations, "it is not a list of tasks", "export from Label Studio as JSON")
        if self._tasks and not any("annotations" in task for task in self._tasks):
            rule = "its tasks have no annotations"
            raise UserError("annotations", annotations, rule, "export from Label Studio as JSON, and not as JSON-MIN")

    def entries(self) -> Iterator[Handed]:
        """Yield what the newest completed annotation of each task says."""
        for number, task in enumerate(self._tasks, 1):
            where, data = f"task {task.get('id', number)}", task.get("data")
            known = [data.get(name) for name in (RUN, KEY, ID)] if isinstance(data, dict) else []
            texts = [text for text in known if isinstance(text, str)]
            if len(texts) < 3:
                self.counts.note("tasks that no `pad export` wrote, which are left out", where)
                continue
            given = task.get("annotations")
            tries = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
            completed = [one for one in tries if not one.get("was_cancelled") and isinstance(one.get("result"), list)]
            if not completed:
                kind = "skipped tasks" if tries else "tasks without a completed annotation"
                self.counts.note(f"{kind}, which are left out", where)
                continue
            newest = max(completed, key=_when)
            run, key, id = texts
            yield Handed(where, run, key, id, partial(_shapes, newest["result"]))


def _when(annotation: Mapping[str, Any]) -> tuple[str, int]:
    """Return when an annotation was changed: a time of ISO 8601 in UTC, which sorts as text; then its id."""
    time = annotation.get("updated_at") or annotation.get("created_at")
    number = annotation.get("id")
    return time if isinstance(time, str) else "", number if type(number) is int else 0


def _shapes(result: list[Any], width: int, height: int) -> Iterable[Callable[[], Shape]]:
    return (partial(_shape, item, width, height) for item in result)


def _shape(item: Any, width: int, height: int) -> Shape:
    """Return a shape of an image of a size, in pixels; Label Studio has percents of width and height."""
    if not isinstance(item, dict) or not isinstance(item.get("value"), dict):
        raise ValueError("they are no objects with a value")
    kind, value = str(item.get("type"))[:40], item["value"]
    if item.get("image_rotation"):
        raise ValueError("their image is turned in the tool")
    names = value.get(kind, value.get("labels"))
    if isinstance(names, list) and len(names) > 1:
        raise ValueError("they have several labels")
    found = label(names[0] if isinstance(names, list) and names else None) | _area(kind, value, width, height)
    exported = _REGION.fullmatch(item["id"]) if isinstance(item.get("id"), str) else None
    return found | ({"region": int(exported[1])} if exported else {})


def _area(kind: str, value: Mapping[str, Any], width: int, height: int) -> Shape:
    scale = np.array([width, height]) / 100
    if kind == "rectanglelabels":
        x, y, across, down, degrees = numbers(
            [*map(value.get, ("x", "y", "width", "height")), value.get("rotation", 0)]
        )
        (x, y), (across, down) = scale * (x, y), scale * (across, down)
        if degrees:  # around the corner at x, y
            return turned((x, y), np.array([[0, 0], [across, 0], [across, down], [0, down]]), degrees)
        return box((x, y, x + across, y + down))
    if kind == "ellipselabels":
        x, y, across, down, degrees = numbers(
            [*map(value.get, ("x", "y", "radiusX", "radiusY")), value.get("rotation", 0)]
        )
        (x, y), (across, down) = scale * (x, y), scale * (across, down)
        return ellipse(x, y, across, down, degrees)
    if kind == "polygonlabels":
        points = value.get("points")
        if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
            raise ValueError("their points are not pairs of numbers")
        found = np.array(numbers(edge for point in points for edge in point)).reshape(-1, 2)
        return polygon((found * scale).ravel().tolist())
    if kind == "brushlabels" and value.get("format") == "rle":
        return mask(decode_brush(value.get("rle"), width, height), 0, 0, width, height)
    raise ValueError(f"a {kind} is no area")
