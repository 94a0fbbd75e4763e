"""`pad models`: the files of a choice of models: where they come from, whether they are here and right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pad_pipeline.errors import UserError
from pad_pipeline.labels import LabelEmbedder
from pad_pipeline.weights import cached, fetch_file, file_sha256, is_file_reference
from stages.compute import Compute, ComputeSettings
from stages.ground import Detector, load_unboxable
from stages.ram.checkpoint import load_ram
from stages.ram.network import Ram
from stages.sam.hub import HubSam
from stages.sam.network import load_sam
from stages.segment import find_model as find_segmenter
from stages.tag import read_tags
from workflows.catalogue import BY_REFERENCE, FOLDER_MEGABYTES
from workflows.models import ModelSettings


class Part(NamedTuple):
    """One file or model folder of a choice of models."""

    field: str
    """The setting that names it."""
    reference: str
    sha256: str
    """That is pinned; empty where any is accepted."""
    revision: str = ""

    @property
    def megabytes(self) -> int | None:
        """About; None where it is not known."""
        file = BY_REFERENCE.get(self.reference)
        return file.megabytes if file else FOLDER_MEGABYTES.get(self.reference)

    @property
    def place(self) -> Path | None:
        """Where it is on this machine."""
        return cached(self.reference, self.revision)


def parts(models: ModelSettings) -> list[Part]:
    """Everything that a build with these models reads."""
    tagger, detector, segmenter, llm = models.tagger, models.detector, models.segmenter, models.llm
    found = [
        Part("tagger.weights", tagger.weights, tagger.sha256),
        Part("tagger.tag_list", tagger.tag_list, tagger.tag_list_sha256),
    ]
    if tagger.threshold is None:
        found.append(Part("tagger.thresholds", tagger.thresholds, tagger.thresholds_sha256))
    found.append(Part("detector.model", detector.model, detector.sha256, detector.revision))
    if is_file_reference(detector.model):
        found.append(Part("detector.tokenizer", detector.tokenizer, ""))
    if detector.unboxable not in ("", "default"):
        found.append(Part("detector.unboxable", detector.unboxable, ""))
    found.append(Part("segmenter.weights", segmenter.weights, segmenter.sha256, segmenter.revision))
    return [*found, Part("llm.llm", llm.llm, "", llm.revision)]


def _tags(models: ModelSettings) -> str:
    labels, _ = read_tags(models.tagger)
    return f"{len(labels)} tags, {len(load_unboxable(models.detector))} that are not looked for"


def _tagger(models: ModelSettings) -> str:
    settings = models.tagger
    labels, _ = read_tags(settings)
    path = fetch_file("tagger.weights", settings.weights, settings.sha256)
    network = load_ram(Ram(settings, len(labels)), "tagger.weights", path)
    return f"{settings.family}, {_millions(network.parameters())}, sha256 {file_sha256(path)}"


def _detector(models: ModelSettings) -> str:
    model = Detector(models.detector, models.decode, ComputeSettings(precision="float32")).model
    return f"{model.name}, {_millions(model.model.parameters())}"


def _segmenter(models: ModelSettings) -> str:
    path = find_segmenter(models.segmenter)
    if path.is_dir():
        sam = HubSam("segmenter.weights", path, Compute(ComputeSettings(precision="float32")))
        return f"{sam.kind}, {_millions(sam.model.parameters())}"
    network, shape = load_sam("segmenter.weights", path)
    return f"SAM, {shape.depth} blocks of {shape.width}, {_millions(network.parameters())}, sha256 {file_sha256(path)}"


def _words(models: ModelSettings) -> str:
    embedder = LabelEmbedder(models.llm)
    embedder(["thing"])
    return f"word embeddings of {embedder.width} numbers"


CHECKS: dict[str, Callable[[ModelSettings], str]] = {
    "tags": _tags,
    "tagger": _tagger,
    "detector": _detector,
    "segmenter": _segmenter,
    "llm": _words,
}
"""Each reads its files strictly, as a build does, and says what they are."""


def check(models: ModelSettings) -> Iterator[tuple[str, str, UserError | None]]:
    """Each part with what it is, or with what is wrong with it. Nothing is fetched."""
    missing = [part for part in parts(models) if part.place is None]
    for name, look in CHECKS.items():
        lists = ("tagger.tag_list", "tagger.thresholds", "detector.unboxable")
        wanted = lists if name == "tags" else (f"{name}.",)
        try:
            for part in missing:
                if part.field.startswith(wanted):
                    rule = "it is not on this machine"
                    raise UserError(part.field, part.reference, rule, "run pad models fetch, or correct the path")
            yield name, look(models), None
        except UserError as error:
            yield name, "", error
        except Exception as error:  # outside data: whatever a library trips over is what is wrong with it
            rule = f"it can't be used ({type(error).__name__}: {str(error)[:200]})"
            yield name, "", UserError(name, "its files", rule, "fetch the model again")


def _millions(parameters: Iterator) -> str:
    return f"{sum(parameter.numel() for parameter in parameters) / 1e6:.1f} M parameters"
