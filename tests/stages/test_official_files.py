"""Files of the exact official forms load, give the weights that were written, and are refused if a tensor is not right.

The forms and what is known of them are in `tests/official_files.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from segment_anything import sam_model_registry
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Sam2HieraDetConfig,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VisionConfig,
    SwinConfig,
)
from transformers.core_model_loading import revert_weight_conversion

from benchmarks.official import SWINS
from examples.miniature.detector import build_tokenizer
from pad_pipeline.errors import UserError
from pad_pipeline.images import DecodeSettings
from pad_pipeline.labels import EmbeddingTable
from pad_pipeline.pretrained import load_pretrained, quiet
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.concept import ConceptSettings
from pad_pipeline.stages.dino.checkpoint import converted_folder
from pad_pipeline.stages.ground import DetectorSettings
from pad_pipeline.stages.ram.checkpoint import load_ram
from pad_pipeline.stages.ram.network import Ram
from pad_pipeline.stages.sam.hub import HubSam
from pad_pipeline.stages.segment import SegmenterSettings
from pad_pipeline.training.towers import TOWERS, vision_config
from pad_pipeline.workflows.models.catalog import LICENSES, OFFICIAL
from pad_pipeline.workflows.models.settings import PRESETS
from tests.conftest import MODEL_PAGES, shared
from tests.official_files import (
    FORMS,
    RAM,
    TAGS,
    TINY,
    ram_state,
    read,
    rewrite,
    to_older_format,
    weights_of,
    write_dino_pth,
    write_ram,
)

ONE = ComputeSettings(threads=1, precision="float32")
OTHER_SIZES = (
    "llmdet_", "mm_grounding_dino", "dino-tiny", "swinb", "sam_vit_l", "sam_vit_h", "sam-vit-large", "sam-vit-huge",
    "hiera-tiny", "hiera-small", "hiera-base", "owlv2-large",
)  # fmt: skip
"""Parts of the names of files that differ from others only in their number of layers, or have a test of their own."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(["cat"]).save_pretrained(folder)
    return folder


def load(kind: str, path: Path, tokenizer: Path) -> nn.Module:
    """Return the network that pad makes of a file or folder, with pad's own loader."""
    with quiet():
        if kind == "tagger":
            return load_ram(Ram(RAM.model_copy(update={"family": path.name.partition("_swin")[0]}), TAGS), path)
        if kind == "llm":
            return load_pretrained("llm", path, AutoModelForCausalLM, torch.float32)
        if kind == "vision":
            family = TOWERS[vision_config(path)["model_type"]]
            return load_pretrained("vision", path, family.model, torch.float32, family.extras)
        if kind == "segmenter":
            sam = SegmenterSettings(weights=str(path)).make(DecodeSettings(), ONE).sam
            return sam.model if isinstance(sam, HubSam) else sam.sam
        if kind == "concepts":
            sam3 = ConceptSettings(model=str(path)).make(DecodeSettings(), ONE).model
            return nn.ModuleList([sam3.model, sam3.decode_masks])
        settings = DetectorSettings(model=str(path), tokenizer=str(tokenizer) if path.is_file() else "")
        return settings.make(DecodeSettings(), ONE).model.model


def content(tensor: Tensor) -> bytes:
    return hashlib.sha256(f"{tuple(tensor.shape)}".encode() + tensor.detach().float().numpy().tobytes()).digest()


@pytest.mark.parametrize("name", [name for name in FORMS if not any(part in name for part in OTHER_SIZES)])
def test_an_official_form_loads_and_a_changed_folder_is_refused(name: str, tokenizer: Path, tmp_path: Path) -> None:
    """Catches weights that are left out or come from elsewhere (a joint projection is found as its three parts), a file
    that is refused for what it holds beside them, and a changed folder that loads with a warning of transformers."""
    form = FORMS[name]
    path = form.write(tmp_path)
    state = read(path)
    network = load(form.kind, path, tokenizer).state_dict()
    unused = r".*swin\.layernorm\."
    found = {content(tensor) for one, tensor in network.items() if not re.match(unused, one)}
    written: set[bytes] = set()
    for tensor in (tensor for one, tensor in state.items() if not re.match(f"{form.extras}|{unused}", one)):
        parts = [content(tensor)]
        written.update(parts if parts[0] in found else map(content, tensor.chunk(3)))
    assert written == found

    if path.is_file():  # the next test changes it in three ways
        return
    state = read(weights_of(path))
    others = [one for one in state if one != form.key and not re.match(form.extras, one)]
    changed = state | {"unknown.weight": torch.zeros(2), others[-1]: torch.zeros(7, 5)}
    rewrite(path, {one: tensor for one, tensor in changed.items() if one != form.key})
    with pytest.raises(UserError, match=r"is missing|are missing") as refused:
        load(form.kind, path, tokenizer)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("change", ["missing", "unknown", "reshaped"])
@pytest.mark.parametrize(
    "name", ["ram_plus_swin_large_14m", "groundingdino_swint_ogc", "sam_vit_b", "lmsys/vicuna-7b-v1.5"]
)
def test_one_wrong_tensor_is_named(name: str, change: str, tokenizer: Path, tmp_path: Path) -> None:
    """A file of each loader. Catches random weights in place of a missing tensor, a tensor of another model that is
    ignored, and an error that does not say which tensor of which file is wrong."""
    form = FORMS[name]
    path = form.write(tmp_path)
    state, key = read(weights_of(path)), form.key
    if change == "missing":
        del state[key]
    elif change == "unknown":
        state[key := "unknown.weight"] = torch.zeros(2)
    else:
        state[key] = torch.zeros(*state[key].shape[:-1], 5)
    rewrite(path, state)
    with pytest.raises(UserError) as refused:
        load(form.kind, path, tokenizer)
    assert str(path) in str(refused.value) and key.removeprefix("module.") in str(refused.value)


def header_and_data(model: nn.Module, more: dict[str, Tensor], names: set[str]) -> tuple[set[str], int]:
    """Return those of the `names` that a network's tensors have in a file, and the size in bytes of safetensors with
    these names. `more` are buffers that the file has too."""
    tensors = {**revert_weight_conversion(model, model.state_dict()), **more}
    tensors = {name: tensor for name, tensor in tensors.items() if name in names}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        stop = start + tensor.numel() * tensor.element_size()
        kind = "I64" if tensor.dtype == torch.long else "F32"
        header[name] = {"dtype": kind, "shape": [*tensor.shape], "data_offsets": [start, stop]}
        start = stop
    length = len(json.dumps(header, separators=(",", ":")))
    return set(tensors), 8 + math.ceil(length / 8) * 8 + start


def official_dino(swin: str) -> tuple[nn.Module, dict[str, Tensor]]:
    backbone = SwinConfig(**SWINS[swin], out_features=["stage2", "stage3", "stage4"])
    model = GroundingDinoForObjectDetection(GroundingDinoConfig(backbone_config=backbone, text_config=BertConfig()))
    tokens = SWINS[swin]["window_size"] ** 2
    names = [f"encoder.layers.{stage}.blocks.{block}" for stage in range(4) for block in range(backbone.depths[stage])]
    index = torch.empty(tokens, tokens, dtype=torch.long)
    begin = "model.backbone.conv_encoder.model"
    return model, {f"{begin}.{name}.attention.self.relative_position_index": index for name in names}


def official_sam2(widths: int, heads: int, **hiera: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    sizes = [widths << stage for stage in range(4)]
    backbone = Sam2HieraDetConfig(
        hidden_size=widths, embed_dim_per_stage=sizes, num_attention_heads_per_stage=[heads << n for n in range(4)],
        **hiera,
    )  # fmt: skip
    more = {"enable_temporal_pos_encoding_for_object_pointers": True, "enable_occlusion_spatial_embedding": True}
    vision = Sam2VisionConfig(backbone_config=backbone, backbone_channel_list=sizes[::-1])
    return Sam2VideoModel(Sam2VideoConfig(vision_config=vision, **more)), {}


@pytest.mark.parametrize(
    ("name", "size", "official"),
    [
        ("IDEA-Research/grounding-dino-tiny", 689_359_096, lambda: official_dino("swin_t")),
        ("IDEA-Research/grounding-dino-base", 933_400_872, lambda: official_dino("swin_b")),
        ("facebook/sam2.1-hiera-large", 897_897_416, lambda: official_sam2(
            144, 2, blocks_per_stage=[2, 6, 36, 4], global_attention_blocks=[23, 33, 43],
            window_positional_embedding_background_size=[7, 7], window_size_per_stage=[8, 4, 16, 8],
        )),
    ],
)  # fmt: skip
def test_names_shapes_and_types_make_files_of_the_official_sizes(
    name: str, size: int, official: Any, tmp_path: Path
) -> None:
    """To the byte: public records have the sizes of the official files. Catches a writer here with a name or a buffer
    more or less than the official file has."""
    written = set(read(FORMS[name].write(tmp_path)))
    with quiet(), torch.device("meta"):
        names, found = header_and_data(*official(), written)
    assert (names, found) == (written, size)


TYPES = {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch.FloatStorage"}


@pytest.mark.parametrize(
    ("name", "more"),
    [("ram_swin_large_14m", {"torch.LongStorage"}), ("ram_plus_swin_large_14m", {"torch.LongStorage"}),
     ("groundingdino_swint_ogc", {"torch.LongStorage"}), ("sam_vit_b", set()),
     ("lmsys/vicuna-7b-v1.5", {"torch.HalfStorage"})],
)  # fmt: skip
def test_pickles_name_the_types_that_the_hubs_scans_list(name: str, more: set[str], tmp_path: Path) -> None:
    """Catches a writer here with a type that torch's `weights_only` reads and the official files do not hold."""
    with zipfile.ZipFile(weights_of(FORMS[name].write(tmp_path))) as file:
        (pickled,) = [member for member in file.namelist() if member.endswith("data.pkl")]
        opcodes = [*pickletools.genops(file.read(pickled))]
    assert not any(code.name == "STACK_GLOBAL" for code, _, _ in opcodes)
    assert {str(value).replace(" ", ".") for code, value, _ in opcodes if code.name == "GLOBAL"} == TYPES | more


@pytest.mark.parametrize("family", ["ram", "ram_plus"])
def test_rams_files_have_upstreams_names_types_and_ties(family: str) -> None:
    """Catches a writer here with a name more or less than upstream's state dict, or without an alias that it has."""
    wanted, ties = {}, set()
    for line in shared(f"ram/{family}_keys.txt").read_text().splitlines():
        if found := re.fullmatch(r"(\S+) \((.*)\) (\w+) \w+(?: ALIAS_OF (\S+))?", line):
            wanted[found[1]] = (len([size for size in found[2].split(",") if size.strip()]), f"torch.{found[3]}")
            ties |= {(found[1], found[4])} if found[4] else set()
    state = ram_state(family)
    assert {name: (tensor.ndim, str(tensor.dtype)) for name, tensor in state.items()} == wanted
    assert all(state[one] is state[two] for one, two in ties)
    assert len({id(tensor) for tensor in state.values()}) == len(wanted) - len(ties)


def test_ram_of_torchs_older_format_and_with_the_heads_older_name_loads(tmp_path: Path) -> None:
    """Catches a file that can't be memory-mapped, and the name of the head in some of upstream's files."""
    to_older_format(path := write_ram(tmp_path, "ram_plus", "vision_multi"))
    state = torch.load(path, weights_only=True)["model"]
    found = load_ram(Ram(RAM.model_copy(update={"family": "ram_plus"}), TAGS), path).state_dict()
    assert all(
        torch.equal(tensor, state[name.replace("tagging_head", "vision_multi")]) for name, tensor in found.items()
    )


@pytest.mark.parametrize("name", ["sam_vit_b", "lmsys/vicuna-7b-v1.5"])
def test_a_file_of_torchs_older_format_gives_the_same_weights(name: str, tokenizer: Path, tmp_path: Path) -> None:
    """Catches a file that can't be memory-mapped. It is not known which of the official `.bin` files are zips."""
    path = FORMS[name].write(tmp_path)
    wanted = {one: content(tensor) for one, tensor in load(FORMS[name].kind, path, tokenizer).state_dict().items()}
    to_older_format(path)
    found = load(FORMS[name].kind, path, tokenizer).state_dict()
    assert {one: content(tensor) for one, tensor in found.items()} == wanted


@pytest.mark.parametrize("size", ["vit_b", "vit_l", "vit_h"])
def test_sams_files_have_the_names_of_the_official_package(size: str, tmp_path: Path) -> None:
    """Catches a name more or less than the class of the package `segment_anything` has."""
    with torch.device("meta"):
        names = sam_model_registry[size]().state_dict().keys()
    assert read(FORMS[f"sam_{size}"].write(tmp_path)).keys() == names


def test_official_and_hub_files_of_grounding_dino_hold_the_same_tensors(tmp_path: Path) -> None:
    """The names of the official code, converted by pad, are those of the hub's file, whose size confirms them. Catches
    a wrong rename, and a file of torch's older format that can't be read."""
    to_older_format(path := write_dino_pth(tmp_path, TINY))
    hub = read(FORMS["IDEA-Research/grounding-dino-tiny"].write(tmp_path / "hub"))
    assert read(converted_folder(path)).keys() == {name for name in hub if "position_index" not in name}


def test_each_layer_of_llmdet_has_its_own_head_for_boxes(tmp_path: Path, tokenizer: Path) -> None:
    """Catches the first layer's head in all layers of the decoder: transformers 5 takes the heads for shared if the
    config.json has no entries for them; one version of its config class had none."""
    path = FORMS["iSEE-Laboratory/llmdet_tiny"].write(tmp_path)
    config, state = json.loads((path / "config.json").read_text()), read(path)
    for entries in (config, {name: value for name, value in config.items() if not name.endswith("_embed_share")}):
        (path / "config.json").write_text(json.dumps(entries))
        model = load("detector", path, tokenizer)
        for layer in range(6):
            name = f"bbox_embed.{layer}.layers.2.bias"
            assert torch.equal(model.model.decoder.state_dict()[name], state[name])
            assert torch.equal(model.state_dict()[name], state[name])
            assert torch.equal(model.class_embed[layer].bias, state[f"class_embed.{layer}.bias"])


def test_the_embedding_of_vicunas_shards_is_read_alone(tmp_path: Path) -> None:
    """In float16, without the second shard: a build needs no more of an LLM. Catches an embedding of another LLM, or
    none, that is found out in a training only."""
    folder = FORMS["lmsys/vicuna-7b-v1.5"].write(tmp_path)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    state, table = read(folder), EmbeddingTable(folder)
    wanted = state[table.name]
    assert (table.name, wanted.dtype) == ("model.embed_tokens.weight", torch.float16)
    assert torch.equal(table.rows([3, 39]), wanted[[3, 39]].float())
    table.check_width(folder / "config.json")
    rewrite(folder, state | {table.name: wanted[:, :5].clone()})
    with pytest.raises(UserError, match=r"00001-of-00002\.bin: model\.embed_tokens\.weight has 5 numbers .* says 16"):
        EmbeddingTable(folder).check_width(folder / "config.json")
    del state[table.name]
    rewrite(folder, state)
    with pytest.raises(UserError, match=r"00001-of-00002\.bin: .*model\.embed_tokens\.weight"):
        EmbeddingTable(folder)


def test_every_official_file_that_pad_names_has_its_form_here() -> None:
    """Catches a model that is added to the catalog, to a preset or to the guide without a file of its form."""
    weights = {name for name, file in OFFICIAL.items() if not file.reference.endswith(".txt")}
    presets = {value for preset in PRESETS.values() for section in preset.values() for value in section.values()}
    presets = {value for value in presets if isinstance(value, str) and (value in weights or "/" in value)}
    lines = [line for page in MODEL_PAGES for line in page.read_text("utf-8").splitlines()]
    table = {name for line in lines if line.startswith("| ") for name in re.findall(r"`([\w./-]+)`", line)}
    assert len(table) > 15 and len(presets) > 6
    guide = {name for name in table if name in weights or "/" in name}
    assert weights | presets | guide <= FORMS.keys()
    assert {name for name in LICENSES if name.startswith(("facebook/", "IDEA-", "iSEE"))} <= FORMS.keys()
