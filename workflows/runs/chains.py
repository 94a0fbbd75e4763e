"""The stages of a run, each as a recipe that an engine can build where the stage is to run."""

from __future__ import annotations

from functools import partial

from pad_pipeline.geometry import View
from pad_pipeline.images import DecodeSettings
from pad_pipeline.stages import make as choice
from pad_pipeline.stages.annotate import HumanRegions
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.custom.settings import CustomGrounder
from pad_pipeline.stages.decode import Decode
from pad_pipeline.stages.edit import Edit, EditSettings
from pad_pipeline.stages.order import ORDER, RedoFrom
from pad_pipeline.stages.patchify import Patchify
from pad_pipeline.stages.restore import Restore
from pad_pipeline.storage import Folder
from pad_pipeline.workflows.engine.chain import Link, Step
from pad_pipeline.workflows.models.settings import LabelSettings, ModelSettings
from pad_pipeline.workflows.runs.steps import ReadShard, WriteShard


def annotation_chain(
    out: Folder,
    identity: str,
    models: ModelSettings,
    view: View,
    root: str,
    compute: ComputeSettings,
    redo_from: RedoFrom = "tag",
) -> list[Link]:
    """decode -> tag -> ground -> segment -> patchify -> write; without those before `redo_from`. A grounder has no link
    `tag`."""
    decode = partial(Decode, models.decode, root, redo_from)
    segment = partial(choice.segmenter, models.segmenter, models.decode, compute)
    if isinstance(models.detector, CustomGrounder) or isinstance(models.tagger, CustomGrounder):
        assert models.tagger == models.detector
        finders = {"ground": partial(choice.grounder, models.detector, models.decode, compute)}
    else:
        finders = {
            "tag": partial(choice.tagger, models.tagger, models.decode, compute),
            "ground": partial(choice.detector, models.detector, models.decode, compute),
        }
    steps = [Step(name, build) for name, build in (finders | {"segment": segment}).items()]
    links = [Link(step.name, [step], on_gpu=True) for step in steps]
    links.append(_last(out, identity, view, models.llm))
    kept = ORDER[ORDER.index(redo_from) :]
    return [_first(out, Step("decode", decode)), *(link for link in links if link.name in kept)]


def import_chain(
    out: Folder, identity: str, decoding: DecodeSettings, labels: LabelSettings, view: View, root: str
) -> list[Link]:
    """decode -> annotate -> patchify -> write."""
    annotate = [Step("decode", partial(Decode, decoding, root)), Step("annotate", HumanRegions)]
    return [_first(out, *annotate), _last(out, identity, view, labels)]


def rewriting_chain(
    out: Folder, identity: str, edits: EditSettings, labels: LabelSettings, view: View, root: str
) -> list[Link]:
    """restore -> edit -> patchify -> write."""
    steps = [Step("plan", partial(ReadShard, out)), Step("restore", partial(Restore, root))]
    if edits.changes:
        steps.append(Step("edit", partial(Edit, edits)))
    return [Link("restore", steps), _last(out, identity, view, labels)]


def _first(out: Folder, *steps: Step) -> Link:
    return Link("decode", [Step("plan", partial(ReadShard, out)), *steps])


def _last(out: Folder, identity: str, view: View, labels: LabelSettings) -> Link:
    write = Step("write", partial(WriteShard, out, identity))
    return Link("patchify", [Step("patchify", partial(Patchify, view, labels)), write])
