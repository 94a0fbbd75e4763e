"""Vision tower, projector, LLM: from a batch to the two losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, CLIPVisionModel, SiglipVisionModel

from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.geometry import Fit, View
from pad_pipeline.labels import EmbeddingTable, LabelEmbedder, LabelSettings
from pad_pipeline.packages import OPTIONAL, without
from pad_pipeline.pretrained import load_pretrained, load_tokenizer, read_config
from pad_pipeline.shards.run import Run
from pad_pipeline.training.abstractor import pool_coverage
from pad_pipeline.training.batches import Batch
from pad_pipeline.training.losses import caption_loss, mean_cosine, patch_loss
from pad_pipeline.training.projector import build_projector, load_projector
from pad_pipeline.training.settings import TrainSettings
from pad_pipeline.weights import fetch_model

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_HALF = [0.5, 0.5, 0.5]
TOWERS = {
    "clip": CLIPVisionModel, "clip_vision_model": CLIPVisionModel,
    "siglip": SiglipVisionModel, "siglip_vision_model": SiglipVisionModel,
}  # fmt: skip
"""Vision towers by the `model_type` of their config.json."""
LLMS = {"llama", "mistral", "qwen2", "qwen3"}
"""LLMs likewise: those whose blocks are `model.layers`, with rotary positions."""


class Losses(NamedTuple):
    """Of a micro-batch, each divided by the weight of the whole step."""

    caption: Tensor
    patch: Tensor
    cosine: Tensor
    """`[2]`, see `mean_cosine`."""
    tokens: Tensor
    """`[I, M, d]`, projected; of a batch without images those of a blank."""


class MultimodalModel(nn.Module):
    """What is trained. The tower is frozen; of projector and LLM learns what the settings say.

    Args:
        vision: folder or hub name of a CLIP or SigLIP type vision tower.
        llm: folder or hub name of a LLaMA, Mistral or Qwen type language model.
        settings: the training's.
        device: where it computes; frozen parts in bfloat16 on a GPU, all in float32 on a CPU.
        init: a `mm_projector.bin` to begin with; empty for a new one.

    Raises:
        UserError: a model can't be loaded, or does not fit.
    """

    def __init__(self, vision: str, llm: str, settings: TrainSettings, device: torch.device, init: str = "") -> None:
        super().__init__()
        self.settings, self.vision, self.llm_name = settings, vision, llm
        frozen_type = torch.bfloat16 if device.type == "cuda" else torch.float32
        folder, llm_folder = fetch_model("vision", vision), fetch_model("llm", llm)
        self.vision_config = vision_config(folder)
        read_config("llm", llm_folder, LLMS)
        self.llm_folder = llm_folder
        self.tokenizer = load_tokenizer("llm", llm_folder)
        self.mean, self.std = normalization(folder)
        self.tower = load_pretrained("vision", folder, TOWERS[self.vision_config["model_type"]], frozen_type)
        self.llm = load_pretrained(
            "llm", llm_folder, AutoModelForCausalLM, frozen_type if settings.llm != "full" else torch.float32
        )
        _check_vocabulary(self.llm, self.tokenizer, llm)
        self.requires_grad_(False)
        self.projector = self._projector(init)
        if settings.llm == "full":
            self.llm.requires_grad_(True)
        elif settings.llm == "lora":
            self.llm = _with_adapters(self.llm, settings)
        if settings.activation_checkpointing:
            newer = getattr(self.llm, "activation_checkpointing_enable", self.llm.gradient_checkpointing_enable)
            newer({"use_reentrant": False})
        if settings.compile:
            for block in self.blocks:
                block.compile(dynamic=True)
        self.eval()
        self.to(device)

    @property
    def grid(self) -> int:
        """Of the tower: patches along an edge."""
        return int(self.vision_config["image_size"]) // int(self.vision_config["patch_size"])

    @property
    def vision_tokens(self) -> int:
        """Tokens that the LLM gets of an image."""
        return self.settings.abstractor_tokens if self.settings.projector == "c-abstractor" else self.grid**2

    @property
    def blocks(self) -> nn.ModuleList:
        """The LLM's decoder layers."""
        return self._base.layers

    @property
    def _base(self) -> Any:
        llm = self.llm.get_base_model() if hasattr(self.llm, "get_base_model") else self.llm
        return llm.model

    @property
    def width(self) -> int:
        """Of the LLM's embeddings."""
        return int(self.llm.config.hidden_size)

    def _projector(self, path: str) -> nn.Module:
        settings, tower_width = self.settings, self.tower.config.hidden_size
        # Here, so that the start does not depend on what was loaded before.
        torch.manual_seed(settings.seed)
        fresh = build_projector(settings.projector, tower_width, self.width, self.grid, settings.abstractor_tokens)
        if not path:
            return fresh
        with rename_field(projector="init"):
            given = load_projector(Path(path))
        shapes = [{name: value.shape for name, value in one.state_dict().items()} for one in (fresh, given)]
        if shapes[0] != shapes[1]:
            rule = f"it is no {settings.projector} from {tower_width} to {self.width} numbers, on a {self.grid} grid"
            raise UserError("init", path, rule, "give the projector of the same tower, LLM and kind")
        return given

    def see(self, pixels: Tensor) -> Tensor:
        """Images `[B, 3, size, size]` -> projected tokens `[B, M, d]`, row by row from the top left."""
        with torch.no_grad():
            states = self.tower(pixels.to(self.tower.dtype), output_hidden_states=True).hidden_states
            patches = states[self.settings.vision_layer][:, -(self.grid**2) :]  # CLIP's CLS stands in front
        # The part that learns keeps its weights in float32; on a GPU it computes in bfloat16.
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.device.type == "cuda"):
            return self.projector(patches.float())

    def forward(
        self,
        batch: Batch,
        caption_weight: float | None = None,
        patch_weight: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Losses:
        """L_caption and L_patch of a batch; weights and labels as in `losses`."""
        if len(batch.pixels):
            tokens = self.see(batch.pixels)
        else:  # text alone: the projector sees a blank, so that every rank has a gradient for it, of 0
            size = batch.pixels.shape[-1]
            tokens = self.see(batch.pixels.new_zeros(1, 3, size, size))
        coverage = self.pooled(batch.coverage)
        patch = patch_loss(tokens, batch.embeds, coverage, batch.image, self.settings.patch_loss, patch_weight, labels)
        cosine = mean_cosine(tokens, batch.embeds, coverage, batch.image)
        nothing_to_say = not len(batch.targets) or not self.settings.caption_weight
        if nothing_to_say and self.settings.llm == "frozen":
            return Losses(patch * 0.0, patch, cosine, tokens)
        hidden = self.read(tokens if len(batch.pixels) else tokens[:0], batch)[batch.predicting]
        if not len(batch.pixels):
            hidden = hidden + tokens.sum().to(hidden.dtype) * 0.0
        with torch.autocast(hidden.device.type, torch.bfloat16, enabled=self._autocast(hidden)):
            caption = caption_loss(hidden, self.llm.get_output_embeddings(), batch.targets, caption_weight)
        return Losses(caption, patch, cosine, tokens)

    def pooled(self, coverage: Tensor) -> Tensor:
        """`[R, grid * grid]` -> `[R, M]`: coverage of what each vision token stands for."""
        if self.settings.projector != "c-abstractor":
            return coverage
        return pool_coverage(coverage, self.grid, int(self.vision_tokens**0.5))

    def read(self, tokens: Tensor, batch: Batch) -> Tensor:
        """What the LLM's last block says at each place of each sequence: `[B * T, d]`.

        Padding stands behind every token that counts, where a causal model does not look, so no attention mask is
        needed.
        """
        words = self.llm.get_input_embeddings()(batch.ids)
        sequence = words.flatten(0, 1).index_copy(0, batch.vision_at, tokens.flatten(0, 1).to(words.dtype))
        with torch.autocast(words.device.type, torch.bfloat16, enabled=self._autocast(words)):
            hidden = self._base(inputs_embeds=sequence.view_as(words), use_cache=False).last_hidden_state
        return hidden.flatten(0, 1)

    def _autocast(self, of: Tensor) -> bool:
        """Whether float32 weights that learn compute in bfloat16."""
        return of.device.type == "cuda" and self.settings.llm != "frozen"


def vision_config(folder: Path) -> dict[str, Any]:
    """Of a tower: `model_type`, `image_size`, `patch_size`.

    Raises:
        UserError: it is no tower of a known type, or no view can say what it sees.
    """
    config = read_config("vision", folder, set(TOWERS))
    inner = config.get("vision_config", config)  # a whole CLIP has it one level down
    default = 16 if config["model_type"].startswith("siglip") else 32  # the classes' own defaults
    found = {"image_size": inner.get("image_size", 224), "patch_size": inner.get("patch_size", default)}
    if not all(type(value) is int and value > 0 for value in found.values()):
        raise UserError("vision", folder, f"its config.json says {found}", "fetch it again")
    size, patch = found["image_size"], found["patch_size"]
    if size % patch:  # SigLIP so400m at 384, for one
        rule = f"it sees {size} px in patches of {patch}, and drops the {size % patch} px that are left over"
        remedy = "use a tower whose size is a multiple of its patch, such as google/siglip-large-patch16-384"
        raise UserError("vision", folder, rule, remedy)
    return found | {"model_type": config["model_type"]}


def view_of(folder: Path, fit: Fit) -> View:
    """The view that a tower is made for."""
    config = vision_config(folder)
    return View(size=config["image_size"], patch=config["patch_size"], fit=fit)


def check_view(view: View, folder: Path, vision: str) -> None:
    """The tower must see just the view that the shards' masks are cut for.

    Raises:
        UserError: its input or its patches have another size.
    """
    config = vision_config(folder)
    size, patch = config["image_size"], config["patch_size"]
    if (size, patch) != (view.size, view.patch):
        raise UserError(
            "vision",
            vision,
            f"it sees {size} px in patches of {patch}, and the shards are made for {view.size} px in patches of "
            f"{view.patch} ({view.fit}, a grid of {view.grid} x {view.grid})",
            f"use the matching tower, or build shards with `view_size` {size} and `patch` {patch}",
        )


def normalization(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and deviation per channel, from preprocessor_config.json; the family's own where there is none."""
    siglip = vision_config(folder)["model_type"].startswith("siglip")
    own_mean, own_std = (_HALF, _HALF) if siglip else (CLIP_MEAN, CLIP_STD)
    try:
        config = json.loads((folder / "preprocessor_config.json").read_text())
    except OSError:
        return own_mean, own_std
    except (ValueError, RecursionError) as error:
        raise UserError(
            "vision", folder, f"its preprocessor_config.json is no JSON ({error})", "fetch it again"
        ) from error
    mean, std = (config.get(name, default) for name, default in (("image_mean", own_mean), ("image_std", own_std)))
    if not all(
        isinstance(values, list) and len(values) == 3 and all(type(v) in (int, float) and 0 <= v <= 1 for v in values)
        for values in (mean, std)
    ) or not min(std):
        rule = f"its preprocessor_config.json has image_mean {mean} and image_std {std}, not 3 shares of 1 each"
        raise UserError("vision", folder, rule, "fetch it again")
    return mean, std


def embedder_for(llm_folder: Path, run: Run) -> LabelEmbedder | None:
    """What embeds the labels of shards that were built for another LLM; None where they fit."""
    if EmbeddingTable(llm_folder).sha256() == run.fingerprints.get("llm_embedding"):
        return None
    return LabelEmbedder(LabelSettings(llm=str(llm_folder), context=context_of(run)))


def context_of(run: Run) -> Literal["sentence", "bare"]:
    """How a run put its labels into words, see `LabelSettings`."""
    built = run.settings.get("llm")
    return "bare" if isinstance(built, dict) and built.get("context") == "bare" else "sentence"


def _check_vocabulary(llm: Any, tokenizer: Any, name: str) -> None:
    rows = llm.get_input_embeddings().weight.shape[0]
    if llm.get_output_embeddings() is None:
        raise UserError("llm", name, "it has no output layer", "give a causal language model")
    if not len(tokenizer) or len(tokenizer) > rows:
        rule = f"its tokenizer has {len(tokenizer)} tokens and its embedding {rows} rows"
        raise UserError("llm", name, rule, "use the tokenizer and the checkpoint of one model")


def _with_adapters(llm: Any, settings: TrainSettings) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError("settings.llm", "lora", without("peft"), OPTIONAL["peft"].install) from error
    chosen = settings.lora
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(
        r=chosen.rank, lora_alpha=chosen.alpha, lora_dropout=chosen.dropout, target_modules=names, task_type="CAUSAL_LM"
    )
    return get_peft_model(llm, config)
