"""A LLaVA JSON: a list of `{id, image, conversations}`, as in blip_laion_cc_sbu_558k.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pad_pipeline.errors import UserError
from pad_pipeline.sources import Planned, path_problem, read_json, require_folder


class LlavaSource:
    """The records that have an image. Text-only records (LLaVA's stage 2 has them) are counted and left out."""

    def __init__(self, path: Path, image_root: Path) -> None:
        self.origin, self.root = path, require_folder("--image-root", image_root)
        self.counts: Counter[str] = Counter()
        records = read_json("--images", path)
        if not isinstance(records, list):
            raise UserError(
                "--images",
                path,
                f"it holds {_kind(records)}, and should hold a list of {{id, image, conversations}}",
                "give a LLaVA JSON",
            )
        self.records = records

    def __iter__(self) -> Iterator[Planned]:
        """The images in the file's order."""
        for number, record in enumerate(self.records):
            name = f"record-{number}"
            if not isinstance(record, dict):
                yield Planned(name, "", problem=f"record {number} is {_kind(record)}, and should be an object")
                continue
            if record.get("image") is None:
                self.counts["records without an image"] += 1
                continue
            name = str(record["id"]) if record.get("id") is not None else name
            image = record["image"]
            if not isinstance(image, str):
                yield Planned(name, "", problem=f"record {number}: image is {_kind(image)}, and should be one path")
                continue
            try:
                conversations = read_conversations(record.get("conversations", []))
            except ValueError as error:
                yield Planned(name, image, problem=f"record {number}: {error}")
                continue
            yield Planned(name, image, caption_of(conversations), conversations, problem=path_problem(image))


def read_conversations(value: Any) -> list[dict[str, str]]:
    """The turns, checked.

    Raises:
        ValueError: they are not a list of `{from, value}` with strings.
    """
    if not isinstance(value, list):
        raise ValueError(f"conversations is {_kind(value)}, and should be a list")
    for turn in value:
        if not (isinstance(turn, dict) and isinstance(turn.get("from"), str) and isinstance(turn.get("value"), str)):
            raise ValueError("each turn of conversations should be {from, value} with two strings")
    return [{"from": turn["from"], "value": turn["value"]} for turn in value]


def caption_of(conversations: list[dict[str, str]]) -> str:
    """The caption: the first answer, to the letter, as LLaVA's plain template takes it. Empty where there is none.

    The question says nothing (the template drops it), wherever in it `<image>` stands.
    """
    answers = (turn["value"] for turn in conversations if turn["from"] in ("gpt", "assistant"))
    caption = next(answers, "")
    return caption.replace("<image>", "").strip() if "<image>" in caption else caption


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
