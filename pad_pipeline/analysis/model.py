"""Loads the vision tower, the projector and the LLM of a model that is analyzed."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.geometry import View
from pad_pipeline.labels import LabelEmbedder, LabelSettings
from pad_pipeline.llms import check_llm
from pad_pipeline.pretrained import load_pretrained
from pad_pipeline.shards.run import Run
from pad_pipeline.training.abstractor import CAbstractor
from pad_pipeline.training.chat import load_llava
from pad_pipeline.training.examples import Preprocessor
from pad_pipeline.training.model import context_of
from pad_pipeline.training.pixel_shuffle import PixelShuffle
from pad_pipeline.training.projector import check_shuffle, load_projector, place_of, token_count, widths
from pad_pipeline.training.towers import BICUBIC, TOWERS, preprocessing, vision_config
from pad_pipeline.weights import fetch_model


class Subject:
    """A model that is analyzed, loaded from a folder or from its parts.

    Args:
        model: a folder that `pad train` wrote, a Hugging Face LLaVA folder, or a `mm_projector.bin`.
        vision, llm: the folders or hub names of the vision tower and the LLM; only for a `mm_projector.bin`.
        vision_layer: the index of the tower's hidden state that is projected; only for a `mm_projector.bin`.

    Raises:
        UserError: the model can't be loaded, or its parts do not fit together.
    """

    def __init__(self, model: Path, vision: str = "", llm: str = "", vision_layer: int = -2) -> None:
        if not model.exists():
            remedy = "give what pad train wrote, a LLaVA folder, or a mm_projector.bin"
            raise UserError("model", model, "there is no such file or folder", remedy)
        if model.is_file():
            self._from_parts(model, vision, llm, vision_layer)
        elif vision or llm:
            rule = "`vision` and `llm` go with a mm_projector.bin; a LLaVA folder has its own"
            raise UserError("vision" if vision else "llm", vision or llm, rule, "leave them out")
        else:
            self._from_folder(model)
        self.name = model
        self.labels = LabelEmbedder(LabelSettings(llm=str(self.words_folder)))
        self.tokenizer: Any = self.labels.tokenizer
        # Rows beyond the tokenizer's tokens are padding, or belong to `<image>`.
        self.words: Tensor = self.llm.get_input_embeddings().weight.detach()[: len(self.tokenizer)]
        """The input embeddings of the LLM, `[V, d]`."""

    def _from_parts(self, path: Path, vision: str, llm: str, layer: int) -> None:
        for name, value in (("vision", vision), ("llm", llm)):
            if not value:
                remedy = "name the model that it was trained with"
                raise UserError(name, "(empty)", f"{path.name} is only a projector", remedy)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tower, self.words_folder = fetch_model("vision", vision), fetch_model("llm", llm)
        family = TOWERS[vision_config(tower)["model_type"]]
        check_llm("llm", self.words_folder)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        with rename_field(projector="model"):
            self.projector: nn.Module = load_projector(path).to(self.device, dtype).eval()
        self.tower = load_pretrained("vision", tower, family.model, dtype, family.extras).to(self.device)
        self.llm = load_pretrained("llm", self.words_folder, AutoModelForCausalLM, dtype).to(self.device)
        self.mean, self.std, self.resample = preprocessing(tower)
        self.layer, layers = layer, int(self.tower.config.num_hidden_layers)
        if not -layers - 1 <= layer <= layers:
            rule = f"the tower has {layers} layers"
            raise UserError("vision_layer", layer, rule, f"name one from {-layers - 1} to {layers}; LLaVA's is -2")
        sizes = widths(self.projector)
        wanted = (self.tower.config.hidden_size, self.llm.config.hidden_size)
        if sizes != wanted:
            rule = (
                f"it maps {sizes[0]} to {sizes[1]} numbers, but tower and LLM have widths {wanted[0]} and {wanted[1]}"
            )
            raise UserError("model", path, rule, "give the tower and the LLM that it was trained with")

    def _from_folder(self, folder: Path) -> None:
        loaded = load_llava(folder)
        self.device, self.words_folder = loaded.device, loaded.folder
        self.llm = loaded.model.get_base_model() if hasattr(loaded.model, "get_base_model") else loaded.model
        inner = self.llm.model
        self.tower, self.projector = inner.vision_tower, inner.multi_modal_projector
        if hook := getattr(self.llm, "place_hook", None):
            hook.remove()  # `placed` adds the place instead
        images = loaded.processor.image_processor
        self.mean, self.std = list(images.image_mean), list(images.image_std)
        self.resample = BICUBIC if images.resample is None else int(images.resample)
        layer = self.llm.config.vision_feature_layer
        if not isinstance(layer, int):
            raise UserError("model", folder, f"it projects several layers, {layer}", "give a model that projects one")
        self.layer = layer

    def set_label_context(self, run: Run) -> None:
        """Tokenize labels as `run` did: as inside a sentence, or without context."""
        self.labels = LabelEmbedder(LabelSettings(llm=str(self.words_folder), context=context_of(run)))

    def embed(self, labels: list[str]) -> Tensor:
        """Return the embeddings of labels, float32 `[L, d]` on the CPU; raise `UserError` if a label has no token."""
        try:
            return torch.from_numpy(self.labels(labels)).float()
        except ValueError as error:
            remedy = "rename or drop the label with `pad retarget` and `label_map`"
            raise UserError("shards", "labels", str(error), remedy) from error

    @property
    def grid(self) -> int:
        """The number of patches of the vision tower along an edge."""
        return int(self.tower.config.image_size) // int(self.tower.config.patch_size)

    @property
    def pooled_grid(self) -> int:
        """The number of tokens along an edge after the projector, which can be smaller than `grid`."""
        return math.isqrt(token_count(self.projector, self.grid))

    def preprocessor(self, view: View) -> Preprocessor:
        """Return the object that turns images into input of the vision tower; raise `UserError` if the view or the
        projector does not fit the tower."""
        size, patch = int(self.tower.config.image_size), int(self.tower.config.patch_size)
        if (size, patch) != (view.size, view.patch):
            ours, theirs = f"{size} px in patches of {patch}", f"{view.size} px in patches of {view.patch}"
            rule = f"its tower takes {ours}, and the shards are made for {theirs}"
            raise UserError("model", self.name, rule, "give shards for this tower")
        if isinstance(self.projector, CAbstractor) and self.projector.grid != self.grid:
            rule = f"its projector is for a patch grid of edge {self.projector.grid}, and its tower's has {self.grid}"
            raise UserError("model", self.name, rule, "give the tower that the projector was trained with")
        if isinstance(self.projector, PixelShuffle):
            check_shuffle(self.grid, "model", self.name)
        return Preprocessor(view, self.mean, self.std, self.pooled_grid**2, self.resample)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tower's patches `[B, P, c]` and the projector's tokens `[B, M, d]`, each in the order of its grid,
        row by row. `pixels` are normalized images, `[B, 3, size, size]`. The tokens are without their place, which
        `placed` adds."""
        dtype = next(self.tower.parameters()).dtype
        states = self.tower(pixels.to(self.device, dtype), output_hidden_states=True).hidden_states
        patches = states[self.layer][:, -(self.grid**2) :]  # without CLS and registers, which are first
        return patches, self.projector(patches)

    def placed(self, tokens: Tensor) -> Tensor:
        """Add their place to the tokens `[B, M, d]`, if the projector has one: what the LLM reads."""
        place = place_of(self.projector)
        return tokens if place is None else tokens + place.detach().to(tokens.dtype)

    @property
    def language_model(self) -> Any:
        """The decoder of the LLM, without its output layer."""
        return getattr(self.llm.model, "language_model", self.llm.model)

    @torch.inference_mode()
    def hidden_states(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Return the LLM's hidden states at the vision tokens `[B, M, d]` of images, each `[B, M, d]`: the input of the
        first block, the output of each block, the last one normalized. The LLM reads BOS, and the tokens with their
        place."""
        sequence = self.with_bos(self.placed(tokens))
        states = self.language_model(inputs_embeds=sequence, use_cache=False, output_hidden_states=True).hidden_states
        return tuple(state[:, -tokens.shape[1] :] for state in states)

    def with_bos(self, sequence: Tensor) -> Tensor:
        """Put the embedding of BOS before sequences `[B, T, d]`, if the LLM has one."""
        sequence = sequence.to(self.words.dtype)
        if (begin := self.tokenizer.bos_token_id) is None:
            return sequence
        return torch.cat([self.words[begin].expand(len(sequence), 1, -1), sequence], 1)

    def word_ids(self, text: str) -> Tensor:
        """Return the token ids of a text without BOS, int64 `[T]`, on the model's device."""
        return torch.tensor(
            self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long, device=self.device
        )

    def untrained(self, seed: int = 0) -> nn.Module:
        """Return a copy of the projector with freshly initialized weights."""
        fresh = copy.deepcopy(self.projector)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in fresh.modules():
                if isinstance(module, nn.Linear) and _is_identity(module):
                    continue  # a projector of one Linear, written for Hugging Face, has an identity as second layer
                if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm):
                    module.reset_parameters()
                if isinstance(module, CAbstractor):
                    nn.init.trunc_normal_(module.pos_emb, std=0.02)
        return fresh


def _is_identity(layer: nn.Linear) -> bool:
    weight = layer.weight.float().cpu()
    return torch.equal(weight, torch.eye(layer.in_features)) and (layer.bias is None or not layer.bias.any())
