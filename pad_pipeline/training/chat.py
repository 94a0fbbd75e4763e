"""Load an exported model and ask it questions about images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPImageProcessorPil, LlavaForConditionalGeneration, LlavaProcessor

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import Fit
from pad_pipeline.packages import OPTIONAL, not_installed
from pad_pipeline.pretrained import load_pretrained, quiet, read_config
from pad_pipeline.training.export import ADAPTER
from pad_pipeline.training.llava_abstractor import AbstractorLlava
from pad_pipeline.training.llava_patches import PatchLlava
from pad_pipeline.training.template import IMAGE_MARK, Template

KINDS = {kind.config_class.model_type: kind for kind in (LlavaForConditionalGeneration, AbstractorLlava, PatchLlava)}
"""The model classes by the `model_type` in config.json. Code in a model's folder never runs."""


class LoadedModel(NamedTuple):
    """A LLaVA model in memory: in bfloat16 on a GPU if there is one, else in float32 on the CPU."""

    folder: Path
    model: Any
    processor: Any
    device: torch.device


def load_llava(folder: Path) -> LoadedModel:
    """Load a LLaVA folder with its LoRA adapters: the output folder of `pad train`, its `hf/`, or another one.

    Raises:
        UserError: there is no such folder, or it can't be loaded.
    """
    folder = llava_folder(folder)
    kind = KINDS[read_config("model", folder, set(KINDS))["model_type"]]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    processor = load_processor(folder)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    # Choose the attention: the folder's config could name an attention whose code transformers would download.
    model = load_pretrained("model", folder, kind, dtype, attn_implementation="sdpa")
    return LoadedModel(folder, _with_adapters(model, folder).to(device).eval(), processor, device)


def llava_folder(folder: Path) -> Path:
    """Return `folder`, or its `hf/` if `folder` is the output folder of `pad train`.

    Raises:
        UserError: there is no such folder.
    """
    if not (folder / "config.json").exists() and (folder / "hf").is_dir():
        folder = folder / "hf"
    if not folder.is_dir():
        raise UserError("model", folder, "there is no such folder", "give the output folder of `pad train`")
    return folder


class Chat:
    """A loaded model that answers questions about images.

    Raises:
        UserError: as in `load_llava`; or the chat template is missing or fails.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.model, self.processor, self.device = load_llava(folder)
        if not self.processor.chat_template:
            rule = "it has no chat_template.jinja, the format of a question"
            raise UserError("model", self.folder, rule, "give a model that was trained on dialogues")
        # A first question shows whether the chat template fails. It also lets the tokenizer reset the padding and
        # truncation of its file. Later, this would fail if another thread used the tokenizer ("Already borrowed").
        self.prepare(Image.new("RGB", (8, 8)), "")

    def answer(self, image: Image.Image, question: str, max_tokens: int = 256) -> str:
        """Answer one question about an upright RGB image by greedy decoding."""
        return self.answers([self.prepare(image, question)], max_tokens)[0]

    @torch.inference_mode()
    def answers(
        self, inputs: Sequence[dict[str, torch.Tensor]], max_tokens: int = 256, batch: int = 16, one_line: bool = False
    ) -> list[str]:
        """Answer questions that `prepare` or `prepare_caption` returned, by greedy decoding.

        Prompts of the same length are answered together, up to `batch` at a time, without padding. So a call with many
        questions is faster. With `one_line`, an answer ends after its first line: a model that was trained with
        template `plain` has learned no other end.
        """
        groups: dict[int, list[int]] = {}
        for position, one in enumerate(inputs):
            groups.setdefault(one["input_ids"].shape[1], []).append(position)
        answers = [""] * len(inputs)
        eos = self.model.generation_config.eos_token_id  # a number, a list, or None
        ends = [end for end in (eos if isinstance(eos, list) else [eos]) if end is not None]
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
                    # Some tokenizers make one token of a line break and the text before it, so `ends` is not enough.
                    answers[position] = text.partition("\n")[0] if one_line else text
        return answers

    def prepare(self, image: Image.Image, question: str) -> dict[str, torch.Tensor]:
        """Turn a question about an upright RGB image into the model's inputs, on the CPU. Threads may call it.

        Raises:
            UserError: the chat template in the model's folder fails.
        """
        text = question.replace(IMAGE_MARK, "")
        roles = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]
        try:
            inputs = self.processor.apply_chat_template(
                roles, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        except Exception as error:  # a chat template is a program and can raise anything
            rule = f"its chat template fails ({type(error).__name__}: {error})"
            raise UserError("model", self.folder, rule, "export it again with `pad train`") from error
        return dict(inputs)

    def prepare_caption(self, image: Image.Image) -> dict[str, torch.Tensor]:
        """Return the inputs, on the CPU, with which a model of template `plain` captions an upright RGB image."""
        tokenizer = self.processor.tokenizer
        text = (tokenizer.bos_token if Template("plain", tokenizer).bos else "") + IMAGE_MARK
        return dict(self.processor(images=image, text=text, add_special_tokens=False, return_tensors="pt"))


def load_processor(folder: Path) -> Any:
    """Load the processor, which turns images and questions into a model's inputs.

    Raises:
        UserError: the processor is missing or damaged.
    """
    try:
        with quiet():
            # The training resizes with Pillow, so the backend "pil" gives exactly the same pixels.
            return LlavaProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False, backend="pil")
    except Exception as error:
        rule = f"its processor can't be loaded ({type(error).__name__}: {str(error)[:300]})"
        raise UserError("model", folder, rule, "export it again with `pad train`") from error


def processor_fit(processor: Any) -> Fit:
    """Return how a processor makes an image square: `pad`, `crop` or `stretch`."""
    images = processor.image_processor
    clip = isinstance(images, CLIPImageProcessor | CLIPImageProcessorPil)  # CLIP's accept `do_pad` but do not pad
    if getattr(images, "do_pad", False) and not clip:
        return "pad"
    return "crop" if getattr(images, "do_center_crop", False) else "stretch"


def _with_adapters(model: Any, folder: Path) -> Any:
    """Return `model` with the LoRA adapters of its folder, if there are any."""
    adapters = folder / ADAPTER
    if not adapters.is_dir():
        return model
    try:
        from peft import PeftModel

        return PeftModel.from_pretrained(model, adapters)
    except ImportError as error:
        rule = f"its LoRA adapters are not merged, and {not_installed('peft')}"
        raise UserError("model", folder, rule, OPTIONAL["peft"].install) from error
    except Exception as error:
        rule = f"its adapters can't be loaded ({type(error).__name__}: {str(error)[:300]})"
        raise UserError("model", adapters, rule, "export it again with `pad train`") from error
