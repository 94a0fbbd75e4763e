"""The stages of a run, each as a recipe that an engine can build where the stage is to run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pad_pipeline.geometry import View
from pad_pipeline.labels import LabelEmbedder
from pad_pipeline.pictures import DecodeSettings
from pad_pipeline.weights import fetch_file, file_sha256, folder_sha256, is_file_reference
from stages.compute import ComputeSettings
from stages.decode import Decode
from stages.ground import FILES, Detector
from stages.ground import find_model as find_detector
from stages.human import HumanRegions
from stages.patchify import Patchify
from stages.sam.hub import FILES as SAM_FILES
from stages.segment import Segmenter
from stages.segment import find_model as find_segmenter
from stages.spans import UNBOXABLE
from stages.tag import Tagger, read_tags
from workflows.links import Link, ReadShard, WriteShard
from workflows.models import LabelSettings, ModelSettings


def annotation_chain(out: Path, models: ModelSettings, view: View, root: Path, compute: ComputeSettings) -> list[Link]:
    """decode -> tag -> ground -> segment -> patchify -> write."""
    return [
        Link("decode", [partial(ReadShard, out), partial(Decode, models.decode, root)]),
        Link("tag", [partial(Tagger, models.tagger, models.decode, compute)], on_gpu=True),
        Link("ground", [partial(Detector, models.detector, models.decode, compute)], on_gpu=True),
        Link("segment", [partial(Segmenter, models.segmenter, models.decode, compute)], on_gpu=True),
        Link("patchify", [partial(Patchify, view, models.llm), partial(WriteShard, out)]),
    ]


def import_chain(out: Path, decoding: DecodeSettings, labels: LabelSettings, view: View, root: Path) -> list[Link]:
    """decode -> annotate -> patchify -> write."""
    return [
        Link("annotate", [partial(ReadShard, out), partial(Decode, decoding, root), HumanRegions]),
        Link("patchify", [partial(Patchify, view, labels), partial(WriteShard, out)]),
    ]


def weight_fingerprints(models: ModelSettings) -> dict[str, str]:
    """sha256 of the annotation models' weights, having fetched and checked what is missing.

    Raises:
        UserError: a model is not there, can't be reached, or is not the one that is pinned.
    """
    tagger, detector = models.tagger, models.detector
    read_tags(tagger)  # the two files must fit each other
    lists = {
        "tagger.tag_list": tagger.tag_list,
        "tagger.thresholds": tagger.thresholds if tagger.threshold is None else "",
        "detector.unboxable": str(UNBOXABLE) if detector.unboxable == "default" else detector.unboxable,
    }
    found = {field: file_sha256(fetch_file(field, reference)) for field, reference in lists.items() if reference}
    model, tokenizer = find_detector(detector)
    own = fetch_file("detector.model", detector.model) if is_file_reference(detector.model) else None
    segmenter = find_segmenter(models.segmenter)
    return {name.partition(".")[2]: digest for name, digest in found.items()} | {
        "tagger": file_sha256(fetch_file("tagger.weights", tagger.weights, tagger.sha256)),
        # Of what was fetched, not of what it was converted to, which changes with the versions of libraries.
        "detector": file_sha256(own) if own else folder_sha256(model, FILES),
        "detector_tokenizer": folder_sha256(tokenizer, ["tokenizer*", "vocab.txt"]),
        "segmenter": folder_sha256(segmenter, SAM_FILES) if segmenter.is_dir() else file_sha256(segmenter),
    }


def label_fingerprint(labels: LabelSettings) -> tuple[dict[str, str], int]:
    """sha256 of the LLM's input embedding and of its tokenizer's files, and the embedding's width."""
    embedder = LabelEmbedder(labels)
    tokenizer = folder_sha256(embedder.folder, ["tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt"])
    return {"llm_embedding": embedder.table.sha256(), "llm_tokenizer": tokenizer}, embedder.table.width
