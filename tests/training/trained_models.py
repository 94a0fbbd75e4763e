"""Build small random models as they are at the end of a training, and compare exported models with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from pad_pipeline.geometry import Fit, View
from pad_pipeline.training.batches import collate
from pad_pipeline.training.examples import Preprocessor
from pad_pipeline.training.model import MultimodalModel
from pad_pipeline.training.settings import Stage2Settings
from pad_pipeline.training.template import IMAGE, EncodedText, Template
from tests.training.small_tokenizers import QWEN_MARKS

WIDTH = 32
SIZES = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.1}  # fmt: skip
EYES = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
QWEN = ("<|endoftext|>", *QWEN_MARKS)


def write_llm(folder: Path, kind: Any, config: Any, tokenizer: Any, spare: int = 0, **more: Any) -> None:
    """Write an LLM whose vocabulary has `spare` rows without a token, as Qwen's has."""
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    kind(config(vocab_size=len(tokenizer) + spare, **SIZES, **ids, **more)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build(parts: Path, which: str = "vicuna", tower: str = "clip", **settings: Any) -> MultimodalModel:
    """Return the model that a training of these parts has at its end, with adapters that are not 0."""
    chosen = Stage2Settings(**({"llm": "frozen"} | settings))
    model = MultimodalModel(str(parts / tower), str(parts / which), chosen, torch.device("cpu"))
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def view_for(model: MultimodalModel, fit: Fit = "pad") -> View:
    config = model.vision_config
    return View(size=config["image_size"], patch=config["patch_size"], fit=fit)


def asked(model: MultimodalModel, pixels: Tensor) -> tuple[list[int], Tensor]:
    """Return a question's ids, and the logits of the training's model at each position: `[T, vocabulary]`."""
    name = "chat" if model.settings.template == "chat" else "v1"
    ids = Template(name, model.tokenizer).question("What is in the picture?")  # type: ignore[arg-type]
    preprocessor = Preprocessor(view_for(model), model.mean, model.std, model.vision_tokens)
    example = preprocessor.empty_example(WIDTH)._replace(text=EncodedText(ids, [False] * len(ids)), pixels=pixels[0])
    with torch.inference_mode():
        hidden = model.run_llm(model.encode_images(pixels), collate([example], preprocessor))
        return ids, model.llm.get_output_embeddings()(hidden)


def difference(model: MultimodalModel, llava: Any, seed: int = 0) -> float:
    """Return the largest difference between the logits of the training's model and of an exported one, on one image."""
    size = model.vision_config["image_size"]
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))
    ids, ours = asked(model, pixels[:1])
    image = [llava.config.image_token_index] * model.vision_tokens
    whole = torch.tensor([[one for token in ids for one in (image if token == IMAGE else [token])]])
    with torch.inference_mode():
        theirs = llava(input_ids=whole, pixel_values=pixels[:1]).logits[0]
    assert (asked(model, pixels[1:])[1] - ours).abs().max() > 0.01, "the image says nothing"
    return float((theirs[:, : ours.shape[1]] - ours).abs().max())


def stock(folder: Path) -> Any:
    return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
