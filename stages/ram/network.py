"""The network of RAM and RAM++: queries for all tags attend to image tokens, and give a logit for each tag."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from pad_pipeline.stages.ram.swin import SwinSettings, SwinTransformer


class RamSettings(SwinSettings):
    """The sizes of the network. The defaults are the official RAM's."""

    family: Literal["ram", "ram_plus"] = "ram"
    embed_width: int = Field(512, gt=0, le=16384)
    """Width of image tokens and label embeddings, which share CLIP's space."""
    head_width: int = Field(768, gt=0, le=16384)
    head_heads: int = Field(4, gt=0, le=1024)
    head_feed_forward: int = Field(3072, gt=0, le=16384)
    head_layers: int = Field(2, gt=0, le=1024)
    descriptions: int = Field(51, gt=0, le=1024)
    """The number of label embeddings of a tag in RAM++, one for each description of the tag. RAM has one for a tag."""

    @model_validator(mode="after")
    def _heads_divide(self) -> RamSettings:
        if self.head_width % self.head_heads:
            raise ValueError(f"head_heads {self.head_heads} must divide head_width {self.head_width}")
        return self


class CrossAttention(nn.Module):
    """BERT's cross-attention from tag queries to image tokens."""

    def __init__(self, settings: RamSettings) -> None:
        super().__init__()
        width = settings.head_width
        self.heads = settings.head_heads
        inputs = {"query": width, "key": settings.embed_width, "value": settings.embed_width}
        self.self = nn.ModuleDict({name: nn.Linear(size, width) for name, size in inputs.items()})
        self.output = _residual_output(width, width)

    def forward(self, queries: Tensor, image: Tensor) -> Tensor:
        """Return the updated queries, `[B, tags, width]`.

        `queries` are `[B, tags, width]`, or `[1, tags, width]` for all images; `image` is `[B, n, embed_width]`.
        """
        q, k, v = (
            self.self[name](x).unflatten(-1, (self.heads, -1)).transpose(1, 2).expand(len(image), -1, -1, -1)
            for name, x in (("query", queries), ("key", image), ("value", image))
        )
        context = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        normed: Tensor = self.output["LayerNorm"](self.output["dense"](context) + queries)
        return normed


class TaggingLayer(nn.Module):
    """Cross-attention, then a feed-forward network, each followed by a residual and a LayerNorm; no self-attention."""

    def __init__(self, settings: RamSettings) -> None:
        super().__init__()
        self.crossattention = CrossAttention(settings)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(settings.head_width, settings.head_feed_forward)})
        self.output = _residual_output(settings.head_feed_forward, settings.head_width)

    def forward(self, queries: Tensor, image: Tensor) -> Tensor:
        """Return the updated queries, `[B, tags, width]`, for the arguments of `CrossAttention.forward`."""
        x = self.crossattention(queries, image)
        normed: Tensor = self.output["LayerNorm"](self.output["dense"](F.gelu(self.intermediate["dense"](x))) + x)
        return normed


def _residual_output(inputs: int, width: int) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": nn.Linear(inputs, width), "LayerNorm": nn.LayerNorm(width, eps=1e-12)})


class Ram(nn.Module):
    """RAM or RAM++, which maps an image to a logit for each of `tags` tags."""

    reweight_scale: Tensor

    def __init__(self, settings: RamSettings, tags: int) -> None:
        super().__init__()
        self.settings, self.tags = settings, tags
        per_tag = settings.descriptions if settings.family == "ram_plus" else 1
        self.visual_encoder = SwinTransformer(settings)
        self.image_proj = nn.Linear(settings.width, settings.embed_width)
        self.label_embed = nn.Parameter(torch.zeros(tags * per_tag, settings.embed_width))
        if settings.family == "ram_plus":
            self.reweight_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.wordvec_proj = nn.Linear(settings.embed_width, settings.head_width)
        layers = nn.ModuleList(TaggingLayer(settings) for _ in range(settings.head_layers))
        self.tagging_head = nn.ModuleDict({"encoder": nn.ModuleDict({"layer": layers})})
        self.fc = nn.Linear(settings.head_width, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images `[B, 3, S, S]` to float32 logits `[B, tags]`."""
        image = self.image_proj(self.visual_encoder(images))
        with torch.autocast(image.device.type, enabled=False):  # RAM++ takes a softmax of cosines times 14
            labels = self.label_queries(image[:, 0].float())
        queries = F.relu(self.wordvec_proj(labels))
        for layer in self.tagging_head["encoder"]["layer"]:  # type: ignore[index]
            queries = layer(queries, image)
        with torch.autocast(queries.device.type, enabled=False):  # bfloat16 has too few digits for thresholds
            logits: Tensor = self.fc(queries.float())
            return logits.squeeze(-1)

    def label_queries(self, mean_token: Tensor) -> Tensor:
        """Return an embedding for each tag: for RAM `[1, tags, embed_width]`, for RAM++ `[B, tags, embed_width]`.

        RAM++ takes the weighted mean of the embeddings of a tag's descriptions. The weights are a softmax of
        exp(reweight_scale) * <image, description>, where `image` is the `mean_token` `[B, embed_width]` scaled to
        length 1. The descriptions are not scaled.
        """
        if self.settings.family == "ram":
            return self.label_embed.unsqueeze(0)
        mean_token = mean_token / mean_token.norm(dim=-1, keepdim=True)
        similarity = self.reweight_scale.exp() * mean_token @ self.label_embed.t()
        weights = similarity.view(len(mean_token), self.tags, -1).softmax(-1)
        return torch.einsum("btd,tde->bte", weights, self.label_embed.view(self.tags, -1, self.label_embed.shape[-1]))
