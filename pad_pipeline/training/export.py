"""The trained model as a Hugging Face LLaVA folder, which stock transformers loads and generates from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
)

from pad_pipeline.geometry import View
from pad_pipeline.pretrained import quiet
from pad_pipeline.training.model import MultimodalModel
from pad_pipeline.training.projector import save_projector
from pad_pipeline.training.ranks import Ranks
from pad_pipeline.training.template import IMAGE_MARK


def export(model: MultimodalModel, view: View, out: Path, here: Ranks) -> None:
    """What comes out of a training: `mm_projector.bin`, and the Hugging Face folder `hf/`; written by the first rank.

    The parts are taken over, not copied; `model` must not be trained on afterwards.
    """
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(model, options=options)
        if here.first:
            model = MultimodalModel(model.vision, model.llm_name, model.settings, torch.device("cpu"))
            model.load_state_dict(state)
    if here.first:
        save_projector(model.projector, out / "mm_projector.bin")
        export_llava(model, view, out / "hf")
    here.wait()


def export_llava(model: MultimodalModel, view: View, folder: Path) -> None:
    """Write tower, projector and LLM, and a processor that crops, pads or stretches as in training."""
    tokenizer, llm, tower = model.tokenizer, model.llm, model.tower
    if hasattr(llm, "merge_and_unload"):
        llm = llm.merge_and_unload()
    tokenizer.add_tokens([IMAGE_MARK], special_tokens=True)
    image_token = tokenizer.convert_tokens_to_ids(IMAGE_MARK)
    _grow_vocabulary(llm, len(tokenizer))
    linear = isinstance(model.projector, nn.Linear)
    # CLIP's CLS token is dropped by the "default" strategy; SigLIP has none.
    select = "full" if model.vision_config["model_type"].startswith("siglip") else "default"
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=llm.config,
        image_token_index=image_token,
        projector_hidden_act="linear" if linear else "gelu",
        vision_feature_layer=model.settings.vision_layer,
        vision_feature_select_strategy=select,
        image_seq_length=view.grid**2,
        tie_word_embeddings=llm.config.tie_word_embeddings,
    )
    with torch.device("meta"):  # no second copy of the weights: the modules are put in below
        llava = LlavaForConditionalGeneration(config)
    llava.model.vision_tower, llava.model.language_model, llava.lm_head = tower, llm.model, llm.lm_head
    llava.model.multi_modal_projector.linear_1, llava.model.multi_modal_projector.linear_2 = _two_layers(
        model.projector
    )
    llava.to(llm.dtype)
    llava.generation_config = llm.generation_config
    llava.generation_config.suppress_tokens = [image_token]
    with quiet():
        llava.save_pretrained(folder)
    processor_for(model, view, tokenizer, select).save_pretrained(folder)


def _two_layers(projector: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    """The two layers of stock LLaVA's projector. A single Linear is followed by the identity, which is exact."""
    if isinstance(projector, nn.Sequential):
        return projector[0], projector[2]  # type: ignore[return-value]
    assert isinstance(projector, nn.Linear)
    identity = nn.Linear(projector.out_features, projector.out_features, device=projector.weight.device)
    with torch.no_grad():
        identity.weight.copy_(torch.eye(projector.out_features))
        identity.bias.zero_()
    return projector, identity


def _grow_vocabulary(llm: nn.Module, tokens: int) -> None:
    """Rows for the tokens that were added, each the mean of the others; the rows that were there stay as they are."""
    old = llm.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if tokens <= old:
        return
    llm.resize_token_embeddings(tokens, mean_resizing=False)  # type: ignore[operator]
    with torch.no_grad():
        for layer in (llm.get_input_embeddings(), llm.get_output_embeddings()):  # type: ignore[operator]
            layer.weight[old:] = layer.weight[:old].float().mean(0).to(layer.weight.dtype)


def processor_for(model: MultimodalModel, view: View, tokenizer: object, select: str) -> LlavaProcessor:
    """The processor that shows the tower the same view as the training did."""
    return LlavaProcessor(
        image_processor=image_processor_for(view, model.mean, model.std),
        tokenizer=tokenizer,
        patch_size=view.patch,
        vision_feature_select_strategy=select,
        image_token=IMAGE_MARK,
        num_additional_image_tokens=1 if select == "default" else 0,  # CLS, which is dropped again
    )


def image_processor_for(view: View, mean: list[float], std: list[float]) -> CLIPImageProcessorPil:
    """transformers' image processor that does what `view.apply` and the normalisation do."""
    square = {"height": view.size, "width": view.size}
    shared = {"image_mean": mean, "image_std": std, "crop_size": square}
    if view.fit == "stretch":
        return CLIPImageProcessorPil(size=square, do_center_crop=False, **shared)
    if view.fit == "pad":
        return LlavaImageProcessorPil(size={"shortest_edge": view.size}, do_pad=True, **shared)
    return CLIPImageProcessorPil(size={"shortest_edge": view.size}, **shared)
