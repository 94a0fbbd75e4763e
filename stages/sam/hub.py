"""SAM, SAM-HQ and SAM 2.1 of transformers, by hub name or folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import Sam2ImageProcessor, Sam2Model, SamHQModel, SamImageProcessorPil, SamModel

from pad_pipeline.errors import UserError
from pad_pipeline.pretrained import load_pretrained, read_config
from pad_pipeline.stages.compute import Compute
from pad_pipeline.stages.sam.attention import RelativeAttention

KINDS = {"sam": SamModel, "sam_hq": SamHQModel, "sam2": Sam2Model, "sam2_video": Sam2Model}
"""By `model_type`. The official SAM 2.1 folders are of the video model, which holds the image model."""
FILES = ["*config.json", "model*.safetensors*"]
"""What is fetched of a model from the hub, and what its fingerprint is of."""


class HubSam:
    """A segmenter of transformers on its device. Arguments as `OfficialSam`'s, with a model folder."""

    threshold = 0.0

    def __init__(self, folder: Path, compute: Compute, batch_size: int = 1) -> None:
        self.kind = read_config("segmenter.weights", folder, set(KINDS))["model_type"]
        self.compute = compute
        model = load_pretrained("segmenter.weights", folder, KINDS[self.kind], torch.float32, use_safetensors=True)
        self.stretched = self.kind.startswith("sam2")  # SAM keeps the aspect and pads, SAM 2 does not
        if not self.stretched:
            for layer in model.vision_encoder.layers:
                if hasattr(layer.attn, "rel_pos_h"):
                    layer.attn = _HubAttention(layer.attn)
        # Places become angles of sine and cosine: bfloat16 would be far off.
        exact = [model.prompt_encoder, model.shared_image_embedding, model.mask_decoder.iou_prediction_head]
        self.model: Any = compute.put(model, in_float32=exact)
        processor = Sam2ImageProcessor if self.stretched else SamImageProcessorPil
        try:
            self.processor = processor.from_pretrained(folder, local_files_only=True)
            self.processor(images=Image.new("RGB", (8, 8)), return_tensors="pt")
        except Exception as error:
            rule = f"its preprocessor_config.json can't be used ({type(error).__name__})"
            raise UserError("segmenter.weights", folder, rule, "fetch the model again") from error
        wanted = (
            model.prompt_encoder.input_image_size
            if not self.stretched
            else model.config.prompt_encoder_config.image_size
        )
        self.edge: int = wanted if isinstance(wanted, int) else wanted[0]
        self.square_pixels = 1 if self.stretched else self.edge * self.edge
        found = self.processor(images=Image.new("RGB", (8, 8)), return_tensors="pt")["pixel_values"].shape[2:]
        size = self.processor.size.get("longest_edge", self.processor.size.get("height"))
        if tuple(found) != (self.edge, self.edge) or size != self.edge:
            rule = f"its preprocessor_config.json makes images of {size} pixels, and its model takes {self.edge}"
            raise UserError("segmenter.weights", folder, rule, "fetch the model again")

    def prepare(self, image: Image.Image) -> Tensor:
        """The resized, normalized and padded image `[3, S, S]`."""
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]

    def encode(self, images: list[Tensor], size: int) -> list[Tensor]:
        """What the decoder wants of each image, as tensors `[B, ...]`."""
        with self.compute.autocast():
            found = self.model.get_image_embeddings(self.compute.send(torch.stack(images)))
        if self.kind == "sam":
            return [found]
        # SAM-HQ: the last embedding, and those of the first block that sees the whole image.
        return [found[0], found[1][0]] if self.kind == "sam_hq" else list(found)

    def boxes(self, boxes: np.ndarray, width: int, height: int) -> np.ndarray:
        """Boxes `[N, 4]` in pixels of an image -> in pixels of the encoder's square."""
        new_height, new_width = self._resized(width, height)
        return boxes * np.array([new_width / width, new_height / height] * 2)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if self.stretched:
            return self.edge, self.edge
        scale = self.edge / max(width, height)
        return int(height * scale + 0.5), int(width * scale + 0.5)

    def decode(self, embeddings: list[Tensor], image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Mask logits `[N, h, w]` and predicted IoU `[N]`. Arguments as `OfficialSam.decode`'s."""
        if self.kind == "sam_hq":  # it works on whole feature maps before it looks at boxes: once for each image
            parts = boxes.split(torch.bincount(image, minlength=1).tolist()) if len(image) else ()
            found = [
                self._decode([part[place : place + 1] for part in embeddings], its[None])
                for place, its in enumerate(parts)
                if len(its)
            ]
            return torch.cat([logits for logits, _ in found]), torch.cat([quality for _, quality in found])
        chosen = self.compute.send(image)
        return self._decode([part[chosen] for part in embeddings], boxes[:, None])

    def _decode(self, embeddings: list[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes `[images, n, 4]`; the masks of all, image after image."""
        named: dict[str, Any] = {"image_embeddings": embeddings if self.stretched else embeddings[0]}
        if self.kind == "sam_hq":
            named["intermediate_embeddings"] = embeddings[1:]
        with self.compute.autocast():
            output = self.model(input_boxes=self.compute.send(boxes), multimask_output=False, **named)
        return output.pred_masks[:, :, 0].flatten(0, 1).float(), output.iou_scores[:, :, 0].flatten(0, 1).float()

    def upscale(self, logits: Tensor, width: int, height: int) -> Tensor:
        """`[N, h, w]` -> `[N, height, width]`, as transformers' processors do: SAM by way of its square."""
        if not self.stretched:
            square = F.interpolate(logits[None], (self.edge, self.edge), mode="bilinear", align_corners=False)[0]
            resized = self._resized(width, height)
            logits = square[:, : resized[0], : resized[1]]
        return F.interpolate(logits[None], (height, width), mode="bilinear", align_corners=False)[0]


class _HubAttention(RelativeAttention):
    """In the place of transformers', which writes the biases out and fetches places from the CPU in every block."""

    def __init__(self, original: Any) -> None:
        super().__init__(original.proj.in_features, original.num_attention_heads, (len(original.rel_pos_h) + 1) // 2)
        self.load_state_dict(original.state_dict())

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, None]:  # type: ignore[override]
        """`[B, side, side, dim]` -> the same; and no weights."""
        return super().forward(hidden_states), None
