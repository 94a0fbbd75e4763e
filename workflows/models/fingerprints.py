"""What the files of a choice of models hash to; files that are missing are fetched first."""

from __future__ import annotations

from pydantic import BaseModel

from pad_pipeline.labels import LabelEmbedder
from pad_pipeline.stages.custom.load import fingerprints
from pad_pipeline.stages.custom.settings import CustomGrounder, CustomSettings
from pad_pipeline.stages.ground import FILES, DetectorSettings
from pad_pipeline.stages.ground import find_model as find_detector
from pad_pipeline.stages.order import ORDER, RedoFrom
from pad_pipeline.stages.sam.hub import FILES as SAM_FILES
from pad_pipeline.stages.segment import SegmenterSettings
from pad_pipeline.stages.segment import find_model as find_segmenter
from pad_pipeline.stages.spans import UNBOXABLE
from pad_pipeline.stages.tag import TaggerSettings, read_tags
from pad_pipeline.weights import fetch_file, file_sha256, folder_sha256, is_file_reference
from pad_pipeline.workflows.models.settings import LabelSettings, ModelSettings


def weight_fingerprints(models: ModelSettings, redo_from: RedoFrom = "tag") -> dict[str, str]:
    """sha256 of the weights of the annotation models from `redo_from` on, having fetched and checked what is missing.

    Raises:
        UserError: a model is not there, can't be reached, or is not the one that is pinned.
    """
    found: dict[str, str] = {}
    for settings in used_models(models, redo_from):
        if isinstance(settings, CustomSettings):
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
    return used[1:] if len(used) == 3 and isinstance(used[0], CustomGrounder) else used


def custom_code(models: ModelSettings, redo_from: RedoFrom = "tag") -> str:
    """What the code of the user's own models is, those from `redo_from` on; empty where there is none."""
    used = used_models(models, redo_from)
    return " ".join(settings.code for settings in used if isinstance(settings, CustomSettings))


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
