"""Load an exported model, and let it answer questions about images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPImageProcessorPil, LlavaForConditionalGeneration, LlavaProcessor

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import Fit
from pad_pipeline.packages import OPTIONAL, without
from pad_pipeline.pretrained import load_pretrained, quiet, read_config
from pad_pipeline.training.export import ADAPTER
from pad_pipeline.training.llava_abstractor import AbstractorLlava
from pad_pipeline.training.template import IMAGE_MARK

KINDS = {kind.config_class.model_type: kind for kind in (LlavaForConditionalGeneration, AbstractorLlava)}
"""Model classes by the `model_type` of their config.json. Both come from installed packages: code in a model's folder
never runs."""


class LoadedModel(NamedTuple):
    """A LLaVA folder in memory: in bfloat16 on a GPU if there is one, else in float32 on the CPU."""

    folder: Path
    model: Any
    processor: Any
    device: torch.device


def load_llava(folder: Path) -> LoadedModel:
    """Load the model and its LoRA adapters from the `hf/` that `pad train` wrote, from the folder around it, or from
    another LLaVA folder.

    Raises:
        UserError: `folder` is none of these, or damaged.
    """
    folder = llava_folder(folder)
    kind = KINDS[read_config("model", folder, set(KINDS))["model_type"]]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    processor = load_processor(folder)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    # The attention is named here, because the folder could name one that is downloaded as code.
    model = load_pretrained("model", folder, kind, dtype, attn_implementation="sdpa")
    return LoadedModel(folder, _adapted(model, folder).to(device).eval(), processor, device)


def llava_folder(folder: Path) -> Path:
    """Return `folder`, or the `hf/` in it where `folder` is the output of `pad train`.

    Raises:
        UserError: there is no such folder.
    """
    if not (folder / "config.json").exists() and (folder / "hf").is_dir():
        folder = folder / "hf"
    if not folder.is_dir():
        raise UserError("model", folder, "there is no such folder", "give the hf/ that pad train wrote")
    return folder


class Chat:
    """A loaded model that answers questions about images.

    Raises:
        UserError: as in `load_llava`; or the folder has no chat template, or one that fails.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.model, self.processor, self.device = load_llava(folder)
        if not self.processor.chat_template:
            rule = "it has no chat_template.jinja, which says how a question is put"
            raise UserError("model", self.folder, rule, "give a model that was trained on dialogues")
        # This first question reports a template that fails at once. It also lets the tokenizer reset the padding and
        # cutting that its file may ask for: it can't while another thread uses it ("Already borrowed").
        self.prepare(Image.new("RGB", (8, 8)), "")

    def answer(self, image: Image.Image, question: str, max_tokens: int = 256) -> str:
        """Answer one question about an upright RGB image, with the likeliest token at each position; see `prepare`."""
        return self.answers([self.prepare(image, question)], max_tokens)[0]

    @torch.inference_mode()
    def answers(
        self, inputs: Sequence[dict[str, torch.Tensor]], max_tokens: int = 256, batch: int = 16, one_line: bool = False
    ) -> list[str]:
        """Answer many questions that `prepare` or `prepare_caption` made ready.

        Prompts of one length are answered together, up to `batch` at a time, so that none is padded. The more questions
        one call has, the fuller the batches. With `one_line`, an answer is cut after its first line, because
        a model trained with template `plain` does not learn to stop elsewhere.
        """
        groups: dict[int, list[int]] = {}
        for position, one in enumerate(inputs):
            groups.setdefault(one["input_ids"].shape[1], []).append(position)
        answers = [""] * len(inputs)
        named = self.model.generation_config.eos_token_id  # a number, a list, or None
        ends = [end for end in (named if isinstance(named, list) else [named]) if end is not None]
        if one_line:
            ends = [*ends, *self.processor.tokenizer("\n", add_special_tokens=False)["input_ids"][-1:]]
        more = {"eos_token_id": ends, "pad_token_id": ends[0]} if ends else {}
        for length, same in groups.items():
            for positions in (same[start : start + batch] for start in range(0, len(same), batch)):
                parts = [inputs[position] for position in positions]
                together = {name: torch.cat([part[name] for part in parts]).to(self.device) for name in parts[0]}
                rows = self.model.generate(**together, max_new_tokens=max_tokens, do_sample=False, **more)
                for position, row in zip(positions, rows[:, length:].tolist(), strict=True):
                    stop = next((at for at, token in enumerate(row) if token in ends), len(row))
                    text = str(self.processor.decode(row[:stop], skip_special_tokens=True)).strip()
                    # Some tokenizers join the line break to what stands before it: no token of its own ends the line.
                    answers[position] = text.partition("\n")[0] if one_line else text
        return answers

    def prepare(self, image: Image.Image, question: str) -> dict[str, torch.Tensor]:
        """Turn a question about an upright RGB image into the model's inputs, on the CPU. Threads may call this.

        Raises:
            UserError: the chat template in the model's folder fails.
        """
        text = question.replace(IMAGE_MARK, "")
        roles = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]
        try:
            inputs = self.processor.apply_chat_template(
                roles, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        except Exception as error:  # a template is a program of its own
            rule = f"its chat template fails ({type(error).__name__}: {error})"
            raise UserError("model", self.folder, rule, "export it again with pad train") from error
        return dict(inputs)

    def prepare_caption(self, image: Image.Image) -> dict[str, torch.Tensor]:
        """Make the inputs, on the CPU, of an upright RGB image alone, which a model of template `plain` captions."""
        text = (self.processor.tokenizer.bos_token or "") + IMAGE_MARK
        return dict(self.processor(images=image, text=text, add_special_tokens=False, return_tensors="pt"))


def load_processor(folder: Path) -> Any:
    """Load the processor, which makes a model's inputs of images and questions.

    Raises:
        UserError: the processor is missing or damaged.
    """
    try:
        with quiet():
            # The training resizes with Pillow, so this backend gives the same pixels to the bit.
            return LlavaProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False, backend="pil")
    except Exception as error:
        rule = f"its processor can't be loaded ({type(error).__name__}: {str(error)[:300]})"
        raise UserError("model", folder, rule, "export it again with pad train") from error


def processor_fit(processor: Any) -> Fit:
    """Return how a processor makes an image square: `pad`, `crop` or `stretch`."""
    images = processor.image_processor
    stock = isinstance(images, CLIPImageProcessor | CLIPImageProcessorPil)  # CLIP's takes `do_pad` and does not pad
    if getattr(images, "do_pad", False) and not stock:
        return "pad"
    return "crop" if getattr(images, "do_center_crop", False) else "stretch"


def _adapted(model: Any, folder: Path) -> Any:
    """Return `model` with the LoRA adapters of its folder, where it has any."""
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
