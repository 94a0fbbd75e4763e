"""Load RAM and RAM++ checkpoints: the official training files, or safetensors."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from pad_pipeline.errors import UserError
from pad_pipeline.stages.ram.network import Ram
from pad_pipeline.weights import check_numbers, check_state_dict, converted, read_tensors

_RECOMPUTABLE = re.compile(r"visual_encoder\..*(relative_position_index|attn_mask)$")
_TRAINING_ONLY = re.compile(r"(tag_encoder|text_decoder)\.")
_CONVERTED = "ram.safetensors"


def load_ram(network: Ram, path: Path) -> Ram:
    """Fill `network` from the file, strictly.

    Of a training checkpoint, 3 to 5.6 GB, what inference needs is kept in the cache as safetensors: 0.9 GB of RAM,
    1.3 GB of RAM++.

    Raises:
        UserError: the file's tensors are not exactly the network's.
    """
    if path.suffix == ".safetensors":
        state = _for_inference(read_tensors("tagger.weights", path))
        _check(network, path, state)
    else:

        def write(folder: Path) -> None:
            tensors = _for_inference(read_tensors("tagger.weights", path))
            _check(network, path, tensors)  # before it is kept
            # Copies: two names may share one tensor, which safetensors does not take.
            save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / _CONVERTED)

        cached = converted(path, "ram", write) / _CONVERTED
        state = read_tensors("tagger.weights", cached)
        _check(network, path, state)
    network.load_state_dict(state, assign=True)
    return network.float().eval()


def _for_inference(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without optimizer, text models and buffers that can be computed; "vision_multi" is the head's name in older
    files."""
    return {
        name.replace("vision_multi", "tagging_head"): tensor
        for name, tensor in tensors.items()
        if not (_RECOMPUTABLE.match(name) or _TRAINING_ONLY.match(name))
    }


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
        raise UserError(
            "tagger.weights", path, rule, "give the tag list that belongs to it, one line a label (`tag_list`)"
        )
    check_state_dict("tagger.weights", path, expected, shapes)
    check_numbers("tagger.weights", path, state)
