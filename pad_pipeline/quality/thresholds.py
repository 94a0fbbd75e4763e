"""Chooses the threshold that serves a wish best, from curves of precision and recall."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Suggestion(NamedTuple):
    """The best threshold of one measure."""

    measure: str
    """One of `MEASURES` of `region_scores`."""
    threshold: float
    """Regions with at least this value stay. 0 drops nothing."""
    rates: Mapping[str, Any]
    """Precision, recall, F1 and number of regions with this threshold."""
    before: Mapping[str, Any]
    """The same without a threshold."""
    reached: bool
    """Whether the wanted precision is reached."""

    @property
    def setting(self) -> str:
        """The name of the threshold in `EditSettings`."""
        return f"min_{self.measure}"


def suggest(curves: Mapping[str, Sequence[Mapping[str, Any]]], precision: float | None = None) -> list[Suggestion]:
    """Return the best threshold of each measure, best measure first.

    Args:
        curves: measure -> points with `threshold`, `precision`, `recall`, `f1` and `regions`; the first point drops
            nothing.
        precision: the highest recall with at least this precision is the best, or the highest precision, if no
            threshold reaches it. By default the highest F1 is the best. Of equal thresholds, the lowest is.
    """
    found = []
    for measure, points in curves.items():
        known = [point for point in points if not math.isnan(point["precision"])]
        if not known:
            continue
        reached = [point for point in known if precision is not None and point["precision"] >= precision]
        if reached:
            best = max(reached, key=lambda point: point["recall"])
        else:
            what = "f1" if precision is None else "precision"
            best = max(known, key=lambda point: point[what])
        found.append(Suggestion(measure, best["threshold"], best, points[0], precision is None or bool(reached)))
    what = "f1" if precision is None else "recall"
    return sorted(found, key=lambda one: (not one.reached, -one.rates[what if one.reached else "precision"]))
