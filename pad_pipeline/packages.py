"""Packages that only some uses need: what each is for, and the line that installs it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple


class Package(NamedTuple):
    """A package that `pip install pad-pipeline` does not bring."""

    use: str
    """What wants it."""
    install: str
    """The command that brings it."""


OPTIONAL = {
    "s3fs": Package("s3:// URLs", "pip install 'pad-pipeline[s3]'"),
    "gcsfs": Package("gs:// URLs", "pip install 'pad-pipeline[gs]'"),
    "adlfs": Package("az:// and abfs:// URLs", "pip install adlfs"),
    "tensorboard": Package("the TensorBoard log of pad train", "pip install 'pad-pipeline[tensorboard]'"),
    "wandb": Package("the Weights & Biases log of pad train", "pip install wandb"),
    "peft": Package('llm = "lora" in pad train', "pip install 'pad-pipeline[lora]'"),
    "matplotlib": Package("the charts of pad analyze", "pip install 'pad-pipeline[charts]'"),
    "pycocoevalcap": Package("METEOR and SPICE in pad evaluate captions", "pip install 'pad-pipeline[captions]'"),
    "scipy": Package("pad miniature train detector", "pip install 'pad-pipeline[miniature]'"),
}
"""By import name."""


def installed(name: str) -> bool:
    """Whether a package can be imported. It is not imported for that."""
    return find_spec(name) is not None


def without(name: str) -> str:
    """The rule that a missing package breaks, for a `UserError`; its remedy is `OPTIONAL[name].install`."""
    return f"the package {name} is not installed"


def left_out(what: str, name: str) -> str:
    """A note for something that is left out because a package is missing."""
    return f"note: {what}, because {without(name)}; {OPTIONAL[name].install}"
