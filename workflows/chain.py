"""The stages of a run, each as a recipe that an engine can build where the stage is to run."""

from __future__ import annotations

from functools import partial

from pydantic import BaseModel

from pad_pipeline.geometry import View
from pad_pipeline.labels import LabelEmbedder
from pad_pipeline.pictures import DecodeSettings
from pad_pipeline.storage import Folder
from pad_pipeline.weights import fetch_file, file_sha256, folder_sha256, is_file_reference
from stages import choice
from stages.compute import ComputeSettings
from stages.decode import Decode, RedoFrom
from stages.edit import Edit, EditSettings
from stages.ground import FILES, DetectorSettings
from stages.ground import find_model as find_detector
from stages.human import HumanRegions
from stages.own_settings import OwnGrounder, OwnSettings
from stages.patchify import Patchify
from stages.plugin import fingerprints
from stages.restore import Restore
from stages.sam.hub import FILES as SAM_FILES
from stages.segment import SegmenterSettings
from stages.segment import find_model as find_segmenter
from stages.spans import UNBOXABLE
from stages.tag import TaggerSettings, read_tags
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
    """decode -> tag -> ground -> segment -> patchify -> write; without those before `redo_from`. A grounder has no link
    `tag`."""
    decode = partial(Decode, models.decode, root, redo_from)
    segment = partial(choice.segmenter, models.segmenter, models.decode, compute)
    if isinstance(models.detector, OwnGrounder) or isinstance(models.tagger, OwnGrounder):
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


def weight_fingerprints(models: ModelSettings, redo_from: RedoFrom = "tag") -> dict[str, str]:
    """sha256 of the weights of the annotation models from `redo_from` on, having fetched and checked what is missing.

    Raises:
        UserError: a model is not there, can't be reached, or is not the one that is pinned.
    """
    found: dict[str, str] = {}
    for settings in used_models(models, redo_from):
        if isinstance(settings, OwnSettings):
            found |= fingerprints(settings) | _unboxable(getattr(settings, "unboxable", ""))
        elif isinstance(settings, TaggerSettings):
            found |= _tagger(settings)
        elif isinstance(settings, DetectorSettings):
            found |= _detector(settings)
        elif isinstance(settings, SegmenterSettings):
            found |= _segmenter(settings)
    return found


def used_models(models: ModelSettings, redo_from: RedoFrom = "tag") -> list[BaseModel]:
    """The settings of the annotation models from `redo_from` on; a grounder's once."""
    by_stage: list[BaseModel] = [models.tagger, models.detector, models.segmenter]
    used = by_stage[ORDER.index(redo_from) :]
    return used[1:] if len(used) == 3 and isinstance(used[0], OwnGrounder) else used


def own_code(models: ModelSettings, redo_from: RedoFrom = "tag") -> str:
    """What the code of the user's own models is, those from `redo_from` on; empty where there is none."""
    used = used_models(models, redo_from)
    return " ".join(settings.code for settings in used if isinstance(settings, OwnSettings))


def _tagger(tagger: TaggerSettings) -> dict[str, str]:
    read_tags(tagger)  # the two files must fit each other
    found = {"tag_list": file_sha256(fetch_file("tagger.tag_list", tagger.tag_list))}
    if tagger.threshold is None:
        found["thresholds"] = file_sha256(fetch_file("tagger.thresholds", tagger.thresholds))
    return found | {"tagger": file_sha256(fetch_file("tagger.weights", tagger.weights, tagger.sha256))}


def _detector(detector: DetectorSettings) -> dict[str, str]:
    model, tokenizer = find_detector(detector)
    own = fetch_file("detector.model", detector.model) if is_file_reference(detector.model) else None
    return _unboxable(detector.unboxable) | {
        # Of what was fetched, not of what it was converted to, which changes with the versions of libraries.
        "detector": file_sha256(own) if own else folder_sha256(model, FILES),
        "detector_tokenizer": folder_sha256(tokenizer, ["tokenizer*", "vocab.txt"]),
    }


def _unboxable(reference: str) -> dict[str, str]:
    if not reference:
        return {}
    path = str(UNBOXABLE) if reference == "default" else reference
    return {"unboxable": file_sha256(fetch_file("detector.unboxable", path))}


def _segmenter(settings: SegmenterSettings) -> dict[str, str]:
    segmenter = find_segmenter(settings)
    return {"segmenter": folder_sha256(segmenter, SAM_FILES) if segmenter.is_dir() else file_sha256(segmenter)}


def label_fingerprint(labels: LabelSettings) -> tuple[dict[str, str], int]:
    """sha256 of the LLM's input embedding and of its tokenizer's files, and the embedding's width."""
    embedder = LabelEmbedder(labels)
    tokenizer = folder_sha256(embedder.folder, ["tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt"])
    return {"llm_embedding": embedder.table.sha256(), "llm_tokenizer": tokenizer}, embedder.table.width
