"""Compare all models of a build with upstream, one after another, on one image."""

from __future__ import annotations

import gc
import io
import platform
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pad_pipeline import __version__
from pad_pipeline.errors import UserError
from pad_pipeline.images import BadImage, decode
from pad_pipeline.miniature.world import draw_scene
from pad_pipeline.records import ImageRecord
from pad_pipeline.stages.box_stage import TOKENIZER_FILES
from pad_pipeline.stages.ground import DetectorSettings
from pad_pipeline.stages.segment import SegmenterSettings
from pad_pipeline.stages.settings import StageSettings
from pad_pipeline.stages.tag import TaggerSettings
from pad_pipeline.weights import cached_path
from pad_pipeline.workflows.models.parity.base import DECODING, Comparison, Measure, NotCompared, Subject
from pad_pipeline.workflows.models.parity.detector import DetectorComparison
from pad_pipeline.workflows.models.parity.given import Given
from pad_pipeline.workflows.models.parity.run import run_example
from pad_pipeline.workflows.models.parity.segmenter import SegmenterComparison
from pad_pipeline.workflows.models.parity.tagger import TaggerComparison
from pad_pipeline.workflows.models.settings import ModelSettings

Answer = Literal["equal", "differs", "not compared"]
LABELS = ("chair", "person", "dog")
"""The tags of the authors' example of Grounding DINO, for an image in which no tagger finds any."""
BERT = "google-bert/bert-base-uncased"
"""The tokenizer that upstream's RAM loads. Where pad has none, upstream fetches it."""
DRAWN = (1, 3, (640, 480))
"""Seed, index and size of the drawn scene that is the image by default."""


class Result(NamedTuple):
    """The comparison of one model."""

    section: str
    model: str
    """The weights, as the settings name them."""
    answer: Answer
    why: str
    """Why the model was not compared."""
    remedy: str
    """What would make it possible."""
    upstream: str
    """Upstream's package, with its version."""
    page: str
    """The address of upstream's example."""
    measures: list[Measure]
    facts: dict[str, Any]
    """Hashes, versions and numbers of both sides, for a report."""


def read_subject(image: Path | None, folder: Path) -> Subject:
    """Decode the image, or draw one, and write it as PNG into `folder`.

    Raises:
        UserError: the file can't be read, or is no image.
    """
    if image is None:
        scene = draw_scene(*DRAWN)
        pixels = scene.image
        regions = [region for region in scene.regions if region.kind != "stuff"]
        labels = list(dict.fromkeys(region.label for region in regions))
        boxes = [region.box for region in regions]
    else:
        try:
            pixels, _ = decode(image.read_bytes(), DECODING)
        except (OSError, BadImage) as error:
            rule = str(error.strerror) if isinstance(error, OSError) else str(error)
            raise UserError("image", image, rule, "name an image file") from error
        labels, boxes = [*LABELS], []
    stream = io.BytesIO()
    pixels.save(stream, "PNG")
    path = folder / "image.png"
    path.write_bytes(stream.getvalue())
    width, height = pixels.size
    row = ImageRecord(
        path.name, path.name, key="image", data=stream.getvalue(), format="PNG", width=width, height=height
    )
    return Subject(row, path, labels, [(float(a), float(b), float(c), float(d)) for a, b, c, d in boxes])


def compare(models: ModelSettings, image: Path | None, given: Given) -> Iterator[Result]:
    """Compare each model of the chain with upstream, one after another. pad fetches nothing for it.

    Args:
        models: the models.
        image: an image file; None for a drawn scene.
        given: from `parse_given`.

    Raises:
        UserError: the image can't be read.
    """
    with tempfile.TemporaryDirectory(prefix="pad-parity-") as folder:
        subject = read_subject(image, Path(folder))
        for settings in models.annotators:
            own = Path(folder) / settings.section
            own.mkdir()
            yield _compare(settings, subject, given, own)
            gc.collect()  # models take gigabytes, so two of pad's must not be in memory at once


def about(image: Path | None) -> dict[str, str]:
    """Return the versions of pad's side and the name of the image, for a report."""
    packages = ("torch", "torchvision", "transformers", "numpy", "pillow")
    versions = {name: metadata.version(name) for name in packages}
    name = image.name if image else f"drawn scene {DRAWN[1]} of world {DRAWN[0]}, {DRAWN[2][0]} x {DRAWN[2][1]}"
    here = {"pad": __version__, "python": platform.python_version(), "system": platform.platform()}
    return here | versions | {"image": name}


def _compare(settings: StageSettings, subject: Subject, given: Given, folder: Path) -> Result:
    section = settings.section
    reference = settings.files()[0].reference if settings.files() else ""
    facts: dict[str, Any] = {}
    comparison: Comparison | None = None
    measures: list[Measure] = []
    why = remedy = ""
    try:
        if missing := [file for file in settings.files() if file.path is None]:
            raise NotCompared(f"{missing[0].reference} is not on this machine", "run `pad models fetch`")
        facts["sha256"] = settings.fingerprints()
        comparison = _comparison(settings, given.weights.get(section))
        facts["device"] = comparison.device
        job = {"example": comparison.example, "package": comparison.package, "image": str(subject.path)}
        job |= comparison.job(subject, folder)
        numbers = run_example(given.python(section), job, comparison.install, folder)
        facts["upstream"] = {name: numbers.facts.get(name) for name in ("python", "versions")}
        measures = comparison.measure(subject, numbers)
        facts["numbers"] = comparison.shown
    except NotCompared as reason:
        why, remedy = reason.why, reason.remedy
    except UserError as error:
        why, remedy = f"pad can't use the model ({error})", "correct this first"
    except Exception as error:  # the stage or a library may raise anything, and the other models are to be compared
        why, remedy = f"pad's own stage failed ({type(error).__name__}: {str(error)[:200]})", "report this"
    answer: Answer = "not compared"
    if not why:
        answer = "equal" if measures and all(measure.equal for measure in measures) else "differs"
    upstream = comparison.package if comparison else ""
    if versions := (facts.get("upstream") or {}).get("versions"):
        upstream += f" {versions.get(upstream, '')}"
    page = comparison.page if comparison else ""
    return Result(section, reference, answer, why, remedy, upstream, page, measures, facts)


def _comparison(settings: StageSettings, weights: Path | None) -> Comparison:
    """Load pad's model and return its comparison."""
    if isinstance(settings, TaggerSettings):
        bert = cached_path(BERT, patterns=TOKENIZER_FILES)
        return TaggerComparison(settings, weights, bert if bert and (bert / "vocab.txt").is_file() else None)
    if isinstance(settings, DetectorSettings):
        return DetectorComparison(settings, weights)
    if isinstance(settings, SegmenterSettings):
        return SegmenterComparison(settings, weights)
    raise NotCompared(f"pad has no example of upstream's for a {settings.section} of this kind")
