"""The stage ground with OmDet-Turbo, a fast detector that gives each box a separate score for each tag."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, OmDetTurboForObjectDetection
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

from pad_pipeline.errors import UserError
from pad_pipeline.images import DecodeSettings
from pad_pipeline.packages import OPTIONAL, installed, not_installed
from pad_pipeline.pretrained import load_pretrained, load_processor, load_tokenizer, read_config
from pad_pipeline.records import ImageRecord
from pad_pipeline.stages.box_stage import Answer, BoxSettings, BoxStage, find_model, one_token_prompts
from pad_pipeline.stages.compute import Compute, ComputeSettings, HostCopy
from pad_pipeline.stages.spans import Prompt, normalize

KINDS = {"omdet-turbo"}
"""The `model_type` of the model."""
TASK = "Detect {}."
"""The text for all tags of an image together, as transformers' processor makes it."""
TEXTS_KEPT = 8192
"""Embeddings of tags that stay on the device, with 2 KB each."""


class OmDet:
    """OmDet-Turbo on its device, from a model folder of transformers."""

    def __init__(self, folder: Path, compute: Compute) -> None:
        self.name: str = read_config("detector.model", folder, KINDS)["model_type"]
        if not installed("timm"):
            try:
                backbone = AutoConfig.from_pretrained(folder, local_files_only=True).backbone_config.model_type
            except Exception:  # loading the model raises the same error, with its remedy
                backbone = ""
            if backbone == "timm_backbone":
                raise UserError("detector.model", folder, not_installed("timm"), OPTIONAL["timm"].install)
        options: dict[str, Any] = {"use_safetensors": True, "disable_custom_kernels": True}
        model = load_pretrained("detector.model", folder, OmDetTurboForObjectDetection, torch.float32, **options)
        self.compute = compute
        # The decoder computes boxes and scores in float32; it is a small part of the work.
        self.model: Any = compute.prepare_model(model, in_float32=[model.decoder])
        self.max_tokens: int = model.config.text_config.max_position_embeddings
        self.words: int = model.config.text_config.vocab_size
        self.edge: int = model.config.image_size
        self.processor = load_processor("detector.model", folder, DetrImageProcessorPil, self.edge)

    def prepare(self, image: Image.Image) -> Tensor:
        """Return the image stretched to a square and normalized, float32 `[3, S, S]`."""
        pixels: Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    def embed(self, ids: list[int]) -> Tensor:
        """Return the embedding of a tag, float32 `[d]`. One by one, so that a result does not depend on a batch."""
        with self.compute.autocast():
            tokens = self.compute.send(torch.tensor([ids]))
            embeddings: Tensor = self.model.language_backbone(tokens, encode_type="class")
        return embeddings[0].float()

    def embed_task(self, ids: list[int]) -> Tensor:
        """Return the features of a task's tokens, float32 `[tokens, d]`."""
        with self.compute.autocast():
            tokens = self.compute.send(torch.tensor([ids]))
            features: Tensor = self.model.language_backbone(tokens, torch.ones_like(tokens), encode_type="task")[0]
        return features[:, 0].float()

    def detect(self, images: list[Tensor], classes: Tensor, tasks: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Find tags in images. `classes` are the tags' embeddings for each image, `[B, n, d]`; `tasks` come from
        `embed_task`.

        Returns:
            Two float32 tensors: the probability (0..1) that a box shows a tag, `[B, boxes, n]`, and the boxes,
            `[B, boxes, 4]`, cxcywh in fractions of the image.
        """
        lengths = torch.tensor([[len(task)] for task in tasks])
        attended = self.compute.send((torch.arange(int(lengths.max())) < lengths).long())
        with self.compute.autocast():
            features = self.model.vision_backbone(self.compute.send(torch.stack(images)))
            maps = [one.float() for one in self.model.encoder(features, return_dict=True).extracted_states]
            output = self.model.decoder(maps, classes.transpose(0, 1), pad_sequence(tasks), attended, return_dict=True)
        return output.decoder_classes[-1].float().sigmoid(), output.decoder_coords[-1].float()


class OmDetDetector(BoxStage):
    """Runs OmDet-Turbo, which compares each box with each tag of its image."""

    def __init__(self, settings: BoxSettings, decoding: DecodeSettings, compute: ComputeSettings) -> None:
        super().__init__(settings, decoding)
        folder, _ = find_model(settings)
        self.model = OmDet(folder, Compute(compute))
        self.tokenizer = load_tokenizer("detector.model", folder)
        if (known := len(self.tokenizer)) > self.model.words:
            rule = f"its tokenizer knows {known} tokens, and the model {self.model.words}"
            raise UserError("detector.model", folder, rule, "fetch the model again")
        self.embed = lru_cache(TEXTS_KEPT)(lambda text: self.model.embed(self.encode(text)))

    def tokenize(self, tag: str) -> list[int]:
        """Return the token ids of a tag, with those that mark its ends."""
        ids: list[int] = self.tokenizer(tag)["input_ids"]
        return ids

    def prompts(self, row: ImageRecord) -> list[Prompt]:
        """See `one_token_prompts`."""
        return one_token_prompts(row, self.unboxable, self.encode, self.model.max_tokens)

    def detect(self, rows: list[ImageRecord], prompts: list[list[Prompt]], inputs: list[Tensor]) -> list[list[Answer]]:
        """See `BoxStage`. The text for all tags is cut at the model's longest text, as transformers does; the tags are
        not."""
        texts = [[normalize(tag) for tag in prompt.tags] for (prompt,) in prompts]
        tasks = [
            self.model.embed_task(
                self.tokenizer(TASK.format(", ".join(of_row)), truncation=True, max_length=self.model.max_tokens)[
                    "input_ids"
                ]
            )
            for of_row in texts
        ]
        # Fill up each row with copies of its first text, because all rows need the same number of texts.
        most = max(map(len, texts))
        filled = [of_row + of_row[:1] * (most - len(of_row)) for of_row in texts]
        classes = torch.stack([torch.stack([*map(self.embed, of_row)]) for of_row in filled])
        probabilities, boxes = map(HostCopy, self.model.detect(inputs, classes, tasks))
        return [[Answer(0, prompt, probabilities, boxes, position)] for position, (prompt,) in enumerate(prompts)]
