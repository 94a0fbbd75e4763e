"""The optional packages: the use of each, and the command that installs it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple


class Package(NamedTuple):
    """The use of an optional package, which `pip install pad-pipeline` does not install."""

    use: str
    """The feature that needs the package."""
    install: str
    """The command that installs it."""


OPTIONAL = {
    "s3fs": Package("s3:// URLs", "pip install 'pad-pipeline[s3]'"),
    "gcsfs": Package("gs:// URLs", "pip install 'pad-pipeline[gs]'"),
    "adlfs": Package("az:// and abfs:// URLs", "pip install adlfs"),
    "tensorboard": Package("the TensorBoard log of pad train", "pip install 'pad-pipeline[tensorboard]'"),
    "wandb": Package("the Weights & Biases log of pad train", "pip install wandb"),
    "peft": Package('llm = "lora" in pad train', "pip install 'pad-pipeline[lora]'"),
    "matplotlib": Package("the charts of pad analyze", "pip install 'pad-pipeline[charts]'"),
    "imagehash": Package("pad duplicates", "pip install 'pad-pipeline[duplicates]'"),
    "scipy": Package("OWLv2 as the detector", "pip install 'pad-pipeline[owl]'"),
    "timm": Package("OmDet-Turbo as the detector", "pip install 'pad-pipeline[omdet]'"),
    "spacy": Package("tags from captions", "pip install 'pad-pipeline[spacy]'"),
    "lmms_eval": Package("pad evaluate lmms", "pip install 'pad-pipeline[lmms]'"),
    "pycocoevalcap": Package("METEOR and SPICE in pad evaluate captions", "pip install 'pad-pipeline[captions]'"),
}
"""The optional packages by import name."""


def installed(name: str) -> bool:
    """Return whether a package can be imported, without importing it."""
    return find_spec(name) is not None


def not_installed(name: str) -> str:
    """Return the `rule` of a `UserError` for a missing package; its `remedy` is `OPTIONAL[name].install`."""
    return f"the package {name} is not installed"


def left_out_note(what: str, name: str) -> str:
    """Return a note for the user: `what` happens, because the package `name` is missing."""
    return f"note: {what}, because {not_installed(name)}; {OPTIONAL[name].install}"
