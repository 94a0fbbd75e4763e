"""Frozen vision tower, projector, frozen LLM: from a batch to the two losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel, LlamaForCausalLM

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.labels import EmbeddingTable
from pad_pipeline.pretrained import load_pretrained, load_tokenizer, read_config
from pad_pipeline.shards.run import Run
from pad_pipeline.training.data import Batch
from pad_pipeline.training.losses import caption_loss, patch_loss
from pad_pipeline.training.projector import build_projector
from pad_pipeline.training.settings import TrainSettings
from pad_pipeline.weights import fetch_model

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


class AlignModel(nn.Module):
    """The stage-1 model. Only `projector` learns.

    Args:
        vision: folder or hub name of a CLIP-type vision tower.
        llm: folder or hub name of a LLaMA-type language model.
        run: of the shards: their view, LLM and embedding width must be this model's.
        settings: the training's.
        device: where it computes; frozen parts in bfloat16 on a GPU, all in float32 on a CPU.

    Raises:
        UserError: a model can't be loaded, or does not fit the shards.
    """

    def __init__(self, vision: str, llm: str, run: Run, settings: TrainSettings, device: torch.device) -> None:
        super().__init__()
        self.settings, self.view = settings, run.view
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        vision_folder, llm_folder = fetch_model("--vision", vision), fetch_model("--llm", llm)
        check_view(run.view, read_config("--vision", vision_folder, {"clip", "clip_vision_model"}), vision)
        read_config("--llm", llm_folder, {"llama"})
        self.tokenizer = load_tokenizer("--llm", llm_folder)
        _check_llm(self.tokenizer, run, llm, llm_folder)
        self.mean, self.std = normalisation(vision_folder)
        self.tower = load_pretrained("--vision", vision_folder, CLIPVisionModel, dtype)
        self.llm = load_pretrained("--llm", llm_folder, LlamaForCausalLM, dtype)
        self.requires_grad_(False)
        torch.manual_seed(settings.seed)  # here, so that the start does not depend on what was loaded before
        self.projector = build_projector(settings.projector, self.tower.config.hidden_size, self.llm.config.hidden_size)
        self.eval()
        self.to(device)

    def vision_tokens(self, pixels: Tensor) -> Tensor:
        """Pictures `[B, 3, size, size]` -> projected tokens `[B, grid * grid, d]`, row by row from the top left."""
        with torch.no_grad():
            states = self.tower(pixels.to(self.tower.dtype), output_hidden_states=True).hidden_states
        # The one part that learns keeps its weights in float32; on a GPU it computes in bfloat16.
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.device.type == "cuda"):
            return self.projector(states[self.settings.vision_layer][:, 1:].float())

    def forward(
        self, batch: Batch, caption_weight: float | None = None, patch_weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """L_caption and L_patch of a batch; the weights as in `losses`."""
        tokens = self.vision_tokens(batch.pixels)
        aligned = patch_loss(tokens, batch.embeds, batch.coverage, batch.image, self.settings.patch_loss, patch_weight)
        if not len(batch.supervised):
            return aligned.new_zeros(()), aligned
        targets = batch.caption.flatten()[batch.supervised]
        return caption_loss(self.logits(tokens, batch), targets, caption_weight), aligned

    def logits(self, tokens: Tensor, batch: Batch) -> Tensor:
        """What the LLM says where a supervised token comes next: `[supervised tokens, vocabulary]`.

        The sequence is `BOS <image> caption "\\n"`. Padding stands behind every supervised token, where a causal model
        does not look, so no attention mask is needed; and only the supervised rows go through the LLM's head.
        """
        embed = self.llm.get_input_embeddings()
        bos = torch.full((len(tokens), 1), self.tokenizer.bos_token_id, device=tokens.device)
        sequence = torch.cat([embed(bos), tokens.to(embed.weight.dtype), embed(batch.caption)], 1)
        hidden = self.llm.model(inputs_embeds=sequence, use_cache=False).last_hidden_state
        start = tokens.shape[1]  # the last vision token predicts the caption's first
        predicting = hidden[:, start : start + batch.caption.shape[1]].flatten(0, 1)
        return self.llm.lm_head(predicting[batch.supervised])


def check_view(view: View, config: dict[str, Any], vision: str) -> None:
    """The tower must see just the view that the shards' masks are cut for.

    Raises:
        UserError: its input or its patches have another size.
    """
    config = config.get("vision_config", config)  # a whole CLIP has it one level down
    size, patch = config.get("image_size", 224), config.get("patch_size", 32)  # the class's own defaults
    if (size, patch) != (view.size, view.patch):
        raise UserError(
            "--vision",
            vision,
            f"it sees {size} px in patches of {patch}, and the shards are made for {view.size} px in patches of "
            f"{view.patch} ({view.fit}, a grid of {view.grid} x {view.grid})",
            f"use the matching tower, or build shards with --view-size {size} --patch {patch}",
        )


def normalisation(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and deviation per channel, from the tower's preprocessor_config.json; CLIP's own where there is none."""
    try:
        config = json.loads((folder / "preprocessor_config.json").read_text())
    except OSError:
        return CLIP_MEAN, CLIP_STD
    except (ValueError, RecursionError) as error:
        raise UserError(
            "--vision", folder, f"its preprocessor_config.json is no JSON ({error})", "fetch it again"
        ) from error
    mean, std = (config.get(name, default) for name, default in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)))
    if not all(
        isinstance(values, list) and len(values) == 3 and all(type(v) in (int, float) and 0 <= v <= 1 for v in values)
        for values in (mean, std)
    ) or not min(std):
        rule = f"its preprocessor_config.json has image_mean {mean} and image_std {std}, not 3 shares of 1 each"
        raise UserError("--vision", folder, rule, "fetch it again")
    return mean, std


def _check_llm(tokenizer: Any, run: Run, llm: str, folder: Path) -> None:
    if tokenizer.bos_token_id is None:
        raise UserError(
            "--llm", llm, "its tokenizer has no BOS token", "give a LLaMA-type model with its own tokenizer"
        )
    if EmbeddingTable(folder).sha256() != run.fingerprints.get("llm_embedding"):
        settings = run.settings.get("llm")
        built_for = settings.get("llm") if isinstance(settings, dict) else "another LLM"
        raise UserError(
            "--llm",
            llm,
            f"its word embeddings are not those in the shards, which were built for {built_for}",
            "train with that LLM, or build shards with this one in the [llm] section of --models FILE.toml",
        )
