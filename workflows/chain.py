"""The stages of a run, each as a recipe that an engine can build where the stage is to run."""

from __future__ import annotations

from functools import partial

from pad_pipeline.geometry import View
from pad_pipeline.labels import LabelEmbedder
from pad_pipeline.pictures import DecodeSettings
from pad_pipeline.storage import Folder
from pad_pipeline.weights import fetch_file, file_sha256, folder_sha256, is_file_reference
from stages.compute import ComputeSettings
from stages.decode import Decode, RedoFrom
from stages.edit import Edit, EditSettings
from stages.ground import FILES, Detector
from stages.ground import find_model as find_detector
from stages.human import HumanRegions
from stages.patchify import Patchify
from stages.restore import Restore
from stages.sam.hub import FILES as SAM_FILES
from stages.segment import Segmenter
from stages.segment import find_model as find_segmenter
from stages.spans import UNBOXABLE
from stages.tag import Tagger, read_tags
from workflows.links import Link, ReadShard, Step, WriteShard
from workflows.models import LabelSettings, ModelSettings

ORDER: tuple[RedoFrom, ...] = ("tag", "ground", "segment", "patchify")
"""The stages, as a shard goes through them."""


def annotation_chain(
    out: Folder,
    identity: str,
    models: ModelSettings,
    view: View,
    root: str,
    compute: ComputeSettings,
    redo_from: RedoFrom = "tag",
) -> list[Link]:
    """decode -> tag -> ground -> segment -> patchify -> write; without those before `redo_from`."""
    decode = partial(Decode, models.decode, root, redo_from)
    tag = partial(Tagger, models.tagger, models.decode, compute)
    ground = partial(Detector, models.detector, models.decode, compute)
    segment = partial(Segmenter, models.segmenter, models.decode, compute)
    links = [
        Link("tag", [Step("tag", tag)], on_gpu=True),
        Link("ground", [Step("ground", ground)], on_gpu=True),
        Link("segment", [Step("segment", segment)], on_gpu=True),
        _last(out, identity, view, models.llm),
    ]
    return [_first(out, Step("decode", decode)), *links[ORDER.index(redo_from) :]]


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


def weight_fingerprints(models: ModelSettings, redo_from: RedoFrom = "tag") -> dict[str, str]:
    """sha256 of the weights of the annotation models from `redo_from` on, having fetched and checked what is missing.

    Raises:
        UserError: a model is not there, can't be reached, or is not the one that is pinned.
    """
    find = {"tag": _tagger, "ground": _detector, "segment": _segmenter}
    found: dict[str, str] = {}
    for stage in ORDER[ORDER.index(redo_from) : -1]:
        found |= find[stage](models)
    return found


def _tagger(models: ModelSettings) -> dict[str, str]:
    tagger = models.tagger
    read_tags(tagger)  # the two files must fit each other
    found = {"tag_list": file_sha256(fetch_file("tagger.tag_list", tagger.tag_list))}
    if tagger.threshold is None:
        found["thresholds"] = file_sha256(fetch_file("tagger.thresholds", tagger.thresholds))
    return found | {"tagger": file_sha256(fetch_file("tagger.weights", tagger.weights, tagger.sha256))}


def _detector(models: ModelSettings) -> dict[str, str]:
    detector, found = models.detector, {}
    if detector.unboxable:
        unboxable = str(UNBOXABLE) if detector.unboxable == "default" else detector.unboxable
        found["unboxable"] = file_sha256(fetch_file("detector.unboxable", unboxable))
    model, tokenizer = find_detector(detector)
    own = fetch_file("detector.model", detector.model) if is_file_reference(detector.model) else None
    return found | {
        # Of what was fetched, not of what it was converted to, which changes with the versions of libraries.
        "detector": file_sha256(own) if own else folder_sha256(model, FILES),
        "detector_tokenizer": folder_sha256(tokenizer, ["tokenizer*", "vocab.txt"]),
    }


def _segmenter(models: ModelSettings) -> dict[str, str]:
    segmenter = find_segmenter(models.segmenter)
    return {"segmenter": folder_sha256(segmenter, SAM_FILES) if segmenter.is_dir() else file_sha256(segmenter)}


def label_fingerprint(labels: LabelSettings) -> tuple[dict[str, str], int]:
    """sha256 of the LLM's input embedding and of its tokenizer's files, and the embedding's width."""
    embedder = LabelEmbedder(labels)
    tokenizer = folder_sha256(embedder.folder, ["tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt"])
    return {"llm_embedding": embedder.table.sha256(), "llm_tokenizer": tokenizer}, embedder.table.width
