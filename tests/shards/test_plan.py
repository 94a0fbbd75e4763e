"""A plan holds every image once, in order, under a key of its own; its digest is that of its content."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_pipeline import plan as plans
from pad_pipeline.plan import PLAN_NAME, Plan, write_plan
from pad_pipeline.records import Place, Planned
from pad_pipeline.shards.keys import plain_key
from pad_pipeline.shards.seal import seal_problem
from pad_pipeline.storage import Folder
from tests.shards.builders import Listed, planned
from tests.shards.ids import IDS


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@st.composite
def id_lists(draw: st.DrawFn) -> list[str]:
    """Ids of which many are equal, or equal to what another becomes when it is numbered."""
    few = draw(st.lists(IDS, min_size=1, max_size=6))
    return draw(st.lists(st.sampled_from([*few, *(name + end for name in few for end in ("-2", "-3"))]), max_size=25))


@settings(max_examples=50, deadline=None)
@given(id_lists(), st.integers(1, 9), st.none() | st.integers(0, 35), st.sampled_from([1, 2, 5, 4096]))
def test_a_plan_holds_every_image_once_in_order_under_a_key_of_its_own(
    ids: list[str], shard_size: int, limit: int | None, group: int
) -> None:
    """Whatever ids a source has. Catches an image lost or doubled where a shard straddles two row groups, two keys that
    become one when they are made plain, cut or numbered (`x`, `x`, `x-2`), and bytes that depend on when they were
    written. A key is at most 120 bytes long; where it repeats an earlier one, `-N` comes behind that."""
    images = [
        Planned(
            name,
            f"{n}.png",
            caption=f"{n} {name}",
            conversations=[{"from": "human", "value": name}] * (n % 3),
            annotations=[{"label": name, "box": [n, 0.5, 1, None]}] * (n % 2),
        )
        for n, name in enumerate(ids)
    ]
    wanted = images[:limit]
    with TemporaryDirectory() as home, pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "GROUP", group)
        path = Path(home, "one.parquet")
        source = Listed(images)
        facts = write_plan(source, path, shard_size, "names", limit)
        again = planned(Path(home, "two.parquet"), images, shard_size, limit)
        assert (facts.digest, facts.seal) == (again.digest, again.seal)
        assert path.read_bytes() == Path(home, "two.parquet").read_bytes()
        assert seal_problem(path.read_bytes()) == ""
        assert names_in(Path(home)) == {"one.parquet", "two.parquet"}, "nothing is left beside it"

        plan = Plan(Folder(Path(home)), path.name)
        assert plan.images == facts.images == len(wanted)
        assert len(plan) == -(-len(wanted) // shard_size)
        slices = [plan.rows(number) for number in range(len(plan))]
        rows = [row for part in slices for row in part]
        assert [(row["id"], row["source"], row["caption"]) for row in rows] == [
            (one.id, one.source, one.caption) for one in wanted
        ]
        assert [(row["shard"], row["row"]) for row in rows] == [divmod(n, shard_size) for n in range(len(rows))]
        for number in reversed(range(len(plan))):  # in another order, past what is held in memory
            assert plan.rows(number) == slices[number]
            start = number * shard_size
            found = [(one.key, one.caption, one.conversations, one.annotations) for one in plan.shard(number)]
            assert found == [
                (row["key"], one.caption, one.conversations, one.annotations)
                for row, one in zip(slices[number], wanted[start : start + shard_size], strict=True)
            ]

        keys = [row["key"] for row in rows]
        assert len(set(keys)) == len(keys)
        own: set[str] = set()
        for one, key in zip(wanted, keys, strict=True):
            plain = plain_key(one.id)
            assert re.fullmatch(r"[\w-]+", plain), "no dot, no slash, nothing that a file system trips over"
            assert len(plain.encode()) <= 120
            assert re.fullmatch(re.escape(plain) + r"-([2-9]|[1-9]\d+)" if plain in own else re.escape(plain), key)
            own.add(plain)
        assert source.counts["repeated ids, kept under keys of their own"] == len(rows) - len(own)


VALUES: dict[str, st.SearchStrategy[Any]] = {
    **{name: st.text(max_size=3) for name in ("id", "source", "caption", "content_sha256", "problem")},
    "place": st.builds(Place, st.text(max_size=3), st.integers(-1, 1 << 40), st.integers(-1, 1 << 40)),
    "earlier": st.builds(Place, st.just(""), st.integers(-1, 1 << 40), st.integers(0, 1 << 40)),
    "conversations": st.lists(
        st.fixed_dictionaries({"from": st.text(max_size=2)}, optional={"value": st.text(max_size=2)}), max_size=2
    ),
    "annotations": st.lists(st.fixed_dictionaries({"label": st.text(max_size=2)}), max_size=2),
}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.builds(Planned, **VALUES), min_size=2, max_size=6), st.data())
def test_two_plans_that_differ_anywhere_have_different_digests(images: list[Planned], data: st.DataObject) -> None:
    """The digest is what a rerun knows its inputs by. Catches a column that it leaves out, values that run into one
    another (`ab`, `c` and `a`, `bc`), and an order that it does not see."""
    other = list(images)
    what = data.draw(st.sampled_from([*VALUES, "order", "end", *["shift"] * 5]))
    at = data.draw(st.integers(1, len(images) - 1))
    if what == "order":
        other = data.draw(st.permutations(images))
    elif what == "shift":  # the first letter of one value becomes the last of the value before
        images[at] = _with(other[at], caption="b" + other[at].caption)
        other[at - 1] = _with(images[at - 1], caption=images[at - 1].caption + "b")
    elif what == "end":
        other = images[:-1]
    else:
        other[at] = _with(images[at], **{what: data.draw(VALUES[what])})
    with TemporaryDirectory() as home, pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "GROUP", data.draw(st.sampled_from([4096, 2, 1])))
        size = data.draw(st.integers(1, 3))
        mine, others = (planned(Path(home, name), plan, size) for name, plan in (("1", images), ("2", other)))
    assert (mine.digest == others.digest) == (images == other)
    assert (mine.seal == others.seal) == (images == other)


def _with(one: Planned, **values: Any) -> Planned:
    return replace(one, **values)


def test_a_sampled_hash_is_that_of_the_image_with_the_key(tmp_path: Path) -> None:
    """run.json notes a few images' hashes by key. Of ids that repeat, the last image's hash stood under the key of the
    first: a change of the first was not seen, and --retry-failed refused a run in which only the last was mended."""
    images = [Planned(name, f"{n}.png") for n, name in enumerate(["x", "y", "x", "x-2", "x", "z", "y"])]
    for one in images:
        (tmp_path / one.source).write_bytes(one.source.encode())
    source = Listed(images)
    source.root = str(tmp_path)
    facts = write_plan(source, tmp_path / PLAN_NAME, 3, "sample")
    plan = Plan(Folder(tmp_path))
    sources = {row["key"]: row["source"] for number in range(len(plan)) for row in plan.rows(number)}
    assert {"x", "y", "x-2", "z"} <= facts.sample.keys() <= sources.keys()
    for key, digest in facts.sample.items():
        assert digest == hashlib.sha256(sources[key].encode()).hexdigest(), key


def test_what_a_death_leaves_of_a_plan_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies while it numbers repeated keys leaves files beside the unfinished plan. One of a name that
    `clean` does not know would stay for ever, and be uploaded and copied with the run."""
    folder, seen = Folder(tmp_path), set[str]()
    replace = Path.replace

    def look(self: Path, target: Path) -> Path:
        seen.update(names_in(tmp_path))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", look)
    with folder.commit(PLAN_NAME) as partial:
        planned(partial, [Planned("x", "1"), Planned("x", "2")], 1)
    left = seen - {PLAN_NAME}
    assert left
    for name in left:
        (tmp_path / name).write_bytes(b"of the dead")
    folder.clean()
    assert names_in(tmp_path) == {PLAN_NAME}
