"""The stage ground with OWLv2 or OWL-ViT, which give each box a separate score for each tag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import Owlv2ForObjectDetection, OwlViTForObjectDetection
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil
from transformers.models.owlvit.image_processing_pil_owlvit import OwlViTImageProcessorPil

from pad_pipeline.errors import UserError
from pad_pipeline.images import DecodeSettings
from pad_pipeline.packages import OPTIONAL, installed, not_installed
from pad_pipeline.pretrained import load_pretrained, load_processor, load_tokenizer, read_config
from pad_pipeline.records import ImageRecord, Shard
from pad_pipeline.stages.base import chunks
from pad_pipeline.stages.box_stage import Answer, BoxSettings, BoxStage, find_model, one_token_prompts
from pad_pipeline.stages.boxes import to_pixels
from pad_pipeline.stages.compute import Compute, ComputeSettings, HostCopy, padded_texts
from pad_pipeline.stages.spans import Prompt, normalize

KINDS: dict[str, tuple[Any, Any]] = {
    "owlv2": (Owlv2ForObjectDetection, Owlv2ImageProcessorPil),
    "owlvit": (OwlViTForObjectDetection, OwlViTImageProcessorPil),
}
"""`model_type` -> classes of the model and of the image processor. These processors use Pillow and SciPy. On a
photograph they take a sixth of the time of the torchvision ones; pixels differ by up to 2e-2 standard deviations."""
TEXT = "a photo of a {}"
"""The text for a tag, as in the examples of OWL's authors."""
TEXTS_AT_ONCE = 64
"""Texts in one batch of the text encoder."""


class Owl:
    """An OWL model of transformers on its device, loaded from a folder."""

    def __init__(self, folder: Path, compute: Compute) -> None:
        self.name: str = read_config("detector.model", folder, set(KINDS))["model_type"]
        if self.name == "owlv2" and not installed("scipy"):
            raise UserError("detector.model", folder, not_installed("scipy"), OPTIONAL["scipy"].install)
        kind, processor = KINDS[self.name]
        model = load_pretrained("detector.model", folder, kind, torch.float32, use_safetensors=True)
        self.compute = compute
        # Boxes and scores are computed in float32: bfloat16 has only 8 bits for a position in the image.
        self.model: Any = compute.prepare_model(model, in_float32=[model.class_head, model.box_head, model.layer_norm])
        self.towers = getattr(model, self.name)
        self.max_tokens: int = model.config.text_config.max_position_embeddings
        self.words: int = model.config.text_config.vocab_size
        self.edge: int = model.config.vision_config.image_size
        self.processor = load_processor("detector.model", folder, processor, self.edge)

    def prepare(self, image: Image.Image) -> Tensor:
        """Return the image as input for the model, float32 `[3, S, S]`.

        OWLv2 pads the image to a square at the right or the bottom; OWL-ViT stretches it to a square.
        """
        pixels: Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    def embed(self, texts: list[list[int]], pad: int) -> Tensor:
        """Return unit embeddings of texts, float32 `[n, d]` on the device. The texts are token ids; `pad` fills up."""
        ids, attended = map(self.compute.send, padded_texts(texts, self.max_tokens, pad))
        with self.compute.autocast():
            pooled = self.towers.text_model(input_ids=ids, attention_mask=attended).pooler_output
            embeddings: Tensor = self.towers.text_projection(pooled).float()
            return embeddings.div(embeddings.norm(dim=-1, keepdim=True))

    def detect(self, images: list[Tensor], queries: Tensor) -> tuple[Tensor, Tensor]:
        """Find texts in images. `queries` are the texts' embeddings for each image, `[B, n, d]`.

        Returns:
            Two float32 tensors: the probability (0..1) that a box shows a text, `[B, boxes, n]`, and the boxes,
            `[B, boxes, 4]`, cxcywh in fractions of the square.
        """
        with self.compute.autocast():
            features = self.model.image_embedder(self.compute.send(torch.stack(images)))[0].float()
            flat = features.flatten(1, 2)
            logits = self.model.class_predictor(flat, queries)[0]
            boxes = self.model.box_predictor(flat, features)
        return logits.float().sigmoid(), boxes.float()


class OwlDetector(BoxStage):
    """Runs an OWL model, which compares each box with each tag of its image."""

    def __init__(self, settings: BoxSettings, decoding: DecodeSettings, compute: ComputeSettings) -> None:
        super().__init__(settings, decoding)
        folder, _ = find_model(settings)
        self.model = Owl(folder, Compute(compute))
        self.tokenizer = load_tokenizer("detector.model", folder)
        if (known := len(self.tokenizer)) > self.model.words or self.tokenizer.pad_token_id is None:
            rule = f"its tokenizer knows {known} tokens, and the model {self.model.words}; it needs a padding token"
            raise UserError("detector.model", folder, rule, "fetch the model again")
        self._embeddings: dict[str, Tensor] = {}
        """Normalized tag -> the embedding of its text, for the current shard."""

    def __call__(self, shard: Shard) -> Shard:
        """Find the boxes of a shard's images."""
        # The last bit of an embedding can depend on the other texts of its batch. A shard must not depend on earlier
        # shards, so each shard embeds its texts again.
        self._embeddings.clear()
        return super().__call__(shard)

    def tokenize(self, tag: str) -> list[int]:
        """Return the token ids of the text for a tag."""
        ids: list[int] = self.tokenizer(TEXT.format(tag))["input_ids"]
        return ids

    def prompts(self, row: ImageRecord) -> list[Prompt]:
        """See `one_token_prompts`."""
        return one_token_prompts(row, self.unboxable, self.encode, self.model.max_tokens)

    def detect(self, rows: list[ImageRecord], prompts: list[list[Prompt]], inputs: list[Tensor]) -> list[list[Answer]]:
        """See `BoxStage`."""
        texts = [[normalize(tag) for tag in prompt.tags] for (prompt,) in prompts]
        new = dict.fromkeys(text for of_row in texts for text in of_row if text not in self._embeddings)
        for batch in chunks([*new], TEXTS_AT_ONCE):
            embeddings = self.model.embed([self.encode(text) for text in batch], self.tokenizer.pad_token_id)
            self._embeddings |= dict(zip(batch, embeddings, strict=True))
        # Fill up each row with copies of its first text, because all rows need the same number of texts.
        most = max(map(len, texts))
        filled = [of_row + of_row[:1] * (most - len(of_row)) for of_row in texts]
        queries = torch.stack([torch.stack([self._embeddings[text] for text in of_row]) for of_row in filled])
        probabilities, boxes = map(HostCopy, self.model.detect(inputs, queries))
        return [[Answer(0, prompt, probabilities, boxes, position)] for position, (prompt,) in enumerate(prompts)]

    def corners(self, row: ImageRecord, boxes: np.ndarray) -> np.ndarray:
        """See `BoxStage`. The boxes of OWLv2 are fractions of the padded square."""
        if self.model.name == "owlvit":
            return super().corners(row, boxes)
        edge = max(row.width, row.height)
        return to_pixels(boxes, edge, edge).clip(0, [row.width, row.height] * 2)
