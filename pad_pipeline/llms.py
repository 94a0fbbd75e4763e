"""Say which LLMs pad can train with. This is the only place that knows of families of LLMs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pad_pipeline.errors import UserError
from pad_pipeline.pretrained import quiet

_NEUTRAL = {
    "final_logit_softcapping": None, "logits_soft_cap": None, "output_logit_soft_cap": None, "logit_scale": 1.0,
    "logits_scaling": 1.0, "lm_head_multiplier": 1.0, "logits_mup_width_multiplier": 1.0,
}  # fmt: skip
"""Settings with which a model scales or caps its logits, and the value of each that has no effect. transformers' LLaVA
ignores these settings, and so does the training, which computes logits for the supervised tokens alone."""


def check_llm(field: str, folder: Path) -> Any:
    """Return the config of the LLM in a folder, after a check that pad can train with it.

    Most decoders of transformers for text alone fit: LLaMA, Qwen, Mistral, Gemma 3, Phi 3 and others. Some families
    change the embeddings inside the model (Gemma 3 multiplies them by the root of their width). That is right in a
    training and in an exported model, because both pass embeddings, not ids, to the model.

    Raises:
        UserError: it is another kind of model. `field` is the setting that names the folder.
    """
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of a damaged file, or of a model that only code on the hub can read
        rule = f"its config.json can't be read ({type(error).__name__}: {' '.join(str(error).split())[:160]})"
        raise UserError(field, folder, rule, "give the folder of a language model of transformers") from error
    remedy = "give a language model for text alone, such as Vicuna, Llama 3, Qwen 3, Mistral, Gemma 3 1B or Phi 3"
    kind = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if not kind or config.is_encoder_decoder or not str(kind).endswith("ForCausalLM"):
        raise UserError(field, folder, f"its model_type, {config.model_type!r}, is no decoder for text alone", remedy)
    if getattr(config, "text_config", None) is not None:
        raise UserError(field, folder, f"it is a model for text and images ({config.model_type!r})", remedy)
    for name, neutral in _NEUTRAL.items():
        if (value := getattr(config, name, None)) not in (None, neutral):
            rule = f"it changes its logits ({name} = {value}), which transformers' LLaVA would not do"
            raise UserError(field, folder, rule, remedy)
    return config


def linear_layers(blocks: nn.Module) -> list[str]:
    """Return the names of the linear layers in an LLM's blocks, each once. LoRA adapts these layers."""
    named = ((name.rpartition(".")[2], module) for name, module in blocks.named_modules())
    return sorted({name for name, module in named if isinstance(module, nn.Linear)})
