"""An exported model that answers questions about an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import Fit
from pad_pipeline.packages import OPTIONAL, without
from pad_pipeline.pretrained import load_pretrained, quiet, read_config
from pad_pipeline.training.export import ADAPTER
from pad_pipeline.training.llava_abstractor import AbstractorLlava, AbstractorLlavaConfig
from pad_pipeline.training.template import IMAGE_MARK

KINDS = {
    LlavaConfig.model_type: LlavaForConditionalGeneration,
    AbstractorLlavaConfig.model_type: AbstractorLlava,
}  # fmt: skip
"""Models by the `model_type` of their config.json. Both are classes from here: a folder's own code never runs."""


class Loaded(NamedTuple):
    """A LLaVA folder in memory: on the GPU in bfloat16 if there is one, else on the CPU in float32."""

    folder: Path
    model: Any
    processor: Any
    device: torch.device


def load_llava(folder: Path) -> Loaded:
    """Load an exported model.

    Args:
        folder: what `pad train` wrote as `hf/`, or the folder around it, or another Hugging Face LLaVA folder; with the
            adapters in it, where LoRA's were not merged.

    Raises:
        UserError: it is none of these, or damaged.
    """
    folder = llava_folder(folder)
    kind = KINDS[read_config("model", folder, set(KINDS))["model_type"]]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    processor = load_processor(folder)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    # The attention is named here, because the folder could name one that is downloaded as code.
    model = load_pretrained("model", folder, kind, dtype, attn_implementation="sdpa")
    return Loaded(folder, _adapted(model, folder).to(device).eval(), processor, device)


def llava_folder(folder: Path) -> Path:
    """The folder itself, or the `hf/` in what `pad train` wrote.

    Raises:
        UserError: there is none.
    """
    if not (folder / "config.json").exists() and (folder / "hf").is_dir():
        folder = folder / "hf"
    if not folder.is_dir():
        raise UserError("model", folder, "there is no such folder", "give the hf/ that pad train wrote")
    return folder


class Chat:
    """A loaded model that answers.

    Args:
        folder: as in `load_llava`.

    Raises:
        UserError: as there, or it does not say how a question is put.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.model, self.processor, self.device = load_llava(folder)
        if not self.processor.chat_template:
            rule = "it has no chat_template.jinja, which says how a question is put"
            raise UserError("model", self.folder, rule, "give a model that was trained on dialogues")
        # A template that fails is told at once; and a tokenizer whose file says that it pads or cuts is set right here:
        # it can't be while another thread uses it ("Already borrowed").
        self.put(Image.new("RGB", (8, 8)), "")

    def answer(self, image: Image.Image, question: str, max_tokens: int = 256) -> str:
        """What the model says to one question about an upright RGB image, the likeliest token each time.

        Raises:
            UserError: the folder's chat template fails.
        """
        return self.answers([self.put(image, question)], max_tokens)[0]

    @torch.inference_mode()
    def answers(self, asked: Sequence[dict[str, torch.Tensor]], max_tokens: int = 256, batch: int = 16) -> list[str]:
        """The same for many that `put` made: up to `batch` at a time whose prompts are of one length, so that none is
        padded. The more are given, the fuller the batches."""
        groups: dict[int, list[int]] = {}
        for position, one in enumerate(asked):
            groups.setdefault(one["input_ids"].shape[1], []).append(position)
        said = [""] * len(asked)
        ends = self._ends()
        more = {"pad_token_id": ends[0]} if ends else {}
        for length, same in groups.items():
            for positions in (same[start : start + batch] for start in range(0, len(same), batch)):
                together = {
                    name: torch.cat([asked[position][name] for position in positions]).to(self.device)
                    for name in asked[positions[0]]
                }
                rows = self.model.generate(**together, max_new_tokens=max_tokens, do_sample=False, **more)
                for position, row in zip(positions, rows[:, length:].tolist(), strict=True):
                    stop = next((at for at, token in enumerate(row) if token in ends), len(row))
                    said[position] = str(self.processor.decode(row[:stop], skip_special_tokens=True)).strip()
        return said

    def put(self, image: Image.Image, question: str) -> dict[str, torch.Tensor]:
        """A question about an upright RGB image as the model takes it, on the CPU. Threads may call it.

        Raises:
            UserError: the folder's chat template fails.
        """
        text = question.replace(IMAGE_MARK, "")
        roles = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]
        try:
            made = self.processor.apply_chat_template(
                roles, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        except Exception as error:  # a template is a program of its own
            rule = f"its chat template fails ({type(error).__name__}: {error})"
            raise UserError("model", self.folder, rule, "export it again with pad train") from error
        return dict(made)

    def _ends(self) -> list[int]:
        ends = self.model.generation_config.eos_token_id
        return ends if isinstance(ends, list) else [] if ends is None else [ends]


def load_processor(folder: Path) -> Any:
    """What shows images to the model and puts questions.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        with quiet():
            # Pillow's resize is the training's, to the bit.
            return LlavaProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False, backend="pil")
    except Exception as error:
        rule = f"its processor can't be loaded ({type(error).__name__}: {str(error)[:300]})"
        raise UserError("model", folder, rule, "export it again with pad train") from error


def shown_fit(processor: Any) -> Fit:
    """How a processor makes an image square: pad, crop or stretch."""
    images = processor.image_processor
    stock = isinstance(images, CLIPImageProcessor | CLIPImageProcessorPil)  # which says `do_pad` and does not pad
    if getattr(images, "do_pad", False) and not stock:
        return "pad"
    return "crop" if getattr(images, "do_center_crop", False) else "stretch"


def _adapted(model: Any, folder: Path) -> Any:
    adapters = folder / ADAPTER
    if not adapters.is_dir():
        return model
    try:
        from peft import PeftModel

        return PeftModel.from_pretrained(model, adapters)
    except ImportError as error:
        rule = f"it has LoRA's adapters apart, and {without('peft')}"
        raise UserError("model", folder, rule, OPTIONAL["peft"].install) from error
    except Exception as error:
        rule = f"its adapters can't be loaded ({type(error).__name__}: {str(error)[:300]})"
        raise UserError("model", adapters, rule, "export it again with pad train") from error
