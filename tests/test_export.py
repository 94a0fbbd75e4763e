"""What comes out of a training, as others load it: transformers, peft, LLaVA's own code, and `pad chat`.

All models are small and random, so every test compares with what the training's own model computes.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import Fit, View
from pad_pipeline.pretrained import quiet
from pad_pipeline.training.batches import collate
from pad_pipeline.training.chat import Chat
from pad_pipeline.training.examples import Sight
from pad_pipeline.training.export import export, export_llava
from pad_pipeline.training.model import MultimodalModel
from pad_pipeline.training.projector import build_projector, save_projector
from pad_pipeline.training.ranks import Ranks
from pad_pipeline.training.settings import LoraSettings, Stage2Settings
from pad_pipeline.training.template import IMAGE, IMAGE_MARK, Encoded, Template
from tests.test_template import (
    CORPUS,
    LLAMA3,
    LLAMA3_MARKS,
    QWEN2,
    QWEN3,
    QWEN_MARKS,
    byte_level,
    classic,
    llama,
    sentencepiece_model,
    talk,
)

Pad = Callable[..., Any]
WIDTH = 32
SIZES = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.1}  # fmt: skip
EYES = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
QWEN = ("<|endoftext|>", *QWEN_MARKS)
QUESTIONS = ("What is in the image?", " How many?\n", "5 + 5 =", "", "这是什么？ <image> 🙂")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 on every machine: `pad chat` takes a GPU where there is one, and bfloat16."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of two towers, and of LLMs by the name of their tokenizer's kind."""
    folder = tmp_path_factory.mktemp("parts")
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPVisionModel(CLIPVisionConfig(image_size=56, patch_size=14, **EYES)).save_pretrained(folder / "clip")
        CLIPImageProcessorPil().save_pretrained(folder / "clip")
        SiglipVisionModel(SiglipVisionConfig(image_size=48, patch_size=16, **EYES)).save_pretrained(folder / "siglip")
        SiglipImageProcessorPil().save_pretrained(folder / "siglip")
        pieces = sentencepiece_model(CORPUS)
        vicuna = llama(folder / "pieces", pieces, legacy=False)
        legacy = llama(folder / "legacy pieces", pieces, legacy=True)
        llama3 = byte_level(LLAMA3_MARKS, LLAMA3, trim=True, bos=LLAMA3_MARKS[0], eos=LLAMA3_MARKS[3])
        qwen2, qwen3 = (byte_level(QWEN, text, trim=False, eos=QWEN_MARKS[1]) for text in (QWEN2, QWEN3))
        write_llm(folder / "vicuna", LlamaForCausalLM, LlamaConfig, vicuna)
        write_llm(folder / "legacy", LlamaForCausalLM, LlamaConfig, legacy)
        write_llm(folder / "classic", LlamaForCausalLM, LlamaConfig, classic(legacy))
        write_llm(folder / "llama3", LlamaForCausalLM, LlamaConfig, llama3)
        write_llm(folder / "qwen2", Qwen2ForCausalLM, Qwen2Config, qwen2, tie_word_embeddings=True)
        write_llm(
            folder / "qwen3", Qwen3ForCausalLM, Qwen3Config, qwen3, spare=20, tie_word_embeddings=True, head_dim=16
        )
    return folder


def write_llm(folder: Path, kind: Any, config: Any, tokenizer: Any, spare: int = 0, **more: Any) -> None:
    """An LLM with `spare` rows of its vocabulary that no token has, as Qwen's have."""
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    kind(config(vocab_size=len(tokenizer) + spare, **SIZES, **ids, **more)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build(parts: Path, which: str = "vicuna", tower: str = "clip", **settings: Any) -> MultimodalModel:
    """What a training of these parts has at its end: adapters that do something, too."""
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
    """A question's ids, and what the training's model says at each of its places: `[T, vocabulary]`."""
    name = "chat" if model.settings.template == "chat" else "v1"
    ids = Template(name, model.tokenizer).question("What is in the image?")  # type: ignore[arg-type]
    sight = Sight(view_for(model), model.mean, model.std, model.vision_tokens)
    example = sight.nothing(WIDTH)._replace(text=Encoded(ids, [False] * len(ids)), pixels=pixels[0])
    with torch.inference_mode():
        hidden = model.read(model.see(pixels), collate([example], sight))
        return ids, model.llm.get_output_embeddings()(hidden)


def difference(model: MultimodalModel, llava: Any, seed: int = 0) -> float:
    """The largest between the logits of the training's model and of an exported one, on one image."""
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


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("llm", ["vicuna", "llama3", "qwen2", "qwen3"])
@pytest.mark.parametrize("projector", ["mlp", "linear"])
def test_stock_transformers_gives_our_logits(parts: Path, tower: str, llm: str, projector: str, tmp_path: Path) -> None:
    """Catches CLS dropped where there is none, a layer off by one, an activation behind the single Linear, and
    embeddings that come apart, or come back random, once `<image>` has a row."""
    model = build(parts, llm, tower, projector=projector)
    export_llava(model, view_for(model), tmp_path)
    llava = stock(tmp_path)
    assert difference(model, llava) < 1e-5
    tied = llm.startswith("qwen")
    assert (llava.lm_head.weight is llava.get_input_embeddings().weight) == tied
    assert len(llava.lm_head.weight) == len(model.tokenizer) + (20 if llm == "qwen3" else 1)
    assert llava.config.text_config.vocab_size == len(llava.lm_head.weight)


def test_the_last_layer_is_the_last(parts: Path, tmp_path: Path) -> None:
    """Honeybee takes -1. transformers can put the state after the last norm there; the tower itself gives the one
    before."""
    for tower in ("clip", "siglip"):
        model = build(parts, tower=tower, vision_layer=-1)
        export_llava(model, view_for(model), tmp_path / tower)
        assert difference(model, stock(tmp_path / tower)) < 1e-5


@pytest.mark.parametrize("settings", [{}, {"llm": "lora"}, {"llm": "full"}, {"llm": "lora", "lora": {"merge": False}}])
def test_the_model_is_as_before(parts: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    """An export that merges adapters into the model, or gives its LLM a row for `<image>`, changes the next loss."""
    model = build(parts, "qwen2", **settings)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    words, config = len(model.tokenizer), model.llm.config.to_dict()
    export(model, view_for(model), tmp_path, Ranks(0, 1, torch.device("cpu")))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert (len(model.tokenizer), model.llm.config.to_dict()) == (words, config)
    assert model.tokenizer.chat_template
    assert (tmp_path / "mm_projector.bin").is_file()


# ---- processor


def heard(processor: Any, roles: list[dict[str, Any]], tokens: int, prompt: bool = True) -> list[int]:
    """Token ids of the processor, with our mark for an image of `tokens` tokens."""
    ids = processor.apply_chat_template(roles, tokenize=True, add_generation_prompt=prompt)
    return marked(processor, ids[0] if isinstance(ids[0], list) else ids, tokens)


def marked(processor: Any, found: list[int], tokens: int) -> list[int]:
    if processor.image_token_id in found:
        first = found.index(processor.image_token_id)
        assert found[first : first + tokens] == [processor.image_token_id] * tokens
        found = [*found[:first], IMAGE, *found[first + tokens :]]
    assert processor.image_token_id not in found
    return found


def user(text: str, image: bool = True) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [{"type": "image", "image": Image.new("RGB", (30, 20))}] * image + [{"type": "text", "text": text}],
    }


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


@pytest.mark.parametrize(
    ("llm", "template"),
    [
        ("vicuna", "v1"),
        ("legacy", "v1"),
        ("classic", "v1"),
        ("llama3", "v1"),
        ("qwen2", "v1"),
        ("llama3", "plain"),
        ("llama3", "chat"),
        ("qwen2", "chat"),
        ("qwen3", "chat"),
    ],
)
def test_processor_asks_as_in_training(parts: Path, llm: str, template: Any, tmp_path: Path) -> None:
    """Token for token, as the folder is loaded, in one call and as lmms-eval asks. Catches a second BOS, or none; a
    space before the line break behind the image that is there in training only (LLaMA's tokenizers put one before
    every text); the image in another place; an answer's end that is missing; a tokenizer that comes back as another
    class and splits otherwise."""
    model = build(parts, llm, template=template)
    export_llava(model, view_for(model), tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    asking = Template("v1" if template == "plain" else template, model.tokenizer)
    for question in QUESTIONS:
        assert heard(processor, [user(question)], model.vision_tokens) == asking.question(question), question
        if IMAGE_MARK in question:
            continue
        messages = [{"role": "user", "content": f"{IMAGE_MARK}\n{question}"}]  # from here as lmms-eval does it
        text = processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        (ids,) = processor(text=text, images=Image.new("RGB", (30, 20)))["input_ids"]
        assert marked(processor, ids, model.vision_tokens) == asking.question(question), question
    said = ["What?", "A dog.", " Sure? ", "5 dogs, one cat.", "这是什么？", "Yes."]
    roles = [assistant(text) if number % 2 else user(text, image=number == 0) for number, text in enumerate(said)]
    said[0] = f"{IMAGE_MARK}\n{said[0]}"
    assert heard(processor, roles, model.vision_tokens, False) == asking(talk(*said), True).ids
    plain = [{"role": role["role"], "content": text} for role, text in zip(roles[2:], said[2:], strict=True)]
    assert heard(processor, plain, model.vision_tokens, False) == asking(talk(*said[2:]), False).ids


def test_processor_asks_with_qwen_3s_template(parts: Path, tmp_path: Path) -> None:
    """It puts an empty thought into the last answer, and takes it out of earlier ones."""
    model = build(parts, "qwen3", template="chat")
    thought = "('<think>\\n\\n</think>\\n\\n' if loop.last and message['role'] == 'assistant' else '')"
    model.tokenizer.chat_template = QWEN2.replace("+ message['content']", f"+ {thought} + message['content']")
    export_llava(model, view_for(model), tmp_path)
    asking, processor = Template("chat", model.tokenizer), AutoProcessor.from_pretrained(tmp_path)
    for question in QUESTIONS:
        assert heard(processor, [user(question)], model.vision_tokens) == asking.question(question)
    roles = [user("What?"), assistant("A dog."), user("Sure?", image=False), assistant("Yes.")]
    said = heard(processor, roles, model.vision_tokens, False)
    assert said == asking(talk("What?", "A dog.", "Sure?", "Yes."), True).ids


def test_processor_asks_with_a_template_that_forgets_earlier_answers(parts: Path, tmp_path: Path) -> None:
    """That several turns can't be trained on must not cost the model its chat template."""
    model = build(parts, "qwen2", template="chat")
    model.tokenizer.chat_template = QWEN2.replace("+ message['content']", "+ (message['content'] if loop.last else '')")
    asking = Template("chat", model.tokenizer)
    with pytest.raises(ValueError, match=r"drops or repeats|earlier turns otherwise"):
        asking(talk("What?", "A dog.", "Sure?", "Yes."), True)
    export_llava(model, view_for(model), tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert heard(processor, [user("What?")], model.vision_tokens) == asking.question("What?")


def test_no_chat_template_is_better_than_another(parts: Path, tmp_path: Path) -> None:
    """Trained with a template that writes no BOS, which the tokenizer puts before every text: the processor would ask
    otherwise than was trained, and nobody would be told."""
    model = build(parts, "llama3", template="chat")
    model.tokenizer.chat_template = LLAMA3.replace("bos_token + text if loop.first else text", "text")
    export_llava(model, view_for(model), tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).chat_template is None
    with pytest.raises(UserError, match=r"no chat_template\.jinja"):
        Chat(tmp_path)


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_processor_shows_the_trained_view(parts: Path, tower: str, fit: Fit, tmp_path: Path) -> None:
    """The `do_pad` trap, and its like: a crop where SigLIP's own processor stretches, an edge rounded otherwise, the
    wrong side of an odd margin, CLIP's colors for SigLIP. The folder as it is loaded: with Pillow to 1e-5, with
    torchvision's resize, which rounds otherwise, to a few 255ths."""
    model = build(parts, tower=tower)
    view = view_for(model, fit)
    export_llava(model, view, tmp_path)
    exact, usual = AutoProcessor.from_pretrained(tmp_path, backend="pil"), AutoProcessor.from_pretrained(tmp_path)
    draw = np.random.default_rng(0)
    mean, std = (np.array(values)[:, None, None] for values in (model.mean, model.std))
    red, green, blue = (int(255 * channel) for channel in model.mean)
    for width, height in [(64, 64), (97, 51), (51, 98), (200, 57), (57, 201), (20, 31), (view.size, 3 * view.size)]:
        noise = Image.fromarray(draw.integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), np.uint8))
        image = noise.resize((width, height), Image.Resampling.BICUBIC)
        seen = np.asarray(view.apply(image, (red, green, blue)), np.float64).transpose(2, 0, 1) / 255
        for processor, most in ((exact, 1e-5), (usual, 0.1)):
            inputs = processor(images=image, text=IMAGE_MARK, return_tensors="pt", add_special_tokens=False)
            found = inputs["pixel_values"][0].numpy()
            assert np.abs(found - (seen - mean) / std).max() < most, (width, height, type(processor.image_processor))
            assert inputs["input_ids"].shape[1] == model.vision_tokens


# ---- C-Abstractor

ABSTRACTOR = {"projector": "c-abstractor", "abstractor_tokens": 9}


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_abstractor_gives_our_logits_by_our_classes(parts: Path, tower: str, tmp_path: Path) -> None:
    """Catches an image with as many marks as it has patches, sizes that are lost on the way, and a folder that stock
    code takes for its own: its projector would be made up."""
    model = build(parts, "qwen2", tower, **ABSTRACTOR)
    export_llava(model, view_for(model), tmp_path)
    chat = Chat(tmp_path)
    assert difference(model, chat.model) < 1e-5
    assert chat.model.config.image_seq_length == model.vision_tokens == 9
    usual = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=False)
    for processor in (chat.processor, usual):
        asking = Template("v1", model.tokenizer)
        assert heard(processor, [user("What?")], 9) == asking.question("What?")
    assert chat.answer(Image.new("RGB", (30, 20)), "What?", 4) is not None
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForImageTextToText.from_pretrained(tmp_path, trust_remote_code=False)


ALONE = """
import json, sys
import torch
sys.modules.update(dict.fromkeys(["pad_pipeline", "workflows", "stages"]))  # importing them fails
from transformers import AutoModelForImageTextToText
folder = sys.argv[1]
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
inputs = torch.load(f"{folder}/inputs.pt")
torch.save(model(**inputs).logits, f"{folder}/logits.pt")
said = model.generate(**inputs, max_new_tokens=3, do_sample=False)
assert said.shape[1] > inputs["input_ids"].shape[1]
"""


def test_abstractor_loads_where_this_project_is_not(parts: Path, tmp_path: Path) -> None:
    """In a process that can't import it. Catches a module that is not copied, and an import of ours that stays."""
    model = build(parts, **ABSTRACTOR)
    export_llava(model, view_for(model), tmp_path)
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    ids, ours = asked(model, pixels)
    image = [json.loads((tmp_path / "config.json").read_text())["image_token_index"]] * 9
    whole = torch.tensor([[one for token in ids for one in (image if token == IMAGE else [token])]])
    torch.save({"input_ids": whole, "pixel_values": pixels}, tmp_path / "inputs.pt")
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, tmp_path], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    theirs = torch.load(tmp_path / "logits.pt")[0]
    assert (theirs[:, : ours.shape[1]] - ours).abs().max() < 1e-5


def test_no_code_of_the_folder_runs(parts: Path, tmp_path: Path) -> None:
    """A folder from elsewhere, whose Python files would do anything: `pad chat` answers with our own classes."""
    model = build(parts, **ABSTRACTOR)
    export_llava(model, view_for(model), tmp_path)
    trap = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\nraise SystemExit('it ran')\n"
    for name in ("abstractor.py", "llava_abstractor.py", "custom_generate/generate.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(trap)
    for name in ("processor_config.json", "tokenizer_config.json"):
        config = json.loads((tmp_path / name).read_text())
        code = {"AutoProcessor": "abstractor.P", "AutoTokenizer": ["abstractor.T", "abstractor.T"]}
        (tmp_path / name).write_text(json.dumps(config | {"auto_map": code}))
    assert Chat(tmp_path).answer(Image.new("RGB", (30, 20)), "What?", 4) is not None
    assert not (tmp_path / "ran").exists()


# ---- LoRA


@pytest.mark.parametrize("llm", ["vicuna", "qwen2"])
def test_lora_is_merged(parts: Path, llm: str, tmp_path: Path) -> None:
    """Adapters that are left out, or added unscaled."""
    model = build(parts, llm, llm="lora", lora=LoraSettings(rank=4, alpha=16))
    export_llava(model, view_for(model), tmp_path)
    assert difference(model, stock(tmp_path)) < 1e-5
    assert difference(build(parts, llm), stock(tmp_path)) > 0.01, "the adapters say nothing"
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("projector", ["mlp", "c-abstractor"])
def test_lora_is_kept_apart(parts: Path, projector: str, tmp_path: Path) -> None:
    """The base model in the folder, adapters for it in another. Catches adapters that fit the LLM alone and not LLaVA,
    names that match the vision tower's layers too, and `pad chat` that forgets them."""
    from peft import PeftModel

    chosen = {"projector": projector, "abstractor_tokens": 9}
    lora = LoraSettings(rank=4, alpha=16, merge=False)
    model = build(parts, "qwen2", llm="lora", lora=lora, **chosen)
    export_llava(model, view_for(model), tmp_path)
    chat = Chat(tmp_path)
    assert difference(model, chat.model) < 1e-5
    assert chat.answer(Image.new("RGB", (30, 20)), "What?", 4) is not None
    assert not any("lora" in name for name, _ in chat.model.get_base_model().model.vision_tower.named_modules())
    if projector == "mlp":
        base = stock(tmp_path)
        assert difference(build(parts, "qwen2", **chosen), base) < 1e-5
        assert difference(model, PeftModel.from_pretrained(base, tmp_path / "adapter")) < 1e-5
    text = (tmp_path / "adapter/adapter_config.json").read_text()
    assert str(parts) not in text, "a path of the machine that trained"


# ---- generation


def test_a_generation_config_that_transformers_would_not_save(parts: Path, tmp_path: Path) -> None:
    """Vicuna's has a temperature and no sampling: loaded with a warning, refused when it is saved after a change. Hours
    of training would end in that error."""
    folder = tmp_path / "llm"
    folder.mkdir()
    for path in (parts / "vicuna").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    odd = {"bos_token_id": 1, "eos_token_id": 2, "max_length": 4096, "temperature": 0.9, "top_p": 0.6}
    (folder / "generation_config.json").write_text(json.dumps(odd))
    model = build(tmp_path, "llm", str(parts / "clip"))
    export_llava(model, view_for(model), tmp_path / "hf")
    config = GenerationConfig.from_pretrained(tmp_path / "hf")
    assert (config.eos_token_id, config.do_sample, config.max_length) == ([2], None, 4096)


def test_generation_ends_where_answers_ended(parts: Path, tmp_path: Path) -> None:
    """A base LLM's config ends at `<|endoftext|>`, its chat template at `<|im_end|>`: the model would talk on for both
    sides. And `<image>` is never said."""
    model = build(parts, "qwen2", template="chat")
    end = model.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    model.llm.generation_config = GenerationConfig(eos_token_id=end, do_sample=True, temperature=0.7)
    export_llava(model, view_for(model), tmp_path / "hf")
    config = GenerationConfig.from_pretrained(tmp_path / "hf")
    assert config.eos_token_id == [end, model.tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert config.suppress_tokens == [stock(tmp_path / "hf").config.image_token_index]
    assert (config.do_sample, config.temperature) == (True, 0.7)


# ---- mm_projector.bin


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_llavas_code_loads_our_projector(kind: Any, tmp_path: Path) -> None:
    """LLaVA takes what stands behind `mm_projector.` for the names in its own Sequential or Linear."""
    projector = build_projector(kind, 6, 8)
    save_projector(projector, tmp_path / "mm_projector.bin")
    weights = torch.load(tmp_path / "mm_projector.bin", map_location="cpu")
    weights = {name.split("mm_projector.")[1]: value for name, value in weights.items() if "mm_projector" in name}
    theirs: torch.nn.Module = torch.nn.Linear(6, 8)
    if kind == "mlp":
        theirs = torch.nn.Sequential(theirs, torch.nn.GELU(), torch.nn.Linear(8, 8))
    theirs.load_state_dict(weights)
    x = torch.randn(3, 6)
    assert torch.equal(theirs(x), projector(x))


@pytest.mark.parametrize("prefix", ["model.", "", "base_model.model.model.", "module.model.", "model.model."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_init_takes_llavas_own_projector(parts: Path, prefix: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """LLaVA's file as its different trainings write it: with ZeRO, with LoRA, in bfloat16. Catches a start from a
    random projector where the names are not known."""
    made = torch.nn.Sequential(torch.nn.Linear(24, WIDTH), torch.nn.GELU(), torch.nn.Linear(WIDTH, WIDTH)).to(dtype)
    path = tmp_path / "mm_projector.bin"
    torch.save({f"{prefix}mm_projector.{name}": value for name, value in made.state_dict().items()}, path)
    model = MultimodalModel(
        str(parts / "clip"), str(parts / "vicuna"), Stage2Settings(), torch.device("cpu"), str(path)
    )
    found = model.projector.state_dict()
    assert all(torch.equal(found[name], value.float()) for name, value in made.state_dict().items())
    assert {value.dtype for value in found.values()} == {torch.float32}


def test_projector_comes_back_from_the_folder(parts: Path, tmp_path: Path) -> None:
    """Out as both kinds and in again: the file and the folder hold the same projector."""
    model = build(parts)
    export(model, view_for(model), tmp_path, Ranks(0, 1, torch.device("cpu")))
    again = MultimodalModel(
        str(parts / "clip"), str(parts / "vicuna"), Stage2Settings(), torch.device("cpu"),
        str(tmp_path / "mm_projector.bin"),
    )  # fmt: skip
    assert difference(again, stock(tmp_path / "hf")) < 1e-5


# ---- pad chat


@pytest.fixture(scope="module")
def exported(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training's folder."""
    model = build(parts, "qwen2", template="chat")
    out = tmp_path_factory.mktemp("exported")
    export(model, view_for(model), out, Ranks(0, 1, torch.device("cpu")))
    return out


def greedy(model: MultimodalModel, image: Image.Image, question: str, tokens: int) -> str:
    """The answer by the training's own forward pass, with no cache."""
    data = io.BytesIO()
    image.save(data, "PNG")
    sight = Sight(view_for(model), model.mean, model.std, model.vision_tokens)
    from pad_pipeline.images import DecodeSettings

    pixels = sight.pixels(data.getvalue(), DecodeSettings())
    ids = Template("chat", model.tokenizer).question(question)
    said: list[int] = []
    with torch.inference_mode():
        while len(said) < tokens and (not said or said[-1] != model.tokenizer.eos_token_id):
            text = Encoded([*ids, *said], [False] * (len(ids) + len(said)))
            batch = collate([sight.nothing(WIDTH)._replace(text=text, pixels=pixels)], sight)
            hidden = model.read(model.see(batch.pixels), batch)[-1:]
            said.append(int(model.llm.get_output_embeddings()(hidden).argmax()))
    return str(model.tokenizer.decode(said, skip_special_tokens=True)).strip()


def test_chat_answers_as_the_training_would(
    parts: Path, exported: Path, pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy, token by token, from the training's own forward pass: what was asked, what was seen, where it ends. One
    question, then three on standard input."""
    model = build(parts, "qwen2", template="chat")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (41, 70, 3), np.uint8))
    image.save(tmp_path / "x.png")
    questions = ["What is in the image?", "How many dogs?", "Why [bold]not[/bold]?"]
    expected = [greedy(model, image, question, 6) for question in questions]
    assert len(set(expected)) > 1
    command = ["chat", "--image", tmp_path / "x.png", "--max-tokens", 6, "--model"]
    one = pad(*command, exported / "hf", questions[0])
    assert (one.code, one.out, one.err) == (0, expected[0] + "\n", "")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([questions[0], "", *questions[1:]])))
    several = pad(*command, exported)
    assert (several.code, several.out) == (0, "".join(f"{answer}\n" for answer in expected)), several.err


def test_chat_says_what_is_wrong(
    parts: Path, exported: Path, pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line with field, value, rule and remedy; never a traceback."""
    photo, text, hf = tmp_path / "x.png", tmp_path / "x.txt", tmp_path / "hf"
    Image.new("RGB", (30, 20)).save(photo)
    text.write_text("no image")

    def refused(model: Path, image: Path = photo, question: str = "What?") -> str:
        done = pad("chat", "--model", model, "--image", image, question)
        assert done.code == 2, done.out
        assert done.err.count("\n") == 1, done.err
        return str(done.err)

    assert "there is no such folder; give the hf/" in refused(tmp_path / "nowhere")
    assert "its config.json can't be read" in refused(tmp_path)
    assert "model_type is 'qwen2', and should be llava or llava_c_abstractor" in refused(parts / "qwen2")
    assert "--image" in (said := refused(exported, tmp_path / "none.png")) and "can't be read (No such file" in said
    assert "this is no readable image" in refused(exported, text)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert "standard input holds none" in refused(exported, question="-")

    def damaged(change: Callable[[], object]) -> str:
        hf.mkdir(exist_ok=True)
        for path in (exported / "hf").iterdir():
            (hf / path.name).write_bytes(path.read_bytes())
        change()
        return refused(hf)

    assert "its processor can't be loaded" in damaged((hf / "tokenizer.json").unlink)
    assert "no chat_template.jinja" in damaged((hf / "chat_template.jinja").unlink)
    assert "it can't be loaded" in damaged(lambda: (hf / "model.safetensors").write_bytes(b"x" * 9))
    assert "chat template fails" in damaged(lambda: (hf / "chat_template.jinja").write_text("{{ 1 / 0 }}"))
