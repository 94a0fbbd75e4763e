"""Small files of the exact form of the official ones: container, names of tensors, types, and what else they hold.

Widths are small, and the numbers of layers are the official ones, so that the names are; only OmDet-Turbo and SAM 3
have fewer layers, which saves time. What is known of the files that the pages about models name, and from where:

- RAM and RAM++: `pretrain.py` of recognize-anything saves a dict of model, optimizer (AdamW), config (of YAML) and
  epoch. The names are those of a state dict of its classes; the hub's scan of the pickles lists four types. In some
  files the head is called `vision_multi`; whether it is in these is not known.
- Grounding DINO: a dict with `model`. Swin-T's names begin with `module.`, Swin-B's do not (mmdetection #11200). Both
  hold `label_enc.weight` and `bert.embeddings.position_ids`, which the network lacks (GroundingDINO #271).
- SAM: a bare state dict, of three types by the hub's scan.
- The `.pth` files are zips of torch and not of its older format, by their sizes: beside the data of these tensors,
  SAM's hold 316 bytes for each, RAM's 346, RAM++'s 423, Grounding DINO's 407 and 392. Zips of the same names hold 293
  to 380, files of the older format 146 to 185. The tests read both.
- SAM 2.1 (the folder of the video model) and the hub's Grounding DINO: the sizes of the official files are those of
  these names and the official shapes, to the byte. Grounding DINO has one head for all layers, stored once: tiny has
  the name of the first layer, base that of the decoder's copy.
- MM Grounding DINO and LLMDet: each layer of the decoder has its own heads, and the config.json of those that were
  looked at says so. The config class of one version of transformers had no such entries, so a copy may lack them.
- Vicuna: two float16 `.bin` with an index, and frequencies of each layer in float32 (both types are in the hub's scan).
- CLIP-L/336: one `.bin` of the whole CLIP, with position ids. Whether it is a zip is not known.

Not known: whether the hub's SAM, SAM-HQ, OWLv2, OmDet-Turbo and SAM 3 hold position ids or second names of tied tensors
(transformers accepts files with and without). OmDet-Turbo's official backbone has the names of timm, an optional
package; the one below has those of transformers.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipConfig,
    SiglipModel,
    Tipsv2Config,
    Tipsv2Model,
)

from benchmarks.official import SAMS
from pad_pipeline.pretrained import quiet
from pad_pipeline.stages.ram.network import Ram, RamSettings
from pad_pipeline.stages.sam.network import SamShape, build_sam
from tests.hub_models import write_dino, write_omdet, write_owl, write_sam, write_sam3

State = dict[str, Tensor]
TAGS = 5
RAM = RamSettings(
    image_size=64, embed_dim=8, depths=[2, 2, 18, 2], num_heads=[1, 2, 4, 8], window=2, embed_width=8, head_width=12,
    head_heads=4, head_feed_forward=16, descriptions=3,
)  # fmt: skip
"""The official RAM's numbers of layers. As there, the last stage is one window."""


def drawn(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=_GENERATOR)


_GENERATOR = torch.Generator().manual_seed(0)


def _layer_of_bert(width: int, attentions: dict[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of a layer's tensors. `attentions` are its attentions with the widths of their inputs."""
    for name, inputs in attentions.items():
        for part, size in (("query", width), ("key", inputs), ("value", inputs)):
            yield f"{name}.self.{part}.weight", (width, size)
            yield f"{name}.self.{part}.bias", (width,)
        yield from _residual(f"{name}.output", width, width)
    yield "intermediate.dense.weight", (RAM.head_feed_forward, width)
    yield "intermediate.dense.bias", (RAM.head_feed_forward,)
    yield from _residual("output", RAM.head_feed_forward, width)


def _residual(name: str, inputs: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.dense.weight", (width, inputs)
    yield from ((f"{name}.{part}", (width,)) for part in ("dense.bias", "LayerNorm.weight", "LayerNorm.bias"))


def _bert(prefix: str, inputs: int) -> State:
    """Return the state of one of the two BERTs of RAM's training."""
    width = RAM.head_width
    shapes = {"word_embeddings.weight": (10, width), "position_embeddings.weight": (16, width)}
    shapes |= {"LayerNorm.weight": (width,), "LayerNorm.bias": (width,)}
    state = {f"{prefix}.embeddings.position_ids": torch.arange(16)[None]}
    state |= {f"{prefix}.embeddings.{name}": drawn(shape) for name, shape in shapes.items()}
    for number in range(12):
        layer = _layer_of_bert(width, {"attention": width, "crossattention": inputs})
        state |= {f"{prefix}.encoder.layer.{number}.{name}": drawn(shape) for name, shape in layer}
    return state


def ram_state(family: str) -> State:
    """Return the state dict of upstream's class with its buffers, and for RAM the text models of the training."""
    network = Ram(RAM.model_copy(update={"family": family}), TAGS)
    state = {name: drawn(tuple(tensor.shape)) for name, tensor in network.state_dict().items()}
    tokens = RAM.window**2
    for stage, blocks in enumerate(RAM.depths):
        windows = (RAM.image_size // 4 // 2**stage // RAM.window) ** 2
        for block in range(blocks):
            prefix = f"visual_encoder.layers.{stage}.blocks.{block}."
            state[f"{prefix}attn.relative_position_index"] = torch.zeros(tokens, tokens, dtype=torch.long)
            if block % 2 and windows > 1:
                state[f"{prefix}attn_mask"] = torch.zeros(windows, tokens, tokens)
    if family == "ram":
        state |= _bert("tag_encoder", RAM.embed_width) | _bert("text_decoder.bert", RAM.head_width)
        cls, width = "text_decoder.cls.predictions", RAM.head_width
        head = {f"{cls}.bias": (10,)} | dict(_residual(f"{cls}.transform", width, width))
        state |= {name: drawn(shape) for name, shape in head.items()}
        state[f"{cls}.decoder.weight"] = state["text_decoder.bert.embeddings.word_embeddings.weight"]
        state[f"{cls}.decoder.bias"] = state[f"{cls}.bias"]
        for name in state:
            if name.startswith("tagging_head."):
                state[name] = state[name.replace("tagging_head", "tag_encoder")]
    return state


def write_ram(folder: Path, family: str = "ram", head: str = "tagging_head") -> Path:
    """Write a training checkpoint of RAM or RAM++, whose head has the name `head`."""
    state = ram_state(family)
    kept = ("label_embed", "attn_mask", "index", "position_ids")  # frozen, or no parameters
    parameters = dict.fromkeys(tensor for name, tensor in state.items() if not name.endswith(kept))
    optimizer = torch.optim.AdamW([torch.nn.Parameter(tensor) for tensor in parameters], lr=1e-4, weight_decay=0.05)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    named = OrderedDict((name.replace("tagging_head", head), tensor.detach()) for name, tensor in state.items())
    named._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    config = {"train_file": ["a.json", "b.json"], "image_size": 384, "vit_grad_ckpt": False, "init_lr": 1e-4}
    whole = {"model": named, "optimizer": optimizer.state_dict(), "config": config, "epoch": 9}
    path = folder / f"{family}_swin_large_14m.pth"
    torch.save(whole, path)
    return path


def dino_state(depths: list[int], prefix: str = "") -> State:
    """Return the state of an official Grounding DINO: the names of the code's own network, which a golden file of the
    tests has for two layers of each kind, for the official numbers of layers; and what the files hold beside."""
    golden = json.loads((Path(__file__).parent / "stages/groundingdino.json").read_text())["shapes"]
    half = {64: 32, 128: 64, 256: 128, 512: 256, 768: 384}
    layers = {
        r"(transformer\.(en|de)coder\.\w*layers|(transformer\.decoder\.)?bbox_embed)\.1\.": 6,
        r"bert\.encoder\.layer\.1\.": 12,
    }
    layers |= {rf"backbone\.0\.layers\.{stage}\.blocks\.1\.": depth for stage, depth in enumerate(depths)}
    state: State = {}
    for name, shape in golden.items():
        if not name.startswith("backbone"):
            shape = [half.get(size, size) for size in shape]
        begin, count = next(
            ((found[0], count) for one, count in layers.items() if (found := re.match(one, name))), ("", 2)
        )
        for number in range(1, count):
            new = f"{begin[:-2]}{number}.{name[len(begin) :]}" if begin else name
            first = re.sub(r"^(transformer\.decoder\.)?bbox_embed\.\d+", "bbox_embed.0", new)
            value = torch.zeros(shape, dtype=torch.long) if "position_index" in name else drawn(tuple(shape))
            state[prefix + new] = state.setdefault(prefix + first, value)
    state[f"{prefix}label_enc.weight"] = drawn((2001, 128))
    state[f"{prefix}bert.embeddings.position_ids"] = torch.arange(32)[None]
    return state


def write_dino_pth(folder: Path, depths: list[int], prefix: str = "") -> Path:
    """Write an official Grounding DINO."""
    torch.save({"model": OrderedDict(dino_state(depths, prefix))}, path := folder / "groundingdino.pth")
    return path


def write_sam_pth(folder: Path, size: str) -> Path:
    """Write an official SAM: the state dict and nothing else."""
    official = SAMS[size]
    shape = SamShape(
        **official.model_dump(include={"depth", "heads", "global_attention"}), width=2 * official.heads, patch=2,
        image_size=40, decoder_width=16, decoder_mlp=16,
    )  # fmt: skip
    state = OrderedDict((name, drawn(tuple(tensor.shape))) for name, tensor in build_sam(shape).state_dict().items())
    torch.save(state, path := folder / f"sam_{size}.pth")
    return path


def write_hub_dino(
    folder: Path, depths: list[int], kind: str = "grounding-dino", levels: int = 4, head: str = "bbox_embed.0"
) -> Path:
    """Write a detector of the hub, with the buffers that were stored when it was made. `head` is the name of the shared
    head for boxes."""
    more = {"num_feature_levels": levels}
    if kind == "mm-grounding-dino":
        more |= {"decoder_bbox_embed_share": False, "decoder_cls_embed_share": False}
    with quiet():
        write_dino(folder, ["cat"], kind, depths, layers=6, texts=12, **more)
    unused = "swin.layernorm."  # a norm that versions of transformers before 5 did not store
    written = load_file(folder / "model.safetensors")
    state = {name: tensor for name, tensor in written.items() if unused not in name}
    tables = [name for name in state if name.endswith("relative_position_bias_table")]
    for name in tables:
        state[name.replace("bias_table", "index")] = torch.zeros(16, 16, dtype=torch.long)
    rewrite(folder, {name.replace("bbox_embed.0", head): tensor for name, tensor in state.items()})
    return folder


def redrawn(tensor: Tensor) -> Tensor:
    return drawn(tuple(tensor.shape)).mul(0.2).to(tensor.dtype) if tensor.is_floating_point() else tensor


def write_vicuna(folder: Path) -> Path:
    """Write two `.bin` of float16 and their index."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 32}
    with quiet():
        config = LlamaConfig(vocab_size=40, **sizes)
        config.save_pretrained(folder)
        state = {name: redrawn(tensor).half() for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    parts: list[State] = [{}, {}]
    for name, tensor in state.items():
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        part = parts[int(layer[1]) >= 24 if layer else not name.startswith("model.embed")]
        part[name] = tensor
        if name.endswith("self_attn.o_proj.weight"):
            part[name.replace("o_proj.weight", "rotary_emb.inv_freq")] = 1 / 10000 ** (torch.arange(0, 8, 2) / 8)
    files = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    for file, part in zip(files, parts, strict=True):
        torch.save(part, folder / file)
    places = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


VIT = {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
MLP = {"hidden_size": 24, "num_attention_heads": 4, "mlp_ratio": 2, "image_size": 28, "patch_size": 14}
WORDS = {"vocab_size": 30, "hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 4,
         "max_position_embeddings": 16}  # fmt: skip


def write_tower(folder: Path, model: Any, config: Any, layers: int, texts: int = 0) -> Path:
    """Write a vision tower, or with `texts` layers for texts a whole model of images and texts."""
    sizes = MLP if config in (Dinov2Config, Dinov2WithRegistersConfig, Tipsv2Config) else VIT
    vision = sizes | {"num_hidden_layers": layers}
    parts: dict[str, Any] = {"vision_config": vision, "text_config": WORDS | {"num_hidden_layers": texts}}
    with quiet():
        model(config(**parts if texts else vision)).save_pretrained(folder)
    return folder


def write_clip(folder: Path) -> Path:
    """Write CLIP-L/336: a `.bin` of the whole CLIP, with position ids."""
    write_tower(folder, CLIPModel, CLIPConfig, 24, 12)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    state["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    torch.save(OrderedDict(state), folder / "pytorch_model.bin")
    return folder


def weights_of(path: Path) -> Path:
    """Return the file of weights that a test changes: `path` itself, or one in the folder."""
    if path.is_file():
        return path
    return next(file for glob in ("*.safetensors", "*.bin") for file in sorted(path.glob(glob)))


def read(path: Path) -> State:
    """Return all tensors of a file or of a folder."""
    files = [path] if path.is_file() else [*path.glob("*.safetensors"), *path.glob("*.bin")]
    state: State = {}
    for file in files:
        found = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
        state |= found.get("model", found)
    return state


def rewrite(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write other tensors into a file or a folder's file of weights, in its container."""
    file = weights_of(path)
    if file.suffix == ".safetensors":
        save_file(dict(state), file, {"format": "pt"})
        return
    found = torch.load(file, weights_only=True)
    torch.save({"model": state} if "model" in found else dict(state), file)


def to_older_format(path: Path) -> None:
    """Write a file, or the `.bin` files of a folder, again in torch's format before 1.6, which is no zip."""
    for file in [path] if path.is_file() else path.glob("*.bin"):
        torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=False)


class Form(NamedTuple):
    """The form of an official file or folder."""

    kind: str
    """Which of pad's loaders reads it."""
    write: Callable[[Path], Path]
    """Writes a small one into a folder, and returns what a setting names: the file or the folder."""
    extras: str = r"$^"
    """A regular expression for the tensors that the network does not have."""
    key: str = ""
    """A tensor of the network."""


_NORM = "encoder.layers.1.layer_norm1.bias"
_TEXTS = r"text_model\.|text_encoder\.|(text|visual)_projection|logit_|temperature|.*position_ids$"


def _hub(kind: str, write: Callable[..., Path], key: str, extras: str = r"$^", /, **options: Any) -> Form:
    """Return the form of a folder of the hub, all of whose tensors are drawn anew: norms of 1 are all alike."""

    def write_drawn(folder: Path) -> Path:
        write(folder, **options)
        for file in [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
            rewrite(file, {name: redrawn(tensor) for name, tensor in read(file).items()})
        return folder

    return Form(kind, write_drawn, extras, key)


def _tower(model: Any, config: Any, layers: int, texts: int = 0, key: str = f"vision_model.{_NORM}") -> Form:
    return _hub("vision", write_tower, key, _TEXTS, model=model, config=config, layers=layers, texts=texts)


TINY, BASE = [2, 2, 6, 2], [2, 2, 18, 2]
_DINO, _SAM = "model.encoder.layers.1.fusion_layer.vision_param", "mask_decoder.iou_token.weight"
_IOU_HEAD = "mask_decoder.iou_prediction_head.layers.0.bias"
_INDEX = r".*relative_position_index$"
_GAMMA = "transformer.encoder.fusion_layers.1.gamma_v"
_DINO_PTH = r"(module\.)?(label_enc\.|bert\.pooler\.|bert\.embeddings\.position_ids|.*position_index$)"
_RAM = r"visual_encoder\..*(index|attn_mask)$|tag_encoder\.|text_decoder\."
_VIDEO = r"memory_|mask_downsample|object_pointer_proj|temporal_|no_memory_pos|no_object_|occlusion_"
_mm = partial(_hub, "detector", write_hub_dino, _DINO, _INDEX, kind="mm-grounding-dino")
_sam2 = partial(_hub, "segmenter", write_sam, _SAM, _VIDEO, kind="sam2_video")
_vit = partial(_hub, "segmenter", write_sam, _SAM)

FORMS: dict[str, Form] = {
    "ram_swin_large_14m": Form("tagger", write_ram, _RAM, "wordvec_proj.bias"),
    "ram_plus_swin_large_14m": Form("tagger", partial(write_ram, family="ram_plus"), _RAM, "wordvec_proj.bias"),
    "groundingdino_swint_ogc": Form(
        "detector", partial(write_dino_pth, depths=TINY, prefix="module."), _DINO_PTH, f"module.{_GAMMA}"
    ),
    "groundingdino_swinb_cogcoor": Form("detector", partial(write_dino_pth, depths=BASE), _DINO_PTH, _GAMMA),
    **{f"sam_{size}": Form("segmenter", partial(write_sam_pth, size=size), key=_IOU_HEAD) for size in SAMS},
    "IDEA-Research/grounding-dino-tiny": _hub("detector", write_hub_dino, _DINO, _INDEX, depths=TINY),
    "IDEA-Research/grounding-dino-base": _hub(
        "detector", write_hub_dino, _DINO, _INDEX, depths=BASE, head="model.decoder.bbox_embed.0"
    ),
    "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_grit_v3det": _mm(depths=TINY),
    "openmmlab-community/mm_grounding_dino_base_all": _mm(depths=BASE),
    "iSEE-Laboratory/llmdet_tiny": _mm(depths=TINY),
    "iSEE-Laboratory/llmdet_base": _mm(depths=BASE),
    "iSEE-Laboratory/llmdet_large": _mm(depths=BASE, levels=5),
    "omlab/omdet-turbo-swin-tiny-hf": _hub("detector", write_omdet, "decoder.query_position_head.layers.0.bias"),
    "google/owlv2-base-patch16-ensemble": _hub(
        "detector", write_owl, "box_head.dense0.bias", kind="owlv2", texts=12, layers=12
    ),
    "google/owlv2-large-patch14-ensemble": _hub(
        "detector", write_owl, "box_head.dense0.bias", kind="owlv2", texts=12, layers=24
    ),
    "facebook/sam-vit-base": _vit(kind="sam", num_hidden_layers=12, global_attn_indexes=[2, 5, 8, 11]),
    "facebook/sam-vit-large": _vit(kind="sam", num_hidden_layers=24, global_attn_indexes=[5, 11, 17, 23]),
    "facebook/sam-vit-huge": _vit(kind="sam", num_hidden_layers=32, global_attn_indexes=[7, 15, 23, 31]),
    "syscv-community/sam-hq-vit-base": _vit(kind="sam_hq", num_hidden_layers=12, global_attn_indexes=[2, 5, 8, 11]),
    "facebook/sam2.1-hiera-tiny": _sam2(blocks_per_stage=[1, 2, 7, 2], global_attention_blocks=[5, 7, 9]),
    "facebook/sam2.1-hiera-small": _sam2(blocks_per_stage=[1, 2, 11, 2], global_attention_blocks=[7, 10, 13]),
    "facebook/sam2.1-hiera-base-plus": _sam2(blocks_per_stage=[2, 3, 16, 3], global_attention_blocks=[12, 16, 20]),
    "facebook/sam2.1-hiera-large": _sam2(blocks_per_stage=[2, 6, 36, 4], global_attention_blocks=[23, 33, 43]),
    "facebook/sam3": _hub(
        "concepts", write_sam3, "detector_model.text_projection.bias", r"tracker_(model|neck)\.", kind="sam3_video"
    ),
    "yonigozlan/sam3-litetext-s0": _hub("concepts", write_sam3, "text_projection.bias", kind="sam3_lite_text"),
    "lmsys/vicuna-7b-v1.5": _hub("llm", write_vicuna, "model.layers.1.mlp.up_proj.weight", r".*rotary_emb\.inv_freq$"),
    "openai/clip-vit-large-patch14-336": _hub("vision", write_clip, f"vision_model.{_NORM}", _TEXTS),
    "google/siglip2-so400m-patch16-384": _tower(SiglipModel, SiglipConfig, 27, 27),
    "facebook/dinov2-large": _tower(Dinov2Model, Dinov2Config, 24, key="encoder.layer.1.norm1.bias"),
    "facebook/dinov2-with-registers-large": _tower(
        Dinov2WithRegistersModel, Dinov2WithRegistersConfig, 24, key="encoder.layer.1.norm1.bias"
    ),
    "facebook/dinov3-vitl16-pretrain-lvd1689m": _tower(DINOv3ViTModel, DINOv3ViTConfig, 24, key="norm.bias"),
    "google/tipsv2-b14": _tower(Tipsv2Model, Tipsv2Config, 12, 12, key="vision_encoder.norm.bias"),
}  # fmt: skip
"""Name of an official file (in pad's catalog) or folder of the hub -> its form. Of the families of vision towers one
stands for all."""
