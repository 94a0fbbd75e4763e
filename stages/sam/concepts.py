"""SAM 3 of transformers, changed to encode an image once for all phrases, and to decode only masks that are kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Sam3ImageProcessor, Sam3LiteTextModel, Sam3Model
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from pad_pipeline.pretrained import load_pretrained, load_processor, read_config
from pad_pipeline.stages.compute import Compute, HostCopy, padded_texts

KINDS = {"sam3": Sam3Model, "sam3_video": Sam3Model, "sam3_lite_text": Sam3LiteTextModel}
"""The model class for each `model_type`. The official folder holds the video model, which has the image model."""
TOKENS = 32
"""The most tokens in a phrase, with the two that mark its ends. Each phrase is padded to this length, as upstream does;
the padding is masked."""


class Found(NamedTuple):
    """The boxes for some phrases in an image, and what their masks are computed from."""

    scores: HostCopy
    """The score of each box, float32 `[B, queries]`, 0..1."""
    boxes: HostCopy
    """The boxes, float32 `[B, queries, 4]`: xyxy in fractions of the image."""
    inputs: dict[str, Tensor]
    """Inputs of the mask decoder, `[B, ...]` each."""


class Sam3:
    """SAM 3 on its device, from a model folder of transformers."""

    def __init__(self, folder: Path, compute: Compute) -> None:
        self.name: str = read_config("concepts.model", folder, set(KINDS))["model_type"]
        model = load_pretrained("concepts.model", folder, KINDS[self.name], torch.float32, use_safetensors=True)
        decoder = model.detr_decoder
        # These parts compute boxes and scores. bfloat16 would leave only 8 bits for a position.
        exact = [
            decoder.box_head, decoder.presence_head, decoder.ref_point_head, decoder.box_rpb_embed_x,
            decoder.box_rpb_embed_y, model.dot_product_scoring, model.text_projection,
        ]  # fmt: skip
        self.compute = compute
        self.model: Any = compute.prepare_model(model, in_float32=exact)
        self.edge: int = model.config.vision_config.image_size
        self.max_tokens = min(TOKENS, model.config.text_config.max_position_embeddings)
        self.words: int = model.config.text_config.vocab_size
        # Positions are computed once in float32; masks only for boxes that are kept.
        neck = model.vision_encoder.neck
        self.positions, neck.position_encoding = neck.position_encoding, _Skipped()
        self.decode_masks, model.mask_decoder = model.mask_decoder, _Postponed()
        self.processor = load_processor("concepts.model", folder, Sam3ImageProcessor, self.edge)
        mean, std = (torch.tensor(part).view(3, 1, 1) for part in (self.processor.image_mean, self.processor.image_std))
        self.scale = compute.send(self.processor.rescale_factor / std)
        self.shift = compute.send(mean / std)

    def prepare(self, image: Image.Image) -> Tensor:
        """Return the image stretched to a square, uint8 `[3, S, S]`. `encode` normalizes it on the device."""
        inputs = self.processor(images=image, do_rescale=False, do_normalize=False, return_tensors="pt")
        pixels: Tensor = inputs["pixel_values"][0]
        return pixels.to(torch.uint8)

    def embed(self, ids: list[int], pad: int) -> tuple[Tensor, Tensor]:
        """Return the features of a phrase, float32 `[tokens, d]`, and a mask that is true for its tokens, `[tokens]`.

        Phrases are embedded one by one, because the last bits of a result can depend on the rest of a batch, and a
        shard must not depend on earlier shards. A phrase is embedded only once.
        """
        tokens, attended = map(self.compute.send, padded_texts([ids], self.max_tokens, pad))
        with self.compute.autocast():
            features = self.model.get_text_features(input_ids=tokens, attention_mask=attended).pooler_output
        return features[0].float(), attended[0].bool()

    def encode(self, images: list[Tensor]) -> list[Tensor]:
        """Encode images from `prepare`; return feature maps `[B, d, h, w]`, from the finest to the coarsest."""
        pixels = self.compute.send(torch.stack(images)).float() * self.scale - self.shift
        with self.compute.autocast():
            maps = self.model.get_vision_features(pixels).fpn_hidden_states[:-1]
        return [*maps[:-1], maps[-1].float()]

    def find(self, maps: list[Tensor], phrases: list[tuple[Tensor, Tensor]]) -> Found:
        """Find `B` phrases in one image.

        Args:
            maps: the feature maps of the image, `[1, d, h, w]` each.
            phrases: features and mask of each phrase, from `embed`.
        """
        coarse = maps[-1].expand(len(phrases), -1, -1, -1)
        with self.compute.autocast():
            positions = self.positions(maps[-1].shape, coarse.device, torch.float32).expand_as(coarse)
            # The model leaves the last level out, and its network for boxes takes only the coarsest of the others.
            vision = Sam3VisionEncoderOutput(fpn_hidden_states=(coarse, None), fpn_position_encoding=(positions, None))
            features, attended = (torch.stack(part) for part in zip(*phrases, strict=True))
            output = self.model(
                vision_embeds=vision, text_embeds=SimpleNamespace(pooler_output=features), attention_mask=attended
            )
            scores = output.pred_logits.float().sigmoid() * output.presence_logits.float().sigmoid()
        return Found(HostCopy(scores), HostCopy(output.pred_boxes.float()), self.model.mask_decoder.take())

    def masks(self, maps: list[Tensor], found: Found, phrase: int, queries: list[int]) -> Tensor:
        """Return the probability of each pixel for some boxes of a phrase, float32 `[n, h, w]`, 0..1.

        Args:
            maps: the feature maps of the image.
            found: the result of `find`.
            phrase: the index of the phrase in it.
            queries: the indices of the `n` boxes.
        """
        inputs = {name: tensor[phrase : phrase + 1] for name, tensor in found.inputs.items()}
        inputs["decoder_queries"] = inputs["decoder_queries"][:, self.compute.send(torch.tensor(queries))]
        with self.compute.autocast():
            output = self.decode_masks(backbone_features=maps, **inputs)
            probabilities: Tensor = output.pred_masks[0].float().sigmoid()
            return probabilities


class _Skipped(nn.Module):
    """Replaces the position encoding of all feature maps, which `Sam3` computes for one of them."""

    def forward(self, *_: object) -> None:
        """Return nothing."""


class _Postponed(nn.Module):
    """Replaces the mask decoder by one that keeps its inputs and returns no masks."""

    inputs: dict[str, Any]

    def forward(self, **inputs: Any) -> SimpleNamespace:
        """Keep the inputs for `take`."""
        self.inputs = inputs
        return SimpleNamespace(pred_masks=None, semantic_seg=None, attentions=None)

    def take(self) -> dict[str, Tensor]:
        """Return the inputs that each phrase has its own part of."""
        inputs, self.inputs = self.inputs, {}
        return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
