"""Tags -> boxes: OWLv2 and OWL-ViT, which compare each box with each tag's text by itself, so labels are exact."""

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
from pad_pipeline.pretrained import load_pretrained, load_tokenizer, read_config
from pad_pipeline.records import ImageRecord, Shard
from pad_pipeline.stages.base import chunks
from pad_pipeline.stages.boxes import to_pixels
from pad_pipeline.stages.compute import Compute, ComputeSettings, HostCopy
from pad_pipeline.stages.decode import image
from pad_pipeline.stages.ground import BoxStage, DetectorSettings, Found, find_model, load_unboxable
from pad_pipeline.stages.spans import Prompt, normalize

KINDS: dict[str, tuple[Any, Any]] = {
    "owlv2": (Owlv2ForObjectDetection, Owlv2ImageProcessorPil),
    "owlvit": (OwlViTForObjectDetection, OwlViTImageProcessorPil),
}
"""Model and image processor by `model_type`. The processors on Pillow and SciPy give the torchvision ones' numbers to
2e-2 of a deviation at single pixels, in a sixth of the time for a photograph."""
TEXT = "a photo of a {}"
"""What a tag is asked as: the form that OWL's authors give in their examples."""
TEXTS_AT_ONCE = 64


class Owl:
    """The network on its device.

    Args:
        folder: model folder of transformers.
        compute: where and how it computes.
    """

    def __init__(self, folder: Path, compute: Compute) -> None:
        self.name: str = read_config("detector.model", folder, set(KINDS))["model_type"]
        kind, processor = KINDS[self.name]
        model = load_pretrained("detector.model", folder, kind, torch.float32, use_safetensors=True)
        self.compute = compute
        # Boxes and scores: a bfloat16 has 8 bits for a place in the image.
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
        """The image as the model wants it, float32 `[3, S, S]`: OWLv2 fills it up to a square at the right or the
        bottom, OWL-ViT stretches it."""
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]

    def read(self, texts: list[list[int]], pad: int) -> Tensor:
        """Token ids -> an embedding of length 1 for each text, float32 `[n, d]`, on the device."""
        ids = torch.full((len(texts), self.max_tokens), pad, dtype=torch.long)
        attended = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            attended[row, : len(text)] = 1
        with self.compute.autocast():
            found = self.towers.text_model(
                input_ids=self.compute.send(ids), attention_mask=self.compute.send(attended)
            ).pooler_output
            found = self.towers.text_projection(found).float()
            return found / found.norm(dim=-1, keepdim=True)

    def detect(self, images: list[Tensor], queries: Tensor) -> tuple[Tensor, Tensor]:
        """Where each text of an image is.

        Args:
            images: as `prepare` gives them.
            queries: `[B, n, d]`, the texts of each image, as `read` gives them.

        Returns:
            Probabilities of each box for each text `[B, boxes, n]`, and boxes `[B, boxes, 4]`, cxcywh as parts of the
            square; float32.
        """
        with self.compute.autocast():
            features = self.model.image_embedder(self.compute.send(torch.stack(images)))[0].float()
            flat = features.flatten(1, 2)
            logits = self.model.class_predictor(flat, queries)[0]
            boxes = self.model.box_predictor(flat, features)
        return logits.float().sigmoid(), boxes.float()


class OwlDetector(BoxStage):
    """Encodes images in batches, which all have one size, and compares every box with every tag of its image."""

    def __init__(self, settings: DetectorSettings, decoding: DecodeSettings, compute: ComputeSettings) -> None:
        super().__init__()
        self.settings, self.decoding = settings, decoding
        self.batch_size = settings.batch_size
        folder, _ = find_model(settings)
        self.model = Owl(folder, Compute(compute))
        self.tokenizer = load_tokenizer("detector.model", folder)
        if (known := len(self.tokenizer)) > self.model.words or self.tokenizer.pad_token_id is None:
            rule = f"its tokenizer knows {known} tokens, and the model {self.model.words}; it needs one for padding"
            raise UserError("detector.model", folder, rule, "fetch the model again")
        self.unboxable = load_unboxable(settings.unboxable)
        self._ids: dict[str, list[int]] = {}
        self._known: dict[str, Tensor] = {}
        """The embedding of each text of this shard."""

    def __call__(self, shard: Shard) -> Shard:
        """Texts are read anew for each shard: what was read before, in other company, could differ in its last bit."""
        self._known.clear()
        return super().__call__(shard)

    def encode(self, tag: str) -> list[int]:
        """Token ids of the text that asks for a tag."""
        if tag not in self._ids:
            self._ids[tag] = self.tokenizer(TEXT.format(tag))["input_ids"]
        return self._ids[tag]

    def asked(self, row: ImageRecord) -> dict[str, str]:
        """What is asked for, and the tag that each stands for. Tags that are equal but for case and dots are asked for
        once, under the first name; one that is too long for the model is left out, not cut."""
        found: dict[str, str] = {}
        for tag in row.tags:
            text = normalize(tag.label)
            if text and text not in self.unboxable and len(self.encode(text)) <= self.model.max_tokens:
                found.setdefault(text, tag.label)
        return found

    def prepare(self, row: ImageRecord) -> Tensor:
        """The image as the model wants it."""
        return self.model.prepare(image(row, self.decoding))

    def process(self, rows: list[ImageRecord], inputs: list[Tensor]) -> list[list[Found]]:
        """What was found of each row's tags."""
        found: list[list[Found]] = [[] for _ in rows]
        wanted = [self.asked(row) for row in rows]
        asked = [index for index, its in enumerate(wanted) if its]  # the others' tags can't be boxed
        if not asked:
            return found
        self._read(list(dict.fromkeys(text for its in wanted for text in its)))
        most = max(map(len, wanted))
        queries = torch.stack([self._queries(list(wanted[index]), most) for index in asked])
        both = self.model.detect([inputs[index] for index in asked], queries)
        probabilities, boxes = (HostCopy(tensor) for tensor in both)
        for position, index in enumerate(asked):
            tags = list(wanted[index].values())
            prompt = Prompt([], tags, [(number, number + 1) for number in range(len(tags))])
            found[index].append(Found(0, prompt, probabilities, boxes, position))
        return found

    def _read(self, texts: list[str]) -> None:
        """Embed what is new."""
        for new in chunks([text for text in texts if text not in self._known], TEXTS_AT_ONCE):
            embeddings = self.model.read([self.encode(text) for text in new], self.tokenizer.pad_token_id)
            self._known |= dict(zip(new, embeddings, strict=True))

    def _queries(self, texts: list[str], length: int) -> Tensor:
        """The texts' embeddings, filled up to `length` with the first one, whose scores there nobody reads."""
        return torch.stack([self._known[text] for text in texts + texts[:1] * (length - len(texts))])

    def corners(self, row: ImageRecord, boxes: np.ndarray) -> np.ndarray:
        """As `BoxStage.corners`; OWLv2's boxes are parts of the filled-up square."""
        if self.model.name == "owlvit":
            return super().corners(row, boxes)
        edge = max(row.width, row.height)
        return to_pixels(boxes, edge, edge).clip(0, [row.width, row.height] * 2)
