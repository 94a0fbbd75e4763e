"""Grounding DINO of transformers, changed to encode an image once for all its prompts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import GroundingDinoImageProcessorPil
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.models.grounding_dino import modeling_grounding_dino as dino
from transformers.models.mm_grounding_dino import modeling_mm_grounding_dino as mm

from pad_pipeline.errors import UserError
from pad_pipeline.pretrained import load_pretrained, read_config
from pad_pipeline.stages.compute import Compute, padded_texts
from pad_pipeline.stages.dino.attention import FusedBiAttention
from pad_pipeline.stages.dino.sampling import FusedSampling

# Otherwise every sampling layer of transformers compares two numbers on the GPU, and waits for the result.
os.environ.setdefault("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")

KINDS = {
    "grounding-dino": dino.GroundingDinoForObjectDetection,
    "mm-grounding-dino": mm.MMGroundingDinoForObjectDetection,
}
"""The model class for each `model_type`: detectors of transformers with a score for each token of the text."""
SAMPLING = (dino.MultiScaleDeformableAttention, mm.MultiScaleDeformableAttention)
LARGEST_EDGE = 4096
"""The largest edge in pixels that a preprocessor_config.json may ask for."""
TEXT_STEP = 16
"""Texts are padded to a multiple of this many tokens, so that few tensor shapes occur. The padding is masked."""


class Features(NamedTuple):
    """The encoded images of a batch. All prompts of an image share its encoding."""

    maps: list[tuple[Tensor, Tensor]]
    """The backbone's feature maps `[B, C, h, w]`, each with a mask `[B, h, w]`: true inside the image."""
    positions: list[Tensor]
    """The position embeddings for each map."""
    mask: Tensor
    """int64 `[B, H, W]`: 1 for pixels of the image, 0 for padding."""
    padded: bool
    """Whether an image of the batch is padded."""


class GroundingDino:
    """Grounding DINO on its device, from a model folder of transformers."""

    def __init__(self, folder: Path, compute: Compute) -> None:
        self.name: str = read_config("detector.model", folder, set(KINDS))["model_type"]
        # Without custom kernels, there is nothing to compile and nothing to download.
        options: dict[str, Any] = {"use_safetensors": True, "disable_custom_kernels": True}
        model = load_pretrained("detector.model", folder, KINDS[self.name], torch.float32, **options)
        inner = model.model
        # The heads for boxes of each layer are the same for training and for the decoder. transformers ties them only
        # as far as config.json says so; without its entries, the decoder would use the head of its first layer alone.
        inner.decoder.bbox_embed = model.bbox_embed
        # Replace attention between image and text by fused kernels.
        self.fusions = [FusedBiAttention(layer.fusion_layer.attn) for layer in inner.encoder.layers]
        for layer, fusion in zip(inner.encoder.layers, self.fusions, strict=True):
            layer.fusion_layer.attn = fusion
        # These parts compute boxes, scores and sampling positions. bfloat16 would leave only 8 bits for a position.
        exact = [
            *model.bbox_embed, *model.class_embed, inner.encoder_output_bbox_embed, inner.encoder_output_class_embed,
            inner.enc_output, inner.decoder.reference_points_head, inner.text_projection,
        ]  # fmt: skip
        for name, part in inner.named_modules():
            if name.endswith(("sampling_offsets", "attention_weights")):
                exact.append(part)
            elif isinstance(part, SAMPLING):
                sampler, _, attribute = name.rpartition(".")
                setattr(inner.get_submodule(sampler), attribute, FusedSampling())
            elif name.endswith("downsample"):  # its output stays float32, because all later blocks add to it
                part.register_forward_hook(lambda _module, _inputs, output: output.float())
        self.compute = compute
        self.model = compute.prepare_model(model, in_float32=exact)
        self.max_tokens: int = model.config.max_text_len
        if not 16 <= self.max_tokens <= 4096:
            rule = f"its config.json sets max_text_len to {self.max_tokens}, which leaves no room for tags"
            raise UserError("detector.model", folder, rule, "fetch the model again")
        self.queries, self.levels = model.config.num_queries, model.config.num_feature_levels
        # Stage 1 of a Swin has the stride 4. Large models use it, and others begin with stage 2.
        self.stride = 2 << min(getattr(model.config.backbone_config, "out_indices", None) or [2])
        self.words: int = model.config.text_config.vocab_size
        # Run the backbone once for each image, and rescale and normalize on the device.
        self.backbone = inner.backbone = _SharedFeatures(inner.backbone)
        self.processor = load_processor(folder)
        mean, std = (torch.tensor(part).view(3, 1, 1) for part in (self.processor.image_mean, self.processor.image_std))
        self.scale = compute.send(self.processor.rescale_factor / std)
        self.shift = compute.send(mean / std)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return the height and width to which an image of `width` x `height` pixels is resized for the model."""
        size = self.processor.size
        if size.get("shortest_edge") is None:
            return size["height"], size["width"]
        edges = size["shortest_edge"], size.get("longest_edge")
        resized: tuple[int, int] = get_size_with_aspect_ratio((height, width), *edges)
        return resized

    def count_positions(self, height: int, width: int) -> int:
        """Return the number of positions in a resized image's feature maps, from which the model picks its queries."""
        strides = (self.stride << level for level in range(self.levels))
        return sum(-(-height // stride) * -(-width // stride) for stride in strides)

    def prepare(self, image: Image.Image) -> Tensor:
        """Return the resized image, uint8 `[3, H, W]`. `encode` normalizes it, after the transfer to the device."""
        inputs = self.processor(images=image, do_rescale=False, do_normalize=False, return_tensors="pt")
        pixels: Tensor = inputs["pixel_values"][0]
        return pixels.to(torch.uint8)

    def encode(self, images: list[Tensor], size: tuple[int, int]) -> Features:
        """Pad images from `prepare`, uint8 `[3, h, w]`, to the height and width `size`, and encode them."""
        pixels = torch.zeros(len(images), 3, *size, dtype=torch.uint8)
        inside = torch.zeros(len(images), *size, dtype=torch.bool)
        for row, image in enumerate(images):
            pixels[row, :, : image.shape[1], : image.shape[2]] = image
            inside[row, : image.shape[1], : image.shape[2]] = True
        inside = self.compute.send(inside)
        mask = inside.long()
        colors = (self.compute.send(pixels).float() * self.scale - self.shift).masked_fill(~inside[:, None], 0)
        with self.compute.autocast():
            maps, positions = self.backbone.backbone(colors, mask)
        return Features(maps, positions, mask, padded=any(image.shape[1:] != size for image in images))

    def detect(self, features: Features, images: list[int], texts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Detect the words of `B` texts, each in its image.

        Args:
            features: a batch of images, from `encode`.
            images: the index in the batch of each text's image.
            texts: the token ids of each text.

        Returns:
            The probability (0..1) that a query shows a token, float32 `[B, queries, tokens]`; and the box of each
            query, float32 `[B, queries, 4]`: cxcywh in fractions of the image.
        """
        length = -(-max(map(len, texts)) // TEXT_STEP) * TEXT_STEP
        ids, attended = padded_texts(texts, min(length, self.max_tokens), 0)
        indices = self.compute.send(torch.tensor(images))
        for fusion in self.fusions:
            fusion.padded = features.padded
        mask = features.mask[indices]
        self.backbone.served = features, indices
        try:
            with self.compute.autocast():
                output = self.model(
                    # The pixels are not read, because the backbone returns features that were computed before.
                    pixel_values=mask.new_empty(1, dtype=torch.float32).expand(len(texts), 3, *mask.shape[1:]),
                    pixel_mask=mask,
                    input_ids=self.compute.send(ids),
                    attention_mask=self.compute.send(attended),
                    token_type_ids=self.compute.send(torch.zeros_like(ids)),
                )
        finally:
            self.backbone.served = None  # so that a retry after lack of memory has the memory of the features
        return output.logits[..., : ids.shape[1]].float().sigmoid(), output.pred_boxes.float()


class _SharedFeatures(nn.Module):
    """Replaces the model's backbone by one that returns features that were computed before."""

    served: tuple[Features, Tensor] | None = None
    """The features for the next call, and the index of each text's image in them, int64 `[B]`."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.position_embedding = backbone.position_embedding

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
        assert self.served, "`detect` sets it"
        (features, indices), self.served = self.served, None  # frees the features as soon as nobody else needs them
        maps = [(feature[indices], mask[indices]) for feature, mask in features.maps]
        return maps, [position[indices] for position in features.positions]


def load_processor(folder: Path) -> GroundingDinoImageProcessorPil:
    """Load the image processor of a model folder; raise `UserError` if it is missing or can't be used."""
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
