"""`pad import label-studio`, and `pad import cvat` of corrections: a run with the regions that people corrected."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pad_pipeline.errors import UserError
from pad_pipeline.workflows.commands.common import INPUT
from pad_pipeline.workflows.commands.options import OptionValues, option
from pad_pipeline.workflows.commands.rewrite import write_again
from pad_pipeline.workflows.commands.runs import OLD_VIEW_OPTIONS, REWRITE_OPTIONS

if TYPE_CHECKING:
    from pad_pipeline.sources.handed import HandedSource

CORRECTED_HELP = "Folder or URL of the run that was exported for correction."
_NOT_FOR_CORRECTIONS = ("models", "strict", "private_addresses", "retry_failed", "fork")


def import_label_studio(
    *,
    annotations: Annotated[Path, option(INPUT, "Label Studio's export in the format JSON, with annotations.")],
    shards: Annotated[str, option(INPUT, CORRECTED_HELP)],
    view: Annotated[OptionValues, OLD_VIEW_OPTIONS],
    run: Annotated[OptionValues, REWRITE_OPTIONS],
) -> None:
    """Write shards with the corrections of tasks that `pad export label-studio` wrote.

    Of each task, the newest completed annotation counts; skipped tasks are counted and left out. Regions that nobody
    changed stay as the models made them, with scores and masks. `pad merge --corrections` puts the result into the run.

    Example:

      pad import label-studio --annotations project-1.json --shards shards/ --out corrected/
    """
    from pad_pipeline.sources.label_studio import LabelStudioSource

    import_corrections(LabelStudioSource(annotations, shards), run, view)


def import_corrections(source: HandedSource, run: OptionValues, view: OptionValues) -> None:
    """Write shards with the corrections of a source.

    Raises:
        UserError: an option is given that only goes with images of one's own.
    """
    for name in _NOT_FOR_CORRECTIONS:
        if run.get(name):
            raise UserError(name, run[name], "it does not go with `shards`", "leave it out")
    write_again(source, run, view, failed_wanted=True)
