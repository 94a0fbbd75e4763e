"""Load checkpoints of RAM and RAM++: official training checkpoints, or safetensors."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from pad_pipeline.errors import UserError
from pad_pipeline.stages.ram.network import Ram
from pad_pipeline.weights import check_numbers, check_state_dict, convert_once, read_tensors

_NOT_USED = re.compile(r"visual_encoder\..*(relative_position_index|attn_mask)$|(tag_encoder|text_decoder)\.")
"""The tensors to leave out: buffers that can be computed, and text models that only training needs."""
_CONVERTED = "ram.safetensors"


def load_ram(network: Ram, path: Path) -> Ram:
    """Load a training checkpoint or a `.safetensors` file into `network`; return it in eval mode and float32.

    Of a training checkpoint (3 to 5.6 GB), the part for inference (0.9 GB for RAM, 1.3 GB for RAM++) is kept in the
    cache as safetensors. Raise `UserError` if names or shapes of the tensors are not exactly the network's.
    """

    def read(file: Path) -> dict[str, Tensor]:
        state = {
            name.replace("vision_multi", "tagging_head"): tensor  # the head's name in older files
            for name, tensor in read_tensors("tagger.weights", file).items()
            if not _NOT_USED.match(name)
        }
        _check(network, path, state)
        return state

    def write(folder: Path) -> None:
        # Cloned, because safetensors refuses to save one tensor under two names.
        save_file({name: tensor.contiguous().clone() for name, tensor in read(path).items()}, folder / _CONVERTED)

    state = read(path if path.suffix == ".safetensors" else convert_once(path, "ram", write) / _CONVERTED)
    network.load_state_dict(state, assign=True)
    return network.float().eval()


def _check(network: Ram, path: Path, state: dict[str, Tensor]) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if "label_embed" in shapes and ("reweight_scale" in shapes) != ("reweight_scale" in expected):
        family = "ram_plus" if "reweight_scale" in shapes else "ram"
        rule = f"this is a checkpoint of {family}, and tagger.family is {network.settings.family}"
        remedy = f'set family = "{family}" in the [tagger] section, or use `models` plus for the official RAM++'
        raise UserError("tagger.weights", path, rule, remedy)
    rows, wanted = shapes.get("label_embed", ()), expected["label_embed"]
    if len(rows) == 2 and rows[0] != wanted[0] and rows[1:] == wanted[1:] and shapes.keys() == expected.keys():
        labels = rows[0] * network.tags / wanted[0]
        rule = f"it has {labels:g} labels, and the tag list has {network.tags} lines"
        remedy = "give the tag list that belongs to it, one line a label (`tag_list`)"
        raise UserError("tagger.weights", path, rule, remedy)
    check_state_dict("tagger.weights", path, expected, shapes)
    check_numbers("tagger.weights", path, state)
