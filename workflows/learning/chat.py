"""`pad chat`: questions about one image, one by one, to a model that is loaded once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from pad_pipeline.errors import UserError
from pad_pipeline.images import BadImage, DecodeSettings, decode
from pad_pipeline.training.chat import Chat


def chat(model: Path, image: Path, question: str, max_tokens: int) -> Iterator[str]:
    """The answers, each as soon as it is there.

    Args:
        model: the exported folder.
        image: an image file.
        question: one, or `-` for those on standard input, one a line.
        max_tokens: where an answer is cut.

    Raises:
        UserError: the image or the model can't be used, or nothing is asked.
    """
    shown = _image(image)
    loaded = Chat(model)
    asked = False
    for text in [question] if question != "-" else _lines():
        asked = True
        yield loaded.answer(shown, text, max_tokens)
    if not asked:
        raise UserError("question", question, "standard input holds none", "ask one, or write one a line")


def _image(path: Path) -> Image.Image:
    try:
        return decode(path.read_bytes(), DecodeSettings())[0]
    except OSError as error:
        raise UserError("image", path, f"it can't be read ({error.strerror})", "give the path of an image") from error
    except BadImage as error:
        raise UserError("image", path, str(error), "give an image, such as a JPEG or PNG") from error


def _lines() -> Iterator[str]:
    try:
        for line in sys.stdin:
            if line.strip():
                yield line.strip()
    except UnicodeDecodeError as error:
        raise UserError("question", "-", f"standard input is no text ({error})", "write it as UTF-8") from error
