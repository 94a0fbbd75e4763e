"""Which stage goes with which settings. What a stage needs is imported when it is made, in the worker that holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pad_pipeline.images import DecodeSettings
from pad_pipeline.pretrained import read_config
from pad_pipeline.stages.base import Stage
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.custom.settings import CustomDetector, CustomGrounder, CustomSegmenter, CustomTagger
from pad_pipeline.weights import is_file_reference

if TYPE_CHECKING:
    from pad_pipeline.stages.ground import DetectorSettings
    from pad_pipeline.stages.segment import SegmenterSettings
    from pad_pipeline.stages.tag import TaggerSettings


def tagger(settings: TaggerSettings | CustomTagger, decoding: DecodeSettings, compute: ComputeSettings) -> Stage:
    """The stage for a tagger."""
    if isinstance(settings, CustomTagger):
        from pad_pipeline.stages.custom.stages import TagStage

        return TagStage(settings, decoding, compute)
    from pad_pipeline.stages.tag import Tagger

    return Tagger(settings, decoding, compute)


def detector(settings: DetectorSettings | CustomDetector, decoding: DecodeSettings, compute: ComputeSettings) -> Stage:
    """The stage for a detector: own, or by its folder's `model_type`.

    Raises:
        UserError: the model is not there, or no detector.
    """
    if isinstance(settings, CustomDetector):
        from pad_pipeline.stages.custom.stages import DetectStage

        return DetectStage(settings, decoding, compute)
    from pad_pipeline.stages.dino.network import KINDS as DINOS
    from pad_pipeline.stages.ground import Detector, find_model
    from pad_pipeline.stages.owl import KINDS as OWLS
    from pad_pipeline.stages.owl import OwlDetector

    if not is_file_reference(settings.model):
        folder, _ = find_model(settings)
        if read_config("detector.model", folder, {*DINOS, *OWLS})["model_type"] in OWLS:
            return OwlDetector(settings, decoding, compute)
    return Detector(settings, decoding, compute)


def grounder(settings: CustomGrounder, decoding: DecodeSettings, compute: ComputeSettings) -> Stage:
    """The stage for a grounder: tagger and detector in one."""
    from pad_pipeline.stages.custom.stages import GroundStage

    return GroundStage(settings, decoding, compute)


def segmenter(
    settings: SegmenterSettings | CustomSegmenter, decoding: DecodeSettings, compute: ComputeSettings
) -> Stage:
    """The stage for a segmenter."""
    if isinstance(settings, CustomSegmenter):
        from pad_pipeline.stages.custom.stages import SegmentStage

        return SegmentStage(settings, decoding, compute)
    from pad_pipeline.stages.segment import Segmenter

    return Segmenter(settings, decoding, compute)
