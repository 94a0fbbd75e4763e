"""The annotation chain as demo scripts run it: one image at a time, float32, one model after another, each through
its own library's ordinary path. It is what the stages are compared with, in speed and in what they find."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from segment_anything import SamPredictor
from segment_anything.modeling.image_encoder import Attention
from segment_anything.modeling.transformer import Attention as DecoderAttention
from transformers import AutoTokenizer, GroundingDinoForObjectDetection, GroundingDinoImageProcessorPil
from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoBiMultiHeadAttention

from pad_pipeline.images import DecodeSettings, decode
from pad_pipeline.records import ImageRecord, Region, Tag, as_box
from pad_pipeline.stages.boxes import suppress, to_pixels
from pad_pipeline.stages.ground import DetectorSettings
from pad_pipeline.stages.ram.checkpoint import load_ram
from pad_pipeline.stages.ram.network import Ram
from pad_pipeline.stages.rle import encode_mask
from pad_pipeline.stages.sam.attention import CrossAttention
from pad_pipeline.stages.sam.network import load_sam
from pad_pipeline.stages.segment import SegmenterSettings
from pad_pipeline.stages.spans import CLS, DOT, SEP
from pad_pipeline.stages.tag import TaggerSettings, normalize, read_tags, resize
from pad_pipeline.weights import fetch_file, local_path
from pad_pipeline.workflows.models.settings import ModelSettings

Seconds = dict[str, float]


class ReferenceLoop:
    """RAM, Grounding DINO and SAM, each on its own.

    Labels are made as the demo scripts make them: the tokens above the text threshold, decoded.
    """

    def __init__(self, models: ModelSettings, device: torch.device) -> None:
        self.models, self.device = models, device
        tagger = models.annotator(TaggerSettings)
        self.labels, thresholds = read_tags(tagger)
        self.thresholds = torch.tensor(thresholds, device=device)
        path = fetch_file("tagger.weights", tagger.weights)
        self.ram = load_ram(Ram(tagger, len(self.labels)), path).to(device)
        folder = local_path(models.annotator(DetectorSettings).model)
        self.dino = GroundingDinoForObjectDetection.from_pretrained(folder, disable_custom_kernels=True)
        self.dino = self.dino.to(device).eval()
        self.processor = GroundingDinoImageProcessorPil.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        sam, _ = load_sam(fetch_file("segmenter.weights", models.annotator(SegmenterSettings).weights))
        use_attention(sam_swaps(sam), fused=False)
        self.predictor = SamPredictor(sam.to(device))
        for model in (self.ram, self.dino, sam):
            model.requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, rows: list[ImageRecord], given: dict[str, Callable[[ImageRecord], None]]) -> Seconds:
        """Annotate rows one by one; the seconds of each stage in all.

        Args:
            rows: with their files' bytes.
            given: stage -> what is put in place of its findings, where these mean nothing.
        """
        seconds: Seconds = {"tag": 0.0, "ground": 0.0, "segment": 0.0}
        for row in rows:
            for stage, step in (("tag", self.tag), ("ground", self.ground), ("segment", self.segment)):
                start = time.perf_counter()
                step(row)
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
                seconds[stage] += time.perf_counter() - start
                if stage in given:
                    given[stage](row)
        return seconds

    def tag(self, row: ImageRecord) -> None:
        """One forward pass, one image."""
        image = resize(decode(row.data, DecodeSettings())[0], self.models.annotator(TaggerSettings).image_size)
        scores = self.ram(normalize(image[None].to(self.device))).sigmoid()[0]
        row.tags = [
            Tag(self.labels[i], float(scores[i])) for i in (scores > self.thresholds).nonzero().flatten().tolist()
        ]

    def ground(self, row: ImageRecord) -> None:
        """One text of all tags; boxes by the highest token, labels by decoding tokens."""
        settings = self.models.annotator(DetectorSettings)
        if not row.tags:
            return
        image = decode(row.data, DecodeSettings())[0]
        text = self.tokenizer(". ".join(tag.label.lower() for tag in row.tags) + ".", return_tensors="pt")
        ids = text["input_ids"][:, : self.dino.config.max_text_len]
        inputs = self.processor(images=image, return_tensors="pt")
        output = self.dino(
            pixel_values=inputs["pixel_values"].to(self.device), pixel_mask=inputs["pixel_mask"].to(self.device),
            input_ids=ids.to(self.device), attention_mask=torch.ones_like(ids).to(self.device),
        )  # fmt: skip
        scores = output.logits[0, :, : ids.shape[1]].sigmoid().cpu()
        boxes = to_pixels(output.pred_boxes[0].cpu().numpy(), row.width, row.height)
        regions = []
        for query in (scores.amax(1) > settings.box_threshold).nonzero().flatten().tolist():
            words = [i for i in (scores[query] > settings.text_threshold).nonzero().flatten().tolist() if i]
            label = self.tokenizer.decode([t for t in ids[0, words].tolist() if t not in (CLS, SEP, DOT)])
            regions.append(Region(label, as_box(boxes[query]), score=float(scores[query].max())))
        row.regions = suppress(regions, settings.nms_iou, settings.nms_iou_across_labels)

    def segment(self, row: ImageRecord) -> None:
        """`SamPredictor`, all boxes of the image at once."""
        if not row.regions:
            return
        self.predictor.set_image(np.asarray(decode(row.data, DecodeSettings())[0]))
        boxes = torch.tensor([region.box for region in row.regions], device=self.device)
        boxes = self.predictor.transform.apply_boxes_torch(boxes, (row.height, row.width)).float()
        masks, quality, _ = self.predictor.predict_torch(None, None, boxes, multimask_output=False)
        for region, mask, iou in zip(row.regions, masks[:, 0].cpu().numpy(), quality[:, 0].tolist(), strict=True):
            region.rle, region.predicted_iou = encode_mask(mask), iou


Swap = tuple[Any, str, Any, Any]
"""A module, the name of a part of it, the part with fused attention, and the plain part with the same weights."""


def sam_swaps(sam: Any) -> list[Swap]:
    """Return upstream's attention, which writes scores and biases out, for each place with the fused one."""
    swaps: list[Swap] = []
    for block in sam.image_encoder.blocks:
        fused = block.attn
        side = (len(fused.rel_pos_h) + 1) // 2
        plain = Attention(fused.proj.in_features, fused.heads, True, True, input_size=(side, side)).eval()
        plain.qkv, plain.proj = fused.qkv, fused.proj
        plain.rel_pos_h, plain.rel_pos_w = fused.rel_pos_h, fused.rel_pos_w
        swaps.append((block, "attn", fused, plain))
    transformer = sam.mask_decoder.transformer
    for layer in [*transformer.layers, transformer]:
        for name, fused in list(layer.named_children()):
            if isinstance(fused, CrossAttention):
                width, inner = fused.q_proj.in_features, fused.q_proj.out_features
                plain = DecoderAttention(width, fused.heads, downsample_rate=width // inner).eval()
                plain.q_proj, plain.k_proj, plain.v_proj = fused.q_proj, fused.k_proj, fused.v_proj
                plain.out_proj = fused.out_proj
                swaps.append((layer, name, fused, plain))
    return swaps


def dino_swaps(model: Any) -> list[Swap]:
    """Return transformers' attention between image and text for each place with the fused one."""
    swaps: list[Swap] = []
    for layer in model.model.encoder.layers:
        fused = layer.fusion_layer.attn
        plain = GroundingDinoBiMultiHeadAttention(model.config)
        for name, module in fused.named_children():
            setattr(plain, name, module)
        swaps.append((layer.fusion_layer, "attn", fused, plain.eval()))
    return swaps


def use_attention(swaps: list[Swap], fused: bool) -> None:
    """Put the fused or the plain attention into its places."""
    for module, name, with_kernel, plain in swaps:
        setattr(module, name, with_kernel if fused else plain)
