"""The studies `sentences` and `reliance`, compared with plain loops over transformers' own models."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionModel

from pad_pipeline.shards.reader import open_shards
from pad_pipeline.training.projector import add_place, build_projector, place_of, save_projector
from pad_pipeline.training.towers import CLIP_MEAN, CLIP_STD
from pad_pipeline.workflows.learning.analyze import table

Pad = Callable[..., Any]


class Parts:
    """A random projector with places, its tower and its LLM, and the images of a run, each as a plain loop has it."""

    def __init__(self, models_toml: Path, shards: Path, folder: Path) -> None:
        clip, llm = models_toml.parent / "clip", models_toml.parent / "llm"
        self.tower = CLIPVisionModel.from_pretrained(clip).eval()
        self.llm = AutoModelForCausalLM.from_pretrained(llm).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(llm)
        self.table = self.llm.get_input_embeddings().weight.detach()
        special = set(self.tokenizer.all_special_ids)
        self.ordinary = [token for token in range(len(self.tokenizer)) if token not in special]
        torch.manual_seed(0)
        self.projector = build_projector("mlp", self.tower.config.hidden_size, self.table.shape[1])
        self.grid = self.tower.config.image_size // self.tower.config.patch_size
        add_place(self.projector, self.grid, self.table.shape[1], 0.5, learned=False)
        save_projector(self.projector, folder / "mm_projector.bin")
        self.options = ["--model", folder / "mm_projector.bin", "--vision", clip, "--llm", llm, "--shards", shards]
        self.run = open_shards(shards)
        self.samples = [self.run.sample(*row) for row in self.run.rows()]

    def pixels(self, sample: Any) -> Tensor:
        image = Image.open(io.BytesIO(sample.image)).convert("RGB")
        view = np.asarray(self.run.run.view.apply(image, (0, 0, 0))) / 255
        return torch.from_numpy((view - np.array(CLIP_MEAN)) / np.array(CLIP_STD)).permute(2, 0, 1).float()

    @torch.inference_mode()
    def before_text(self, pixels: Tensor) -> Tensor:
        """BOS and the vision tokens with their place, `[1 + M, d]`."""
        states = self.tower(pixels[None], output_hidden_states=True).hidden_states[-2][0, 1:]
        place = place_of(self.projector)
        assert place is not None
        return torch.cat([self.table[self.tokenizer.bos_token_id][None], self.projector(states) + place])

    @torch.inference_mode()
    def states(self, sequence: Tensor) -> list[Tensor]:
        found = self.llm(inputs_embeds=sequence[None], output_hidden_states=True).hidden_states
        return [state[0] for state in found]

    def text(self, token: int) -> str:
        return str(self.tokenizer.decode([token])).strip().lower()

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def words(self, sample: Any) -> list[int]:
        return self.ids(sample.meta["caption"])


@pytest.fixture(scope="module")
def parts(models_toml: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts(models_toml, shards, tmp_path_factory.mktemp("lenses"))


def test_the_nearest_words_of_sentences_are_those_of_a_plain_loop(pad: Pad, parts: Parts, tmp_path: Path) -> None:
    """Catches an image's own caption among the sentences, layers that are mixed up, BOS taken for a word, and tokens
    without their place."""
    settings = tmp_path / "s.toml"
    settings.write_text('sentence_layers = [0, -1]\nsentences = 4\npatches = "any"\n')
    done = pad("analyze", "sentences", *parts.options, "--settings", settings, "--out", tmp_path / "a")
    assert done.code == 0, done.err
    last = int(parts.llm.config.num_hidden_layers)
    bank: list[tuple[int, int, int, np.ndarray]] = []  # image, layer, token id, state
    for number, sample in enumerate(parts.samples[:4]):
        words = parts.words(sample)
        states = parts.states(torch.cat([parts.table[[parts.tokenizer.bos_token_id]], parts.table[words]]))
        for layer in (0, last):
            for word, state in zip(words, states[layer][1:].numpy(), strict=True):
                bank.append((number, layer, word, state / np.linalg.norm(state)))
    written = json.loads((tmp_path / "a/analysis.json").read_text())["sentences"]
    assert written["words"] == len(bank) // 2 and written["sentences"] == 4
    for layer in (0, last):
        true, layers = [], []
        for number, sample in enumerate(parts.samples):
            states = parts.states(parts.before_text(parts.pixels(sample)))[layer][1:].numpy()
            labels = dict.fromkeys(region["label"] for region in sample.meta["regions"])
            names = {label: {parts.text(token) for token in parts.ids(f" {label}")} for label in labels}
            known = [one for one in bank if one[0] != number]
            vectors = np.stack([one[3] for one in known])
            for place, state in enumerate(states):
                best = known[int((vectors @ state).argmax())]
                layers.append(best[1])
                regions = zip(sample.meta["regions"], sample.coverage, strict=True)
                here = {region["label"] for region, coverage in regions if coverage.flatten()[place] > 0}
                if here:
                    word = parts.text(best[2])
                    true.append(word.isalnum() and any(word in names[label] for label in here))
        found = written[f"layer {layer}"]
        assert found["nearest_layer"] == pytest.approx(np.mean(layers), abs=1e-3)
        assert found["patches"] == len(true)
        assert found["first_true"] == pytest.approx(np.mean(true), abs=2e-3)


@torch.inference_mode()
def test_reliance_is_the_change_of_a_names_likelihood(pad: Pad, parts: Parts, tmp_path: Path) -> None:
    """For images that name one label, so that chance chooses nothing but the control. Catches a region that is blanked
    in other patches, the likelihood of other tokens, and tokens that are blanked only behind the tower."""
    settings = tmp_path / "s.toml"
    settings.write_text('patches = "any"\n')
    done = pad("analyze", "reliance", *parts.options, "--settings", settings, "--out", tmp_path / "a")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "a/analysis.json").read_text())["reliance"]
    least, most = [], []
    for sample in parts.samples:
        words, values = parts.words(sample), []
        pixels = parts.pixels(sample)
        for label in dict.fromkeys(region["label"] for region in sample.meta["regions"]):
            name = parts.ids(f" {label}")
            starts = [at for at in range(len(words) - len(name) + 1) if words[at : at + len(name)] == name]
            masks = [coverage > 0 for region, coverage in zip(sample.meta["regions"], sample.coverage, strict=True)
                     if region["label"] == label]  # fmt: skip
            shown = np.any(masks, axis=0)
            if not starts or not shown.any() or 2 * shown.sum() > shown.size:
                continue
            cell = pixels.shape[-1] // parts.grid
            hidden = torch.from_numpy(np.kron(shown, np.ones((cell, cell))) > 0)
            scores = []
            for view in (pixels, pixels.masked_fill(hidden, 0)):
                sequence = torch.cat([parts.before_text(view), parts.table[words[: starts[0] + len(name)]]])
                logits = parts.llm.lm_head(parts.states(sequence)[-1])[-len(name) - 1 : -1]
                likely = logits[range(len(name)), name] - logits[:, parts.ordinary].logsumexp(-1)
                scores.append(float(likely.mean()))
            values.append(scores)
        if values:
            least.append(np.min(values, 0))
            most.append(np.max(values, 0))
    assert found["images"] == len(least) > 3
    assert found["images"] + found["images_passed_over"] == len(parts.samples)
    for name, low, high in zip(("seen", "region_blanked"), np.mean(least, 0), np.mean(most, 0), strict=True):
        assert low - 1e-4 <= found[name] <= high + 1e-4
    assert found["drop_by_region"] == pytest.approx(found["seen"] - found["region_blanked"])
    assert 0 <= found["relies"] <= 1
    again = pad("analyze", "reliance", *parts.options, "--settings", settings, "--json", "--batch", 3)
    assert json.loads(again.out)["reliance"]["others_blanked"] == pytest.approx(found["others_blanked"], abs=1e-5)


@torch.inference_mode()
def test_patches_are_named_as_by_a_plain_loop(pad: Pad, parts: Parts, tmp_path: Path) -> None:
    """The shares of the study `words`. Catches labels of other images that are no candidates, patches that show nothing
    but count, and a share by label in which frequent ones weigh more."""
    settings = tmp_path / "s.toml"
    settings.write_text('patches = "any"\n')
    done = pad("analyze", "words", *parts.options, "--settings", settings, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)["words"]
    names = sorted({region["label"] for sample in parts.samples for region in sample.meta["regions"]})
    vectors = {region["label"]: sample.embeds[region["embedding"]].astype(np.float32)
               for sample in parts.samples for region in sample.meta["regions"]}  # fmt: skip
    table = np.stack([vectors[name] / np.linalg.norm(vectors[name]) for name in names])
    place = place_of(parts.projector)
    assert place is not None
    right, shown, hits = [], dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for sample in parts.samples:
        tokens = (parts.before_text(parts.pixels(sample))[1:] - place).numpy()
        nearest = [names[number] for number in (tokens @ table.T).argmax(1)]
        for position, name in enumerate(nearest):
            regions = zip(sample.meta["regions"], sample.coverage, strict=True)
            here = {region["label"] for region, coverage in regions if coverage.flatten()[position] > 0}
            right += [name in here] if here else []
            for label in here:
                shown[label] += 1
                hits[label] += name == label
    assert found["right"] == pytest.approx(np.mean(right), abs=2 / len(right))
    assert found["right_by_label"] == pytest.approx(np.mean([hits[one] / shown[one] for one in names]), abs=5e-3)
    assert found["by_frequency"] == max(shown.values()) / len(right)
    assert found["labels"] == len(names) and len(found["confused"]) == 5


def test_a_hostile_label_is_only_text_in_the_table() -> None:
    """A confusion of labels that look like markup of the terminal. Catches a traceback after hours of analysis."""
    shown = Console(file=io.StringIO(), width=200, record=True)
    shown.print(table({"images": 1, "words": {"right": 0.5, "confused": {"[/] named [red]x[/red]\x1b[31m": 3}}}))
    assert "[/] named [red]x[/red]\\x1b[31m" in shown.export_text()


def test_without_captions_the_other_analyses_go_on(
    pad: Pad, parts: Parts, world: Any, models_toml: Path, tmp_path: Path
) -> None:
    """Catches `pad analyze all` that fails on shards without captions, and numbers about nothing."""
    annotations = ["--annotations", world.instances, "--images", world.images]
    done = pad("import", "coco", *annotations, "--models", models_toml, "--view-size", 112, "--out", tmp_path / "bare")
    assert done.code == 0, done.err
    options = [tmp_path / "bare" if option == parts.options[-1] else option for option in parts.options]
    done = pad("analyze", "all", *options, "--out", tmp_path / "a", "--limit", 4, "--drawings", 0)
    assert done.code == 0, done.err
    assert "`sentences` has nothing to compare with" in done.err and "`reliance` is left out" in done.err
