"""What `import pad_pipeline` offers: the work of the commands, as functions that take Python values."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.machine import cores
from pad_pipeline.miniature.shipped import member_reference
from pad_pipeline.records import ImageRecord, Place, SampleJson, Shard
from pad_pipeline.report.notebook import Annotated
from pad_pipeline.shards.keys import plain_key
from pad_pipeline.shards.reader import ShardFolder, open_shards
from pad_pipeline.storage import Folder
from pad_pipeline.training.chat import Chat
from pad_pipeline.training.dataset import PatchDataset
from pad_pipeline.workflows.engine.chain import Chain, merged
from pad_pipeline.workflows.models.settings import ModelSettings, load_models
from pad_pipeline.workflows.runs.build import build as _build
from pad_pipeline.workflows.runs.chains import annotation_chain
from pad_pipeline.workflows.runs.options import RunOptions, parse_workers
from pad_pipeline.workflows.toml import read_settings

AnyImage = str | Path | Image.Image | np.ndarray
"""The path of an image file; an image of Pillow; or pixels, uint8 `[H, W, 3]` (RGB) or `[H, W]` (gray)."""

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
Models = str | Path | ModelSettings
"""The name of a preset, a TOML file, or settings."""


class Annotator:
    """Annotates images in this process, with models that are loaded once.

    Args:
        models: `paper`, `plus`, `best` or `miniature`; a TOML file; or settings.
        view: what the vision encoder sees of an image; by default the models' view.
        threads: CPU threads of each model; 0 for all cores.

    Raises:
        UserError: a model is not available, or does not fit its settings.
    """

    def __init__(
        self, models: str | Path | ModelSettings = "paper", view: View | None = None, threads: int = 0
    ) -> None:
        self.models = models if isinstance(models, ModelSettings) else load_models(str(models))
        if threads < 0:
            raise UserError("threads", threads, "it should be 0 or more", "correct it")
        self.view = view or self.models.view
        self._files = tempfile.TemporaryDirectory(prefix="pad-annotate-")
        link = merged(
            annotation_chain(Folder(Path()), "", 0, threads or cores(), self.models, self.view, self._files.name)
        )
        inner = [operation for operation in link.operations if operation.name not in ("plan", "write")]
        self._chain = Chain(link._replace(operations=inner, before=0, after=0))
        self._one_at_a_time = Lock()

    def __call__(self, images: AnyImage | Iterable[AnyImage]) -> list[Annotated]:
        """Annotate one image or several. Calls from several threads wait for each other.

        Returns:
            One result for each image, in order. A file that can't be annotated has the status `failed` and a reason.

        Raises:
            UserError: a path leads to no file, or an object is no image.
        """
        several = [images] if isinstance(images, AnyImage) else list(images)
        rows = []
        with self._one_at_a_time:
            for number, image in enumerate(several):
                name = Path(image).name if isinstance(image, str | Path) else f"image-{number}"
                file = f"{number:06d}"
                Path(self._files.name, file).write_bytes(_bytes(image))
                rows.append(ImageRecord(name, name, place=Place(file), key=plain_key(Path(name).stem)))
            try:
                self._chain.run(Shard(0, rows))
            finally:
                for path in Path(self._files.name).iterdir():
                    path.unlink()
        return [self._result(row) for row in rows]

    def _result(self, row: ImageRecord) -> Annotated:
        grid = self.view.grid
        meta: SampleJson = json.loads(row.to_json())
        coverage = row.coverage if row.coverage is not None else np.zeros((0, grid, grid), np.uint8)
        embeds = row.embeds if row.embeds is not None else np.zeros((0, 0), np.float16)
        return Annotated(row.key, row.data, meta, coverage, embeds, self.view, row.status, row.reason)


def _bytes(image: AnyImage) -> bytes:
    """Return the bytes of an image file, of pixels as a PNG."""
    if isinstance(image, str | Path):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            rule = f"it can't be read ({error.strerror or type(error).__name__})"
            raise UserError("images", image, rule, "name an image file") from error
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or not image.size:
            rule = "it should be uint8 [H, W, 3] or [H, W], with a pixel or more"
            raise UserError("images", f"an array {image.dtype} {list(image.shape)}", rule, "convert it")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        rule = "it is neither a path, nor an image of Pillow, nor an array"
        raise UserError("images", type(image).__name__, rule, "give one of these")
    content = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(image)  # as a file is turned
        (upright if upright.mode in _PNG_MODES else upright.convert("RGB")).save(content, "PNG")
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError("images", image, f"its pixels can't be read ({error})", "open it again") from error
    return content.getvalue()


def annotate(
    images: AnyImage | Iterable[AnyImage], models: Models = "paper", view: View | None = None
) -> list[Annotated]:
    """Annotate one image or several: tags, boxes, masks, coverage of the patch grid, label embeddings.

    The models are loaded for this call; `Annotator` keeps them. Arguments, result and errors are the same there.
    """
    return Annotator(models, view)(images)


def build(
    images: str | Path,
    out: str | Path,
    models: Models = "paper",
    view: View | None = None,
    image_root: str | None = None,
    **options: Any,
) -> dict[str, int]:
    """Annotate a collection of images and write shards: `pad build`.

    Args:
        images: a folder, a LLaVA JSON, a list, tars or shards, as `pad build` reads them.
        out: folder or URL of the shards. The same call again continues.
        models: see `Annotator`.
        view: see `Annotator`.
        image_root: the folder that paths in a JSON or a list are relative to.
        options: fields of `RunOptions`, such as `limit`, `shard_size`, `engine` and `sample`.

    Returns:
        The numbers of images, of each status, of tags and of regions.

    Raises:
        UserError: an input, a model or the output folder can't be used, or a stage is broken.
    """
    from pad_pipeline.sources.open import open_source

    chosen = models if isinstance(models, ModelSettings) else load_models(str(models))
    run = read_settings(RunOptions, None, options)
    return _build(open_source(str(images), image_root), str(out), chosen, view or chosen.view, run)


def samples(shards: str | Path | ShardFolder) -> Iterator[Annotated]:
    """Yield the images of a run that did not fail, in order; in a notebook each shows itself. Raise `UserError` if no
    shard is finished, or one is damaged."""
    opened = shards if isinstance(shards, ShardFolder) else open_shards(shards)
    for name, row in opened.rows():
        if row["status"] != "failed":
            yield Annotated.of(opened.sample(name, row), opened.run.view)


def load(shards: str | Path | ShardFolder) -> PatchDataset:
    """Return a torch dataset of a run, see `PatchDataset`."""
    return PatchDataset(shards)


def train(
    out: str | Path,
    stage: Literal[1, 2] = 1,
    shards: str = "",
    data: str = "",
    vision: str = "",
    llm: str = "",
    image_root: str = "",
    init: str = "",
    workers: int | str = "",
    address: str = "",
    max_failures: int = 3,
    **settings: Any,
) -> Path:
    """Train a projector (stage 1), or projector and LLM (stage 2), in this process or on Ray: `pad train`.

    Args:
        out: folder for the model and the log. The same call again continues.
        stage: 1 trains the projector, 2 also the LLM.
        shards: folder or URL of PAD shards, for stage 1.
        data: a LLaVA JSON, in place of shards.
        vision: the vision tower, a folder or a model of the hub; `miniature` for the one that pad includes.
        llm: the LLM, in the same way.
        image_root: folder that image paths in `data` are relative to.
        init: a `mm_projector.bin`, from which the projector comes.
        workers: processes of Ray Train: 4, or "2-8" for a range; empty without Ray.
        address: address of a Ray cluster, for `workers`; empty for Ray on this machine.
        max_failures: how often workers may die; -1 for any number of times.
        settings: fields of `TrainSettings` or `Stage2Settings`, such as `steps`, `batch_size` and `objective`; and the
            other fields of `Job`: `fit`, `private_addresses` and `wandb`.

    Returns:
        The folder `out`, which `analyze` and `open_llava` take.

    Raises:
        UserError: an input or a setting can't be used, or the training failed.
    """
    from pad_pipeline.training.job import Job
    from pad_pipeline.training.settings import settings_of
    from pad_pipeline.workflows.learning.launch import train as run

    paths = {"out": out, "shards": shards, "data": data, "image_root": image_root, "init": init}
    where: dict[str, Any] = {name: str(path) for name, path in paths.items()}
    where |= {name: settings.pop(name) for name in ("fit", "private_addresses", "wandb") if name in settings}
    parts = {"vision": member_reference(str(vision), "clip"), "llm": member_reference(str(llm), "llm")}
    for name, part in parts.items():
        if not part:
            raise UserError(name, "(empty)", "it is missing", "name a folder, a model of the hub, or `miniature`")
    if stage not in (1, 2):
        raise UserError("stage", stage, "it should be 1 or 2", "correct it")
    if not isinstance(max_failures, int) or max_failures < -1:
        raise UserError("max_failures", max_failures, "it should be a number, -1 or more", "correct it")
    chosen = read_settings(settings_of(stage), None, settings)
    job = read_settings(Job, None, {"stage": stage, "settings": chosen, **where, **parts})
    cluster = read_settings(RunOptions, None, {"engine": "ray", "address": address}).cluster
    run(job, parse_workers(str(workers)) if workers else None, cluster, max_failures)
    return Path(out)


def analyze(
    what: str,
    model: str | Path,
    shards: str,
    out: str | Path | None = None,
    limit: int | None = None,
    beside: Iterable[str | Path] = (),
    drawings: int = 4,
    **settings: Any,
) -> dict[str, Any]:
    """Measure how well a trained model aligns patches with words: `pad analyze`.

    Args:
        what: the name of an analysis, or `all`.
        model: a folder of `train`, or a Hugging Face LLaVA folder.
        shards: folder or URL of a run with images that the model was not trained on.
        out: folder for `analysis.json`, charts and drawings; None writes nothing.
        limit: number of images, counted from the first; all by default.
        beside: other models in the drawings.
        drawings: number of images to draw, for `out`.
        settings: fields of `AnalysisSettings`.

    Returns:
        The results of each analysis by its name.

    Raises:
        UserError: model and shards do not fit together, or nothing can be measured.
    """
    from pad_pipeline.analysis.model import Subject
    from pad_pipeline.analysis.settings import AnalysisSettings
    from pad_pipeline.analysis.studies import STUDIES
    from pad_pipeline.workflows.learning.analyze import analyze as run

    if what != "all" and what not in STUDIES:
        raise UserError("what", what, f"it should be all or one of {', '.join(STUDIES)}", "name one of them")
    names = list(STUDIES) if what == "all" else [what]
    others = [Subject(Path(path)) for path in beside]
    chosen = read_settings(AnalysisSettings, None, settings)
    target = Path(out) if out else None
    return run(names, Subject(Path(model)), shards, chosen, target, limit, drawings=drawings, beside=others)


def evaluate(
    what: Literal["rec", "captions", "vqa"], model: str | Path, data: str | Path, images: str | Path, out: str | Path,
    prompt: str = "", limit: int | None = None, batch: int = 16,
) -> dict[str, Any]:  # fmt: skip
    """Ask a trained model questions, and score its answers: `pad evaluate`.

    Args:
        what: `rec` scores boxes of referring expressions, `captions` captions, `vqa` exact answers.
        model: a folder of `train`, or a Hugging Face LLaVA folder.
        data: the questions and correct answers, see the command's help.
        images: the folder of the images.
        out: folder for `answers.jsonl` and `scores.json`. The same call again continues.
        prompt: the prompt, with {} for the phrase or question; by default LLaVA-1.5's.
        limit: number of questions, counted from the first; all by default.
        batch: questions in one batch.

    Returns:
        The scores.

    Raises:
        UserError: the model or the data can't be used.
    """
    from pad_pipeline.workflows.learning.ask import EVALUATIONS

    if what not in EVALUATIONS:
        raise UserError("what", what, f"it should be one of {', '.join(EVALUATIONS)}", "name one of them")
    more = {"prompt": prompt} if prompt else {}
    paths = {"model": Path(model), "data": Path(data), "images": Path(images), "out": Path(out)}
    return EVALUATIONS[what](**paths, limit=limit, batch=batch, **more)


def evaluate_labels(
    shards: str | Path, truth: str | Path, label_map: dict[str, str] | None = None, wordnet: str | Path | None = None,
    categories: Iterable[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Score the labels, boxes and masks of a run against human annotations: `pad evaluate labels`.

    Args:
        shards: the run.
        truth: shards of `pad import` over some of the same images.
        label_map: label -> category, see `LabelNames`.
        wordnet: folder with WordNet's nouns, see `WordNet`.
        categories: further categories that people looked for.

    Returns:
        All numbers, see `summary`.

    Raises:
        UserError: the runs have no image in common, or a file can't be used.
    """
    from pad_pipeline.quality.label_names import LabelNames, checked_label_map
    from pad_pipeline.quality.label_scores import score_labels, summary
    from pad_pipeline.quality.wordnet import WordNet

    if isinstance(categories, str):
        raise UserError("categories", categories, "it is one text, and not several", "give a list of categories")
    if label_map is not None:
        checked_label_map(label_map)
    names = partial(LabelNames, label_map=label_map, wordnet=WordNet(Path(wordnet)) if wordnet else None)
    return summary(score_labels(open_shards(shards), open_shards(truth), names, frozenset(categories)))


def open_llava(model: str | Path) -> Chat:
    """Open a trained model for questions: `open_llava("two/").answer(image, "What is this?")`.

    `model` is a folder of `train`, or a Hugging Face LLaVA folder. Nothing is downloaded. Raise `UserError` if the
    folder holds no such model.
    """
    return Chat(Path(model))


def write_report(shards: str | Path, out: str | Path, limit: int | None = None) -> Path:
    """Write a run as HTML pages: `pad report`. Return the path of the page to open. Raise `UserError` if a shard is
    damaged, or the folder `out` holds something else."""
    from pad_pipeline.report.settings import ReportSettings
    from pad_pipeline.report.site import write_report as written

    for _ in written(open_shards(shards), Path(out), read_settings(ReportSettings, None, {"limit": limit})):
        pass
    return Path(out, "index.html")
