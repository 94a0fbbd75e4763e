"""The chains of runs. They hold functions that build the operations, so that each worker builds its own."""

from __future__ import annotations

from functools import partial

from pad_pipeline.geometry import View
from pad_pipeline.images import DecodeSettings
from pad_pipeline.labels import LabelSettings
from pad_pipeline.roles import RedoFrom
from pad_pipeline.sources.read import witnesses
from pad_pipeline.stages.annotate import HumanRegions
from pad_pipeline.stages.correct import Correct
from pad_pipeline.stages.decode import Decode
from pad_pipeline.stages.edit import Edit
from pad_pipeline.stages.edit_settings import EditSettings
from pad_pipeline.stages.patchify import Patchify
from pad_pipeline.stages.restore import Restore
from pad_pipeline.storage import Folder
from pad_pipeline.workflows.engine.chain import Link, Operation
from pad_pipeline.workflows.models.settings import ModelSettings
from pad_pipeline.workflows.runs.shard_io import ReadShard, WriteShard


def annotation_chain(
    out: Folder,
    identity: str,
    images: int,
    threads: int,
    models: ModelSettings,
    view: View,
    root: str,
    redo_from: RedoFrom = "tag",
    private: bool = False,
) -> list[Link]:
    """Return the chain of `pad build`: decode, the stages with a model from `redo_from` on, patchify, write. `images`
    is the number of images in the whole run, and `threads` the number of CPU threads of each model."""
    compute = models.compute.model_copy(update={"images": images, "threads": threads})
    on_cpu, links = [Operation("decode", partial(Decode, models.decode, root, redo_from, private, witnesses()))], []
    for one in models.annotators_from(redo_from):
        operation = Operation(one.name, partial(one.make, models.decode, compute))
        # A CPU stage between two stages on the GPU would part them, so that each needs a GPU of its own.
        if one.on_gpu:
            links.append(Link(one.name, [operation], on_gpu=True))
        else:
            on_cpu.append(operation)
    return [_first(out, *on_cpu), *links, _last(out, identity, view, models.llm)]


def import_chain(
    out: Folder,
    identity: str,
    images: int,
    threads: int,
    decoding: DecodeSettings,
    labels: LabelSettings,
    view: View,
    root: str,
    private: bool,
) -> list[Link]:
    """Return the chain of `pad import`: decode, annotate, patchify, write. `images` and `threads` are not used."""
    annotate = [
        Operation("decode", partial(Decode, decoding, root, private=private, witnesses=witnesses())),
        Operation("annotate", HumanRegions),
    ]
    return [_first(out, *annotate), _last(out, identity, view, labels)]


def rewriting_chain(
    out: Folder,
    identity: str,
    images: int,
    threads: int,
    edits: EditSettings,
    labels: LabelSettings,
    view: View,
    root: str,
    corrected: bool,
) -> list[Link]:
    """Return the chain of the commands that rewrite shards: restore, correct if people `corrected` regions, edit if
    there are edits, patchify, write. `images` and `threads` are not used."""
    read = Operation("plan", partial(ReadShard, out, rewritten=True))
    operations = [read, Operation("restore", partial(Restore, root))]
    if corrected:
        operations.append(Operation("correct", Correct))
    if edits.changes:
        operations.append(Operation("edit", partial(Edit, edits, view)))
    return [Link("restore", operations), _last(out, identity, view, labels)]


def _first(out: Folder, *operations: Operation) -> Link:
    return Link("decode", [Operation("plan", partial(ReadShard, out)), *operations])


def _last(out: Folder, identity: str, view: View, labels: LabelSettings) -> Link:
    write = Operation("write", partial(WriteShard, out, identity))
    return Link("patchify", [Operation("patchify", partial(Patchify, view, labels)), write])
