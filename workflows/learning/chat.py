"""Answer the questions of `pad chat` about one image."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from pad_pipeline.errors import UserError
from pad_pipeline.images import BadImage, DecodeSettings, decode
from pad_pipeline.training.chat import Chat


def chat(model: Path, image: Path, question: str, max_tokens: int) -> Iterator[str]:
    """Yield the answer to `question`, in at most `max_tokens` tokens; for `-`, to each line of standard input.

    Raises:
        UserError: the image or the model can't be used, or there is no question.
    """
    shown = read_image("image", image, "give the path of an image")
    loaded = Chat(model)
    asked = False
    for text in [question] if question != "-" else _lines():
        asked = True
        yield loaded.answer(shown, text, max_tokens)
    if not asked:
        raise UserError("question", question, "standard input holds no question", "write one question on each line")


def read_image(field: str, path: Path, remedy: str) -> Image.Image:
    """Decode an image file, which the parameter `field` names.

    Raises:
        UserError: the file can't be read (with `remedy`), or is no image.
    """
    try:
        return decode(path.read_bytes(), DecodeSettings())[0]
    except OSError as error:
        raise UserError(field, path, f"it can't be read ({error.strerror})", remedy) from error
    except BadImage as error:
        raise UserError(field, path, str(error), "give an image, such as a JPEG or PNG") from error


def _lines() -> Iterator[str]:
    """Yield the lines of standard input that are not empty."""
    try:
        for line in sys.stdin:
            if line.strip():
                yield line.strip()
    except UnicodeDecodeError as error:
        raise UserError("question", "-", f"standard input is no text ({error})", "write it as UTF-8") from error
