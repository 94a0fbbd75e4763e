"""The stage ground with Grounding DINO, which finds boxes for each tag."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from pad_pipeline.errors import UserError
from pad_pipeline.images import DecodeSettings
from pad_pipeline.pretrained import load_tokenizer, read_config
from pad_pipeline.records import ImageRecord
from pad_pipeline.stages.base import chunks
from pad_pipeline.stages.box_stage import Answer, BoxSettings, BoxStage, find_model, load_unboxable
from pad_pipeline.stages.compute import Compute, ComputeSettings, HostCopy
from pad_pipeline.stages.dino.network import KINDS as DINOS
from pad_pipeline.stages.dino.network import GroundingDino
from pad_pipeline.stages.settings import millions
from pad_pipeline.stages.spans import CLS, DOT, SEP, Prompt, build_prompts
from pad_pipeline.weights import is_file_reference

if TYPE_CHECKING:
    from pad_pipeline.stages.omdet import OmDetDetector
    from pad_pipeline.stages.owl import OwlDetector


class DetectorSettings(BoxSettings):
    """Settings of the detector, with the choice between Grounding DINO, OWL and OmDet-Turbo."""

    def check(self) -> str:
        """See `StageSettings`."""
        model = self.make(DecodeSettings(), ComputeSettings(precision="float32")).model
        unboxable = len(load_unboxable(self.unboxable))
        return f"{model.name}, {millions(model.model)}, {unboxable} tags in the list of unboxable tags"

    def make(self, decoding: DecodeSettings, compute: ComputeSettings) -> Detector | OwlDetector | OmDetDetector:
        """Make the stage for the model. An official file is a Grounding DINO; a folder has a `model_type`."""
        from pad_pipeline.stages.omdet import KINDS as OMDETS
        from pad_pipeline.stages.omdet import OmDetDetector
        from pad_pipeline.stages.owl import KINDS as OWLS
        from pad_pipeline.stages.owl import OwlDetector

        if not is_file_reference(self.model):
            folder, _ = find_model(self)
            kind = read_config("detector.model", folder, {*DINOS, *OWLS, *OMDETS})["model_type"]
            if kind in OWLS:
                return OwlDetector(self, decoding, compute)
            if kind in OMDETS:
                return OmDetDetector(self, decoding, compute)
        return Detector(self, decoding, compute)


class Detector(BoxStage):
    """Runs Grounding DINO: images of one size are encoded together, once for all their prompts."""

    def __init__(self, settings: DetectorSettings, decoding: DecodeSettings, compute: ComputeSettings) -> None:
        super().__init__(settings, decoding)
        folder, tokenizer = find_model(settings)
        try:
            self.model = GroundingDino(folder, Compute(compute))
        except UserError as error:
            if folder != tokenizer:  # the model was converted: name the user's file instead of the folder in the cache
                raise UserError("detector.model", settings.model, error.rule, error.remedy) from error
            raise
        field = "detector.model" if tokenizer == folder else "detector.tokenizer"
        self.tokenizer = load_tokenizer(field, tokenizer)
        self._check_tokens(field, tokenizer)

    def _check_tokens(self, field: str, folder: Path) -> None:
        remedy = "use the tokenizer of BERT that the model came with"
        if (known := len(self.tokenizer)) > self.model.words:
            rule = f"it knows {known} tokens, and the model {self.model.words}"
            raise UserError(field, folder, rule, remedy)
        try:
            ids = self.tokenizer("a.")["input_ids"]
        except Exception as error:
            raise UserError(field, folder, f"its tokenizer fails ({type(error).__name__})", remedy) from error
        if len(ids) < 3 or (ids[0], ids[-1], ids[-2]) != (CLS, SEP, DOT):
            rule = f"[CLS], [SEP] and '.' should be the tokens {CLS}, {SEP} and {DOT}, which are built into the model"
            raise UserError(field, folder, rule, remedy)

    def tokenize(self, tag: str) -> list[int]:
        """Return the token ids of one tag, without special tokens; an empty list if the tokenizer does not know all of
        its words, because the model can't distinguish unknown words."""
        ids: list[int] = self.tokenizer(tag, add_special_tokens=False)["input_ids"]
        return [] if self.tokenizer.unk_token_id in ids else ids

    def prompts(self, row: ImageRecord) -> list[Prompt]:
        """Return the prompts for the row's tags; see `build_prompts`."""
        return build_prompts([tag.label for tag in row.tags], self.encode, self.model.max_tokens, self.unboxable)

    def shape(self, row: ImageRecord) -> tuple[int, int]:
        """Return height and width of the resized and padded image."""
        step = self.settings.pad_to
        height, width = (-(-edge // step) * step for edge in self.model.resized(row.width, row.height))
        # Each query needs a position in the image, so a narrow image is padded until it has enough positions.
        while self.model.count_positions(height, width) < self.model.queries:
            height, width = (height + 32, width) if height < width else (height, width + 32)
        return height, width

    def length(self, row: ImageRecord) -> int:
        """Return the number of tokens of the longest prompt."""
        return max((len(prompt.ids) for prompt in self.prompts(row)), default=0)

    def detect(self, rows: list[ImageRecord], prompts: list[list[Prompt]], inputs: list[Tensor]) -> list[list[Answer]]:
        """See `BoxStage`."""
        features = self.model.encode(inputs, self.shape(rows[0]))
        outputs: list[list[Answer]] = [[] for _ in rows]
        pairs = [(image, number) for image, of_row in enumerate(prompts) for number in range(len(of_row))]
        for batch in chunks(pairs, 1 if self.low_memory else self.batch_size):
            texts = [prompts[image][number].ids for image, number in batch]
            probabilities, boxes = map(HostCopy, self.model.detect(features, [image for image, _ in batch], texts))
            for position, (image, number) in enumerate(batch):
                outputs[image].append(Answer(number, prompts[image][number], probabilities, boxes, position))
        return outputs
