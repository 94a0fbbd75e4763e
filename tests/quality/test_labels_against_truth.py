"""`pad evaluate labels --truth`: numbers that others give too, faults that are put in on purpose, and bad input."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pad_pipeline.evaluation.boxes import iou
from pad_pipeline.miniature.files import index_of, write_world
from pad_pipeline.miniature.kinds import PARTS, THINGS
from pad_pipeline.miniature.score import score_shards
from pad_pipeline.miniature.world import LABELS, draw_scene
from pad_pipeline.records import ImageRecord, Region, Tag, as_box
from tests.changed_run import changed_run

Pad = Callable[..., Any]
SEED = 5


@pytest.fixture(scope="module")
def human(models_toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exact regions of 40 scenes, as people would have drawn them."""
    from pad_pipeline.geometry import View
    from pad_pipeline.sources.coco import CocoSource
    from pad_pipeline.workflows.models.settings import load_models
    from pad_pipeline.workflows.runs.build import import_coco
    from pad_pipeline.workflows.runs.options import RunOptions

    folder = tmp_path_factory.mktemp("human")
    world, models = write_world(folder / "world", 40, SEED), load_models(str(models_toml))
    source = CocoSource(world.instances, world.images)
    import_coco(source, folder / "out", models.llm, models.decode, View(size=112), RunOptions(shard_size=8))
    return folder / "out"


def mask_of(region: Region) -> np.ndarray:
    mask: np.ndarray = coco_mask.decode(region.rle)
    return mask


def set_mask(region: Region, mask: np.ndarray) -> None:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    region.rle = {"size": rle["size"], "counts": rle["counts"].decode()}


def noisy(seed: int) -> Callable[[ImageRecord], None]:
    """Scores that differ, boxes that are a little off, false and double regions: what a detector gives."""
    rng = Random(seed)

    def change(record: ImageRecord) -> None:
        for region in record.regions:
            x0, y0, x1, y1 = region.box
            dx, dy = (x1 - x0) * rng.uniform(-0.4, 0.4), (y1 - y0) * rng.uniform(-0.4, 0.4)
            region.box = as_box((x0 + dx, y0 + dy, x1 + dx, y1 + dy))
            set_mask(region, np.roll(mask_of(region), (round(dy), round(dx)), (0, 1)))
            region.score = region.label_score = round(rng.uniform(0.2, 1), 2)
            if rng.random() < 0.15:
                region.label = rng.choice(LABELS)
        record.regions = [one for one in record.regions if rng.random() > 0.1]
        record.regions += [Region(**vars(one) | {"score": 0.3}) for one in record.regions if rng.random() < 0.2]
        record.regions.sort(key=lambda region: -region.score)
        record.tags = [Tag(name, 1.0, ["tagger"]) for name in dict.fromkeys(region.label for region in record.regions)]

    return change


def scores(pad: Pad, found: Path, truth: Path, *more: object) -> dict[str, Any]:
    done = pad("evaluate", "labels", "--shards", found, "--truth", truth, *more, "--json")
    assert done.code == 0, done.err
    result: dict[str, Any] = json.loads(done.out)
    return result


def coco_of(run: Path, pad: Pad, out: Path) -> tuple[dict[str, Any], dict[int, str]]:
    """The exported COCO JSON, and the names of its categories by number."""
    assert pad("export", "coco", run, "--out", out).code == 0
    data = json.loads((out / "instances.json").read_text())
    return data, {entry["id"]: entry["name"] for entry in data["categories"]}


@pytest.mark.parametrize("crowds", [False, True])
def test_averages_are_those_of_pycocotools(human: Path, pad: Pad, tmp_path: Path, crowds: bool) -> None:
    """AP, AP50, AR and matches at IoU 0.5 of boxes and masks, to 1e-12. Catches another rule of matching, crowds that
    count as misses, and images or categories that are left out."""
    rng = Random(3)

    def some_crowds(record: ImageRecord) -> None:
        for region in record.regions:
            region.crowd = crowds and rng.random() < 0.2

    truth = changed_run(human, tmp_path / "truth", some_crowds)
    run = changed_run(human, tmp_path / "run", noisy(1))
    result = scores(pad, run, truth)
    true, names = coco_of(truth, pad, tmp_path / "true")
    found, found_names = coco_of(run, pad, tmp_path / "found")
    numbers = {name: number for number, name in names.items()}
    images = {entry["file_name"]: entry["id"] for entry in true["images"]}
    files = {entry["id"]: entry["file_name"] for entry in found["images"]}
    assert images.keys() == set(files.values())
    truths, detections = COCO(), COCO()
    truths.dataset = true
    truths.createIndex()
    detections.dataset = {
        "images": true["images"], "categories": true["categories"],
        "annotations": [
            one | {"image_id": images[files[one["image_id"]]], "category_id": numbers[found_names[one["category_id"]]]}
            for one in found["annotations"] if found_names[one["category_id"]] in numbers
        ],
    }  # fmt: skip
    detections.createIndex()
    for kind, title in (("bbox", "boxes"), ("segm", "masks")):
        theirs = COCOeval(truths, detections, kind)
        theirs.params.maxDets = [1, 10, 1000]
        theirs.evaluate()
        theirs.accumulate()
        precision, recall = theirs.eval["precision"][:, :, :, 0, 2], theirs.eval["recall"][:, :, 0, 2]
        expected = [
            precision[precision > -1].mean(),
            precision[0][precision[0] > -1].mean(),
            recall[recall > -1].mean(),
        ]
        assert [result[title][name] for name in ("AP", "AP50", "AR")] == pytest.approx(expected, abs=1e-12)
        whole = [one for one in theirs.evalImgs if one and one["aRng"] == [0, 1e10]]
        hits = sum(int(((one["dtMatches"][0] > 0) & ~one["dtIgnore"][0]).sum()) for one in whole)
        assert result[title]["right"] == hits and 0 < hits < result[title]["true"]


def test_the_numbers_are_those_of_the_miniature(human: Path, pad: Pad, tmp_path: Path) -> None:
    """A run over drawn scenes scored against imported regions, and by `pad miniature evaluate` against the scenes
    themselves. Catches a second truth that differs from the first."""
    run = changed_run(human, tmp_path / "run", noisy(2))
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    result = scores(pad, run, human, "--categories", tmp_path / "labels.txt")
    known = score_shards(run, lambda key: draw_scene(SEED, index_of(key)))
    assert result["tags"]["f1"] == known.tag_f1
    for labels, counts in ((THINGS, known.things), (PARTS, known.parts)):
        groups = [group["boxes"] for name, group in result["by label"].items() if name in labels]
        assert [sum(group[name] for group in groups) for name in ("right", "found", "true")] == [
            counts.matched, counts.found, counts.true
        ]  # fmt: skip
    things = [
        group["pairs"] for name, group in result["by label"].items() if name in THINGS and group["pairs"]["number"]
    ]
    number = sum(pairs["number"] for pairs in things)
    assert sum(pairs["number"] * pairs["mask IoU"] for pairs in things) / number == pytest.approx(
        known.mask_iou, abs=1e-12
    )
    lost = sum(group["true regions"]["not tagged"] for name, group in result["by label"].items() if name in THINGS)
    assert lost <= known.things.true - known.things_tagged  # a thing that was found is not lost by the tagger


def test_each_fault_is_blamed_on_its_step(human: Path, pad: Pad, tmp_path: Path) -> None:
    """A tenth of the regions each: tag dropped, box moved away, label swapped, mask eroded; one image failed. Catches a
    waterfall that blames another step, or that does not sum to all regions."""
    rng, put_in = Random(7), dict.fromkeys(("image failed", "not tagged", "no box", "another label", "poor mask"), 0)

    def break_some(record: ImageRecord) -> None:
        if record.id == "scene-00004":
            put_in["image failed"] += len(record.regions)
            record.fail("tag", "on purpose")
            return
        labels = [region.label for region in record.regions]
        kept = []
        for number, region in enumerate(record.regions):
            width, height = record.width, record.height
            alone = labels.count(region.label) == 1
            near = max((iou(region.box, o.box) for k, o in enumerate(record.regions) if k != number), default=0.0)
            fault = rng.choice(["tag", "box", "label", "mask"]) if rng.random() < 0.4 else ""
            if not alone or near >= 0.4:  # a fault of it could be mended by another region
                fault = ""
            if fault == "tag":
                record.tags = [tag for tag in record.tags if tag.label != region.label]
                put_in["not tagged"] += 1
                continue
            if fault == "box":
                x0, y0, x1, y1 = region.box
                if x1 - x0 > width / 3 or y1 - y0 > height / 3:  # it would still overlap
                    kept.append(region)
                    continue
                left = 0.0 if x0 > width / 2 else width - (x1 - x0)
                region.box = as_box((left, y0, left + x1 - x0, y1))
                put_in["no box"] += 1
            elif fault == "label":
                region.label = "a label of nobody"
                put_in["another label"] += 1
            elif fault == "mask":
                mask = mask_of(region)
                rows = np.flatnonzero(mask.any(1))
                mask[rows[0] : rows[0] + int(0.7 * len(rows))] = 0
                if mask.sum() * 2 < mask_of(region).sum():
                    put_in["poor mask"] += 1
                set_mask(region, mask)
            kept.append(region)
        record.regions = kept

    run = changed_run(human, tmp_path / "run", break_some)
    result = scores(pad, run, human)
    blamed = dict(result["true regions"])
    assert min(put_in.values()) > 5
    assert sum(blamed.values()) == result["boxes"]["true"]
    blamed.pop("found")
    for fate, number in put_in.items():
        assert abs(blamed[fate] - number) <= 0.1 * number, (blamed, put_in)
    assert result["found regions"]["no category"] == put_in["another label"]
    assert result["names"]["without a category"] == {"a label of nobody": put_in["another label"]}


@pytest.mark.parametrize("precision", [None, 0.9])
def test_the_suggested_threshold_is_the_best_one(
    human: Path, pad: Pad, tmp_path: Path, precision: float | None
) -> None:
    """False regions with low scores, and true ones with high ones: the suggestion is applied by `pad retarget`, and
    what is written then has the numbers that were promised; no threshold that is tried does better. Catches a curve
    that counts other regions than the threshold keeps."""
    rng = Random(11)

    def doubt(record: ImageRecord) -> None:
        record.regions = record.regions[:6]
        for region in record.regions:
            region.score = rng.betavariate(6, 3)
        for region in [*record.regions]:
            false = Region(**vars(region) | {"score": rng.betavariate(3, 5), "label": rng.choice(LABELS)})
            record.regions.append(false)
        record.regions.sort(key=lambda region: -region.score)

    run = changed_run(human, tmp_path / "run", doubt)
    wish = [] if precision is None else ["--precision", precision]
    best = next(one for one in scores(pad, run, human, *wish)["suggestions"] if one["setting"] == "min_score")

    def masks_at(threshold: float) -> dict[str, Any]:
        def cut(record: ImageRecord) -> None:
            record.regions = [region for region in record.regions if region.score >= threshold]

        masks: dict[str, Any] = scores(pad, changed_run(run, tmp_path / f"{threshold:.2f}", cut), human)["masks"]
        return masks

    assert pad("retarget", run, "--min-score", best["threshold"], "--out", tmp_path / "chosen").code == 0
    applied = scores(pad, tmp_path / "chosen", human)["masks"]
    for name in ("precision", "recall", "f1"):
        assert applied[name] == pytest.approx(best[name], abs=1e-12)
    tried = [masks_at(step / 20) for step in range(2, 18, 3)]
    if precision is None:
        assert best["f1"] >= max(masks["f1"] for masks in tried)
    else:
        assert best["precision"] >= precision
        assert best["recall"] >= max(masks["recall"] for masks in tried if masks["precision"] >= precision)


def test_all_of_it_is_shown_and_the_line_works(human: Path, pad: Pad, tmp_path: Path) -> None:
    """The tables, and a `pad retarget` line that a shell takes as it stands. Catches a folder's name that breaks it."""
    run = changed_run(human, tmp_path / "my run; echo", noisy(4))
    done = pad("evaluate", "labels", "--shards", run, "--truth", human, "--top", 3)
    assert done.code == 0, done.err
    for part in ("What is right", "What became of what people labeled", "By size", "By score", "more categories"):
        assert part in done.out
    line = done.out.strip().splitlines()[-1]
    command = shlex.split(line)
    assert command[:3] == ["pad", "retarget", str(run)]
    assert pad(*command[1:]).code == 0


def test_other_names_find_their_categories(human: Path, pad: Pad, tmp_path: Path) -> None:
    """Plurals, capitals, a map, and WordNet's files in their own format; what has no category is listed. Catches a
    label that counts as wrong though nobody looked for it."""
    from pad_pipeline.shards.reader import open_shards

    shards = open_shards(human)
    thing = next(
        region["label"] for name, row in shards.rows() for region in shards.sample(name, row).meta["regions"]
        if region["label"] in THINGS
    )  # fmt: skip
    license_, entries = b"  1 This is a license line.\n", ((f"00000029 05 n 01 {thing} 0 000 | what it is\n").encode())
    entries = license_ + entries
    lower = b"%08d 05 n 02 pup 0 little_one 0 001 @ 00000029 n 0000 | a young one\n" % len(entries)
    (tmp_path / "data.noun").write_bytes(entries + lower)
    (tmp_path / "index.noun").write_bytes(
        license_ + f"{thing} n 1 0 1 0 00000029\nlittle_one n 1 1 @ 1 0 {len(entries):08d}\n".encode()
    )
    (tmp_path / "map.json").write_text(json.dumps({"that one there": thing, "mist": ""}))
    forms = cycle([f"{thing.upper()}S", "that one there", "little_one", "mist", "nothing of the kind"])

    def rename(record: ImageRecord) -> None:
        for region in record.regions:
            region.label = next(forms) if region.label in THINGS else region.label

    run = changed_run(human, tmp_path / "run", rename)
    more = ["--label-map", tmp_path / "map.json", "--wordnet", tmp_path]
    names = scores(pad, run, human, *more)["names"]
    assert names["mapped"]["plural"] == {f"{thing.upper()}S": thing}
    assert names["mapped"]["map"] == {"that one there": thing}
    assert names["mapped"]["wordnet"] == {"little_one": thing}
    assert set(names["without a category"]) == {"mist", "nothing of the kind"}
    text = tmp_path / "all.txt"
    text.write_text("nothing of the kind\n")
    assert set(scores(pad, run, human, "--categories", text)["names"]["without a category"]) > {"mist"}
    assert "nothing of the kind" in scores(pad, run, human, "--categories", text)["by label"]


def test_mistakes_are_named(human: Path, pad: Pad, tmp_path: Path) -> None:
    """Truth over other images, no truth at all, broken WordNet. Catches an empty table that looks like a result."""

    def rename(record: ImageRecord) -> None:
        record.id = record.source = record.key = f"other-{record.key}"

    other = changed_run(human, tmp_path / "other", rename)
    empty = changed_run(human, tmp_path / "empty", lambda record: record.regions.clear())
    (tmp_path / "index.noun").write_text("no wordnet\n")
    (tmp_path / "data.noun").write_text("")
    for options, said in (
        (["--truth", other], "it has no image in common with the shards"),
        (["--truth", empty], "no image in it has a region"),
        ([], "neither --truth nor --verdicts is given"),
        (["--truth", human, "--wordnet", tmp_path], "it is no database of WordNet"),
        (["--truth", human, "--categories", tmp_path / "none.txt"], "it can't be read"),
        (["--truth", tmp_path / "nowhere"], "--truth"),
    ):
        done = pad("evaluate", "labels", "--shards", human, *options)
        assert done.code == 2 and said in done.err, done.err

    def smaller(record: ImageRecord) -> None:
        if record.id == "scene-00003":
            record.width += 1
            record.regions.clear()

    done = pad("evaluate", "labels", "--shards", human, "--truth", changed_run(human, tmp_path / "size", smaller))
    assert "1 images are not compared: of another size in the truth (scene-00003)" in done.err.replace("\n", " ")
    assert "39 images are compared" in done.out


def test_images_without_regions_count(human: Path, pad: Pad, tmp_path: Path) -> None:
    """On either side, on both, and with crowds alone. Catches a crash at the first empty image of COCO, and regions of
    an image without truth that are left out of the precision."""

    def emptied(wanted: set[int]) -> Callable[[ImageRecord], None]:
        def change(record: ImageRecord) -> None:
            number = int(record.id[-5:])
            if number in wanted:
                record.regions = []
            if number == 9:
                for region in record.regions:
                    region.crowd = True

        return change

    truth = changed_run(human, tmp_path / "truth", emptied({1, 2}))
    run = changed_run(human, tmp_path / "run", emptied({2, 3}))
    result, whole = scores(pad, run, truth), scores(pad, human, human)
    regions = {n: len(r) for n, r in enumerate(regions_of(human))}
    assert result["found regions"]["on nothing"] == regions[1]
    assert result["found regions"]["of a crowd"] == regions[9]
    assert result["boxes"]["true"] == whole["boxes"]["true"] - regions[1] - regions[2] - regions[9]
    assert result["true regions"]["no box"] == regions[3]  # its tags are still there


def regions_of(run: Path) -> list[list[Any]]:
    from pad_pipeline.shards.reader import open_shards

    shards = open_shards(run)
    return [shards.sample(name, row).meta["regions"] for name, row in shards.rows()]


def test_images_with_the_same_name_are_not_mixed_up(human: Path, pad: Pad, tmp_path: Path) -> None:
    """Ids that two folders share, and sources that tell which is which; and names that say nothing. Catches an image
    that is compared with the truth of another."""

    def twice(record: ImageRecord) -> None:
        number = int(record.id[-5:])
        record.id, record.source = str(number // 2), f"{'train' if number % 2 else 'val'}/{number // 2}.png"

    def half(record: ImageRecord) -> None:
        twice(record)
        record.key = f"other-{record.key}"
        if record.source.startswith("train"):
            record.fail("decode", "on purpose")

    run = changed_run(human, tmp_path / "run", twice)
    result = scores(pad, run, changed_run(human, tmp_path / "truth", half))
    assert result["images"]["found by"] == "source" and result["images"]["compared"] == 20
    assert result["boxes"]["precision"] == result["boxes"]["recall"] == 1

    def nameless(record: ImageRecord) -> None:
        record.id, record.source, record.key = "1", "x.png", f"other-{record.key}"

    done = pad("evaluate", "labels", "--shards", human, "--truth", changed_run(human, tmp_path / "same", nameless))
    assert done.code == 2 and "no image in common" in done.err


def test_a_label_that_is_a_category_stays_itself(human: Path, pad: Pad, tmp_path: Path) -> None:
    """Also beside one that differs in its capitals. Catches a perfect run that is found wrong."""
    flags = cycle([True, False])

    def capitals(record: ImageRecord) -> None:
        for region in record.regions:
            region.label = region.label.upper() if next(flags) else region.label

    run = changed_run(human, tmp_path / "run", capitals)
    assert scores(pad, run, run)["boxes"]["precision"] == 1
    (tmp_path / "map.json").write_text(json.dumps({"that": "no category"}))
    done = pad("evaluate", "labels", "--shards", run, "--truth", run, "--label-map", tmp_path / "map.json")
    assert done.code == 2 and "it names categories that there are not: no category" in done.err
