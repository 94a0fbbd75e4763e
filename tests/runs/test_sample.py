"""`pad build --sample`: a random part of the images first, and all of them later, none of them twice."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pad_pipeline.errors import UserError
from pad_pipeline.miniature.files import World
from pad_pipeline.plan import Plan
from pad_pipeline.quality.extrapolate import extrapolate
from pad_pipeline.records import Place, Planned
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.sources.choose import choose
from pad_pipeline.storage import Folder
from pad_pipeline.workflows.runs.options import RunOptions

Pad = Callable[..., Any]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("pad-")}


def annotated(folder: Path, run: int = -1) -> int:
    """How many images the tagger was given in one run of the command, by default the last one."""
    return int(json.loads((folder / "metrics.jsonl").read_text().splitlines()[run])["stages"]["tag"]["images"])


def test_a_sample_then_the_whole_is_the_whole(world: World, pad: Pad, common: list[object], tmp_path: Path) -> None:
    """No image is annotated twice, and the bytes are those of one build of a list in the same order, which knows of no
    sample. Catches a second plan with another order, shards of the rest that the sample's rerun deletes, and a part of
    a shard that is annotated. One image fails, and counts in the extrapolation."""
    images = tmp_path / "images"
    shutil.copytree(world.images, images)
    (images / "scene-00002.png").write_bytes(b"no image")
    build = ["build", "--images", images, *common, "--engine", "local", "--shard-size", 3]
    out = tmp_path / "out"
    done = pad(*build, "--sample", 4, "--out", out)
    assert done.code == 0, done.err
    assert "Extrapolated from 6 images of a random sample" in done.out and f"pad report {out}" in done.out
    assert sorted(files_of(out)) == [f"pad-00000{n}.{end}" for n in (0, 1) for end in ("parquet", "tar")]
    first = files_of(out)
    assert "2 of 2 shards are finished already" in pad(*build, "--sample", 4, "--out", out).err
    shown = pad(*build, "--dry-run", "--out", out)
    assert "Extrapolated from 6 images of a random sample" in shown.out
    assert pad(*build, "--out", out).code == 0
    assert first.items() <= files_of(out).items()
    sampled = annotated(out, 0)
    assert sampled + annotated(out) == 9
    assert pad(*build, "--sample", 4, "--out", out).code == 0 and len(files_of(out)) == 8
    assert pad("verify", out, "--deep").code == 0
    plan = Plan(Folder(out))
    order = [row["source"] for number in range(len(plan)) for row in plan.rows(number)]
    assert sorted(order) == [f"scene-{n:05d}.png" for n in range(10)] != order
    (tmp_path / "list.csv").write_text("\n".join(["image,id", *(f"{name},{name[:-4]}" for name in order)]))
    listed = ["build", "--images", tmp_path / "list.csv", "--image-root", images, *build[3:]]
    assert pad(*listed, "--out", tmp_path / "whole").code == 0
    assert files_of(out) == files_of(tmp_path / "whole")


def test_a_part_of_a_sample_is_not_extrapolated(world: World, pad: Pad, common: list[object], tmp_path: Path) -> None:
    """A sample whose last shard is missing: its first shards are one end of the source. The options of a sample hold
    from Python too. Catches numbers of the first folder that stand for all."""
    build = [
        "build",
        "--images",
        world.images,
        *common,
        "--engine",
        "local",
        "--shard-size",
        3,
        "--out",
        tmp_path / "out",
    ]
    done = pad(*build, "--sample", 6, "--json")
    assert {"regions", "distinct labels"} < {one["what"] for one in json.loads(done.out)["sample"]}
    (tmp_path / "out/pad-000001.parquet").unlink()
    shown = pad(*build, "--dry-run")
    assert shown.code == 0 and "Extrapolated" not in shown.out
    for other in ({"part": "1/2"}, {"limit": 4}, {"fork": "elsewhere"}):
        with pytest.raises(UserError, match="drawn from all images"):
            RunOptions(sample=4, **other)  # type: ignore[arg-type]


def test_a_run_has_one_sample(world: World, pad: Pad, common: list[object], tmp_path: Path) -> None:
    """Another sample, or a sample of a run that has none, is refused; so is a sample of the first images. Catches a
    finished shard that stands for other images after the plan was made again."""
    build = ["build", "--images", world.images, *common, "--engine", "local", "--shard-size", 5]
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert pad(*build, "--sample", 5, "--out", out).code == 0
    for other in (["--sample", 6], ["--sample", 5, "--sample-seed", 1]):
        assert "was begun with a sample of 5 images and the seed 0" in pad(*build, *other, "--out", out).err
    assert pad(*build, "--part", "1/2", "--out", whole).code == 0
    assert "was begun without a sample" in pad(*build, "--sample", 5, "--out", whole).err
    for with_it in (["--part", "1/2"], ["--limit", 8]):
        assert f"so it can't go with {with_it[0]}" in pad(*build, "--sample", 5, *with_it, "--out", out).err
    assert pad(*build, "--fingerprint", "kept", "--out", out).code == 0
    assert pad("verify", out, "--deep").code == 0 and open_shards(out).run.sample == 5


@pytest.mark.parametrize("number", [10, 100, 5000])
def test_a_sample_is_spread_over_folders_and_sizes(number: int) -> None:
    """Each folder and size has its share, to within one image, and each image the same chance. Catches a sample of the
    first images, and one that leaves out small folders in every seed."""
    images = [
        Planned(str(n), f"{'large' if n % 4 else 'small'}/{n}.jpg", place=Place("", -1, 10**4 if n % 2 else 10**6))
        for n in range(1000)
    ] + [Planned("rare", "rare/1.jpg", place=Place("", -1, 500))]
    times: Counter[int] = Counter()
    for seed in range(200 if number < 1000 else 1):
        chosen = choose(images, "", number, seed)
        assert len(set(chosen.tolist())) == len(chosen) == min(number, 1001)
        assert np.all(np.diff(chosen) > 0)
        groups = Counter((images[n].source[:5], images[n].place[2]) for n in chosen.tolist())
        for group, count in Counter((one.source[:5], one.place[2]) for one in images).items():
            assert abs(groups[group] - len(chosen) * count / 1001) < 1, (seed, group)
        times.update(chosen.tolist())
    if number < 1000:
        assert abs(times[1000] - 200 * number / 1001) < 4 * (200 * number / 1001) ** 0.5 + 1
        assert choose(images, "", number, 1).tolist() != choose(images, "", number, 2).tolist()
        assert choose(images, "", number, 1).tolist() == choose(images, "", number, 1).tolist()


def test_what_is_extrapolated_holds_for_all(models_toml: Path, tmp_path: Path) -> None:
    """Samples of 16 of 64 scenes: the true numbers of regions, bytes and labels are in 7 of 8 intervals or more.
    Catches a mean that is not scaled, and intervals that are too narrow."""
    from pad_pipeline.geometry import View
    from pad_pipeline.miniature.files import write_world
    from pad_pipeline.sources.coco import CocoSource
    from pad_pipeline.workflows.models.settings import load_models
    from pad_pipeline.workflows.runs.build import import_coco
    from pad_pipeline.workflows.runs.options import RunOptions

    models, world = load_models(str(models_toml)), write_world(tmp_path / "world", 64, 9)

    def run(name: str, **options: int) -> Any:
        source = CocoSource(world.instances, world.images)
        import_coco(source, tmp_path / name, models.llm, models.decode, View(size=112), RunOptions(**options))  # type: ignore[arg-type]
        return open_shards(tmp_path / name)

    whole = run("whole")
    regions = [region for name, row in whole.rows() for region in whole.sample(name, row).meta["regions"]]
    truth = {
        "images": 64, "failed images": 0, "regions": len(regions),
        "distinct labels": len({region["label"] for region in regions}),
        "bytes of shards": sum(path.stat().st_size for path in (tmp_path / "whole").glob("*.tar")),
    }  # fmt: skip
    hits: Counter[str] = Counter()
    for seed in range(8):
        found = {one.what: one for one in extrapolate(run(f"{seed}", sample=16, sample_seed=seed, shard_size=16))[1]}
        for what, value in truth.items():
            one = found[what]
            hits[what] += one.low <= value <= one.high
            assert one.low <= one.value <= one.high
    assert min(hits[what] for what in truth) >= 7, hits
