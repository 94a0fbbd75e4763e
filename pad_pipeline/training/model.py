"""Combine vision tower, projector and LLM in one model that computes both losses of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.labels import EmbeddingTable, LabelEmbedder, LabelSettings
from pad_pipeline.llms import check_llm, linear_layers
from pad_pipeline.packages import OPTIONAL, not_installed
from pad_pipeline.pretrained import load_pretrained, load_tokenizer
from pad_pipeline.shards.run import Run
from pad_pipeline.training.batches import Batch
from pad_pipeline.training.losses import PatchDivisor, caption_loss, mean_cosine, patch_loss
from pad_pipeline.training.patch_terms import Regions, Words, word_means
from pad_pipeline.training.place import mean_size
from pad_pipeline.training.projector import (
    add_place,
    build_projector,
    load_projector,
    place_of,
    pool,
    token_count,
)
from pad_pipeline.training.settings import TrainSettings
from pad_pipeline.training.towers import TOWERS, preprocessing, vision_config
from pad_pipeline.weights import fetch_model


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
        vision: folder or hub name of a vision tower of a family in `TOWERS`.
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
        self.mean, self.std, self.resample = preprocessing(folder)
        family = TOWERS[self.vision_config["model_type"]]
        self.tower = load_pretrained("vision", folder, family.model, frozen_type, family.extras)
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
        self._word_scale: Tensor | None = None
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
        if settings.place != "none":
            size = float(mean_size(self.llm.get_input_embeddings().weight))
            add_place(fresh, self.grid, self.width, size, settings.place == "learned")
        if not path:
            return fresh
        with rename_field(projector="init"):
            given = load_projector(Path(path))
        shapes = [{name: tensor.shape for name, tensor in one.state_dict().items()} for one in (given, fresh)]
        if shapes[0] != shapes[1]:
            rule = f"it is no {settings.projector} of width {tower_width} to {self.width}, on a grid of {self.grid}"
            if (place_of(given) is None) != (place_of(fresh) is None):
                has = "no place" if place_of(given) is None else "a place"
                rule = f"its tokens have {has}, and `place` is {settings.place}"
            raise UserError("init", path, rule, "give the projector of the same tower, LLM, kind and `place`")
        if (place := place_of(given)) is not None:
            place.requires_grad_(settings.place == "learned")
        return given

    @torch.no_grad()
    def encode_patches(self, pixels: Tensor) -> Tensor:
        """Return the tower's patches `[B, grid * grid, c]` of images `[B, 3, size, size]`, row by row from the top
        left, without the special tokens before them."""
        states = self.tower(pixels.to(self.tower.dtype), output_hidden_states=True).hidden_states
        patches: Tensor = states[self.settings.vision_layer][:, self.vision_config["prefix_tokens"] :]
        return patches

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode and project images `[B, 3, size, size]` to tokens `[B, M, d]`, row by row from the top left.

        They are without their place, which `run_llm` adds.
        """
        patches = self.encode_patches(pixels)
        # The projector's weights are in float32, because they are trained. On a GPU it computes in bfloat16.
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.device.type == "cuda"):
            tokens: Tensor = self.projector(patches.float())
        return tokens

    def forward(self, batch: Batch, caption_weight: float | None = None, divisor: PatchDivisor | None = None) -> Losses:
        """Compute L_caption and L_patch of a batch. See `caption_loss` for `caption_weight`, and `patch_loss` for
        `divisor`."""
        # The projector needs a gradient (of 0) on every rank, so a batch without images gets a blank image.
        pixels = batch.pixels if len(batch.pixels) else batch.pixels.new_zeros(1, *batch.pixels.shape[1:])
        tokens = self.encode_images(pixels)
        regions, loss = self.pooled(batch.regions), self.settings.patch_loss
        cosine = mean_cosine(tokens, regions)
        # Do not run an LLM that is not trained and adds nothing to the losses.
        captions = self.settings.llm != "frozen" or (len(batch.targets) and self.settings.caption_weight)
        if not captions and loss.kind != "head":
            patch = patch_loss(tokens, regions, loss, divisor, self._words(tokens, regions))
            return Losses(patch * 0.0, patch, cosine, tokens)
        hidden = self.run_llm(tokens if len(batch.pixels) else tokens[:0], batch)
        queries = (
            hidden[batch.vision_at].view(*tokens.shape[:2], -1) if loss.kind == "head" and len(batch.pixels) else tokens
        )
        patch = patch_loss(tokens, regions, loss, divisor, self._words(queries, regions))
        hidden = hidden[batch.predicting]
        if not len(batch.pixels):
            hidden = hidden + tokens.sum().to(hidden.dtype) * 0.0
        with torch.autocast(hidden.device.type, torch.bfloat16, enabled=self._autocast(hidden)):
            caption = caption_loss(hidden, self.llm.get_output_embeddings(), batch.targets, caption_weight)
        return Losses(caption, patch, cosine, tokens)

    def _words(self, queries: Tensor, regions: Regions) -> Words | None:
        """Return what L_patch compares with the LLM's vocabulary, if its kind does so."""
        loss = self.settings.patch_loss
        if not loss.needs_words:
            return None
        if loss.kind == "head":
            table, scale = self.llm.get_output_embeddings().weight, None
        else:  # detached, because the loss trains the tokens and not the word embeddings
            table = self.llm.get_input_embeddings().weight.detach()
            scale = self._word_scale
            if scale is None or self.settings.llm == "full":
                norms = torch.linalg.vector_norm(table, dim=1, dtype=torch.float32)
                self._word_scale = scale = 1 / (norms.clamp_min(1e-12) * loss.temperature)
            queries = F.normalize(queries.float(), dim=-1)
        return Words(queries, word_means(table, scale, regions.words), table, scale)

    def pooled(self, regions: Regions) -> Regions:
        """Return regions whose coverage is pooled from patches to vision tokens."""
        return regions._replace(coverage=self.pool_coverage(regions.coverage))

    def pool_coverage(self, coverage: Tensor) -> Tensor:
        """Pool the coverage of R regions from patches, `[R, grid * grid]`, to vision tokens, `[R, M]`."""
        return pool(self.projector, coverage, self.grid)

    def run_llm(self, tokens: Tensor, batch: Batch) -> Tensor:
        """Run the LLM on a batch and its vision tokens `[I, M, d]`, to which it adds their place. Return the last
        hidden states `[B * T, d]`."""
        if (place := place_of(self.projector)) is not None:
            tokens = tokens + place
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


def embedder_for(llm_folder: Path, run: Run) -> LabelEmbedder:
    """Return an embedder of labels with the words of the LLM in `llm_folder`, which tokenizes labels as `run` did."""
    return LabelEmbedder(LabelSettings(llm=str(llm_folder), context=context_of(run)))


def built_for(llm_folder: Path, run: Run) -> bool:
    """Return whether the label embeddings of a run are those of the LLM in `llm_folder`."""
    return EmbeddingTable(llm_folder).sha256() == run.fingerprints.get("llm_embedding")


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
    # The model's inputs keep their types: the divisors of losses would lose digits in bfloat16.
    outer = MixedPrecisionPolicy(policy.param_dtype, policy.reduce_dtype, cast_forward_inputs=False)
    fully_shard(model, mp_policy=outer, ignored_params=set(model.tower.parameters()))
