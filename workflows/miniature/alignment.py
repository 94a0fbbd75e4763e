"""How often a projected image token is nearest to the word embedding of what its patch shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPVisionModel

from pad_pipeline.geometry import View
from pad_pipeline.labels import LabelEmbedder, LabelSettings
from pad_pipeline.miniature.kinds import THINGS
from pad_pipeline.miniature.world import LABELS, Scene
from pad_pipeline.pretrained import load_pretrained
from pad_pipeline.training.model import normalization
from pad_pipeline.training.projector import load_projector
from pad_pipeline.weights import fetch_model


def single_labels(scene: Scene, view: View) -> np.ndarray:
    """The label of each patch that just one label is true of, as its place in `LABELS`; -1 elsewhere.

    Returns:
        int `[grid * grid]`. Every pixel belongs to a thing or to stuff, so such a patch shows nothing else.
    """
    covered = np.zeros((len(LABELS), view.grid * view.grid), bool)
    for region in scene.regions:
        covered[LABELS.index(region.label)] |= view.coverage(region.mask).flatten() > 0
    return np.where(covered.sum(0) == 1, covered.argmax(0), -1)


@torch.inference_mode()
def label_accuracy(
    vision: str, llm: str, projector: Path, scenes: list[Scene], view: View, vision_layer: int = -2
) -> tuple[float, float]:
    """Over the single-label patches of scenes: the share of tokens whose nearest label embedding (cosine, among all
    labels of the world) is that of the patch's label; over all patches, and over those that show a thing.

    Args:
        vision: the vision tower: folder or hub name.
        llm: the LLM, likewise.
        projector: `mm_projector.bin`.
        scenes: with their truth.
        view: of the tower.
        vision_layer: hidden state that is projected.
    """
    folder = fetch_model("vision", vision)
    tower = load_pretrained("vision", folder, CLIPVisionModel, torch.float32)
    project = load_projector(projector).eval()
    words = F.normalize(torch.from_numpy(LabelEmbedder(LabelSettings(llm=llm))(list(LABELS))).float(), dim=-1)
    mean, std = normalization(folder)
    right, shown = [], []
    for start in range(0, len(scenes), 32):
        part = scenes[start : start + 32]
        pixels = np.stack([np.asarray(view.apply(scene.image, (0, 0, 0)), np.float32) / 255 for scene in part])
        pixels = ((pixels - np.array(mean)) / np.array(std)).astype(np.float32).transpose(0, 3, 1, 2)
        states = tower(torch.from_numpy(np.ascontiguousarray(pixels)), output_hidden_states=True).hidden_states
        tokens = F.normalize(project(states[vision_layer][:, 1:]), dim=-1)
        nearest = (tokens @ words.t()).argmax(-1)
        truth = torch.from_numpy(np.stack([single_labels(scene, view) for scene in part]))
        right.append((nearest == truth)[truth >= 0])
        shown.append(truth[truth >= 0])
    hits, labels = torch.cat(right).float(), torch.cat(shown)
    things = labels < len(THINGS)  # they come first in LABELS
    return float(hits.mean()), float(hits[things].mean())
