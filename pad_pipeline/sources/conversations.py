"""Read conversations of any chat format as LLaVA's turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pad_pipeline.sources.base import parse_json, should_be

_SPEAKERS = {"user": "human", "human": "human"} | dict.fromkeys(
    ("assistant", "gpt", "model", "bot", "chatgpt", "bing", "bard"), "gpt"
)
"""Speaker of chat formats, in lower case -> its name in LLaVA's."""
_LLAVA = ("human", "gpt")


def read_conversations(value: Any) -> list[dict[str, str]]:
    """Return the turns of a conversation in LLaVA's form.

    Args:
        value: a list of turns: `{from, value}` (LLaVA), `{role, content}` (chat templates), `{user, assistant}`
            (FineVision); its JSON; or a dictionary of lists (a `Sequence` of Hugging Face `datasets`).

    Raises:
        ValueError: it is something else, or a turn lacks its text.
    """
    if type(value) is list:
        turns: list[dict[str, str]] = []
        for turn in value:
            if type(turn) is dict and len(turn) == 2 and turn.get("from") in _LLAVA and type(turn.get("value")) is str:
                turns.append(turn)
            else:
                turns += _turns(turn)
        return turns
    if isinstance(value, str):
        if not value.strip():
            return []
        try:
            value = parse_json(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"conversations is not valid JSON ({getattr(error, 'msg', error)})") from error
        if isinstance(value, str):
            raise ValueError(should_be("conversations", value, "a list"))
        return read_conversations(value)
    if isinstance(value, dict) and value and all(isinstance(part, list) for part in value.values()):
        if len(set(map(len, value.values()))) > 1:
            raise ValueError("the lists of conversations have different lengths")
        return read_conversations([dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)])
    if value is None:
        return []
    raise ValueError(should_be("conversations", value, "a list"))


def _turns(turn: Any) -> list[dict[str, str]]:
    """Return the turns of one entry of a conversation."""
    if isinstance(turn, list) and all(isinstance(one, dict) for one in turn):
        return read_conversations(turn)
    if isinstance(turn, dict):
        for who, what in (("from", "value"), ("role", "content")):
            if isinstance(speaker := turn.get(who), str) and turn.get(what) is not None:
                return [{"from": _SPEAKERS.get(speaker.lower(), speaker), "value": _said(turn[what])}]
        pair = [(name, turn[name]) for name in ("user", "assistant") if turn.get(name) is not None]
        if pair:
            return [{"from": _SPEAKERS[name], "value": _said(said)} for name, said in pair]
    raise ValueError("each turn of conversations should be {from, value}, {role, content} or {user, assistant}")


def _said(content: Any) -> str:
    """Return the text of a turn, whose content may be a list of `{type, text}` with images among them."""
    if isinstance(content, str | int | float):
        return str(content)
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return "\n".join(
            "<image>" if part.get("type") in ("image", "image_url") else _said(part.get("text")) for part in content
        )
    raise ValueError(should_be("the text of a turn", content, "a string"))


def caption_of(conversations: Sequence[Mapping[str, str]]) -> str:
    """Return the first answer without `<image>`, as LLaVA's plain template takes it; empty if there is none. Questions
    don't matter, because that template drops them."""
    for turn in conversations:
        if turn["from"] == "gpt":
            return without_mark(turn["value"])
    return ""


def without_mark(text: str) -> str:
    """Return a text without LLaVA's mark for the image."""
    return text.replace("<image>", "").strip() if "<image>" in text else text
