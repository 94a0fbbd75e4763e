"""Compute label embeddings, which are means of an LLM's input embeddings. Nothing else of its weights is read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open

from pad_pipeline.errors import UserError
from pad_pipeline.llms import check_llm
from pad_pipeline.pretrained import load_tokenizer
from pad_pipeline.tables import (
    EMBEDDING_ENDINGS,
    fetched_small_files,
    fetched_table,
    fetched_weights,
    table_here,
    web_folder,
)
from pad_pipeline.weights import WEB, ModelFile, fetch_folder, fetch_model, folder_sha256, local_path, read_tensors

SMALL_FILES = ("*.json", "tokenizer.model")
"""The files of an LLM of the hub that are always fetched: config, tokenizer, and the index of its weights."""


class LabelSettings(BaseModel):
    """The LLM for the label embeddings, and how it tokenizes a label."""

    model_config = ConfigDict(extra="forbid")

    llm: str
    """Local folder, hub name or URL of the folder of the LLM."""
    revision: str = ""
    """Branch, tag or commit on the hub; empty for the pinned one (`pad_pipeline/pins.py`), or else for its default."""
    context: Literal["sentence", "bare"] = "sentence"
    """How a label is tokenized: as after a space inside a `sentence`, or `bare`, as at the start of a text. No BOS
    token is added. The paper does not say which it uses."""

    section: ClassVar[str] = "llm"
    """The section of these settings in a models file."""
    paths: ClassVar[tuple[str, ...]] = ("llm",)
    """The settings that name a file or a folder. A relative path starts at the models file."""
    pins: ClassVar[dict[str, str]] = {}

    def files(self) -> list[ModelFile]:
        """Return the folder or hub name of the LLM, without fetching anything."""
        return [LlmFiles("llm.llm", self.llm, "", self.revision, patterns=SMALL_FILES)]

    def check(self) -> str:
        """Compute one embedding as a test, and return its width as a text; raise `UserError` if that fails."""
        embedder = LabelEmbedder(self)
        check_llm("llm.llm", embedder.folder)
        embedder(["thing"])
        return f"word embeddings of {embedder.width} numbers"


class LlmFiles(ModelFile):
    """The files of an LLM that a build reads: its small files, and its embedding."""

    @property
    def path(self) -> Path | None:
        """The folder of the small files on this machine; None unless they and the embedding are here."""
        folder = web_folder(self.reference) if self.reference.startswith(WEB) else super().path
        if folder is None or local_path(self.reference).is_dir() or table_here(self.reference, folder):
            return folder
        try:
            return folder if _find_embedding(folder)[0].is_file() else None
        except UserError:
            return None


class LabelEmbedder:
    """Computes label embeddings, each the mean of the input embeddings of a label's tokens.

    It computes in float32, and rounds to float16, the type of a shard's `embeds.npy`.
    """

    def __init__(self, settings: LabelSettings) -> None:
        self.settings = settings
        self.folder, with_embedding = _llm_folders(settings)
        self.tokenizer = load_tokenizer("llm.llm", self.folder)
        self._special = {*self.tokenizer.all_special_ids} - {self.tokenizer.unk_token_id}
        self.table = EmbeddingTable(with_embedding)
        self.table.check_width(self.folder / "config.json")
        self.width = self.table.width
        self._known: dict[str, np.ndarray] = {}

    def fingerprints(self) -> dict[str, str]:
        """Return the sha256 of the LLM's input embedding and that of its tokenizer, by their names in run.json."""
        files = ["tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt"]
        return {"llm_embedding": self.table.sha256(), "llm_tokenizer": folder_sha256(self.folder, files)}

    def tokens(self, label: str) -> list[int]:
        """Return the ids of a label's tokens that count.

        A token that stands for a space alone does not count, because it says nothing about the label. Many tokenizers
        have one before a digit: `a 3d printer` is `▁a ▁ 3 d ▁printer` in Llama 2.

        Raises:
            UserError: the tokenizer merges the label with the word before it.
            ValueError: the label holds a special token of the LLM, such as `</s>`.
        """
        ids = self._encode(label)
        if self.settings.context == "sentence":
            # After "a ", the label is a word inside a sentence for every kind of tokenizer: those that mark the starts
            # of words (SentencePiece), and those that mark spaces (byte-level BPE).
            before, whole = self._encode("a"), self._encode(f"a {label}")
            if whole[: len(before)] != before:
                rule = f"this tokenizer merges words across the space before {label!r}"
                raise UserError("llm.context", "sentence", rule, 'set context = "bare" in the [llm] section')
            ids = whole[len(before) :]
        if special := [token for token in ids if token in self._special]:
            raise ValueError(
                f"the label {label!r} holds {self.tokenizer.decode(special)!r}, a special token of the LLM"
            )
        return [token for token in ids if self.tokenizer.decode([token]).strip()]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def __call__(self, labels: list[str]) -> np.ndarray:
        """Return an embedding for each label, float16 `[labels, width]`; raise `ValueError` if one has no token."""
        for label in labels:
            if label not in self._known:
                ids = self.tokens(label)
                if not ids:
                    raise ValueError(f"the label {label!r} has no token in {self.settings.llm}")
                self._known[label] = self.table.rows(ids).mean(0).numpy().astype(np.float16)
        return np.array([self._known[label] for label in labels], np.float16).reshape(-1, self.width)


class EmbeddingTable:
    """The input embedding in an LLM's checkpoint. Only the rows that are asked for are loaded."""

    def __init__(self, folder: Path) -> None:
        self.path, self.name = _find_embedding(folder)
        try:
            if self.path.suffix == ".safetensors":
                # The file is memory-mapped and stays open.
                tensors: Any = safe_open(self.path, "pt")
                self._tensor = tensors.get_slice(self.name)
                self._shape: tuple[int, ...] = tuple(self._tensor.get_shape())
            else:
                self._tensor = read_tensors("llm.llm", self.path)[self.name]
                self._shape = tuple(self._tensor.shape)
        except (SafetensorError, KeyError, OSError) as error:
            rule = f"its embedding can't be read ({type(error).__name__}: {error})"
            raise UserError("llm.llm", self.path, rule, "fetch the file again") from error
        if len(self._shape) != 2:
            raise UserError("llm.llm", self.path, f"its embedding has the shape {self._shape}", "fetch the file again")
        self.width = self._shape[1]

    def check_width(self, config: Path) -> None:
        """Raise `UserError` if the LLM's config.json has another width. `rows` checks the number of rows."""
        try:
            entries = json.loads(config.read_text())
            entries = entries.get("text_config") or entries
            wanted = entries.get("word_embed_proj_dim", entries.get("hidden_size"))
        except (OSError, ValueError, AttributeError, RecursionError):  # a build needs no config.json
            return
        if isinstance(wanted, int) and wanted != self.width:
            rule = f"{self.name} has {self.width} numbers for a token, and its config.json says {wanted}"
            raise UserError("llm.llm", self.path, rule, "fetch config.json and the weights again, from one place")

    def rows(self, ids: list[int]) -> torch.Tensor:
        """Return the embeddings of the tokens `ids`, float32 `[len(ids), width]`.

        Raise `UserError` if a token has no row, or a row is not finite in float16.
        """
        remedy = "use the tokenizer and the checkpoint of one model"
        if max(ids) >= self._shape[0]:
            rule = f"its embedding has {self._shape[0]} rows, and its tokenizer gives the token {max(ids)}"
            raise UserError("llm.llm", self.path, rule, remedy)
        rows = torch.cat([self._tensor[index : index + 1] for index in ids]).float()
        if not bool(rows.to(torch.float16).isfinite().all()):
            raise UserError("llm.llm", self.path, "its embedding holds NaN, or numbers beyond float16", remedy)
        return rows

    def sha256(self) -> str:
        """Return the sha256 of the tensor's shape, type and values. It does not depend on the file format."""
        digest = hashlib.sha256()
        for start in range(0, self._shape[0], 4096):
            block = self._tensor[start : start + 4096]
            digest.update(f"{tuple(block.shape)} {block.dtype}".encode())
            digest.update(block.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _llm_folders(settings: LabelSettings) -> tuple[Path, Path]:
    """Return the LLM's folder, and the folder with its embedding.

    From the hub, the small files and the embedding are fetched; the whole file with the embedding only if it can't be
    read in parts, and both folders are the same then, as they are for an LLM on this machine.
    """
    where, small = ("llm.llm", settings.llm, settings.revision), [*SMALL_FILES]
    on_web = settings.llm.startswith(WEB)
    folder = fetched_small_files(*where[:2]) if on_web else fetch_folder(*where, small)
    if not on_web and (local_path(settings.llm).is_dir() or folder.parent.name != "snapshots"):
        return folder, folder
    try:
        file, tensor = _find_embedding(folder)
    except UserError:  # the LLM has a single weight file, and so no index
        file, tensor = Path(), ""
    if file.is_file():
        return folder, folder
    if table := fetched_table(*where[:2], folder, file.name, tensor):
        return folder, table
    if on_web:
        fetched_weights(*where[:2], folder, file.name)
    else:
        folder = fetch_folder(*where, [*small, file.name]) if file.name else fetch_model(*where)
    return folder, folder


def _find_embedding(folder: Path) -> tuple[Path, str]:
    """Find the input embedding in an LLM's folder; return its file, and the name of its tensor."""
    for index in sorted(folder.glob("*.safetensors.index.json")) + sorted(folder.glob("*.bin.index.json")):
        try:
            weight_map = json.loads(index.read_text())["weight_map"]
            name = next(name for name in weight_map if name.endswith(EMBEDDING_ENDINGS))
            # Only the file's name is used, so that a path can't lead out of the folder.
            return folder / Path(weight_map[name]).name, name
        except (ValueError, KeyError, StopIteration, AttributeError, TypeError, RecursionError):
            continue
    for file in [*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("pytorch_model*.bin"))]:
        for name in _tensor_names(file):
            if name.endswith(EMBEDDING_ENDINGS):
                return file, name
    rule = "no checkpoint in it holds an input embedding (embed_tokens.weight)"
    raise UserError("llm.llm", folder, rule, "give the folder of a language model with its safetensors")


def _tensor_names(file: Path) -> list[str]:
    if file.suffix != ".safetensors":
        return list(read_tensors("llm.llm", file))
    try:
        with safe_open(file, "pt") as tensors:
            return list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise UserError("llm.llm", file, f"it can't be read ({error})", "fetch the file again") from error
