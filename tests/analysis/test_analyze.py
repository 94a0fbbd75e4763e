"""`pad analyze` on models and shards, as a user runs it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, CLIPVisionModel

from pad_pipeline.analysis.studies import STUDIES
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.training.projector import load_projector
from pad_pipeline.workflows.learning.choices import StudyName
from tests.conftest import import_photographs

Pad = Callable[..., Any]


@pytest.fixture(scope="module")
def trained(shards: Path, models_toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of a few steps, `mm_projector.bin` and `hf/` in it."""
    from pad_pipeline.training.job import Job
    from pad_pipeline.training.settings import TrainSettings
    from pad_pipeline.workflows.learning.launch import train

    out = tmp_path_factory.mktemp("trained") / "out"
    settings = TrainSettings(steps=60, batch_size=10, micro_batch=5, learning_rate=5e-3, beta_end=5.0)
    clip, llm = models_toml.parent / "clip", models_toml.parent / "llm"
    train(Job(stage=1, shards=str(shards), vision=str(clip), llm=str(llm), out=str(out), settings=settings))
    return out


@pytest.fixture
def parts(trained: Path, models_toml: Path) -> list[object]:
    """The same model as a projector with its tower and LLM."""
    clip, llm = models_toml.parent / "clip", models_toml.parent / "llm"
    return ["--model", trained / "mm_projector.bin", "--vision", clip, "--llm", llm]


def numbers(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "analysis.json").read_text())
    return {name: found[name] for name in STUDIES if name in found}


def flat(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for entry in value.values() for number in flat(entry)]
    if isinstance(value, list):
        return [number for entry in value for number in flat(entry)]
    return [float("nan") if value is None else value] if not isinstance(value, str) else []


def test_a_model_in_every_form_gives_the_same_numbers(
    pad: Pad, trained: Path, parts: list[object], shards: Path, tmp_path: Path
) -> None:
    """A projector with its tower and LLM, the training's folder, its hf/: catches another layer, a CLS that stays,
    another normalization, words of another table. And images by ones or by sevens: catches images that mix."""
    ways: list[list[object]] = [
        parts,
        ["--model", trained],
        ["--model", trained / "hf", "--batch", 1],
        [*parts, "--batch", 7],
    ]
    found = []
    for number, way in enumerate(ways):
        done = pad("analyze", "all", *way, "--shards", shards, "--out", tmp_path / str(number), "--drawings", 2)
        assert done.code == 0, done.err
        assert "10 images" in done.out and "dH" in done.out
        found.append(numbers(tmp_path / str(number)))
        assert len(list((tmp_path / str(number)).glob("words-*.png"))) == 2
        for name in STUDIES:
            assert Image.open(tmp_path / str(number) / f"{name}.png").width > 300
    assert len(flat(found[0])) > 30
    for other in found[1:]:
        assert np.allclose(flat(found[0]), flat(other), rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("kind", ["linear", "c-abstractor", "pixel-shuffle", "lora"])
def test_every_kind_of_training_is_analysed(
    kind: str, pad: Pad, trained: Path, shards: Path, models_toml: Path, tmp_path: Path
) -> None:
    """Other projectors, and stage 2 with adapters: what is looked at is what was trained. Catches adapters that are
    left out, fewer tokens than patches, a projector that is read as another."""
    models = ["--vision", models_toml.parent / "clip", "--llm", models_toml.parent / "llm"]
    settings = tmp_path / "settings.toml"
    text = {"c-abstractor": "abstractor_tokens = 16", "lora": 'llm = "lora"'}
    settings.write_text(text.get(kind, "beta_end = 5.0") + "\n")
    command = ["train", "--shards", shards, *models, "--settings", settings, "--steps", 3, "--batch-size", 5]
    own = ["--stage", 2, "--init", trained / "mm_projector.bin"] if kind == "lora" else ["--projector", kind]
    done = pad(*command, *own, "--learning-rate", 0.01, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    options = ["--shards", shards, "--limit", 4, "--drawings", 0]
    done = pad("analyze", "all", "--model", tmp_path / "out", *options, "--out", tmp_path / "folder")
    assert done.code == 0, done.err
    found = numbers(tmp_path / "folder")
    assert 0 <= found["align"]["align"] <= 1 and np.isfinite(found["entropy"]["image"]["dH"])
    tokens = 16 if kind in ("c-abstractor", "pixel-shuffle") else 64
    assert found["entropy"]["image"]["bound_after"] == pytest.approx(np.log(tokens))
    if kind != "lora":  # whose LLM has changed too
        projector = ["--model", tmp_path / "out/mm_projector.bin", *models]
        done = pad("analyze", "all", *projector, *options, "--out", tmp_path / "file")
        assert done.code == 0, done.err
        assert np.allclose(flat(found), flat(numbers(tmp_path / "file")), rtol=1e-4, atol=1e-4, equal_nan=True)


def test_entropy_and_align_are_what_a_plain_loop_gives(
    pad: Pad, parts: list[object], shards: Path, models_toml: Path, trained: Path, tmp_path: Path
) -> None:
    """A second implementation, image by image in NumPy: catches masks or tokens in another order (x and y), a label
    that counts once per region, the wrong entropy."""
    settings = tmp_path / "s.toml"
    settings.write_text('threshold_rule = "fixed"\nthreshold = 0.1\npatches = "half"\n')
    done = pad("analyze", "all", *parts, "--shards", shards, "--out", tmp_path / "a", "--settings", settings)
    assert done.code == 0, done.err
    tower = CLIPVisionModel.from_pretrained(models_toml.parent / "clip").eval()
    llm = AutoModelForCausalLM.from_pretrained(models_toml.parent / "llm").eval()
    from transformers import AutoTokenizer

    tokenizer, table = AutoTokenizer.from_pretrained(models_toml.parent / "llm"), llm.get_input_embeddings().weight
    project = load_projector(trained / "mm_projector.bin")
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    entropies, overlaps, lens = [], [], []
    written = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.all_special_ids)
    ordinary = [number for number in range(len(tokenizer)) if number not in special]
    reader = open_shards(shards)
    for name, row in reader.rows():
        sample = reader.sample(name, row)
        image = Image.open(io.BytesIO(sample.image)).convert("RGB")
        pixels = (np.asarray(reader.run.view.apply(image, (0, 0, 0))) / 255 - mean) / std
        with torch.inference_mode():
            states = tower(torch.from_numpy(pixels.transpose(2, 0, 1)[None]).float(), output_hidden_states=True)
            patches = states.hidden_states[-2][:, 1:]
            tokens = project(patches)[0].numpy()
            begin = llm.get_input_embeddings()(torch.tensor([[tokenizer.bos_token_id]]))
            logits = llm(inputs_embeds=torch.cat([begin, project(patches)], 1)).logits[0, 1:]
        for place in np.array(ordinary)[logits[:, ordinary].argmax(-1).numpy()]:
            bare = written[place].lstrip("▁Ġ")
            lens.append(bare != written[place] and bare.isalpha() and len(bare) > 1)
        pair = []
        for vectors in (patches[0].double().numpy(), tokens.astype(float)):
            values = np.linalg.svd(vectors, compute_uv=False) ** 2
            shares = values / values.sum()
            pair.append(-(shares * np.log(shares.clip(1e-300))).sum())
        entropies.append(pair)
        targets = []
        for label in sorted({region["label"] for region in sample.meta["regions"]}):
            masks = [sample.coverage[n] for n, r in enumerate(sample.meta["regions"]) if r["label"] == label]
            shown = (np.max(masks, 0) >= 128).flatten()
            ids = tokenizer("a " + label, add_special_tokens=False)["input_ids"]
            first = len(tokenizer("a", add_special_tokens=False)["input_ids"])
            kept = [token for token in ids[first:] if tokenizer.decode([token]) != " "]
            word = table[kept].detach().mean(0).numpy().astype(np.float16).astype(float)
            targets.append((shown, word / np.linalg.norm(word)))
            found = tokens @ word / np.linalg.norm(tokens, axis=1) / np.linalg.norm(word) > 0.1
            if shown.any():
                overlaps.append((found & shown).sum() / (found | shown).sum())
        patches_shown = np.array([shown for shown, _ in targets], float)
        wanted = patches_shown.T @ np.array([word for _, word in targets]) / patches_shown.sum(0)[:, None].clip(1)
        values = np.linalg.svd(wanted, compute_uv=False) ** 2
        shares = values / values.sum()
        pair.append(-(shares * np.log(shares.clip(1e-300))).sum())
    before, after, labels = np.mean(entropies, 0)
    made = numbers(tmp_path / "a")
    assert made["entropy"]["image"]["before"] == pytest.approx(before, abs=1e-4)
    assert made["entropy"]["image"]["dH"] == pytest.approx(before - after, abs=1e-4)
    assert made["entropy"]["image"]["labels"] == pytest.approx(labels, abs=1e-4)
    assert made["lens"]["logit"]["readable"] == pytest.approx(np.mean(lens), abs=2e-3)
    assert made["align"]["pairs"] == len(overlaps)
    assert made["align"]["align"] == pytest.approx(np.mean(overlaps), abs=2e-3)


def test_entropies_stand_side_by_side_by_every_choice(
    pad: Pad, parts: list[object], shards: Path, tmp_path: Path
) -> None:
    """The paper names the measure, and leaves these choices open. Catches a centre that is taken once for all, and a
    bound or a difference in another unit than its entropies."""
    command = ["analyze", "entropy", *parts, "--shards", shards, "--drawings", 0]
    for name, settings in (("all", "every_choice = true"), ("plain", ""), ("centred", 'center = true\nunit = "bits"')):
        (tmp_path / f"{name}.toml").write_text(settings)
        assert pad(*command, "--settings", tmp_path / f"{name}.toml", "--out", tmp_path / name).code == 0
    choices, plain, centred = (numbers(tmp_path / name)["entropy"] for name in ("all", "plain", "centred"))
    sides = choices.pop("choices")
    assert choices["image"] == plain["image"] and choices["pooled"] == plain["pooled"] and len(sides) == 8
    for over in ("image", "pooled"):
        assert sides[f"{over}, nats"] == pytest.approx(plain[over])
        assert sides[f"{over}, centered, bits"] == pytest.approx(centred[over])
        for name, value in sides[f"{over}, nats"].items():
            assert sides[f"{over}, bits"][name] == pytest.approx(value / np.log(2)), name
        assert sides[f"{over}, nats"]["before"] != pytest.approx(sides[f"{over}, centered, nats"]["before"])


def test_photographs_and_a_real_language_model_give_chance(pad: Pad, models_toml: Path, tmp_path: Path) -> None:
    """A random CLIP and an untrained projector over human masks of photographs know no label: Align and its controls
    come out alike, and words are true by chance."""
    llm = import_photographs(pad, models_toml, tmp_path / "human")
    from pad_pipeline.training.projector import build_projector, save_projector

    torch.manual_seed(5)
    width = CLIPVisionModel.from_pretrained(models_toml.parent / "clip").config.hidden_size
    save_projector(build_projector("mlp", width, 64, 14, 0), tmp_path / "p.bin")
    model = ["--model", tmp_path / "p.bin", "--vision", models_toml.parent / "clip", "--llm", llm]
    settings = tmp_path / "s.toml"
    for rule, tolerance in (("argmax", 0.05), ("best", 0.03)):
        settings.write_text(f'threshold_rule = "{rule}"\n')
        what = "all" if rule == "best" else "align"
        done = pad(
            "analyze", what, *model, "--shards", tmp_path / "human", "--settings", settings, "--out", tmp_path / rule
        )
        assert done.code == 0, done.err
        found = numbers(tmp_path / rule)
        align = found["align"]
        for control in ("shuffled_labels", "shuffled_patches", "untrained_projector"):
            assert align[control] == pytest.approx(align["align"], abs=tolerance), rule
    assert align["align"] >= align["everywhere"]  # by the best threshold it never is below; by argmax it may be
    assert found["lens"]["embedding"]["precision"] < 0.15  # of 512 tokens many are letters, that stand in many labels


def test_health_has_an_exit_code(pad: Pad, parts: list[object], shards: Path, tmp_path: Path) -> None:
    """0 where no sign of failure is seen, 1 where one is; each sign by itself. Catches a check that always passes."""

    def health(text: str, *more: object) -> Any:
        (tmp_path / "s.toml").write_text(text)
        return pad("analyze", "health", *parts, "--shards", shards, "--settings", tmp_path / "s.toml", *more)

    well = health("least_align = 0.0\nmost_unreadable = 1.0\nabove_chance = 0.0\n")
    assert well.code == 0 and "No sign of failure" in well.out
    assert "Align is" in (ill := health("least_align = 1.0\nmost_unreadable = 1.0\n")).out and ill.code == 1
    assert "can't be read" in (ill := health("least_align = 0.0\nmost_unreadable = 0.0\n")).out and ill.code == 1
    assert "% by chance)" in ill.out
    low, high = tmp_path / "low.json", tmp_path / "high.json"
    for path, value in ((low, 0.2), (high, 0.3)):
        path.write_text(json.dumps({"captions": {"CIDEr": value}}))
    chance = health("least_align = 0.0\nmost_unreadable = 1.0\nabove_chance = 9.0\n")
    assert chance.code == 1 and "times the" in chance.out
    good = "least_align = 0.0\nmost_unreadable = 1.0\nabove_chance = 0.0\n"
    assert health(good, "--captions", high, "--baseline", low).code == 0
    worse = health(good, "--captions", low, "--baseline", high)
    assert worse.code == 1 and "CIDEr of captions is 0.200" in worse.out
    assert health(good, "--captions", low).code == 2


def test_a_training_looks_at_held_out_patches(
    pad: Pad, trained: Path, shards: Path, models_toml: Path, tmp_path: Path
) -> None:
    """Align and readable words of held-out images stand in the log, every so many steps, and are what the analysis
    says of the same images. Catches masks of one image with the tokens of another."""
    clip, llm = models_toml.parent / "clip", models_toml.parent / "llm"
    command = ["train", "--shards", shards, "--vision", clip, "--llm", llm, "--batch-size", 4, "--micro-batch", 3]
    (tmp_path / "all.toml").write_text("held_out = 9\nheld_out_every = 2\n")
    more = ["--init", trained / "mm_projector.bin", "--learning-rate", 1e-9, "--settings", tmp_path / "all.toml"]
    done = pad(*command, "--steps", 5, *more, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "held_out_align" in entry] == [1, 3, 4]
    # Nine of ten images were held out: the analysis of all ten is near, and that of shuffled patches is not.
    analysis = ["analyze", "align", "--model", tmp_path / "run", "--shards", shards, "--out", tmp_path / "a"]
    (tmp_path / "half.toml").write_text('patches = "half"\n')
    assert pad(*analysis, "--settings", tmp_path / "half.toml").code == 0
    align = numbers(tmp_path / "a")["align"]
    assert log[-1]["held_out_align"] == pytest.approx(align["align"], abs=0.02)
    assert log[-1]["held_out_align_shuffled"] == pytest.approx(align["shuffled_patches"], abs=0.02)
    assert align["align"] > align["shuffled_patches"] + 0.05
    assert 0 <= log[-1]["held_out_readable"] <= 1 and 0 < log[-1]["held_out_readable_by_chance"] < 1
    assert pad("analyze", "lens", "--model", tmp_path / "run", "--shards", shards, "--out", tmp_path / "l").code == 0
    lens = numbers(tmp_path / "l")["lens"]["embedding"]
    assert log[-1]["held_out_readable"] == pytest.approx(lens["readable"], abs=0.05)
    assert log[-1]["held_out_readable_by_chance"] == lens["readable_by_chance"]


def test_images_without_regions_are_looked_at_too(pad: Pad, models_toml: Path, trained: Path, tmp_path: Path) -> None:
    """A run has `empty` rows: they count for entropy, and for Align there is nothing of them. With nothing else, Align
    is a named error. Catches the reshape of no mask, which ended the analysis of a whole run."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("grey", "green"):
        Image.new("RGB", (90, 90), name).save(folder / f"{name}.png")
    names = enumerate(("grey", "green"))
    images = [{"id": number, "file_name": f"{name}.png", "width": 90, "height": 90} for number, name in names]
    square = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 40, 40], "area": 1600, "iscrowd": 0}
    square["segmentation"] = [[5, 5, 45, 5, 45, 45, 5, 45]]
    for name, regions in (("some", [square]), ("none", [])):
        coco = {"images": images, "annotations": regions, "categories": [{"id": 1, "name": "car"}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(coco))
        made = ["--annotations", tmp_path / f"{name}.json", "--images", folder, "--models", models_toml]
        assert pad("import", "coco", *made, "--view-size", 112, "--out", tmp_path / name).code == 0
    done = pad("analyze", "all", "--model", trained, "--shards", tmp_path / "some", "--out", tmp_path / "a")
    assert done.code == 0, done.err
    assert "2 images" in done.out and numbers(tmp_path / "a")["align"]["pairs"] == 1
    assert numbers(tmp_path / "a")["align"]["shuffled_labels"] is None  # there is no other label
    refused = pad("analyze", "align", "--model", trained, "--shards", tmp_path / "none")
    assert refused.code == 2 and "no image in it has a region" in refused.err
    bare = pad("analyze", "entropy", "--model", trained, "--shards", tmp_path / "none")
    assert bare.code == 0 and "No image has a caption" in bare.err


def test_what_does_not_go_together_is_told(
    pad: Pad, parts: list[object], trained: Path, shards: Path, models_toml: Path, world: Any, tmp_path: Path
) -> None:
    """Each a line with the field, the value and the remedy, and never a traceback."""

    def refused(*arguments: object) -> str:
        done = pad("analyze", "all", *arguments)
        assert done.code == 2 and "Traceback" not in done.err, done.err
        return str(done.err)

    assert "--llm" in refused("--model", trained / "mm_projector.bin", "--vision", "x", "--shards", shards)
    assert "leave them out" in refused("--model", trained, "--vision", models_toml.parent / "clip", "--shards", shards)
    assert "there is no such file or folder" in refused("--model", tmp_path / "none", "--shards", shards)
    assert "run.json" in refused(*parts, "--shards", tmp_path)
    from pad_pipeline.training.projector import build_projector, save_projector

    width = CLIPVisionModel.from_pretrained(models_toml.parent / "clip").config.hidden_size
    save_projector(build_projector("mlp", width, 24, 14, 0), tmp_path / "narrow.bin")
    narrow = ["--model", tmp_path / "narrow.bin", *parts[2:]]
    assert "tower and LLM have" in refused(*narrow, "--shards", shards)
    broken = load_projector(trained / "mm_projector.bin")
    for value, rule in ((float("nan"), "holds NaN"), (3e38, "are no numbers")):
        next(broken.parameters()).data.fill_(value)
        save_projector(broken, tmp_path / "broken.bin")
        assert rule in refused("--model", tmp_path / "broken.bin", *parts[2:], "--shards", shards)
    from pad_pipeline.geometry import View
    from pad_pipeline.sources.coco import CocoSource
    from pad_pipeline.workflows.models.settings import load_models
    from pad_pipeline.workflows.runs.build import import_coco
    from pad_pipeline.workflows.runs.options import RunOptions

    models = load_models(str(models_toml))
    source = CocoSource(world.instances, world.images, world.llava)
    import_coco(source, tmp_path / "other", models.llm, models.decode, View(size=98), RunOptions(shard_size=4))
    assert "give shards for this tower" in refused(*parts, "--shards", tmp_path / "other")
    for text, told in (("steps = 0", "steps"), ("lens_layer = 40", "layers"), ("steps = 5000", "to choose from")):
        (tmp_path / "s.toml").write_text(text + "\n")
        assert told in refused(*parts, "--shards", shards, "--settings", tmp_path / "s.toml")
    (tmp_path / "taken").write_text("")
    assert "--out" in refused(*parts, "--shards", shards, "--out", tmp_path / "taken")


def test_the_command_offers_every_study() -> None:
    """Catches a study that is in the list of studies and that nobody can ask for."""
    assert list(get_args(StudyName)) == list(STUDIES)
