"""The small RAM: tags of whole images, learned together with what each place of the image shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from examples.miniature.recipe import TRAIN_WORLD, VALIDATION_WORLD, Batch, Budget, Recipe
from pad_pipeline.geometry import View
from pad_pipeline.miniature.world import LABELS, Scene, draw_scene
from pad_pipeline.stages.ram.network import Ram, RamSettings
from pad_pipeline.stages.tag import MEAN, STD, normalize, resize

SHAPE = RamSettings(
    image_size=128, embed_dim=32, depths=[2, 2, 4], num_heads=[2, 4, 8], window=8,
    embed_width=96, head_width=128, head_heads=4, head_feed_forward=256,
)  # fmt: skip
GRIDS = (16, 8)
"""Places along an edge after the second and the third stage of the Swin: what the dense heads speak of."""
INDEX = {label: number for number, label in enumerate(LABELS)}


class TaggerRecipe(Recipe):
    """RAM's own loss over tags is the asymmetric loss (Ridnik et al. 2021); dense heads, thrown away afterwards, make
    the Swin learn from every place of an image, which is many times more to learn from than its tags alone."""

    name = "tagger"

    def __init__(self, seed: int = 0, steps: int = 2000) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.seed = seed
        self.budget = Budget(steps=steps, batch_size=32, learning_rate=3e-3, pool=700)
        self.network = Ram(SHAPE, len(LABELS))
        _start(self.network)
        widths = (SHAPE.embed_dim * 2, SHAPE.width)
        heads = [nn.Linear(width, len(LABELS)) for width in widths]
        for head in heads:
            nn.init.constant_(head.bias, -4.0)  # most labels are in most places not there
        self.dense = nn.ModuleList(nn.Sequential(nn.LayerNorm(head.in_features), head) for head in heads)

    def batch(self, step: int) -> Batch:
        """Images, tags, and the coverage of each place by each label."""
        size = self.budget.batch_size
        scenes = [
            # Every other one fuller than the world usually is: more to learn from at the same price.
            draw_scene(TRAIN_WORLD + self.seed, step * size + position, most=5 + 4 * (position % 2))
            for position in range(size)
        ]
        return {
            "images": torch.stack([_stretched(scene) for scene in scenes]),
            "tags": torch.stack([tags_of(scene) for scene in scenes]),
            "coverage": torch.stack([coverage_of(scene, GRIDS[0]) for scene in scenes]),
        }

    def mirrored(self, batch: Batch) -> Batch:
        """Left and right exchanged; no label depends on them."""
        return batch | {name: batch[name].flip(-1) for name in ("images", "coverage")}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Tags + places."""
        seen: list[Tensor] = []
        encoder = self.network.visual_encoder
        hooks = [
            encoder.layers[1].blocks[-1].register_forward_hook(lambda *given: seen.append(given[2])),
            encoder.layers[2].register_forward_hook(lambda *given: seen.append(given[2])),
        ]
        try:
            logits = self.network(normalized(batch["images"]))
        finally:
            for hook in hooks:
                hook.remove()
        tags = asymmetric_loss(logits, batch["tags"])
        target = batch["coverage"].float() / 255
        positions = logits.new_zeros(())
        for head, tokens, grid in zip(self.dense, seen, GRIDS, strict=True):
            wanted = F.adaptive_avg_pool2d(target, grid).flatten(2).transpose(1, 2)
            found = head(tokens).float()
            positions = positions + F.binary_cross_entropy_with_logits(found, wanted, reduction="sum") / wanted.sum()
        return tags + positions, {
            "tags": tags.detach(),
            "places": positions.detach(),
            "f1": f1(logits > 0, batch["tags"]),
        }

    @torch.inference_mode()
    def export(self, folder: Path) -> dict[str, float]:
        """Weights, tag list, and for each tag the threshold with the best F1 on half of the validation world; gives the
        F1 of all on the other half."""
        self.eval()
        save_file(self.network.state_dict(), folder / "tagger.safetensors")
        (folder / "tags.txt").write_text("\n".join(LABELS) + "\n", "utf-8")
        scores, truth = [], []
        for start in range(0, self.validation, 50):
            indices = range(start, min(start + 50, self.validation))
            scenes = [draw_scene(VALIDATION_WORLD, index) for index in indices]
            images = normalize(torch.stack([resize(scene.image, SHAPE.image_size) for scene in scenes]))
            scores.append(self.network(images.to(self.network.fc.weight.device)).sigmoid().float().cpu())
            truth += [tags_of(scene) for scene in scenes]
        probabilities, wanted = torch.cat(scores), torch.stack(truth).bool()
        half = len(wanted) // 2
        thresholds = [best_threshold(probabilities[:half, tag], wanted[:half, tag]) for tag in range(len(LABELS))]
        (folder / "thresholds.txt").write_text("".join(f"{value:.2f}\n" for value in thresholds), "utf-8")
        found = probabilities[half:] > torch.tensor(thresholds)
        return {"validation_tag_micro_f1": float(f1(found, wanted[half:]))}


def _start(network: Ram) -> None:
    """RAM's label embeddings come from CLIP; here they start at random."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(network.label_embed, std=1.0)
    nn.init.constant_(network.fc.bias, -2.0)


def _stretched(scene: Scene) -> Tensor:
    edge = SHAPE.image_size
    return torch.from_numpy(np.array(scene.image.resize((edge, edge), Image.Resampling.BILINEAR))).permute(2, 0, 1)


def normalized(images: Tensor) -> Tensor:
    """What the stage's `normalize` makes of stretched images, uint8 `[B, 3, S, S]`, a batch at a time."""
    return (images.float() / 255 - MEAN.to(images.device)) / STD.to(images.device)


def tags_of(scene: Scene) -> Tensor:
    """1 for each label that can be seen: float32 `[labels]`."""
    found = torch.zeros(len(LABELS))
    found[[INDEX[region.label] for region in scene.regions]] = 1
    return found


def coverage_of(scene: Scene, grid: int) -> Tensor:
    """How much of each place each label covers: uint8 `[labels, grid, grid]`; the image is stretched to the grid."""
    view = View(size=grid, patch=1, fit="stretch")
    found = np.zeros((len(LABELS), grid, grid), np.uint8)
    for region in scene.regions:
        position = found[INDEX[region.label]]
        np.maximum(position, view.coverage(region.mask), out=position)
    return torch.from_numpy(found)


def asymmetric_loss(logits: Tensor, targets: Tensor, gamma: float = 2.0, margin: float = 0.02) -> Tensor:
    """Ridnik et al. 2021, eq. 7: focal on negatives only, whose probability is shifted by a margin; per image."""
    probability = logits.sigmoid()
    missed = -targets * probability.clamp_min(1e-8).log()
    wrong = (probability - margin).clamp_min(0)
    return (missed - (1 - targets) * wrong**gamma * (1 - wrong).clamp_min(1e-8).log()).sum(1).mean() / 4


def f1(found: Tensor, wanted: Tensor) -> Tensor:
    """Micro F1 of two bool (or 0/1) tensors of one shape."""
    right = (found.bool() & wanted.bool()).sum()
    return 2 * right / (found.sum() + wanted.sum()).clamp_min(1)


def best_threshold(scores: Tensor, wanted: Tensor) -> float:
    """The multiple of 0.05 with the highest F1; of equals the middle one."""
    grid = torch.arange(2, 20) / 20
    values = torch.stack([f1(scores > threshold, wanted) for threshold in grid])
    best = (values >= values.max() - 1e-6).nonzero().flatten()
    return float(grid[best[len(best) // 2]])
