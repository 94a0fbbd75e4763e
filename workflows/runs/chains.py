"""The chains of runs. Each step says how it is made, so that an engine can make it in the worker that runs it."""

from __future__ import annotations

from functools import partial

from pad_pipeline.geometry import View
from pad_pipeline.images import DecodeSettings
from pad_pipeline.labels import LabelSettings
from pad_pipeline.roles import RedoFrom
from pad_pipeline.stages.annotate import HumanRegions
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.decode import Decode
from pad_pipeline.stages.edit import Edit
from pad_pipeline.stages.edit_settings import EditSettings
from pad_pipeline.stages.patchify import Patchify
from pad_pipeline.stages.restore import Restore
from pad_pipeline.storage import Folder
from pad_pipeline.workflows.engine.chain import Link, Step
from pad_pipeline.workflows.models.settings import ModelSettings
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
    """Return the chain of `pad build`: decode, the stages with a model from `redo_from` on, patchify, write."""
    links = [_first(out, Step("decode", partial(Decode, models.decode, root, redo_from)))]
    for one in models.annotators_from(redo_from):
        links.append(Link(one.name, [Step(one.name, partial(one.make, models.decode, compute))], on_gpu=True))
    return [*links, _last(out, identity, view, models.llm)]


def import_chain(
    out: Folder, identity: str, decoding: DecodeSettings, labels: LabelSettings, view: View, root: str
) -> list[Link]:
    """Return the chain of `pad import`: decode, annotate, patchify, write."""
    annotate = [Step("decode", partial(Decode, decoding, root)), Step("annotate", HumanRegions)]
    return [_first(out, *annotate), _last(out, identity, view, labels)]


def rewriting_chain(
    out: Folder, identity: str, edits: EditSettings, labels: LabelSettings, view: View, root: str
) -> list[Link]:
    """Return the chain of the commands that rewrite shards: restore, edit if there are edits, patchify, write."""
    steps = [Step("plan", partial(ReadShard, out, rewritten=True)), Step("restore", partial(Restore, root))]
    if edits.changes:
        steps.append(Step("edit", partial(Edit, edits)))
    return [Link("restore", steps), _last(out, identity, view, labels)]


def _first(out: Folder, *steps: Step) -> Link:
    return Link("decode", [Step("plan", partial(ReadShard, out)), *steps])


def _last(out: Folder, identity: str, view: View, labels: LabelSettings) -> Link:
    write = Step("write", partial(WriteShard, out, identity))
    return Link("patchify", [Step("patchify", partial(Patchify, view, labels)), write])
