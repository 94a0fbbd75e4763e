"""Settings of models and of training come from presets, files and options, and are checked."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import pytest

from pad_pipeline.errors import UserError
from pad_pipeline.labels import LabelEmbedder, LabelSettings
from pad_pipeline.miniature.files import World
from pad_pipeline.miniature.shipped import FOLDER, checked_folder
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.stages.captions import CaptionsSettings
from pad_pipeline.stages.concept import ConceptSettings
from pad_pipeline.stages.ground import DetectorSettings
from pad_pipeline.stages.segment import SegmenterSettings
from pad_pipeline.stages.settings import StageSettings
from pad_pipeline.stages.tag import TaggerSettings
from pad_pipeline.training.settings import TrainSettings
from pad_pipeline.weights import fetch_model
from pad_pipeline.workflows.models.catalog import LICENSES
from pad_pipeline.workflows.models.settings import load_models
from pad_pipeline.workflows.toml import read_settings
from tests.commands.conftest import Pad
from tests.conftest import MODEL_PAGES, ROOT


def test_the_best_preset_needs_no_agreement_and_its_licenses_are_known() -> None:
    """A preset with a gated model would end in an error for everybody without an account."""
    files = [file for one in load_models("best").annotators for file in one.files()]
    assert [file.reference for file in files][-2:] == ["iSEE-Laboratory/llmdet_large", "facebook/sam2.1-hiera-large"]
    assert all(LICENSES[file.reference] in ("Apache-2.0", "MIT") for file in files)


def test_presets_are_the_papers_models() -> None:
    one, other = (load_models(name).annotator(TaggerSettings) for name in ("paper", "plus"))
    unlike = {"family", "weights", "sha256"}
    assert (one.family, other.family) == ("ram", "ram_plus")
    assert one.model_dump(exclude=unlike) == other.model_dump(exclude=unlike)
    for models in (load_models("paper"), load_models("plus")):
        tagger, segmenter = models.annotator(TaggerSettings), models.annotator(SegmenterSettings)
        assert (tagger.embed_dim, tagger.depths) == (192, [2, 2, 18, 2])
        assert models.annotator(DetectorSettings).model == "IDEA-Research/grounding-dino-base"
        assert segmenter.weights.endswith("/sam_vit_h_4b8939.pth")
        assert models.llm.llm == "lmsys/vicuna-7b-v1.5"
        assert all(len(value) == 64 for value in (segmenter.sha256, tagger.tag_list_sha256))


def test_a_preset_can_be_changed_in_a_file(tmp_path: Path) -> None:
    """The documentation's example: sections change what they name and keep the rest of the preset."""
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/howto/models.md").read_text(), re.DOTALL)
    (tmp_path / "mine.toml").write_text(blocks[0])
    models = load_models(str(tmp_path / "mine.toml"))
    assert models.annotator(TaggerSettings) == load_models("plus").annotator(TaggerSettings)
    segmenter = models.annotator(SegmenterSettings)
    assert segmenter.weights.endswith("/sam_vit_b_01ec64.pth") and segmenter.sha256.startswith("ec2df627")
    assert (models.annotator(DetectorSettings).box_threshold, models.compute.precision) == (0.2, "auto")


@pytest.mark.parametrize("page", MODEL_PAGES, ids=lambda page: page.stem)
def test_the_examples_of_the_pages_about_models_load(page: Path, tmp_path: Path) -> None:
    """Catches a section, a setting or a value that pad does not accept, in any TOML block of these pages."""
    blocks = re.findall(r"```toml\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert bool(blocks) is (page.stem != "parity")
    for block in blocks:
        (tmp_path / "mine.toml").write_text(block, "utf-8")
        load_models(str(tmp_path / "mine.toml"))


def test_the_pages_about_models_give_the_defaults_of_the_settings() -> None:
    """Catches a default that was changed in the code alone, and a setting that is gone."""
    kinds: dict[str, type[StageSettings]] = {
        "ram": TaggerSettings, "grounding-dino": DetectorSettings, "sam": SegmenterSettings, "sam3": ConceptSettings,
        "captions": CaptionsSettings,
    }  # fmt: skip
    for name, kind in kinds.items():
        page = (ROOT / f"docs/models/{name}.md").read_text("utf-8")
        rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", page, re.MULTILINE)
        assert len(rows) > 2
        stated = {setting: tomllib.loads(f"value = {value}")["value"] for setting, value in rows}
        assert stated == {setting: kind.model_fields[setting].default for setting in stated}


def test_a_file_can_start_from_the_miniature(tmp_path: Path) -> None:
    """Catches a preset that only the command line knows, and a change that drops the other settings of its section."""
    (tmp_path / "mine.toml").write_text('preset = "miniature"\n[detector]\nbox_threshold = 0.3\n[view]\nfit = "pad"\n')
    mine, shipped = load_models(str(tmp_path / "mine.toml")), load_models("miniature")
    assert mine.annotator(TaggerSettings) == shipped.annotator(TaggerSettings)
    changed = shipped.annotator(DetectorSettings).model_copy(update={"box_threshold": 0.3})
    assert mine.annotator(DetectorSettings) == changed
    assert (mine.view.size, mine.view.patch, mine.view.fit) == (112, 8, "pad")


def test_the_miniature_has_its_name_in_python_too() -> None:
    """Catches `Job(vision="miniature")` that looks for a folder of that name."""
    assert fetch_model("vision", "miniature") == checked_folder() / "clip"
    assert fetch_model("llm", "miniature") == LabelEmbedder(LabelSettings(llm="miniature")).folder == FOLDER / "llm"


def test_a_pinned_hash_goes_with_its_file(tmp_path: Path) -> None:
    """A preset's hash was checked against the user's own file, which could then never be right."""
    (tmp_path / "mine.toml").write_text(
        'preset = "plus"\n[tagger]\nweights = "other.pth"\n[segmenter]\nweights = "facebook/sam2.1-hiera-large"\n'
        '[detector]\nmodel = "groundingdino_swint_ogc"\n'
    )
    models = load_models(str(tmp_path / "mine.toml"))
    assert (models.annotator(TaggerSettings).sha256, models.annotator(SegmenterSettings).sha256) == ("", "")
    assert models.annotator(DetectorSettings).model.startswith("hf://ShilongLiu/GroundingDINO@")
    assert len(models.annotator(DetectorSettings).sha256) == 64


def test_models_are_listed_checked_and_fetched(pad: Pad, models_toml: Path, tmp_path: Path) -> None:
    """What is right, what is missing and what is wrong, one line each; a script can tell by the exit code."""
    shown = pad("models", "list")
    assert shown.code == 0 and "sam_vit_l" in shown.out
    assert "ram_plus_swin_large_14m.pth" in shown.out and "sha256 497c178836ba" in shown.out
    missing = pad("models", "check", "plus")
    assert missing.code == 1
    assert "segmenter.weights = https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth" in missing.out
    assert "it is not on this machine; run `pad models fetch`" in missing.out
    unreachable = pad("models", "fetch", "plus")
    assert unreachable.code == 2 and "could not be fetched" in unreachable.err
    for command in ("check", "fetch"):
        right = pad("models", command, models_toml)
        assert right.code == 0, right.out
        assert right.out.count("right:") == 4 and "wrong:" not in right.out
    shutil.copytree(models_toml.parent, tmp_path / "mine")
    (tmp_path / "mine/segmenter.safetensors").write_bytes((models_toml.parent / "tagger.safetensors").read_bytes())
    (tmp_path / "mine/tags.txt").write_text("one\ntwo\n")
    wrong = pad("models", "check", tmp_path / "mine/models.toml")
    assert wrong.code == 1
    assert "its tensors look like RAM, and should be a SAM's" in wrong.out
    assert "labels, and the tag list has 2 lines" in wrong.out
    assert wrong.out.count("right:") == 2


def test_own_tag_list_and_thresholds_decide_the_tags(
    pad: Pad, common: list[object], world: World, models_toml: Path, tmp_path: Path
) -> None:
    """Another language, say: the list's words become tags and labels; thresholds of 0 and 1 turn each on or off."""
    tags = (models_toml.parent / "tags.txt").read_text().splitlines()
    (tmp_path / "tags.txt").write_text("".join(f"{tag}2\n" for tag in tags))
    (tmp_path / "thresholds.txt").write_text("0\n" + "1\n" * (len(tags) - 1))
    build = ["build", "--images", world.images, *common, "--limit", 3]
    own = ["--tag-list", tmp_path / "tags.txt", "--tag-thresholds", tmp_path / "thresholds.txt"]
    done = pad(*build, *own, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    shards = open_shards(tmp_path / "out")
    found = {tag["label"] for name, row in shards.rows() for tag in shards.sample(name, row).meta["tags"]}
    assert found == {f"{tags[0]}2"}
    (tmp_path / "short.txt").write_text("one\n")
    refused = pad(*build, "--tag-list", tmp_path / "short.txt", "--out", tmp_path / "out2")
    assert refused.code == 2 and "the tag list has 1 lines" in refused.err
    refused = pad(*build, "--tag-list", tmp_path / "none.txt", "--out", tmp_path / "out2")
    assert refused.code == 2 and "none.txt: there is no such file" in refused.err


def test_training_settings_come_from_a_file_and_options_win(tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text('steps = 7\nbatch_size = 3\n[patch_loss]\naverage = "region"\n')
    settings = read_settings(TrainSettings, tmp_path / "train.toml", {"batch_size": 5})
    assert (settings.steps, settings.batch_size, settings.patch_loss.average) == (7, 5, "region")
    assert (settings.learning_rate, settings.warmup, settings.beta_end) == (1e-3, 0.03, 5.0)
    (tmp_path / "train.toml").write_text("stepps = 7")
    with pytest.raises(UserError, match="stepps = 7: there is no such setting"):
        read_settings(TrainSettings, tmp_path / "train.toml", {})
