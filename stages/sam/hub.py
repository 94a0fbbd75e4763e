"""The segmenters SAM, SAM-HQ and SAM 2.1 of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Sam2ImageProcessor, Sam2Model, SamHQModel, SamImageProcessorPil, SamModel

from pad_pipeline.errors import UserError
from pad_pipeline.pretrained import load_pretrained, read_config
from pad_pipeline.stages.compute import Compute
from pad_pipeline.stages.sam.attention import RelativeAttention
from pad_pipeline.stages.sam.base import SegmentAnything

KINDS = {"sam": SamModel, "sam_hq": SamHQModel, "sam2": Sam2Model, "sam2_video": Sam2Model}
"""The model class for each `model_type`. Official SAM 2.1 folders hold the video model, which has the image model."""
FILES = ["*config.json", "model*.safetensors*"]
"""The files to fetch from the hub; a model's fingerprint covers the same files."""


class HubSam(SegmentAnything):
    """SAM, SAM-HQ or SAM 2.1 on its device, from a model folder of transformers."""

    def __init__(self, folder: Path, compute: Compute) -> None:
        self.kind = read_config("segmenter.weights", folder, set(KINDS))["model_type"]
        self.compute, self.stretched = compute, self.kind.startswith("sam2")
        model = load_pretrained("segmenter.weights", folder, KINDS[self.kind], torch.float32, use_safetensors=True)
        if not self.stretched:
            for layer in model.vision_encoder.layers:
                if hasattr(layer.attn, "rel_pos_h"):
                    layer.attn = _HubAttention(layer.attn)
        if self.kind == "sam_hq":
            use_attended_features(model.mask_decoder)
        # These compute sine and cosine of positions (far off in bfloat16) and the predicted IoU.
        exact = [model.prompt_encoder, model.shared_image_embedding, model.mask_decoder.iou_prediction_head]
        self.model: Any = compute.prepare_model(model, in_float32=exact)
        self.edge = model.config.prompt_encoder_config.image_size
        processor = Sam2ImageProcessor if self.stretched else SamImageProcessorPil
        try:
            self.processor = processor.from_pretrained(folder, local_files_only=True)
            edges = tuple(self.prepare(Image.new("RGB", (8, 8))).shape[1:])
        except Exception as error:
            rule = f"its preprocessor_config.json can't be used ({type(error).__name__})"
            raise UserError("segmenter.weights", folder, rule, "fetch the model again") from error
        size = self.processor.size.get("longest_edge", self.processor.size.get("height"))
        if edges != (self.edge, self.edge) or size != self.edge:
            rule = f"its preprocessor_config.json makes images of {size} pixels, and its model takes {self.edge}"
            raise UserError("segmenter.weights", folder, rule, "fetch the model again")

    def prepare(self, image: Image.Image) -> Tensor:
        """Return the image resized, normalized and (not for SAM 2) padded, float32 `[3, S, S]`."""
        pixels: Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    def encode(self, images: list[Tensor]) -> list[Tensor]:
        """Return one tensor for SAM, two for SAM-HQ, one for each resolution for SAM 2."""
        with self.compute.autocast():
            embeddings = self.model.get_image_embeddings(self.compute.send(torch.stack(images)))
        if self.kind == "sam":
            return [embeddings]
        # The decoder of SAM-HQ also takes the output of the first block with global attention.
        return [embeddings[0], embeddings[1][0]] if self.kind == "sam_hq" else list(embeddings)

    def decode(self, embeddings: list[Tensor], image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Decode all boxes in one call, except for SAM-HQ."""
        if self.kind == "sam_hq":
            # Its decoder processes whole feature maps first, so each image is decoded once, with all its boxes.
            groups = torch.split(boxes, torch.bincount(image).tolist())
            single = ([part[index : index + 1] for part in embeddings] for index in range(len(groups)))
            masks = (self._decode(one, group[None]) for one, group in zip(single, groups, strict=True) if len(group))
            logits, quality = zip(*masks, strict=True)
            return torch.cat(logits), torch.cat(quality)
        index_of_box = self.compute.send(image)
        return self._decode([part[index_of_box] for part in embeddings], boxes[:, None])

    def _decode(self, embeddings: list[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Decode boxes `[images, n, 4]`; return logits and predicted IoU of all boxes, image after image."""
        inputs: dict[str, Any] = {"image_embeddings": embeddings if self.stretched else embeddings[0]}
        if self.kind == "sam_hq":
            inputs["intermediate_embeddings"] = embeddings[1:]
        with self.compute.autocast():
            output = self.model(input_boxes=self.compute.send(boxes), multimask_output=False, **inputs)
        return output.pred_masks[:, :, 0].flatten(0, 1).float(), output.iou_scores[:, :, 0].flatten(0, 1).float()


def use_attended_features(decoder: Any) -> None:
    """Make SAM-HQ's masks from the image features that its decoder's transformer returns, as its authors do.

    transformers 5.23 makes them from the features before, with rows and columns exchanged, so a mask does not follow
    its box. Its LayerNorms also have an epsilon of 1e-6; the authors' have 1e-5. Where transformers is corrected, this
    changes nothing.
    """
    attended: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: tuple[Tensor, Tensor]) -> None:
        attended[:] = [output[1]]

    def replace(_module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return attended.pop().transpose(2, 3).reshape(inputs[0].shape)

    decoder.transformer.register_forward_hook(keep)
    decoder.upscale_conv1.register_forward_pre_hook(replace)
    for part in decoder.transformer.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = 1e-5


class _HubAttention(RelativeAttention):
    """Replaces transformers' attention, which stores all biases, and sends indices to the GPU in each block."""

    def __init__(self, original: Any) -> None:
        super().__init__(original.proj.in_features, original.num_attention_heads, (len(original.rel_pos_h) + 1) // 2)
        self.load_state_dict(original.state_dict())

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, None]:  # type: ignore[override]
        """Return the attended tokens, `[B, side, side, dim]` as before, and None in place of attention weights."""
        return super().forward(hidden_states), None
