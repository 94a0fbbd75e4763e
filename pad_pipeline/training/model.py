"""Combine vision tower, projector and LLM in one model that computes both losses of a batch."""

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
from pad_pipeline.llms import check_llm, linear_layers
from pad_pipeline.packages import OPTIONAL, not_installed
from pad_pipeline.pretrained import load_pretrained, load_tokenizer, read_config
from pad_pipeline.shards.run import Run
from pad_pipeline.training.batches import Batch
from pad_pipeline.training.losses import caption_loss, mean_cosine, patch_loss
from pad_pipeline.training.projector import build_projector, load_projector, pool, token_count
from pad_pipeline.training.settings import TrainSettings
from pad_pipeline.weights import fetch_model

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
TOWERS = {
    "clip": CLIPVisionModel, "clip_vision_model": CLIPVisionModel,
    "siglip": SiglipVisionModel, "siglip_vision_model": SiglipVisionModel,
}  # fmt: skip
"""The classes of vision towers, by the `model_type` in config.json."""


class Losses(NamedTuple):
    """The losses of a micro-batch, each divided by the weight of the whole step."""

    caption: Tensor
    """L_caption, a scalar."""
    patch: Tensor
    """L_patch, a scalar."""
    cosine: Tensor
    """float32 `[2]`, see `mean_cosine`."""
    tokens: Tensor
    """`[I, M, d]`: the projected tokens of the images, or of one blank image if the batch has no image."""


class MultimodalModel(nn.Module):
    """A frozen vision tower, a projector and an LLM.

    Args:
        vision: folder or hub name of a vision tower of CLIP's or SigLIP's type.
        llm: folder or hub name of an LLM, see `check_llm`.
        settings: the training's settings.
        device: device of all weights. On a GPU frozen weights are in bfloat16; all others are in float32.
        init: path of a `mm_projector.bin` to start from; empty for a new projector.

    Raises:
        UserError: a model can't be loaded, or the models do not fit together.
    """

    def __init__(self, vision: str, llm: str, settings: TrainSettings, device: torch.device, init: str = "") -> None:
        super().__init__()
        self.settings, self.vision, self.llm_name = settings, vision, llm
        frozen_type = torch.bfloat16 if device.type == "cuda" else torch.float32
        folder, llm_folder = fetch_model("vision", vision), fetch_model("llm", llm)
        self.vision_config, self.llm_folder = vision_config(folder), llm_folder
        check_llm("llm", llm_folder)
        self.tokenizer = load_tokenizer("llm", llm_folder)
        self.mean, self.std = normalization(folder)
        self.tower = load_pretrained("vision", folder, TOWERS[self.vision_config["model_type"]], frozen_type)
        llm_type = torch.float32 if settings.llm == "full" else frozen_type
        self.llm = load_pretrained("llm", llm_folder, AutoModelForCausalLM, llm_type)
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
        """Number of the tower's patches along one edge of the view."""
        return int(self.vision_config["image_size"]) // int(self.vision_config["patch_size"])

    @property
    def vision_tokens(self) -> int:
        """Number of tokens that the LLM gets for one image."""
        return token_count(self.projector, self.grid)

    @property
    def base_llm(self) -> Any:
        """The LLM without peft's wrapper."""
        return self.llm.get_base_model() if hasattr(self.llm, "get_base_model") else self.llm

    @property
    def blocks(self) -> nn.ModuleList:
        """The LLM's decoder layers."""
        layers: nn.ModuleList = self.base_llm.model.layers
        return layers

    @property
    def width(self) -> int:
        """Number of values in one of the LLM's embeddings."""
        return int(self.llm.config.hidden_size)

    def _projector(self, path: str) -> nn.Module:
        """Build a new projector, or load the one in `path`."""
        settings, tower_width = self.settings, self.tower.config.hidden_size
        # Loading the models may use the random generator, so it is seeded here.
        torch.manual_seed(settings.seed)
        fresh = build_projector(settings.projector, tower_width, self.width, self.grid, settings.abstractor_tokens)
        if not path:
            return fresh
        with rename_field(projector="init"):
            given = load_projector(Path(path))
        shapes = [{name: tensor.shape for name, tensor in one.state_dict().items()} for one in (given, fresh)]
        if shapes[0] != shapes[1]:
            rule = f"it is no {settings.projector} of width {tower_width} to {self.width}, on a grid of {self.grid}"
            raise UserError("init", path, rule, "give the projector of the same tower, LLM and kind")
        return given

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode and project images `[B, 3, size, size]` to tokens `[B, M, d]`, row by row from the top left."""
        with torch.no_grad():
            states = self.tower(pixels.to(self.tower.dtype), output_hidden_states=True).hidden_states
            patches = states[self.settings.vision_layer][:, -(self.grid**2) :]  # without CLIP's first token, CLS
        # The projector's weights are in float32, because they are trained. On a GPU it computes in bfloat16.
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.device.type == "cuda"):
            tokens: Tensor = self.projector(patches.float())
        return tokens

    def forward(
        self, batch: Batch, caption_weight: float | None = None, patch_weight: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Losses:  # fmt: skip
        """Compute L_caption and L_patch of a batch. See `caption_loss` for `caption_weight`, and `patch_loss` for
        `patch_weight` and `labels`."""
        # The projector needs a gradient (of 0) on every rank, so a batch without images gets a blank image.
        pixels = batch.pixels if len(batch.pixels) else batch.pixels.new_zeros(1, *batch.pixels.shape[1:])
        tokens = self.encode_images(pixels)
        coverage = self.pool_coverage(batch.coverage)
        patch = patch_loss(tokens, batch.embeds, coverage, batch.image, self.settings.patch_loss, patch_weight, labels)
        cosine = mean_cosine(tokens, batch.embeds, coverage, batch.image)
        # Do not run an LLM that is not trained and adds nothing to the loss.
        if self.settings.llm == "frozen" and not (len(batch.targets) and self.settings.caption_weight):
            return Losses(patch * 0.0, patch, cosine, tokens)
        hidden = self.run_llm(tokens if len(batch.pixels) else tokens[:0], batch)[batch.predicting]
        if not len(batch.pixels):
            hidden = hidden + tokens.sum().to(hidden.dtype) * 0.0
        with torch.autocast(hidden.device.type, torch.bfloat16, enabled=self._autocast(hidden)):
            caption = caption_loss(hidden, self.llm.get_output_embeddings(), batch.targets, caption_weight)
        return Losses(caption, patch, cosine, tokens)

    def pool_coverage(self, coverage: Tensor) -> Tensor:
        """Pool the coverage of R regions from patches, `[R, grid * grid]`, to vision tokens, `[R, M]`."""
        return pool(self.projector, coverage, self.grid)

    def run_llm(self, tokens: Tensor, batch: Batch) -> Tensor:
        """Run the LLM on a batch and its vision tokens `[I, M, d]`. Return the last hidden states `[B * T, d]`."""
        # No attention mask is needed: padding is at the end, and a causal model does not look ahead.
        words = self.llm.get_input_embeddings()(batch.ids)
        sequence = words.flatten(0, 1).index_copy(0, batch.vision_at, tokens.flatten(0, 1).to(words.dtype))
        with torch.autocast(words.device.type, torch.bfloat16, enabled=self._autocast(words)):
            hidden: Tensor = self.base_llm.model(
                inputs_embeds=sequence.view_as(words), use_cache=False
            ).last_hidden_state
        return hidden.flatten(0, 1)

    def _autocast(self, values: Tensor) -> bool:
        """Return whether the LLM needs autocast to bfloat16: its weights are in float32, on a GPU."""
        return values.device.type == "cuda" and self.settings.llm != "frozen"


def vision_config(folder: Path) -> dict[str, Any]:
    """Return a tower's `model_type`, `image_size` and `patch_size` (both in pixels).

    Raises:
        UserError: the folder holds no tower of a known type, or the tower's patches do not fill its image.
    """
    config = read_config("vision", folder, set(TOWERS))
    inner = config.get("vision_config", config)  # the config of a whole CLIP contains its tower's config
    default = 16 if config["model_type"].startswith("siglip") else 32  # the defaults of transformers' classes
    found = {"image_size": inner.get("image_size", 224), "patch_size": inner.get("patch_size", default)}
    if not all(type(value) is int and value > 0 for value in found.values()):
        raise UserError("vision", folder, f"its config.json says {found}", "fetch it again")
    size, patch = found["image_size"], found["patch_size"]
    if size % patch:  # for example SigLIP so400m at 384 px
        rule = f"it takes images of {size} px in patches of {patch} px, and drops the last {size % patch} px"
        remedy = "use a tower whose size is a multiple of its patch, such as google/siglip-large-patch16-384"
        raise UserError("vision", folder, rule, remedy)
    return found | {"model_type": config["model_type"]}


def view_of(folder: Path, fit: Fit) -> View:
    """Return a vision tower's view, with the given fit."""
    config = vision_config(folder)
    return View(size=config["image_size"], patch=config["patch_size"], fit=fit)


def check_view(view: View, folder: Path, vision: str) -> None:
    """Check that the tower in `folder` takes images and patches of the size of the shards' view.

    Raises:
        UserError: a size differs.
    """
    config = vision_config(folder)
    size, patch = config["image_size"], config["patch_size"]
    if (size, patch) != (view.size, view.patch):
        made = f"{view.size} px in patches of {view.patch} ({view.fit}, a grid of {view.grid} x {view.grid})"
        rule = f"it takes images of {size} px in patches of {patch} px, and the shards are made for {made}"
        remedy = f"use the matching tower, or build shards with `size` {size} and `patch` {patch}"
        raise UserError("vision", vision, rule, remedy)


def normalization(folder: Path) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel, 0..1, from preprocessor_config.json.

    Without that file, return the values of CLIP or SigLIP.

    Raises:
        UserError: the file is damaged.
    """
    siglip = vision_config(folder)["model_type"].startswith("siglip")
    mean, std = ([0.5] * 3, [0.5] * 3) if siglip else (CLIP_MEAN, CLIP_STD)
    try:
        config = json.loads((folder / "preprocessor_config.json").read_text())
        mean, std = config.get("image_mean", mean), config.get("image_std", std)
    except OSError:
        return mean, std
    except (ValueError, RecursionError) as error:
        rule = f"its preprocessor_config.json is no JSON ({error})"
        raise UserError("vision", folder, rule, "fetch it again") from error
    if not all(
        isinstance(values, list) and len(values) == 3 and all(type(v) in (int, float) and 0 <= v <= 1 for v in values)
        for values in (mean, std)
    ) or not min(std):
        rule = f"its preprocessor_config.json has image_mean {mean} and image_std {std}, not 3 numbers of 0..1 each"
        raise UserError("vision", folder, rule, "fetch it again")
    return mean, std


def embedder_for(llm_folder: Path, run: Run) -> LabelEmbedder | None:
    """Return a label embedder for the LLM in `llm_folder`; None if the shards were built for that LLM."""
    if EmbeddingTable(llm_folder).sha256() == run.fingerprints.get("llm_embedding"):
        return None
    return LabelEmbedder(LabelSettings(llm=str(llm_folder), context=context_of(run)))


def context_of(run: Run) -> Literal["sentence", "bare"]:
    """Return the `context` in which a run tokenized its labels, see `LabelSettings`."""
    built = run.settings.get("llm")
    return "bare" if isinstance(built, dict) and built.get("context") == "bare" else "sentence"


def _check_vocabulary(llm: Any, tokenizer: Any, name: str) -> None:
    """Check that the LLM has an output layer, and an embedding for each token of its tokenizer."""
    rows = llm.get_input_embeddings().weight.shape[0]
    if llm.get_output_embeddings() is None or not hasattr(getattr(llm, "model", None), "layers"):
        rule = "it has no output layer, or its blocks are not `model.layers`"
        raise UserError(
            "llm", name, rule, "give a causal language model such as LLaMA, Qwen, Mistral, Gemma 3 or Phi 3"
        )
    if getattr(llm.get_output_embeddings(), "bias", None) is not None:
        rule = "its output layer has a bias, for which transformers' LLaVA has no place"
        raise UserError(
            "llm", name, rule, "give another language model, such as LLaMA, Qwen, Mistral, Gemma 3 or Phi 3"
        )
    if not len(tokenizer) or len(tokenizer) > rows:
        rule = f"its tokenizer has {len(tokenizer)} tokens, and its embedding has {rows} rows"
        raise UserError("llm", name, rule, "use the tokenizer and the checkpoint of one model")


def _with_adapters(llm: Any, settings: TrainSettings) -> Any:
    """Add LoRA adapters to all linear layers of the LLM's blocks."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError("settings.llm", "lora", not_installed("peft"), OPTIONAL["peft"].install) from error
    lora = settings.lora
    names = linear_layers(llm.model.layers)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=names, task_type="CAUSAL_LM"
    )
    return get_peft_model(llm, config)


def shard_with_fsdp(model: MultimodalModel) -> None:
    """Shard each decoder layer with FSDP2, then the rest of the model; the frozen tower is not sharded."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    on_gpu = next(model.parameters()).device.type == "cuda"
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if on_gpu else MixedPrecisionPolicy()
    for block in model.blocks:
        fully_shard(block, mp_policy=policy)
    fully_shard(model, ignored_params=set(model.tower.parameters()))
