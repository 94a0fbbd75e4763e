"""The trained model as a Hugging Face LLaVA folder, which stock transformers loads and generates from.

Nothing here changes the model: weights are shared or copied, never moved.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
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
from pad_pipeline.training.abstractor import CAbstractor
from pad_pipeline.training.llava_abstractor import AbstractorLlava, AbstractorLlavaConfig
from pad_pipeline.training.model import MultimodalModel
from pad_pipeline.training.projector import save_projector
from pad_pipeline.training.ranks import Ranks
from pad_pipeline.training.template import IMAGE, IMAGE_MARK, SYSTEM, Template, TemplateName

ADAPTER = "adapter"
"""Folder of LoRA's adapters that were not merged, beside the model that they go with."""


def export(model: MultimodalModel, view: View, out: Path, here: Ranks) -> None:
    """What comes out of a training, written by the first rank: `mm_projector.bin`, and the Hugging Face folder
    `hf/`."""
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
    """Write tower, projector and LLM, and a processor that crops, pads or stretches as in training.

    A C-Abstractor needs two Python files, which are written too; adapters that are not merged go into `adapter/`.
    """
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.add_tokens([IMAGE_MARK], special_tokens=True)
    state = _weights(model, len(tokenizer))
    config = _config(model, tokenizer.convert_tokens_to_ids(IMAGE_MARK), state)
    kind = AbstractorLlava if isinstance(config, AbstractorLlavaConfig) else LlavaForConditionalGeneration
    with torch.device("meta"):  # no second copy of the weights: they are put in below
        llava = kind(config)
    llava.load_state_dict(state, assign=True)
    llava.tie_weights()
    llava.generation_config = _generation(model, config.image_token_index)
    with quiet():
        llava.save_pretrained(folder)
        processor_for(model, view, tokenizer).save_pretrained(folder)
    if kind is AbstractorLlava:
        _write_code(folder)
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
        "vision_feature_select_strategy": _select(model),
        "image_seq_length": model.vision_tokens,
        "tie_word_embeddings": text.tie_word_embeddings,
    }
    if not isinstance(model.projector, CAbstractor):
        return LlavaConfig(**shared)
    code = {"AutoConfig": AbstractorLlavaConfig, "AutoModelForImageTextToText": AbstractorLlava}
    auto_map = {name: f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}" for name, kind in code.items()}
    return AbstractorLlavaConfig(**shared, abstractor=_sizes(model.projector), auto_map=auto_map)


def _sizes(projector: CAbstractor) -> dict[str, int]:
    first = projector.readout[0]
    assert isinstance(first, nn.Linear)
    return {
        "vision_width": projector.pos_emb.shape[2],
        "llm_width": first.out_features,
        "grid": projector.grid,
        "tokens": projector.tokens,
        "hidden": first.in_features,
        "depth": len(projector.net[0]),  # type: ignore[arg-type]
        "readout": (len(projector.readout) + 1) // 2,
    }


def _select(model: MultimodalModel) -> str:
    """CLIP's CLS token is dropped by the "default" strategy; SigLIP has none."""
    return "full" if model.vision_config["model_type"].startswith("siglip") else "default"


def _weights(model: MultimodalModel, tokens: int) -> dict[str, Tensor]:
    """All weights, by the names that they have in LLaVA and in the LLM's type of number; at least `tokens` words."""
    settings = model.settings
    merge = settings.llm == "lora" and settings.lora.merge
    state = {f"model.vision_tower.{name}": value for name, value in model.tower.state_dict().items()}
    state |= {f"model.multi_modal_projector.{name}": v for name, v in _projector_weights(model.projector).items()}
    words = {name: _grown(value, tokens) for name, value in _word_weights(model.llm).items()}
    for name, value in _llm_weights(model.llm, merge).items():
        inner = name.removeprefix("model.")
        state[name if name == inner else f"model.language_model.{inner}"] = words.get(name, value)
    return {name: v.to(model.llm.dtype) if v.is_floating_point() else v for name, v in state.items()}


def _projector_weights(projector: nn.Module) -> dict[str, Tensor]:
    """As in stock LLaVA, which has two layers: a single Linear is followed by the identity, which is exact."""
    own = projector.state_dict()
    if isinstance(projector, CAbstractor):
        return own
    if isinstance(projector, nn.Linear):
        identity = torch.eye(projector.out_features, device=projector.weight.device)
        own = {
            "0.weight": own["weight"],
            "0.bias": own["bias"],
            "2.weight": identity,
            "2.bias": identity.new_zeros(len(identity)),
        }
    return {{"0": "linear_1", "2": "linear_2"}[name[0]] + name[1:]: value for name, value in own.items()}


def _word_weights(llm: Any) -> dict[str, Tensor]:
    """Of the embedding and of the output layer; one tensor under two names where they are tied."""
    first, last = llm.get_input_embeddings().weight, llm.get_output_embeddings().weight
    return {
        "model.embed_tokens.weight": first.detach(),
        "lm_head.weight": first.detach() if last is first else last.detach(),
    }


def _grown(rows: Tensor, tokens: int) -> Tensor:
    """With rows for the tokens that were added, each the mean of the others."""
    if tokens <= len(rows):
        return rows
    mean = rows.float().mean(0).to(rows.dtype)
    return torch.cat([rows, mean.expand(tokens - len(rows), -1)])


def _llm_weights(llm: Any, merge: bool) -> dict[str, Tensor]:
    """The LLM's, adapters added to what they adapt, or left out."""
    base = llm.get_base_model() if hasattr(llm, "get_base_model") else llm
    state = {n.replace(".base_layer.", "."): v for n, v in base.state_dict().items() if ".lora_" not in n}
    if merge:
        for name, module in base.named_modules():
            if hasattr(module, "get_delta_weight"):
                weight, change = module.base_layer.weight, module.get_delta_weight("default")
                # Rounded once, and outside of the GPU: the LLM is in there already.
                state[f"{name}.weight"] = (weight.float() + change.float()).to(weight.dtype).detach().cpu()
    return state


def _save_adapter(llm: Any, folder: Path) -> None:
    """LoRA's adapters for the LLM within LLaVA, as peft reads them."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = copy.deepcopy(llm.peft_config["default"])
    # A pattern, because the vision tower has layers of the same names.
    config.target_modules = rf"model\.language_model\..*\.({'|'.join(sorted(config.target_modules))})"
    config.base_model_name_or_path, config.inference_mode = None, True  # the folder that this one lies in
    config.save_pretrained(folder)
    before, after = "base_model.model.model.", "base_model.model.model.language_model."
    own = get_peft_model_state_dict(llm, save_embedding_layers=False)  # of which none is adapted
    state = {after + name.removeprefix(before): value.cpu().contiguous() for name, value in own.items()}
    save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})


def _generation(model: MultimodalModel, image_token: int) -> GenerationConfig:
    """The LLM's own, which ends where an answer ended in training, and never says `<image>`."""
    config = copy.deepcopy(model.llm.generation_config)
    if not config.do_sample:  # Vicuna's has a temperature all the same, and transformers refuses to save that
        config.temperature = config.top_p = config.top_k = None
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    ends = [end for end in (*ends, *_ends(model)) if end is not None]
    config.eos_token_id = list(dict.fromkeys(ends)) or None
    config.suppress_tokens = [*(config.suppress_tokens or []), image_token]
    return config


def _ends(model: MultimodalModel) -> list[int]:
    """The token that ends an answer, where it stands for nothing else: not the line break of some chat templates."""
    try:
        talk = Template(_dialogue(model), model.tokenizer)([_said("human", "What?"), _said("gpt", "A dog.")], False)
    except ValueError:
        return []
    last = [token for token, supervised in zip(*talk, strict=True) if supervised][-1]
    return [last] if last in model.tokenizer.added_tokens_decoder else []


def _write_code(folder: Path) -> None:
    """The C-Abstractor's classes, so that the folder loads where this project is not installed."""
    here = Path(__file__).parent
    ours, theirs = "from pad_pipeline.errors import UserError\n", "UserError = ValueError\n"
    for name in ("abstractor.py", "llava_abstractor.py"):
        (folder / name).write_text((here / name).read_text("utf-8").replace(ours, theirs), "utf-8")


# ---- processor


def processor_for(model: MultimodalModel, view: View, tokenizer: Any) -> LlavaProcessor:
    """The processor that shows the tower the same view as the training did, and asks as it did."""
    select = _select(model)
    # How many marks stand for an image: patches, plus this, less one if the strategy is to drop CLS. A C-Abstractor
    # makes fewer tokens than there are patches.
    additional = model.vision_tokens - view.grid**2 + (select == "default")
    tokenizer.chat_template = None  # it goes to the same file as the processor's own
    processor = LlavaProcessor(
        image_processor=image_processor_for(view, model.mean, model.std),
        tokenizer=tokenizer,
        patch_size=view.patch,
        vision_feature_select_strategy=select,
        image_token=IMAGE_MARK,
        num_additional_image_tokens=additional,
    )
    processor.chat_template = chat_template_for(_dialogue(model), model.tokenizer, processor)
    return processor


def image_processor_for(view: View, mean: list[float], std: list[float]) -> CLIPImageProcessorPil:
    """transformers' image processor that does what `view.apply` and the normalization do."""
    square = {"height": view.size, "width": view.size}
    shared = {"image_mean": mean, "image_std": std, "crop_size": square}
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
{%- set part.text = part.marks + (GAP + '\\n' + asked if asked else '') -%}
{%- endif -%}
{%- set found.messages = found.messages + [dict(message, content=part.text)] -%}
{%- else -%}{%- set found.messages = found.messages + [message] -%}{%- endif -%}
{%- endfor -%}
{%- set messages = found.messages %}
"""
"""Makes one text of a message's image and text, the image first, for a chat template that knows texts only.
lmms-eval has made one text of them already, with the mark in it."""
_NO_BOS = "{%- set bos_token = '' -%}\n"
"""For a tokenizer that puts BOS before every text by itself: who renders a text and gives it to the processor then, as
lmms-eval does, would have two."""
_V1 = """\
{{- bos_token + GAP if bos_token else '' -}}
{{- (messages[0]['content'] if messages[0]['role'] == 'system' else SYSTEM) + ' ' -}}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{- 'USER: ' + message['content'] -}}
{%- elif message['role'] == 'assistant' -%}{{- ' ASSISTANT: ' + message['content'] + eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ' ASSISTANT:' -}}{%- endif -%}
"""
"""Vicuna's dialogue."""


def _dialogue(model: MultimodalModel) -> TemplateName:
    """The template that questions are asked with; `plain` has none, so LLaVA's."""
    return "chat" if model.settings.template == "chat" else "v1"


def chat_template_for(name: TemplateName, tokenizer: Any, processor: LlavaProcessor) -> str | None:
    """The chat template with which the processor gives the very tokens of `Template`; None where none does.

    Args:
        name: v1, or chat for the tokenizer's own.
        tokenizer: as it was in training.
        processor: with the tokenizer that knows `<image>`.
    """
    try:
        template = Template(name, tokenizer)
        own: str = tokenizer.get_chat_template() if name == "chat" else _V1
    except ValueError:
        return None
    if name == "v1":
        own = own.replace("SYSTEM", json.dumps(SYSTEM))
    # The training's tokenizer saw what follows BOS and image by itself. Some put a space before every text, and then
    # the processor, which has it all in one, must be given that space.
    made = [start + (_ONE_TEXT + own).replace("GAP", repr(gap)) for start in (_NO_BOS, "") for gap in ("", " ")]
    for ways in (_WAYS, _WAYS[:1]):
        for text in made:
            if all(_asks_alike(processor, text, template, way) for way in ways):
                return text
    return None


def in_one_call(processor: LlavaProcessor, messages: list[dict[str, Any]], **options: Any) -> list[int]:
    """Ids as `processor.apply_chat_template(..., tokenize=True)` makes them, before a mark becomes many."""
    tokenizer, text = processor.tokenizer, processor.apply_chat_template(messages, **options)
    begun = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    found: list[int] = tokenizer(text, add_special_tokens=not begun)["input_ids"]
    return found


def in_two_calls(processor: LlavaProcessor, messages: list[dict[str, Any]], **options: Any) -> list[int]:
    """Ids as lmms-eval has them: one text of image and question, rendered, then tokenized."""
    texts = [
        message | {"content": "\n".join(item.get("text", IMAGE_MARK) for item in message["content"])}
        for message in messages
    ]
    found: list[int] = processor.tokenizer(processor.apply_chat_template(texts, **options))["input_ids"]
    return found


_WAYS = (in_one_call, in_two_calls)


def _asks_alike(
    processor: LlavaProcessor, chat_template: str, template: Template, way: Callable[..., list[int]]
) -> bool:
    """Whether both make the same tokens of questions, and of a dialogue."""
    image = processor.tokenizer.convert_tokens_to_ids(IMAGE_MARK)

    def ids(turns: list[dict[str, str]]) -> list[int]:
        roles = []
        for number, turn in enumerate(turns):
            content = [{"type": "image"}] * (number == 0) + [{"type": "text", "text": turn["value"]}]
            roles.append({"role": "assistant" if number % 2 else "user", "content": content})
        prompt = len(turns) % 2 == 1
        found = way(processor, roles, chat_template=chat_template, add_generation_prompt=prompt)
        return [IMAGE if token == image else token for token in found]

    talk = [_said("human", "What is this?"), _said("gpt", "A dog."), _said("human", "Sure?"), _said("gpt", "5 dogs.")]
    try:
        asked = all(ids([_said("human", text)]) == template.question(text) for text in ("What is this?", "5?", ""))
        return asked and all(ids(part) == trained for part in (talk, talk[:2]) if (trained := _trained(template, part)))
    except Exception:  # a template is a program of its own
        return False


def _trained(template: Template, talk: list[dict[str, str]]) -> list[int]:
    """The ids of a dialogue; none where the template refuses it, as several turns can be refused."""
    try:
        return template(talk, image=True).ids
    except ValueError:
        return []


def _said(speaker: str, text: str) -> dict[str, str]:
    return {"from": speaker, "value": text}
