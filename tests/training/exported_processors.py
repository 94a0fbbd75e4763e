"""Make messages for an exported processor, and get the token ids that it makes of them."""

from __future__ import annotations

from typing import Any

from PIL import Image

from pad_pipeline.training.template import IMAGE


def heard(processor: Any, roles: list[dict[str, Any]], tokens: int, prompt: bool = True) -> list[int]:
    """Return the processor's token ids, with our one mark for an image of `tokens` tokens."""
    ids = processor.apply_chat_template(roles, tokenize=True, add_generation_prompt=prompt)
    return marked(processor, ids[0] if isinstance(ids[0], list) else ids, tokens)


def marked(processor: Any, found: list[int], tokens: int) -> list[int]:
    if processor.image_token_id in found:
        first = found.index(processor.image_token_id)
        assert found[first : first + tokens] == [processor.image_token_id] * tokens
        found = [*found[:first], IMAGE, *found[first + tokens :]]
    assert processor.image_token_id not in found
    return found


def user(text: str, image: bool = True) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [{"type": "image", "image": Image.new("RGB", (30, 20))}] * image + [{"type": "text", "text": text}],
    }


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}
