"""`pad models`: the files of a choice of models: where they come from, whether they are here and right."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from PIL import Image
from pydantic import BaseModel

from pad_pipeline.errors import UserError
from pad_pipeline.images import DecodeSettings
from pad_pipeline.labels import LabelEmbedder
from pad_pipeline.records import ImageRecord, Region, Shard, Tag
from pad_pipeline.stages import make as choice
from pad_pipeline.stages.compute import Compute, ComputeSettings
from pad_pipeline.stages.custom.load import files, find_class, fingerprints
from pad_pipeline.stages.custom.settings import (
    CustomDetector,
    CustomGrounder,
    CustomSegmenter,
    CustomSettings,
    CustomTagger,
)
from pad_pipeline.stages.ground import DetectorSettings, load_unboxable
from pad_pipeline.stages.ram.checkpoint import load_ram
from pad_pipeline.stages.ram.network import Ram
from pad_pipeline.stages.sam.hub import HubSam
from pad_pipeline.stages.sam.network import load_sam
from pad_pipeline.stages.segment import SegmenterSettings
from pad_pipeline.stages.segment import find_model as find_segmenter
from pad_pipeline.stages.tag import TaggerSettings, read_tags
from pad_pipeline.weights import cached, fetch_file, file_sha256, is_file_reference
from pad_pipeline.workflows.models.catalog import BY_REFERENCE, FOLDER_MEGABYTES
from pad_pipeline.workflows.models.fingerprints import used_models
from pad_pipeline.workflows.models.settings import ModelSettings

_EXACT = ComputeSettings(precision="float32")


class Part(NamedTuple):
    """One file or model folder of a choice of models."""

    field: str
    """The setting that names it."""
    reference: str
    sha256: str
    """That is pinned; empty where any is accepted."""
    revision: str = ""
    code: Path | None = None
    """The module of a class of the user's."""

    @property
    def megabytes(self) -> int | None:
        """About; None where it is not known."""
        file = BY_REFERENCE.get(self.reference)
        return file.megabytes if file else FOLDER_MEGABYTES.get(self.reference)

    @property
    def path(self) -> Path | None:
        """Where it is on this machine."""
        return self.code or cached(self.reference, self.revision)


def parts(models: ModelSettings) -> list[Part]:
    """Everything that a build with these models reads."""
    found: list[Part] = []
    for settings in used_models(models):
        if isinstance(settings, CustomSettings):
            found += _custom_parts(settings)
        elif isinstance(settings, TaggerSettings):
            found.append(Part("tagger.weights", settings.weights, settings.sha256))
            found.append(Part("tagger.tag_list", settings.tag_list, settings.tag_list_sha256))
            if settings.threshold is None:
                found.append(Part("tagger.thresholds", settings.thresholds, settings.thresholds_sha256))
        elif isinstance(settings, DetectorSettings):
            found.append(Part("detector.model", settings.model, settings.sha256, settings.revision))
            if is_file_reference(settings.model):
                found.append(Part("detector.tokenizer", settings.tokenizer, ""))
        elif isinstance(settings, SegmenterSettings):
            found.append(Part("segmenter.weights", settings.weights, settings.sha256, settings.revision))
        if (unboxable := getattr(settings, "unboxable", "")) not in ("", "default"):
            found.append(Part("detector.unboxable", unboxable, ""))
    return [*found, Part("llm.llm", models.llm.llm, "", models.llm.revision)]


def _custom_parts(custom: CustomSettings) -> list[Part]:
    module = find_class(custom).__module__
    found = [Part(custom.field, custom.code or custom.class_, "", code=Path(str(sys.modules[module].__file__)))]
    return found + [Part(f"{custom.section}.settings.{name}", str(path), "") for name, path in files(custom).items()]


def _tags(models: ModelSettings) -> str:
    unboxable = load_unboxable(getattr(models.detector, "unboxable", ""))
    labels = [f"{len(read_tags(models.tagger)[0])} tags"] if isinstance(models.tagger, TaggerSettings) else []
    return ", ".join([*labels, f"{len(unboxable)} that are not looked for"])


def _tagger(settings: TaggerSettings) -> str:
    labels, _ = read_tags(settings)
    path = fetch_file("tagger.weights", settings.weights, settings.sha256)
    network = load_ram(Ram(settings, len(labels)), path)
    return f"{settings.family}, {_millions(network.parameters())}, sha256 {file_sha256(path)}"


def _detector(settings: DetectorSettings) -> str:
    model = cast(Any, choice.detector(settings, DecodeSettings(), _EXACT)).model
    return f"{model.name}, {_millions(model.model.parameters())}"


def _segmenter(settings: SegmenterSettings) -> str:
    path = find_segmenter(settings)
    if path.is_dir():
        sam = HubSam(path, Compute(_EXACT))
        return f"{sam.kind}, {_millions(sam.model.parameters())}"
    network, shape = load_sam(path)
    return f"SAM, {shape.depth} blocks of {shape.width}, {_millions(network.parameters())}, sha256 {file_sha256(path)}"


def _words(models: ModelSettings) -> str:
    embedder = LabelEmbedder(models.llm)
    embedder(["thing"])
    return f"word embeddings of {embedder.width} numbers"


def _custom(custom: CustomSettings) -> str:
    """Makes it, and asks it about a grey image: most of what a class does against the protocol shows here."""
    decode, row = DecodeSettings(), ImageRecord("check", "check", "check", width=64, height=48)
    with io.BytesIO() as sink:
        Image.new("RGB", (row.width, row.height), "grey").save(sink, "PNG")
        row.data, row.format = sink.getvalue(), "PNG"
    row.tags, row.regions = [Tag("thing", 1.0)], [Region("thing", (8.0, 8.0, 40.0, 40.0))]
    if isinstance(custom, CustomTagger):
        stage = choice.tagger(custom, decode, _EXACT)
    elif isinstance(custom, CustomDetector):
        stage = choice.detector(custom.model_copy(update={"unboxable": ""}), decode, _EXACT)  # ask in any case
    elif isinstance(custom, CustomSegmenter):
        stage = choice.segmenter(custom, decode, _EXACT)
    else:
        stage = choice.grounder(cast(CustomGrounder, custom), decode, _EXACT)
    stage(Shard(0, [row]))
    if row.status == "failed":
        raise UserError(
            custom.field, custom.class_, f"asked about a grey image, it fails ({row.reason})", "mend the class"
        )
    return ", ".join([custom.code, *(f"{name} {value}" for name, value in fingerprints(custom).items())])


def _model(settings: BaseModel) -> str:
    if isinstance(settings, CustomSettings):
        return _custom(settings)
    if isinstance(settings, TaggerSettings):
        return _tagger(settings)
    if isinstance(settings, DetectorSettings):
        return _detector(settings)
    return _segmenter(cast(SegmenterSettings, settings))


CHECKS: dict[str, Callable[[ModelSettings], str]] = {
    "tags": _tags,
    "tagger": lambda models: _model(models.tagger),
    "detector": lambda models: _model(models.detector),
    "segmenter": lambda models: _model(models.segmenter),
    "llm": _words,
}
"""Each reads its files strictly, as a build does, and says what they are."""


def check(models: ModelSettings) -> Iterator[tuple[str, str, UserError | None]]:
    """Each part with what it is, or with what is wrong with it. Nothing is fetched."""
    missing = [part for part in parts(models) if part.path is None]
    fused = isinstance(models.detector, CustomGrounder)
    for name, look in CHECKS.items():
        if fused and name == "tagger":
            continue
        lists = ("tagger.tag_list", "tagger.thresholds", "detector.unboxable")
        wanted = lists if name == "tags" else (f"{name}.",)
        try:
            for part in missing:
                if part.field.startswith(wanted):
                    rule = "it is not on this machine"
                    raise UserError(part.field, part.reference, rule, "run pad models fetch, or correct the path")
            yield "grounder" if fused and name == "detector" else name, look(models), None
        except UserError as error:
            yield name, "", error
        except Exception as error:  # outside data: whatever a library trips over is what is wrong with it
            rule = f"it can't be used ({type(error).__name__}: {str(error)[:200]})"
            yield name, "", UserError(name, "its files", rule, "fetch the model again")


def _millions(parameters: Iterator) -> str:
    return f"{sum(parameter.numel() for parameter in parameters) / 1e6:.1f} M parameters"
