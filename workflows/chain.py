"""The stages of a run, each as a recipe that an engine can build where the stage is to run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pad_pipeline.geometry import View
from pad_pipeline.labels import LabelEmbedder
from pad_pipeline.pictures import DecodeSettings
from pad_pipeline.weights import fetch_file, fetch_folder, file_sha256, folder_sha256
from stages.decode import Decode
from stages.ground import FILES, Detector
from stages.human import HumanRegions
from stages.patchify import Patchify
from stages.segment import Segmenter
from stages.tag import Tagger, read_tags
from workflows.links import Link, ReadShard, WriteShard
from workflows.models import LabelSettings, ModelSettings


def annotation_chain(out: Path, models: ModelSettings, view: View, root: Path, threads: int) -> list[Link]:
    """decode -> tag -> ground -> segment -> patchify -> write."""
    return [
        Link("decode", [partial(ReadShard, out), partial(Decode, models.decode, root)]),
        Link("tag", [partial(Tagger, models.tagger, models.decode, threads)], on_gpu=True),
        Link("ground", [partial(Detector, models.detector, models.decode, threads)], on_gpu=True),
        Link("segment", [partial(Segmenter, models.segmenter, models.decode, threads)], on_gpu=True),
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
    tagger, detector, segmenter = models.tagger, models.detector, models.segmenter
    read_tags(tagger)  # the two files must fit each other
    lists = {"tag_list": tagger.tag_list, "thresholds": tagger.thresholds if tagger.threshold is None else ""}
    return {
        name: file_sha256(fetch_file(f"tagger.{name}", reference)) for name, reference in lists.items() if reference
    } | {
        "tagger": file_sha256(fetch_file("tagger.weights", tagger.weights, tagger.sha256)),
        "detector": folder_sha256(fetch_folder("detector.model", detector.model, detector.revision, FILES), FILES),
        "segmenter": file_sha256(fetch_file("segmenter.weights", segmenter.weights, segmenter.sha256)),
    }


def label_fingerprint(labels: LabelSettings) -> tuple[dict[str, str], int]:
    """sha256 of the LLM's input embedding and of its tokenizer's files, and the embedding's width."""
    embedder = LabelEmbedder(labels)
    tokenizer = folder_sha256(embedder.folder, ["tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt"])
    return {"llm_embedding": embedder.table.sha256(), "llm_tokenizer": tokenizer}, embedder.table.width
