"""Which stage goes with which settings. What a stage needs is imported when it is made, in the worker that holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pad_pipeline.pictures import DecodeSettings
from pad_pipeline.pretrained import read_config
from pad_pipeline.weights import is_file_reference
from stages.base import Stage
from stages.compute import ComputeSettings
from stages.own_settings import OwnDetector, OwnGrounder, OwnSegmenter, OwnTagger

if TYPE_CHECKING:
    from stages.ground import DetectorSettings
    from stages.segment import SegmenterSettings
    from stages.tag import TaggerSettings


def tagger(settings: TaggerSettings | OwnTagger, decoding: DecodeSettings, compute: ComputeSettings) -> Stage:
    """The stage for a tagger."""
    if isinstance(settings, OwnTagger):
        from stages.own import TagStage

        return TagStage(settings, decoding, compute)
    from stages.tag import Tagger

    return Tagger(settings, decoding, compute)


def detector(settings: DetectorSettings | OwnDetector, decoding: DecodeSettings, compute: ComputeSettings) -> Stage:
    """The stage for a detector: own, or by its folder's `model_type`.

    Raises:
        UserError: the model is not there, or no detector.
    """
    if isinstance(settings, OwnDetector):
        from stages.own import DetectStage

        return DetectStage(settings, decoding, compute)
    from stages.dino.network import KINDS as DINOS
    from stages.ground import Detector, find_model
    from stages.owl import KINDS as OWLS
    from stages.owl import OwlDetector

    if not is_file_reference(settings.model):
        folder, _ = find_model(settings)
        if read_config("detector.model", folder, {*DINOS, *OWLS})["model_type"] in OWLS:
            return OwlDetector(settings, decoding, compute)
    return Detector(settings, decoding, compute)


def grounder(settings: OwnGrounder, decoding: DecodeSettings, compute: ComputeSettings) -> Stage:
    """The stage for a grounder: tagger and detector in one."""
    from stages.own import GroundStage

    return GroundStage(settings, decoding, compute)


def segmenter(settings: SegmenterSettings | OwnSegmenter, decoding: DecodeSettings, compute: ComputeSettings) -> Stage:
    """The stage for a segmenter."""
    if isinstance(settings, OwnSegmenter):
        from stages.own import SegmentStage

        return SegmentStage(settings, decoding, compute)
    from stages.segment import Segmenter

    return Segmenter(settings, decoding, compute)
