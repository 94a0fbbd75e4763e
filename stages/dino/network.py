"""Grounding DINO of transformers: images are encoded once, whatever the number of their prompts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    MMGroundingDinoForObjectDetection,
)
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.models.grounding_dino.modeling_grounding_dino import MultiScaleDeformableAttention
from transformers.models.mm_grounding_dino.modeling_mm_grounding_dino import (
    MultiScaleDeformableAttention as MMMultiScaleDeformableAttention,
)

from pad_pipeline.errors import UserError
from pad_pipeline.pretrained import load_pretrained, read_config
from pad_pipeline.stages.compute import Compute
from pad_pipeline.stages.dino.attention import FusedBiAttention, LevelwiseSampling

# transformers compares two numbers on the GPU in every sampling layer, and waits for the answer each time.
os.environ.setdefault("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")

KINDS = {"grounding-dino": GroundingDinoForObjectDetection, "mm-grounding-dino": MMGroundingDinoForObjectDetection}
"""Zero-shot detectors of transformers that give a score for each token of the text, by `model_type`."""
SAMPLING = (MultiScaleDeformableAttention, MMMultiScaleDeformableAttention)
FIRST_STRIDE = 8
"""Of the finest feature map, in pixels; each further one has twice the one before."""
LARGEST_EDGE = 4096
TEXT_STEP = 16
"""Texts are padded to a multiple of this, so that few shapes occur; the model masks the padding."""


class Features(NamedTuple):
    """What the prompts of a batch of images share."""

    maps: list[tuple[Tensor, Tensor]]
    """The backbone's feature maps `[B, C, h, w]`, each with the mask `[B, h, w]` of the positions inside the image."""
    positions: list[Tensor]
    """Their position embeddings."""
    mask: Tensor
    """`[B, H, W]`: 1 where a pixel is the image's, 0 where it is padding."""
    padded: bool
    """Whether there is any padding."""


class GroundingDino:
    """The model on its device.

    Args:
        folder: model folder of transformers.
        compute: where and how it computes.
    """

    def __init__(self, folder: Path, compute: Compute) -> None:
        config = read_config("detector.model", folder, set(KINDS))
        model = load_pretrained(
            "detector.model",
            folder,
            KINDS[config["model_type"]],
            torch.float32,
            use_safetensors=True,
            disable_custom_kernels=True,  # the pure PyTorch path: nothing to compile, nothing to download
        )
        inner = model.model
        self.fusions = []
        for layer in inner.encoder.layers:
            layer.fusion_layer.attn = FusedBiAttention(layer.fusion_layer.attn)
            self.fusions.append(layer.fusion_layer.attn)
        # Boxes, scores, and where the deformable attention looks: a bfloat16 has 8 bits for a place in the image.
        exact = [
            *model.bbox_embed, *model.class_embed, *inner.decoder.bbox_embed, inner.encoder_output_bbox_embed,
            inner.encoder_output_class_embed, inner.enc_output, inner.decoder.reference_points_head,
            inner.text_projection,
        ]  # fmt: skip
        for name, part in inner.named_modules():
            if name.endswith(("sampling_offsets", "attention_weights")):
                exact.append(part)
            elif isinstance(part, SAMPLING):
                sampler, _, attribute = name.rpartition(".")
                setattr(inner.get_submodule(sampler), attribute, LevelwiseSampling())
            elif name.endswith("downsample"):  # what the blocks of a resolution add to stays float32
                part.register_forward_hook(lambda _module, _inputs, output: output.float())
        self.compute = compute
        self.name: str = config["model_type"]
        self.model = compute.put(model, in_float32=dict.fromkeys(exact))
        self.max_tokens: int = model.config.max_text_len
        if not 16 <= self.max_tokens <= 4096:
            rule = f"its config.json sets max_text_len to {self.max_tokens}, and no tag would fit in"
            raise UserError("detector.model", folder, rule, "fetch the model again")
        self.queries, self.levels = model.config.num_queries, model.config.num_feature_levels
        self.words: int = model.config.text_config.vocab_size
        self.backbone = inner.backbone = _SharedFeatures(inner.backbone)
        self.processor = load_processor(folder)
        mean, std = (torch.tensor(part).view(3, 1, 1) for part in (self.processor.image_mean, self.processor.image_std))
        self.scale = compute.send(self.processor.rescale_factor / std)
        self.shift = compute.send(mean / std)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Height and width of an image as the model gets it."""
        size = self.processor.size
        if size.get("shortest_edge") is None:
            return size["height"], size["width"]
        return get_size_with_aspect_ratio((height, width), size["shortest_edge"], size.get("longest_edge"))

    def positions(self, height: int, width: int) -> int:
        """Positions of a resized image, over all resolutions; the model takes its queries from among them."""
        strides = (FIRST_STRIDE << level for level in range(self.levels))
        return sum(-(-height // stride) * -(-width // stride) for stride in strides)

    def prepare(self, image: Image.Image) -> Tensor:
        """The resized image, uint8 `[3, H, W]`. It is normalized on the device: a quarter of the bytes to send."""
        inputs = self.processor(images=image, do_rescale=False, do_normalize=False, return_tensors="pt")
        return inputs["pixel_values"][0].to(torch.uint8)

    def encode(self, images: list[Tensor], size: tuple[int, int]) -> Features:
        """What the prompts of these images share.

        Args:
            images: uint8 `[3, h, w]` each.
            size: height and width that all are padded to.
        """
        pixels = torch.zeros(len(images), 3, *size, dtype=torch.uint8)
        inside = torch.zeros(len(images), *size, dtype=torch.bool)
        for row, image in enumerate(images):
            pixels[row, :, : image.shape[1], : image.shape[2]] = image
            inside[row, : image.shape[1], : image.shape[2]] = True
        there = self.compute.send(inside)
        mask = there.long()
        colors = (self.compute.send(pixels).float() * self.scale - self.shift).masked_fill(~there[:, None], 0)
        with self.compute.autocast():
            maps, positions = self.backbone.backbone(colors, mask)
        padded = any(image.shape[1:] != size for image in images)
        return Features(maps, positions, mask, padded)

    def detect(self, features: Features, images: list[int], texts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Where the words of each text are, each in its image.

        Args:
            features: of a batch of images.
            images: the image of each text, as its index in the batch.
            texts: token ids.

        Returns:
            Probabilities of each query for each token `[B, queries, tokens]`, and boxes `[B, queries, 4]`, cxcywh as
            parts of the image; float32.
        """
        length = -(-max(map(len, texts)) // TEXT_STEP) * TEXT_STEP
        ids = torch.zeros(len(texts), min(length, self.max_tokens), dtype=torch.long)
        attended = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            attended[row, : len(text)] = 1
        chosen = self.compute.send(torch.tensor(images))
        for fusion in self.fusions:
            fusion.padded = features.padded
        mask = features.mask[chosen]
        with self.compute.autocast(), self.backbone.lent(features, chosen):
            output = self.model(
                pixel_values=mask.new_empty(1, dtype=torch.float32).expand(len(texts), 3, *mask.shape[1:]),
                pixel_mask=mask,
                input_ids=self.compute.send(ids),
                attention_mask=self.compute.send(attended),
                token_type_ids=self.compute.send(torch.zeros_like(ids)),
            )
        return output.logits[..., : ids.shape[1]].float().sigmoid(), output.pred_boxes.float()


class _SharedFeatures(nn.Module):
    """Stands where the model has its backbone, and gives what it was lent instead of computing it again."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.position_embedding = backbone.position_embedding

    @contextmanager
    def lent(self, features: Features, chosen: Tensor) -> Iterator[None]:
        """Inside it, forward gives these images of a batch."""
        self._lent = features, chosen
        try:
            yield
        finally:
            del self._lent

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
        features, chosen = self._lent
        maps = [(feature[chosen], mask[chosen]) for feature, mask in features.maps]
        return maps, [position[chosen] for position in features.positions]


def load_processor(folder: Path) -> GroundingDinoImageProcessorPil:
    """The model's image processor.

    Raises:
        UserError: its preprocessor_config.json is missing or can't be used.
    """
    try:
        processor = GroundingDinoImageProcessorPil.from_pretrained(folder, local_files_only=True)
        names = ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width")
        size = {name: edge for name in names if (edge := processor.size.get(name)) is not None}
        square, short = {"height", "width"}, {"shortest_edge"}
        known = set(size) == square or short <= set(size) <= {*short, "longest_edge"}
        if not known or not all(0 < edge <= LARGEST_EDGE for edge in size.values()) or not processor.do_resize:
            raise ValueError(f"size {size}")
        if not all(0 < deviation < 10 for deviation in processor.image_std):
            raise ValueError(f"image_std {processor.image_std}")
        processor(images=Image.new("RGB", (8, 8)), return_tensors="pt")
        return processor
    except Exception as error:
        rule = f"its preprocessor_config.json can't be used ({type(error).__name__}: {str(error)[:100]})"
        raise UserError("detector.model", folder, rule, "fetch the model again") from error
