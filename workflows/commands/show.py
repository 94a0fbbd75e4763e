"""`pad show`: annotate one image, and draw the results into it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pad_pipeline.console import say
from pad_pipeline.errors import UserError
from pad_pipeline.workflows.commands.common import Models, counted

if TYPE_CHECKING:
    from pad_pipeline.records import ImageRecord
    from pad_pipeline.workflows.models.settings import ModelSettings


def show(
    image: Annotated[Path, typer.Argument(help="The image file.")],
    models: Models = "paper",
    out: Annotated[Path | None, typer.Option(help="Image to write, .png or .jpg; by default IMAGE.pad.png.")] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open the image that was written.")] = False,
) -> None:
    """Annotate one image, and draw its tags, boxes with scores, masks, and the patch grid with coverage.

    The image goes through the stages of `pad build`. No shard is written.

    Examples:

      pad show photo.jpg --open

      pad show scene.png --models miniature --out scene-found.png
    """
    from PIL import Image

    target = out or image.with_name(f"{image.name}.pad.png")
    field = "out" if out else "image"
    kind = Image.registered_extensions().get(target.suffix.lower())
    if kind not in ("PNG", "JPEG"):
        raise UserError(field, target, "an image is written as PNG or JPEG", "let its name end in .png or .jpg")
    if target.is_dir() or not target.absolute().parent.is_dir():
        rule = "this is a folder" if target.is_dir() else "there is no such folder to write it into"
        raise UserError(field, target, rule, "name a file in a folder that is there")
    if target.exists() and image.exists() and target.samefile(image):
        raise UserError(field, target, "this is `image` itself", "name another file")

    from pad_pipeline.images import BadImage, decode
    from pad_pipeline.records import Place, SampleJson
    from pad_pipeline.report.overlay import panels
    from pad_pipeline.sources.read import read_bytes
    from pad_pipeline.storage import Folder
    from pad_pipeline.workflows.models.settings import load_models

    chosen = load_models(models)
    try:  # first, because loading the models takes longer
        data = read_bytes(str(image.parent), Place(image.name), chosen.decode.max_file_bytes)
        decoded, _ = decode(data, chosen.decode)
    except BadImage as error:
        raise UserError("image", image, str(error), "name an image that can be read") from error
    row = _annotated(image, chosen)
    assert row.coverage is not None
    meta: SampleJson = json.loads(row.to_json())
    with Folder(target.absolute().parent).commit(target.name, durable=False) as partial:
        panels(decoded, meta, row.coverage, chosen.view).save(partial, kind)
    say(f"{counted(len(row.tags), 'tag')}, {counted(len(row.regions), 'region')}: {target}")
    if open_it:
        typer.launch(str(target))


def _annotated(image: Path, models: ModelSettings) -> ImageRecord:
    """Return the image with the results of all stages.

    Raises:
        UserError: a model is not available, or fails.
    """
    from pad_pipeline.records import ImageRecord, Place, Shard
    from pad_pipeline.storage import Folder
    from pad_pipeline.workflows.engine.chain import Chain, merged
    from pad_pipeline.workflows.runs.chains import annotation_chain

    link = merged(annotation_chain(Folder(image.parent), "", 1, 0, models, models.view, str(image.parent)))
    stages = link.operations[1:-1]  # all but reading the plan and writing the shard
    row = ImageRecord(image.name, image.name, key="image", place=Place(image.name))
    found: ImageRecord = Chain(link._replace(operations=stages)).run(Shard(0, [row])).rows[0]
    if found.status == "failed":
        raise UserError("image", image, f"it failed in {found.stage}: {found.reason}", "name another image")
    return found
