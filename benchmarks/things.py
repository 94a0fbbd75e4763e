"""How often classifiers of the miniature's patches name a thing, by the number of scenes that they learned from:
`python -m benchmarks.things --scenes 384 2000 8000`. It takes ten minutes on a CPU core, most of it for 8,000 scenes.

A projector learns from some scenes to say what a patch shows, and is scored on others. Here, two classifiers learn that
alone, from exact labels: a linear one over the labels, and the projector's own MLP, whose output is compared with the
labels' word embeddings, as `pad analyze words` does. Their scores on held-out scenes show what can be learned from so
many scenes, and those on their own scenes how much is learned by heart.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.annotate import commit
from pad_pipeline.analysis.model import Subject
from pad_pipeline.geometry import View
from pad_pipeline.miniature.kinds import THINGS
from pad_pipeline.miniature.shipped import member_reference
from pad_pipeline.miniature.world import LABELS, Scene, draw_scene
from pad_pipeline.training.projector import build_projector, save_projector
from pad_pipeline.workflows.miniature.truth import score_names, single_labels

VIEW = View(size=112, patch=8)
HELD_OUT = 100
"""Number of held-out scenes, of the world of seed 1, as in `make paper`. As many of the first scenes that a classifier
learned from are scored too."""
STEPS, BATCH, RATE = 2000, 4096, 3e-3
TEMPERATURE = 0.07
"""Of the cosines between tokens and words, as in the objective `aligned`."""
KINDS = ("linear", "projector")
BALANCES = ("all patches", "half of them things")


class Patches(NamedTuple):
    """Scenes as their patches."""

    scenes: list[Scene]
    """The first `HELD_OUT` of them."""
    states: Tensor
    """What a projector reads, `[scenes, patches, channels]`."""
    labels: Tensor
    """The label that each patch alone shows, int64 `[scenes, patches]`; -1 for several."""


def load_tower() -> Subject:
    """Return the miniature's tower and LLM."""
    tower, llm = member_reference("miniature", "clip"), member_reference("miniature", "llm")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mm_projector.bin"  # one is needed, and not used
        save_projector(build_projector("mlp", 128, 128), path)
        return Subject(path, tower, llm)


@torch.inference_mode()
def patches(subject: Subject, world: int, count: int) -> Patches:
    """Draw scenes, and encode them."""
    preprocessor = subject.preprocessor(VIEW)
    scenes: list[Scene] = []
    states, labels = [], []
    for start in range(0, count, 32):
        part = [draw_scene(world, index) for index in range(start, min(count, start + 32))]
        states.append(
            subject.encode_images(torch.stack([preprocessor.normalized(one.image) for one in part]))[0].float()
        )
        labels += [single_labels(scene, VIEW) for scene in part]
        scenes += part[: HELD_OUT - len(scenes)]
    return Patches(scenes, torch.cat(states), torch.from_numpy(np.stack(labels)))


def learn(kind: str, balance: str, known: Patches, words: Tensor, seed: int) -> nn.Module:
    """Train a classifier on patches that show a single label; return it as a module from states to logits."""
    torch.manual_seed(seed)
    states, labels = known.states.flatten(0, 1), known.labels.flatten()
    single = (labels >= 0).nonzero()[:, 0]
    of_thing = labels[single] < len(THINGS)
    groups = [single[of_thing], single[~of_thing]] if balance == BALANCES[1] else [single]
    net = Linear(states.shape[-1]) if kind == "linear" else ByWords(states.shape[-1], words)
    optimizer = torch.optim.AdamW(net.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    for _ in range(STEPS):
        drawn = torch.cat([group[torch.randint(len(group), (BATCH // len(groups),))] for group in groups])
        loss = F.cross_entropy(net(states[drawn]), labels[drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net


class Linear(nn.Linear):
    """A linear classifier."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, len(LABELS))


class ByWords(nn.Module):
    """A projector, and the cosines of its tokens with the labels' word embeddings."""

    def __init__(self, channels: int, words: Tensor) -> None:
        super().__init__()
        self.projector, self.words = build_projector("mlp", channels, words.shape[1]), F.normalize(words, dim=-1)

    def forward(self, states: Tensor) -> Tensor:
        """Return logits over the labels."""
        return F.normalize(self.projector(states), dim=-1) @ self.words.T / TEMPERATURE


@torch.inference_mode()
def things(net: nn.Module, seen: Patches) -> float:
    """Return the share of the patches of things that are named right, see `LabelAccuracy`."""
    names = net(seen.states[: len(seen.scenes)]).argmax(-1).numpy()
    return score_names(names, seen.scenes, VIEW).things


def main() -> None:
    """Measure, print a line for each classifier, and write a JSON if wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, nargs="+", default=[384, 2000, 8000])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a JSON")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    subject = load_tower()
    words = subject.embed(list(LABELS)).float()
    held, known = patches(subject, 1, HELD_OUT), patches(subject, 0, max(asked.scenes))
    rows = []
    for count in asked.scenes:
        part = Patches(known.scenes[:count], known.states[:count], known.labels[:count])
        for kind, balance in ((kind, balance) for kind in KINDS for balance in BALANCES):
            nets = [learn(kind, balance, part, words, seed) for seed in range(asked.seeds)]
            row = {"scenes": count, "classifier": kind, "learns from": balance}
            scores = {"held-out things": [things(net, held) for net in nets]}
            rows.append(row | scores | {"things of its own scenes": [things(net, part) for net in nets]})
            print(rows[-1], flush=True)
    if asked.out:
        command = f"python -m benchmarks.things --scenes {' '.join(map(str, asked.scenes))} --seeds {asked.seeds}"
        made = {"date": str(date.today()), "machine": "one CPU core", "commit": commit(), "command": command}
        asked.out.write_text(json.dumps(made | {"rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
