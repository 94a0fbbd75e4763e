"""The pinned revisions and hashes of models of the hub that pad names, by two or more independent public records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Pin(NamedTuple):
    """What is known for certain about a model of the hub."""

    revision: str
    """The commit that is fetched if no setting names a revision."""
    sha256: Mapping[str, str] = {}
    """Name of a file of that commit -> its sha256. A file that is not listed here is pinned by the commit alone."""


PINS: dict[str, Pin] = {
    "IDEA-Research/grounding-dino-base": Pin(
        "12bdfa3120f3e7ec7b434d90674b3396eccf88eb",
        {"model.safetensors": "5548f844c928c4b6f411fa8cbcc2bfa8dbbba437cb1d513975519f93c2a9ed21"},
    ),
    "IDEA-Research/grounding-dino-tiny": Pin(
        "a2bb814dd30d776dcf7e30523b00659f4f141c71",
        {"model.safetensors": "1a2412ef99bd74bcd3c2a246fa1e48581f8889a1300c9051974741314fc042f3"},
    ),
    "facebook/sam2.1-hiera-tiny": Pin("de431c4043854a71d8101e17995dfe596bf101a5"),
    "facebook/sam2.1-hiera-small": Pin("ee5bba1d82bb8749febdf90f45e84b687142ba03"),
    "facebook/sam2.1-hiera-base-plus": Pin("b7320756a13354e7530a63935656d35b2f91a290"),
    "facebook/sam2.1-hiera-large": Pin("665f8e2ad61cf5f53d65644ff27c8ee525124610"),
    "facebook/sam3": Pin("3c879f39826c281e95690f02c7821c4de09afae7"),
    "lmsys/vicuna-7b-v1.5": Pin("3321f76e3f527bd14065daf69dad9344000a201d"),
    "openai/clip-vit-large-patch14-336": Pin(
        "ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
        {"pytorch_model.bin": "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801"},
    ),
}
"""Hub name of a model -> its pin. No sha256 is known in full of the files of SAM 2.1 and SAM 3, nor of Vicuna's `.bin`
files."""


def pinned_revision(reference: str, revision: str) -> str:
    """Return the revision of a model of the hub that is fetched: `revision`, or the pinned one; empty for neither."""
    pin = PINS.get(reference)
    return revision or (pin.revision if pin else "")


def pinned_files(reference: str, revision: str) -> Mapping[str, str]:
    """Return the known sha256 of each file of a model at `revision` (empty for the pinned one)."""
    pin = PINS.get(reference)
    return pin.sha256 if pin and pinned_revision(reference, revision) == pin.revision else {}
