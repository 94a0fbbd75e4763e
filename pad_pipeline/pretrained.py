"""Load models and tokenizers of transformers from local folders, without running code from there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sentencepiece import SentencePieceProcessor
from tokenizers.models import BPE
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import generate_merges
from transformers.utils import logging

from pad_pipeline.errors import UserError
from pad_pipeline.weights import differences


def read_config(field: str, folder: Path, model_types: set[str]) -> dict[str, Any]:
    """Return the config.json of a model folder; raise `UserError` unless its `model_type` is one of `model_types`.

    `field` is the setting that names the folder, for errors.
    """
    wanted = " or ".join(sorted(model_types))
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        found = config.get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        rule = f"its config.json can't be read ({type(error).__name__})"
        raise UserError(field, folder, rule, f"give the folder of a {wanted} model of transformers") from error
    if not isinstance(found, str) or found not in model_types:
        rule = f"its model_type is {found!r}, and should be {wanted}"
        raise UserError(field, folder, rule, "give a model of that type")
    return config


def load_pretrained(
    field: str, folder: Path, kind: Any, dtype: torch.dtype, extras: str | None = None, **options: Any
) -> Any:
    """Load a model of transformers' class `kind` in eval mode. transformers only warns of tensors that do not fit.

    Args:
        field: the setting that names the folder, for errors.
        folder: the folder of the model.
        kind: the class.
        dtype: the type of the weights in memory.
        extras: a regular expression for names of further tensors that the weights may hold. Tensors that transformers
            ignores for the class, and computed buffers, are always allowed.
        options: more options for the `from_pretrained` of the class.

    Raises:
        UserError: the model can't be loaded; a tensor is missing, unknown, not finite or of another shape than
            config.json says; or the folder refers to weights or code outside it.
    """
    _check_self_contained(field, folder)
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), folder)
    try:
        options |= {"dtype": dtype, "local_files_only": True, "output_loading_info": True}
        options["ignore_mismatched_sizes"] = True  # so that the error below names the tensor
        with quiet():
            model, report = kind.from_pretrained(folder, **options)
    except Exception as error:
        rule = f"it can't be loaded ({type(error).__name__}: {str(error)[:300]})"
        raise UserError(field, folder, rule, "fetch it again; it needs config.json and its weights") from error
    known = re.compile(f"{_COMPUTED}|{extras}" if extras else _COMPUTED)
    unknown = {name for name in report["unexpected_keys"] if not known.match(name)}
    reshaped = {name: (found, expected) for name, found, expected in report["mismatched_keys"]}
    if details := differences(report["missing_keys"], unknown, reshaped):
        rule = f"its tensors do not fit its config.json: {details}"
        raise UserError(field, path, rule, "fetch the model again, from its official place")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(field, path, f"{name} holds numbers that are not finite", "fetch it again")
    return model.eval()


_COMPUTED = r".*\.(relative_position_index|attn_mask|position_ids|inv_freq)$"
"""Buffers that older versions of transformers and of timm stored, and newer ones compute."""
_WEIGHTS = [f"{name}{index}" for name in ("model.safetensors", "pytorch_model.bin") for index in ("", ".index.json")]
"""The files of weights in the order in which transformers looks for them."""
_WEIGHT_FILE = re.compile(r"(pytorch_)?model[\w.-]*")


def _check_self_contained(field: str, folder: Path) -> None:
    """Refuse a folder that refers to weights outside it (no hash covers them) or to code on the hub."""
    remedy = "fetch the model again, from its official place"
    try:
        config = json.loads((folder / "config.json").read_text())
        for name in ("transformers_weights", "attn_implementation", "_attn_implementation"):
            if config.get(name) not in (None, "eager", "sdpa"):
                raise UserError(field, folder, f"its config.json sets {name} to {config[name]!r}", remedy)
        for index in folder.glob("*.index.json"):
            for name in set(json.loads(index.read_text())["weight_map"].values()):
                if not _WEIGHT_FILE.fullmatch(name):
                    raise UserError(field, index, f"it names weights elsewhere ({name})", remedy)
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise UserError(field, folder, f"it can't be read ({type(error).__name__})", remedy) from error


PROBES = (
    "a fire  hydrant", "3d printer", "def f(x):\n        return [x,   1]\t# two\n", "café, naïve; Straße №5 ½",
    "二つの犬 собака كلب 🔥🦮", "http://a.b/c?d=1&e=%20", "A photo\n\nof  a      dog ", "[0.25, 0.5, 1.0]",
)  # fmt: skip
"""Texts of which a tokenizer must make the same tokens as the `tokenizer.model` in its folder."""


def load_processor(field: str, folder: Path, kind: Any, edge: int) -> Any:
    """Return the image processor of the class `kind` in a folder, which makes images of `edge` x `edge` pixels.

    Raises:
        UserError: about the setting `field`: its file can't be used, or it makes images of another size.
    """
    names = ("preprocessor_config.json", "processor_config.json")
    name = next((name for name in names if (folder / name).is_file()), names[0])
    try:
        processor = kind.from_pretrained(folder, local_files_only=True)
        shape = tuple(processor(images=Image.new("RGB", (8, 6)), return_tensors="pt")["pixel_values"][0].shape)
    except Exception as error:
        rule = f"its {name} can't be used ({type(error).__name__}: {str(error)[:100]})"
        raise UserError(field, folder, rule, "fetch the model again") from error
    if shape != (3, edge, edge):
        rule = f"its {name} makes images {shape}, and its model takes {edge} pixels"
        raise UserError(field, folder, rule, "fetch the model again")
    return processor


def load_tokenizer(field: str, folder: Path) -> Any:
    """Load the tokenizer of a model folder.

    A folder with a `tokenizer.model` of SentencePiece and no `tokenizer.json` (Vicuna's, Llama 2's) is converted here,
    because transformers 5 orders the merges of its conversion by their ids and not by their scores.

    Raises:
        UserError: it can't be loaded, or it makes other tokens than its `tokenizer.model`. `field` is the setting.
    """
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        rule = f"its tokenizer can't be loaded ({type(error).__name__}: {' '.join(str(error).split())[:160]})"
        remedy = "give a folder with tokenizer.json or tokenizer.model and tokenizer_config.json"
        raise UserError(field, folder, rule, remedy) from error
    if not tokenizer(PROBES[0], add_special_tokens=False)["input_ids"]:
        remedy = "fetch its tokenizer.json or tokenizer.model, which is missing or empty"
        raise UserError(field, folder, "its tokenizer makes no tokens of a text", remedy)
    pieces = SentencePieceProcessor()
    try:
        pieces.Load(str(folder / "tokenizer.model"))
    except (OSError, RuntimeError):  # there is none, or it is a file of tiktoken
        return tokenizer
    if not (folder / "tokenizer.json").exists() and isinstance(
        getattr(tokenizer.backend_tokenizer, "model", None), BPE
    ):
        _order_merges(tokenizer.backend_tokenizer, pieces)
    for text in PROBES:
        if (ids := tokenizer(text, add_special_tokens=False)["input_ids"]) != (right := pieces.Encode(text)):
            rule = f"its tokenizer makes the tokens {ids} of {text!r}, and its tokenizer.model {right}"
            raise UserError(field, folder, rule, "fetch all files of the tokenizer again, from the model's own place")
    return tokenizer


def _order_merges(tokenizer: Any, pieces: Any) -> None:
    """Order the merges of a converted tokenizer by the scores of the merged pieces, as SentencePiece applies them."""
    scores = {pieces.IdToPiece(index): pieces.GetScore(index) for index in range(len(pieces))}
    ids = {piece: index for index, piece in enumerate(scores)}
    old = tokenizer.model
    tokenizer.model = BPE(
        ids,
        generate_merges(ids, scores),
        unk_token=old.unk_token,
        fuse_unk=old.fuse_unk,
        byte_fallback=old.byte_fallback,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and warnings of transformers during the block; real problems raise a `UserError`."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
