"""Load RAM and RAM++ checkpoints: the official training files, or safetensors."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from pad_pipeline.errors import UserError
from pad_pipeline.weights import check_state_dict
from stages.ram.network import Ram

_RECOMPUTABLE = re.compile(r"visual_encoder\..*(relative_position_index|attn_mask)$")
_TRAINING_ONLY = re.compile(r"(tag_encoder|text_decoder)\.")


def read_checkpoint(field: str, path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint that inference needs; `.pth` files are memory-mapped and never unpickled.

    Raises:
        UserError: it can't be read as a checkpoint.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as tensors:
                state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        else:
            state = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
            state = state.get("model", state)
    except (SafetensorError, OSError, RuntimeError, EOFError, AttributeError, ValueError, KeyError) as error:
        raise unreadable(field, path, error) from error
    except Exception as error:  # torch raises pickle.UnpicklingError for what weights_only does not allow
        if type(error).__name__ != "UnpicklingError":
            raise
        raise unreadable(field, path, error) from error
    # "vision_multi" is the head's name in older files.
    named = {name.replace("vision_multi", "tagging_head"): tensor for name, tensor in state.items()}
    return {
        name: tensor for name, tensor in named.items() if not (_RECOMPUTABLE.match(name) or _TRAINING_ONLY.match(name))
    }


def unreadable(field: str, path: Path, error: Exception) -> UserError:
    """The error for a file that is no checkpoint at all, or a truncated one."""
    rule = f"it can't be read as a checkpoint ({type(error).__name__}): truncated, or another kind of file"
    return UserError(field, path, rule, "fetch the file again, or name the right one")


def load_ram(network: Ram, field: str, path: Path) -> Ram:
    """Fill `network` from the file, strictly.

    Raises:
        UserError: the file's tensors are not exactly the network's.
    """
    state = read_checkpoint(field, path)
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
