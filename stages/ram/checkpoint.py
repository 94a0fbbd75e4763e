"""Load RAM and RAM++ checkpoints: the official training files, or safetensors."""

from __future__ import annotations

import re
from pathlib import Path

from pad_pipeline.errors import UserError
from pad_pipeline.weights import check_state_dict, read_tensors
from stages.ram.network import Ram

_RECOMPUTABLE = re.compile(r"visual_encoder\..*(relative_position_index|attn_mask)$")
_TRAINING_ONLY = re.compile(r"(tag_encoder|text_decoder)\.")


def load_ram(network: Ram, field: str, path: Path) -> Ram:
    """Fill `network` from the file, strictly.

    Raises:
        UserError: the file's tensors are not exactly the network's.
    """
    # "vision_multi" is the head's name in older files.
    tensors = {
        name.replace("vision_multi", "tagging_head"): tensor for name, tensor in read_tensors(field, path).items()
    }
    state = {
        name: tensor
        for name, tensor in tensors.items()
        if not (_RECOMPUTABLE.match(name) or _TRAINING_ONLY.match(name))
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if "label_embed" in shapes and ("reweight_scale" in shapes) != ("reweight_scale" in expected):
        family = "ram_plus" if "reweight_scale" in shapes else "ram"
        rule = f"this is a checkpoint of {family}, and tagger.family is {network.settings.family}"
        remedy = f'set family = "{family}" in the [tagger] section, or use --models plus for the official RAM++'
        raise UserError(field, path, rule, remedy)
    check_state_dict(field, path, expected, shapes)
    network.load_state_dict(state, assign=True)
    return network.float().eval()
