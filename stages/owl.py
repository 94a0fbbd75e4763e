"""Find boxes for tags with OWLv2 or OWL-ViT, which score each tag separately, so that labels are exact."""

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
from pad_pipeline.pretrained import load_pretrained, load_tokenizer, read_config
from pad_pipeline.records import ImageRecord, Shard
from pad_pipeline.stages.base import chunks
from pad_pipeline.stages.box_stage import BoxSettings, BoxStage, Found, find_model
from pad_pipeline.stages.boxes import to_pixels
from pad_pipeline.stages.compute import Compute, ComputeSettings, HostCopy, padded_texts
from pad_pipeline.stages.spans import Prompt, normalize

KINDS: dict[str, tuple[Any, Any]] = {
    "owlv2": (Owlv2ForObjectDetection, Owlv2ImageProcessorPil),
    "owlvit": (OwlViTForObjectDetection, OwlViTImageProcessorPil),
}
"""Model and image processor by `model_type`. For a photograph, these processors, which use Pillow and SciPy, take a
sixth of the time of those that use torchvision; single pixels differ by up to 2e-2 standard deviations."""
TEXT = "a photo of a {}"
"""The text for a tag, in the form that OWL's authors use in their examples."""
TEXTS_AT_ONCE = 64
"""Texts that the text encoder reads in one batch."""


class Owl:
    """The model on its device, from a model folder of transformers."""

    def __init__(self, folder: Path, compute: Compute) -> None:
        self.name: str = read_config("detector.model", folder, set(KINDS))["model_type"]
        if self.name == "owlv2" and not installed("scipy"):
            raise UserError("detector.model", folder, not_installed("scipy"), OPTIONAL["scipy"].install)
        kind, processor = KINDS[self.name]
        model = load_pretrained("detector.model", folder, kind, torch.float32, use_safetensors=True)
        self.compute = compute
        # Boxes and scores are computed in float32: bfloat16 has only 8 bits for a position in the image.
        self.model: Any = compute.put(model, in_float32=[model.class_head, model.box_head, model.layer_norm])
        self.towers = getattr(model, self.name)
        self.max_tokens: int = model.config.text_config.max_position_embeddings
        self.words: int = model.config.text_config.vocab_size
        self.edge: int = model.config.vision_config.image_size
        try:
            self.processor = processor.from_pretrained(folder, local_files_only=True)
            found = tuple(self.prepare(Image.new("RGB", (8, 6))).shape)
        except Exception as error:
            rule = f"its preprocessor_config.json can't be used ({type(error).__name__}: {str(error)[:100]})"
            raise UserError("detector.model", folder, rule, "fetch the model again") from error
        if found != (3, self.edge, self.edge):
            rule = f"its preprocessor_config.json makes images {found}, and its model takes {self.edge} pixels"
            raise UserError("detector.model", folder, rule, "fetch the model again")

    def prepare(self, image: Image.Image) -> Tensor:
        """Return the image as the model takes it, float32 `[3, S, S]`.

        OWLv2 pads it to a square at the right or the bottom; OWL-ViT stretches it to a square.
        """
        pixels: Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    def read(self, texts: list[list[int]], pad: int) -> Tensor:
        """Embed texts, given as token ids: an embedding of length 1 for each, float32 `[n, d]`, on the device."""
        ids, attended = map(self.compute.send, padded_texts(texts, self.max_tokens, pad))
        with self.compute.autocast():
            read = self.towers.text_model(input_ids=ids, attention_mask=attended)
            embeddings: Tensor = self.towers.text_projection(read.pooler_output).float()
            return embeddings.div(embeddings.norm(dim=-1, keepdim=True))

    def detect(self, images: list[Tensor], queries: Tensor) -> tuple[Tensor, Tensor]:
        """Find the texts of each image, whose embeddings from `read` are `queries` `[B, n, d]`, in the image.

        Returns:
            Two float32 tensors. The first has the probability (0..1) that a box shows a text, `[B, boxes, n]`. The
            second has the boxes, `[B, boxes, 4]`: cxcywh in fractions of the square.
        """
        with self.compute.autocast():
            features = self.model.image_embedder(self.compute.send(torch.stack(images)))[0].float()
            flat = features.flatten(1, 2)
            logits = self.model.class_predictor(flat, queries)[0]
            boxes = self.model.box_predictor(flat, features)
        return logits.float().sigmoid(), boxes.float()


class OwlDetector(BoxStage):
    """The detection stage with an OWL model: it compares every box with every tag of its image."""

    def __init__(self, settings: BoxSettings, decoding: DecodeSettings, compute: ComputeSettings) -> None:
        super().__init__(settings, decoding)
        folder, _ = find_model(settings)
        self.model = Owl(folder, Compute(compute))
        self.tokenizer = load_tokenizer("detector.model", folder)
        if (known := len(self.tokenizer)) > self.model.words or self.tokenizer.pad_token_id is None:
            rule = f"its tokenizer knows {known} tokens, and the model {self.model.words}; it needs one for padding"
            raise UserError("detector.model", folder, rule, "fetch the model again")
        self._known: dict[str, Tensor] = {}
        """The embeddings of the current shard's texts, by normalized tag."""

    def __call__(self, shard: Shard) -> Shard:
        """Detect boxes in a shard."""
        # An embedding may differ in its last bit with the other texts of its batch. A shard must not depend on the
        # shards before it, so its texts are embedded again.
        self._known.clear()
        return super().__call__(shard)

    def tokenize(self, tag: str) -> list[int]:
        """Return the token ids of the text for a tag."""
        ids: list[int] = self.tokenizer(TEXT.format(tag))["input_ids"]
        return ids

    def prompts(self, row: ImageRecord) -> list[Prompt]:
        """Return one prompt with the tags to look for, each as one token; no prompt if there is none.

        Tags that normalize to the same text are looked for once, under the first one's name. Tags that are too long for
        the model are left out, not cut, and so are tags that can't have a box.
        """
        tags: dict[str, str] = {}
        for tag in row.tags:
            text = normalize(tag.label)
            if text and text not in self.unboxable and len(self.encode(text)) <= self.model.max_tokens:
                tags.setdefault(text, tag.label)
        return [Prompt([], [*tags.values()], [(at, at + 1) for at in range(len(tags))])] if tags else []

    def detect(self, rows: list[ImageRecord], prompts: list[list[Prompt]], inputs: list[Tensor]) -> list[list[Found]]:
        """See `BoxStage`."""
        texts = [[normalize(tag) for tag in prompt.tags] for (prompt,) in prompts]
        new = dict.fromkeys(text for of_row in texts for text in of_row if text not in self._known)
        for batch in chunks([*new], TEXTS_AT_ONCE):
            embeddings = self.model.read([self.encode(text) for text in batch], self.tokenizer.pad_token_id)
            self._known |= dict(zip(batch, embeddings, strict=True))
        # Each row is filled up with copies of its first text, whose scores are not read.
        most = max(map(len, texts))
        filled = [of_row + of_row[:1] * (most - len(of_row)) for of_row in texts]
        queries = torch.stack([torch.stack([self._known[text] for text in of_row]) for of_row in filled])
        probabilities, boxes = map(HostCopy, self.model.detect(inputs, queries))
        return [[Found(0, prompt, probabilities, boxes, position)] for position, (prompt,) in enumerate(prompts)]

    def corners(self, row: ImageRecord, boxes: np.ndarray) -> np.ndarray:
        """Convert boxes to pixels as `BoxStage.corners` does; those of OWLv2 are fractions of the padded square."""
        if self.model.name == "owlvit":
            return super().corners(row, boxes)
        edge = max(row.width, row.height)
        return to_pixels(boxes, edge, edge).clip(0, [row.width, row.height] * 2)
