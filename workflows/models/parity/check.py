"""Compare all models of a build with upstream, one after another, on one image."""

from __future__ import annotations

import gc
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pad_pipeline.errors import UserError
from pad_pipeline.images import BadImage, decode
from pad_pipeline.miniature.world import draw_scene
from pad_pipeline.records import ImageRecord
from pad_pipeline.stages.ground import DetectorSettings
from pad_pipeline.stages.segment import SegmenterSettings
from pad_pipeline.stages.settings import StageSettings
from pad_pipeline.stages.tag import TaggerSettings
from pad_pipeline.weights import cached_path
from pad_pipeline.workflows.models.parity.base import DECODING, Comparison, Measure, NotCompared, Subject
from pad_pipeline.workflows.models.parity.detector import DetectorComparison
from pad_pipeline.workflows.models.parity.run import check_python, run_example
from pad_pipeline.workflows.models.parity.segmenter import SegmenterComparison
from pad_pipeline.workflows.models.parity.tagger import TaggerComparison
from pad_pipeline.workflows.models.settings import ModelSettings

Answer = Literal["equal", "differs", "not compared"]
LABELS = ("chair", "person", "dog")
"""The tags of the authors' example of Grounding DINO, for an image in which no tagger finds any."""
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


class Given(NamedTuple):
    """What a user names for the comparison, by section; "" is for all sections."""

    pythons: dict[str, str]
    """The Python that has upstream's packages."""
    weights: dict[str, Path]
    """Upstream's weights, where they are not the file or folder that pad reads."""


def parse_given(upstream_python: Sequence[str], upstream_weights: Sequence[str]) -> Given:
    """Read values of the forms `VALUE` and `SECTION=VALUE`.

    Raises:
        UserError: a Python or a file is not there, or weights have no section.
    """
    pythons = {section: check_python("upstream_python", value) for section, value in map(_by_section, upstream_python)}
    weights = {}
    for entry in upstream_weights:
        section, value = _by_section(entry)
        path = Path(value).expanduser()
        if not section or not path.exists():
            rule = "there is no such file or folder" if section else "it has no section"
            raise UserError("upstream_weights", entry, rule, "write segmenter=FILE, detector=FILE or tagger=FILE")
        weights[section] = path.resolve()
    return Given(pythons, weights)


def _by_section(entry: str) -> tuple[str, str]:
    section, equals, value = entry.partition("=")
    return (section, value) if equals and section in ("tagger", "detector", "segmenter") else ("", entry)


@contextmanager
def without_gpu() -> Iterator[None]:
    """Hide the GPUs from torch, if it did not look for them before: a GPU's sums differ in more than the last digit."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def read_subject(image: Path | None, folder: Path) -> Subject:
    """Decode the image, or draw one, and write it as PNG into `folder`.

    Raises:
        UserError: the file can't be read, or is no image.
    """
    if image is None:
        seed, index, size = DRAWN
        scene = draw_scene(seed, index, size)
        pixels, name = scene.image, f"drawn scene {index} of world {seed}, {size[0]} x {size[1]}"
        regions = [region for region in scene.regions if region.kind != "stuff"]
        labels = list(dict.fromkeys(region.label for region in regions))
        boxes = [region.box for region in regions]
    else:
        try:
            pixels, _ = decode(image.read_bytes(), DECODING)
        except (OSError, BadImage) as error:
            rule = str(error.strerror) if isinstance(error, OSError) else str(error)
            raise UserError("image", image, rule, "name an image file") from error
        name, labels, boxes = image.name, [*LABELS], []
    stream = io.BytesIO()
    pixels.save(stream, "PNG")
    path = folder / "image.png"
    path.write_bytes(stream.getvalue())
    row = ImageRecord(
        name, name, key="image", data=stream.getvalue(), format="PNG", width=pixels.width, height=pixels.height
    )
    return Subject(row, path, labels, [(float(a), float(b), float(c), float(d)) for a, b, c, d in boxes])


def compare(models: ModelSettings, image: Path | None, given: Given) -> Iterator[Result]:
    """Compare each model that sees images with upstream, in the order of the chain. Nothing is fetched.

    Args:
        models: the models, whose files `check` found to be right.
        image: an image file; None for a drawn scene.
        given: from `parse_given`.
    """
    with tempfile.TemporaryDirectory(prefix="pad-parity-") as folder:
        subject = read_subject(image, Path(folder))
        for settings in models.annotators:
            own = Path(folder) / settings.section
            own.mkdir()
            yield _compare(settings, subject, given, own)
            gc.collect()  # the largest models are of gigabytes, and there should never be two of pad's


def _compare(settings: StageSettings, subject: Subject, given: Given, folder: Path) -> Result:
    section = settings.section
    reference = settings.files()[0].reference if settings.files() else ""
    facts: dict[str, Any] = {}
    comparison: Comparison | None = None
    measures: list[Measure] = []
    why = remedy = ""
    try:
        facts["sha256"] = settings.fingerprints()
        comparison = _comparison(settings, given.weights.get(section))
        facts["device"] = comparison.device
        job = comparison.job(subject, folder) | {"example": comparison.example, "package": comparison.package}
        job["image"] = str(subject.path)
        python = given.pythons.get(section) or given.pythons.get("") or check_python("upstream_python", "")
        numbers = run_example(python, job, comparison.install, folder)
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
        return TaggerComparison(settings, weights, cached_path("google-bert/bert-base-uncased"))
    if isinstance(settings, DetectorSettings):
        return DetectorComparison(settings, weights)
    if isinstance(settings, SegmenterSettings):
        return SegmenterComparison(settings, weights)
    raise NotCompared(f"pad has no example of upstream's for the section {settings.section}")
