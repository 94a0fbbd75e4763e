"""Export the trained model as a Hugging Face LLaVA folder, which transformers can load.

The functions do not change the model: they share or copy its weights and never move them.
"""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import (
    CLIPImageProcessorPil,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
)

from pad_pipeline.geometry import View
from pad_pipeline.pretrained import quiet
from pad_pipeline.storage import atomic_write
from pad_pipeline.training.abstractor import CAbstractor
from pad_pipeline.training.llava_abstractor import AbstractorLlava, AbstractorLlavaConfig
from pad_pipeline.training.llava_patches import PatchLlava, PatchLlavaConfig
from pad_pipeline.training.model import MultimodalModel
from pad_pipeline.training.pixel_shuffle import PixelShuffle
from pad_pipeline.training.projector import place_of, save_projector
from pad_pipeline.training.ranks import Ranks
from pad_pipeline.training.template import IMAGE, IMAGE_MARK, SYSTEM, Template, TemplateName
from pad_pipeline.training.towers import BICUBIC

ADAPTER = "adapter"
"""The folder within `hf/` for LoRA adapters that are not merged into the LLM."""
_KINDS: dict[type[LlavaConfig], Any] = {
    LlavaConfig: LlavaForConditionalGeneration, AbstractorLlavaConfig: AbstractorLlava, PatchLlavaConfig: PatchLlava,
}  # fmt: skip
"""The model classes by their config classes."""
_CODE: dict[Any, list[str]] = {
    LlavaForConditionalGeneration: [],
    AbstractorLlava: ["abstractor.py", "llava_abstractor.py"],
    PatchLlava: ["abstractor.py", "llava_abstractor.py", "llava_patches.py", "pixel_shuffle.py"],
}
"""The files of this folder that an exported model of each class needs."""


def export(model: MultimodalModel, view: View, out: Path, here: Ranks) -> None:
    """Write `mm_projector.bin` and the Hugging Face folder `hf/` into `out`. All ranks must call it."""
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if here.first:
            model = MultimodalModel(model.vision, model.llm_name, model.settings, torch.device("cpu"))
            model.load_state_dict(state)
    if here.first:
        save_projector(model.projector, out / "mm_projector.bin")
        with atomic_write(out / "hf") as partial:  # a model that is cut off half-way would load, or nearly
            export_llava(model, view, partial)
    here.wait()


def export_llava(model: MultimodalModel, view: View, folder: Path) -> None:
    """Write tower, projector, LLM and processor into `folder`; adapters that are not merged go into `adapter/`.

    Where stock LLaVA can't have the projector (C-Abstractor, pixel shuffle, places) or the tower (registers), the
    Python files that define the model are written too.
    """
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.add_tokens([IMAGE_MARK], special_tokens=True)
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = (
        "left"  # so that prompts of several lengths are answered in one batch
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token  # LLaVA takes `<unk>` too
    state = _weights(model, len(tokenizer))
    config = _config(model, tokenizer.convert_tokens_to_ids(IMAGE_MARK), state)
    kind = _KINDS[type(config)]
    with torch.device("meta"):  # without memory: the weights are assigned below, without a copy
        llava = kind(config)
    llava.load_state_dict(state, assign=True)
    llava.tie_weights()
    llava.generation_config = _generation(model, config.image_token_index, tokenizer.pad_token_id)
    with quiet():
        llava.save_pretrained(folder)
        processor_for(model, view, tokenizer).save_pretrained(folder)
    for name in _CODE[kind]:  # then the model loads even if this project is not installed
        code = Path(__file__).with_name(name).read_text("utf-8")
        code = code.replace("from pad_pipeline.errors import UserError\n", "UserError = ValueError\n")
        (folder / name).write_text(code, "utf-8")
    if model.settings.llm == "lora" and not model.settings.lora.merge:
        _save_adapter(model.llm, folder / ADAPTER)


# ---- weights


def _config(model: MultimodalModel, image_token: int, state: dict[str, Tensor]) -> LlavaConfig:
    text = copy.deepcopy(model.llm.config)
    text.vocab_size = len(state["lm_head.weight"])
    shared = {
        "vision_config": copy.deepcopy(model.tower.config),
        "text_config": text,
        "image_token_index": image_token,
        "projector_hidden_act": "linear" if isinstance(model.projector, nn.Linear) else "gelu",
        "vision_feature_layer": model.settings.vision_layer,
        "vision_feature_select_strategy": _select_strategy(model),
        "image_seq_length": model.vision_tokens,
        "tie_word_embeddings": text.tie_word_embeddings,
    }
    projector, kind = model.projector, LlavaConfig
    own: dict[str, Any] = {}
    if isinstance(projector, CAbstractor):
        kind, own = AbstractorLlavaConfig, {"abstractor": projector.sizes}
    if isinstance(projector, PixelShuffle):
        own = {"pixel_shuffle": projector.sizes}
    placed = place_of(projector) is not None
    if placed:
        own["place_tokens"] = model.vision_tokens
    if isinstance(projector, PixelShuffle) or placed or model.vision_config["prefix_tokens"] > 1:
        # LLaVA's strategy stays for the number of image marks that the processor writes: the class drops the tokens.
        kind, shared["vision_feature_select_strategy"] = PatchLlavaConfig, "full"
        own["prefix_tokens"] = model.vision_config["prefix_tokens"]
    if kind is not LlavaConfig:
        code = {"AutoConfig": kind, "AutoModelForImageTextToText": _KINDS[kind]}
        own["auto_map"] = {name: f"{it.__module__.rpartition('.')[2]}.{it.__name__}" for name, it in code.items()}
    return kind(**shared, **own)


def _select_strategy(model: MultimodalModel) -> str:
    """Return LLaVA's `vision_feature_select_strategy`: "default" drops one token, CLS; SigLIP has none, so "full"."""
    return "default" if model.vision_config["prefix_tokens"] == 1 else "full"


def _weights(model: MultimodalModel, tokens: int) -> dict[str, Tensor]:
    """Return all weights by LLaVA's names, in the LLM's dtype, with embeddings for at least `tokens` tokens."""
    state = {f"model.vision_tower.{name}": value for name, value in model.tower.state_dict().items()}
    state |= {f"model.multi_modal_projector.{name}": v for name, v in _projector_weights(model.projector).items()}
    embedding, output = model.llm.get_input_embeddings().weight, model.llm.get_output_embeddings().weight
    words = {"model.embed_tokens.weight": _with_rows(embedding, tokens)}  # tied layers share one tensor under two names
    words["lm_head.weight"] = words["model.embed_tokens.weight"] if output is embedding else _with_rows(output, tokens)
    for name, value in _llm_weights(model).items():
        inner = name.removeprefix("model.")
        state[name if name == inner else f"model.language_model.{inner}"] = words.get(name, value)
    return {name: v.to(model.llm.dtype) if v.is_floating_point() else v for name, v in state.items()}


def _projector_weights(projector: nn.Module) -> dict[str, Tensor]:
    """Return the projector's weights by LLaVA's names.

    LLaVA's projector has two layers, so a projector of one Linear gets the identity as its second layer.
    """
    weights = projector.state_dict()
    if isinstance(projector, CAbstractor | PixelShuffle):
        return weights
    if isinstance(projector, nn.Linear):
        identity = torch.eye(projector.out_features, device=projector.weight.device)
        weights = {name if name == "place" else f"0.{name}": value for name, value in weights.items()}
        weights |= {"2.weight": identity, "2.bias": identity.new_zeros(len(identity))}
    layers = {"0": "linear_1", "2": "linear_2"}
    return {layers.get(name[0], name[0]) + name[1:]: value for name, value in weights.items()}


def _with_rows(rows: Tensor, tokens: int) -> Tensor:
    """Extend the embeddings `rows`, `[V, d]`, to V >= `tokens`. Each added row is the mean of the given rows."""
    rows = rows.detach()
    if tokens <= len(rows):
        return rows
    return torch.cat([rows, rows.float().mean(0).to(rows.dtype).expand(tokens - len(rows), -1)])


def _llm_weights(model: MultimodalModel) -> dict[str, Tensor]:
    """Return the LLM's weights. Adapters are added to them if the settings say so, and are left out if not."""
    base = model.base_llm
    state = {n.replace(".base_layer.", "."): v for n, v in base.state_dict().items() if ".lora_" not in n}
    if model.settings.llm == "lora" and model.settings.lora.merge:
        for name, module in base.named_modules():
            if hasattr(module, "get_delta_weight"):
                weight, change = module.base_layer.weight, module.get_delta_weight("default")
                # Sum in float32, to round once. Keep the sum on the CPU, because the LLM already fills the GPU.
                state[f"{name}.weight"] = (weight.float() + change.float()).to(weight.dtype).detach().cpu()
    return state


def _save_adapter(llm: Any, folder: Path) -> None:
    """Write LoRA adapters in peft's format, with the names that the LLM's layers have within LLaVA."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = copy.deepcopy(llm.peft_config["default"])
    # A pattern with the full path, because the vision tower has layers of the same names.
    config.target_modules = rf"model\.language_model\..*\.({'|'.join(sorted(config.target_modules))})"
    config.base_model_name_or_path, config.inference_mode = None, True  # the base model is the folder around this one
    config.save_pretrained(folder)
    before, after = "base_model.model.model.", "base_model.model.model.language_model."
    adapters = get_peft_model_state_dict(llm, save_embedding_layers=False)  # no embedding is adapted
    state = {after + name.removeprefix(before): value.cpu().contiguous() for name, value in adapters.items()}
    save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})


def _generation(model: MultimodalModel, image_token: int, pad_token: int | None) -> GenerationConfig:
    """Return the LLM's generation config. It also has the token that ends an answer in training, and the token that
    fills up a batch; and it bans `<image>`."""
    config = copy.deepcopy(model.llm.generation_config)
    if not config.do_sample:  # Vicuna's config still has a temperature, and transformers refuses to save it
        config.temperature = config.top_p = config.top_k = None
    eos = config.eos_token_id  # a number, a list, or None
    ends = [end for end in (eos if isinstance(eos, list) else [eos]) if end is not None]
    with suppress(ValueError):
        turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A dog."}]
        dialogue = Template(_question_template(model), model.tokenizer)(turns, False)
        last = [token for token, supervised in zip(*dialogue, strict=True) if supervised][-1]
        if last in model.tokenizer.added_tokens_decoder:  # other tokens, such as a line break, may be part of an answer
            ends.append(last)
    config.eos_token_id = list(dict.fromkeys(ends)) or None
    config.pad_token_id = pad_token
    config.suppress_tokens = [*(config.suppress_tokens or []), image_token]
    return config


# ---- processor


def processor_for(model: MultimodalModel, view: View, tokenizer: Any) -> LlavaProcessor:
    """Return a processor that prepares images and questions as the training did."""
    # LlavaProcessor writes one image mark for each patch, plus `additional`, minus one if the strategy drops CLS. The
    # sum must be the number of vision tokens; some projectors have fewer of them than there are patches.
    additional = model.vision_tokens - view.grid**2 + (_select_strategy(model) == "default")
    tokenizer.chat_template = None  # it would be saved to the same file as the processor's chat template
    processor = LlavaProcessor(
        image_processor_for(view, model.mean, model.std, model.resample), tokenizer, patch_size=view.patch,
        image_token=IMAGE_MARK,
        vision_feature_select_strategy=_select_strategy(model), num_additional_image_tokens=additional,
    )  # fmt: skip
    processor.chat_template = chat_template_for(_question_template(model), model.tokenizer, processor)
    return processor


def image_processor_for(
    view: View, mean: list[float], std: list[float], resample: int = BICUBIC
) -> CLIPImageProcessorPil:
    """Return an image processor of transformers with the same results as `Preprocessor.normalized`."""
    square = {"height": view.size, "width": view.size}
    shared = {"image_mean": mean, "image_std": std, "crop_size": square, "resample": resample}
    if view.fit == "stretch":
        return CLIPImageProcessorPil(size=square, do_center_crop=False, **shared)
    if view.fit == "pad":
        return LlavaImageProcessorPil(size={"shortest_edge": view.size}, do_pad=True, **shared)
    return CLIPImageProcessorPil(size={"shortest_edge": view.size}, **shared)


_ONE_TEXT = """\
{%- set found = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set content = message['content'] -%}
{%- if content is defined and content is sequence -%}
{%- set part = namespace(marks='', text='') -%}
{%- if content is string -%}
{%- set part.marks = '<image>' * content.count('<image>') -%}{%- set part.text = content -%}
{%- else -%}
{%- for item in content -%}
{%- if item['type'] == 'image' -%}{%- set part.marks = part.marks + '<image>' -%}
{%- elif item['type'] == 'text' -%}{%- set part.text = part.text + item['text'] -%}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if part.marks -%}
{%- set asked = part.text | replace('<image>', '') | trim -%}
{%- set part.text = part.marks + GAP + ('\\n' + asked if asked else '') -%}
{%- endif -%}
{%- set found.messages = found.messages + [dict(message, content=part.text)] -%}
{%- else -%}{%- set found.messages = found.messages + [message] -%}{%- endif -%}
{%- endfor -%}
{%- set messages = found.messages %}
"""
"""Jinja code that joins a message's image mark and text into one text, the mark first, for chat templates that take
only texts. lmms-eval already sends one text, with the mark in it."""
_NO_BOS = "{%- set bos_token = '' -%}\n"
"""Jinja code for a tokenizer that adds BOS itself. Without this code, a program that renders the chat template and then
tokenizes the text, as lmms-eval does, would get BOS twice."""
_NO_THINKING = "{%- if enable_thinking is not defined -%}{%- set enable_thinking = false -%}{%- endif -%}\n"
"""Jinja code for templates such as Qwen 3's, which then ask with an empty thought, as the training does."""
_V1 = """\
{{- bos_token + GAP if bos_token else '' -}}
{{- (messages[0]['content'] if messages[0]['role'] == 'system' else SYSTEM) + ' ' -}}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{- 'USER: ' + message['content'] -}}
{%- elif message['role'] == 'assistant' -%}{{- ' ASSISTANT: ' + message['content'] + eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ' ASSISTANT:' -}}{%- endif -%}
"""
"""The chat template of Vicuna's dialogues, with the placeholders `SYSTEM` and `GAP`."""


def _question_template(model: MultimodalModel) -> TemplateName:
    """Return the template for questions. `plain` has no place for a question, so it is replaced by `v1`."""
    return "chat" if model.settings.template == "chat" else "v1"


def chat_template_for(name: TemplateName, tokenizer: Any, processor: LlavaProcessor) -> str | None:
    """Return the chat template with which `processor` makes the same tokens as `Template(name, tokenizer)`.

    `tokenizer` is the tokenizer of the training. Return None if no chat template makes the same tokens.
    """
    try:
        template = Template(name, tokenizer)
        base: str = tokenizer.get_chat_template() if name == "chat" else _V1.replace("SYSTEM", json.dumps(SYSTEM))
    except ValueError:
        return None
    # The training tokenizes the texts after BOS and after the image separately, and some tokenizers put a space before
    # every text. The processor tokenizes everything at once, so its template must write that space.
    ids = partial(processor.tokenizer, add_special_tokens=False)
    gap = "" if ids(f"{IMAGE_MARK}\nA")["input_ids"][1:] == ids("\nA")["input_ids"] else " "
    adds_itself = processor.tokenizer("")["input_ids"] == [tokenizer.bos_token_id]
    start = _NO_BOS if adds_itself or (name != "chat" and not template.bos) else ""
    if name == "chat" and template.options:
        start += _NO_THINKING
    text = start + (_ONE_TEXT + base).replace("GAP", repr(gap))
    return text if _same_tokens(processor, text, template) else None


def tokenize_chat(processor: LlavaProcessor, messages: list[dict[str, Any]], **options: Any) -> list[int]:
    """Return the ids of `processor.apply_chat_template(..., tokenize=True)`, but with one `<image>` for each image."""
    tokenizer, text = processor.tokenizer, processor.apply_chat_template(messages, **options)
    has_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    ids: list[int] = tokenizer(text, add_special_tokens=not has_bos)["input_ids"]
    return ids


def _same_tokens(processor: LlavaProcessor, chat_template: str, template: Template) -> bool:
    """Return whether `chat_template` and `template` make the same tokens of some questions and dialogues."""
    image = processor.tokenizer.convert_tokens_to_ids(IMAGE_MARK)

    def ids(*texts: str) -> list[int]:
        content = [
            [{"type": "image"}] * (number == 0) + [{"type": "text", "text": t}] for number, t in enumerate(texts)
        ]
        roles = [{"role": ("user", "assistant")[number % 2], "content": part} for number, part in enumerate(content)]
        tokens = tokenize_chat(processor, roles, chat_template=chat_template, add_generation_prompt=len(texts) % 2 == 1)
        return [IMAGE if token == image else token for token in tokens]

    try:
        if any(ids(text) != template.question(text) for text in ("What is this?", "5?", "")):
            return False
        for dialogue in (("What is this?", "A dog."), ("What is this?", "A dog.", "Sure?", "5 dogs.")):
            turns = [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(dialogue)]
            trained = None
            with suppress(ValueError):  # some templates take only one question
                trained = template(turns, image=True).ids
            if trained and ids(*dialogue) != trained:
                return False
    except Exception:  # a chat template is a program and can raise anything
        return False
    return True
