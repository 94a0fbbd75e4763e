"""The small SAM: one mask for one box."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from examples.miniature.recipe import TRAIN_WORLD, VALIDATION_WORLD, Batch, Budget, Recipe, to_device
from pad_pipeline.miniature.world import draw_scene
from pad_pipeline.stages.sam.network import SamShape, build_sam, decode_boxes

SHAPE = SamShape(
    image_size=160, patch=8, width=96, depth=4, heads=4, global_attention=[1, 3], window=10, decoder_width=64,
    decoder_mlp=128,
)  # fmt: skip
BOXES = 6
"""Boxes of one image in a batch: its things first."""
JITTER = 0.06
"""The detector's boxes are not exact: edges are moved by this share of the box, as a deviation."""


class SegmenterRecipe(Recipe):
    """Cross-entropy and dice of the mask, and the squared error of the predicted IoU (SAM's paper, without its rounds
    of corrected clicks)."""

    name = "segmenter"
    validation = 160

    def __init__(self, seed: int = 0, steps: int = 2600) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.seed = seed
        self.budget = Budget(steps=steps, batch_size=8, learning_rate=2e-3)
        self.network = build_sam(SHAPE)
        self.resize = ResizeLongestSide(SHAPE.image_size)
        torch.nn.init.trunc_normal_(self.network.image_encoder.pos_embed, std=0.02)

    def batch(self, step: int) -> Batch:
        """Images in SAM's square, boxes and masks in its pixels."""
        rng = np.random.default_rng((self.seed, step))
        edge, size = SHAPE.image_size, self.budget.batch_size
        images = torch.zeros(size, 3, edge, edge, dtype=torch.uint8)
        inside = torch.zeros(size, edge, edge, dtype=torch.bool)
        boxes = torch.zeros(size, BOXES, 4)
        masks = torch.zeros(size, BOXES, edge, edge, dtype=torch.uint8)
        for row in range(size):
            scene = draw_scene(TRAIN_WORLD + self.seed, step * size + row)
            pixels = torch.from_numpy(self.resize.apply_image(np.asarray(scene.image))).permute(2, 0, 1)
            height, width = pixels.shape[1:]
            images[row, :, :height, :width] = pixels
            inside[row, :height, :width] = True
            order = [position for position, region in enumerate(scene.regions) if region.kind == "thing"]
            order += [int(position) for position in rng.permutation(np.arange(len(order), len(scene.regions)))]
            for position, number in enumerate(np.resize(order, BOXES)):  # few regions: some come twice, jittered anew
                region = scene.regions[number]
                box = np.array(region.box, np.float64)
                extent = np.tile(box[2:] - box[:2], 2)
                box = np.clip(box + rng.normal(0, JITTER, 4) * extent, 0, [*scene.image.size] * 2)
                boxes[row, position] = torch.from_numpy(
                    self.resize.apply_boxes(box[None], (scene.image.height, scene.image.width))[0]
                )
                mask = torch.from_numpy(region.mask)[None, None].float()
                mask = F.interpolate(mask, (height, width), mode="bilinear", antialias=True, align_corners=False)
                masks[row, position, :height, :width] = (mask[0, 0] * 255).round().to(torch.uint8)
        return {"images": images, "inside": inside, "boxes": boxes, "masks": masks}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Over all boxes of all images at once."""
        sam = self.network
        images = (batch["images"] - sam.pixel_mean) / sam.pixel_std
        embeddings = sam.image_encoder(images.masked_fill(~batch["inside"][:, None], 0))  # as sam.preprocess pads
        with torch.autocast(embeddings.device.type, enabled=False):
            count, each = batch["boxes"].shape[:2]
            image = torch.arange(count, device=embeddings.device).repeat_interleave(each)
            logits, quality = decode_boxes(sam, embeddings.float(), image, batch["boxes"].flatten(0, 1))
            edge = SHAPE.image_size
            drawn = F.interpolate(logits[None], (edge, edge), mode="bilinear", align_corners=False)[0]
            wanted = batch["masks"].flatten(0, 1).float() / 255
            inside = batch["inside"].repeat_interleave(each, 0)
            wrong = F.binary_cross_entropy_with_logits(drawn, wanted, reduction="none").masked_fill(~inside, 0)
            entropy = (wrong.sum((1, 2)) / inside.sum((1, 2))).mean()
            share = drawn.sigmoid().masked_fill(~inside, 0)
            dice = (1 - (2 * (share * wanted).sum((1, 2)) + 1) / (share.sum((1, 2)) + wanted.sum((1, 2)) + 1)).mean()
            with torch.no_grad():
                both, truth = (drawn > 0) & inside, wanted > 0.5
                iou = (both & truth).sum((1, 2)) / (both | truth).sum((1, 2)).clamp_min(1)
            predicted = F.mse_loss(quality, iou)
            numbers = {"entropy": entropy.detach(), "dice": dice.detach(), "iou": iou.mean()}
            return 10 * entropy + dice + predicted, numbers

    @torch.inference_mode()
    def export(self, folder: Path) -> dict[str, float]:
        """SAM's state dict under its official names; gives the mean IoU for jittered true boxes of the validation
        world, things first, in SAM's own square."""
        save_file(self.network.state_dict(), folder / "segmenter.safetensors")
        device = self.network.device
        seed, self.seed = self.seed, VALIDATION_WORLD - TRAIN_WORLD
        try:
            batches = (to_device(self.batch(step), device) for step in range(max(1, self.validation // 8)))
            ious = [float(self.loss(batch)[1]["iou"]) for batch in batches]
        finally:
            self.seed = seed
        return {"validation_mask_iou": fmean(ious)}
