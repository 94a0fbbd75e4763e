"""Visual reliance: how much less likely the name of a region is in a caption, when the region can't be seen."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pad_pipeline.analysis.patches import EncodedBatch, LabeledImage
from pad_pipeline.analysis.study import Chart, Context, Mean, Study


class RelianceStudy(Study):
    """Blanks a region of each image, and measures how the probability of its name changes in the image's caption.

    An idea of FiVL (arXiv 2412.14672): a model that says what it sees can't name what is blanked. One region of each
    image is blanked, of those whose label the caption names: its patches get the mean color, and the image is encoded
    again. As a control, as many other patches are blanked, so a region that fills more than half of the patches is not
    taken. The LLM reads BOS, the vision tokens and the caption up to the name. Images whose caption names no such
    region are passed over, and counted.
    """

    def __init__(self, context: Context) -> None:
        self.subject, self.seed = context.subject, context.settings.seed
        names = ("seen", "region_blanked", "others_blanked", "relies")
        self.means = {name: Mean() for name in names}
        self.passed_over = 0
        self.ordinary = context.vocabulary.token_ids("all")

    @torch.inference_mode()
    def add(self, batch: EncodedBatch) -> None:
        """Add a batch of images."""
        for image in batch.images:
            rng = np.random.default_rng([self.seed, *image.key.encode()])
            words = self.subject.word_ids(image.caption)
            named = self._named(image, words)
            if not named:
                self.passed_over += 1
                continue
            label, start, end = named[int(rng.integers(len(named)))]
            region = image.shown[label]
            free = np.flatnonzero(~region.numpy())
            others = torch.zeros_like(region)
            others[torch.from_numpy(rng.permutation(free)[: int(region.sum())])] = True
            views = torch.stack([image.pixels, self._blanked(image, region), self._blanked(image, others)])
            likely = self._log_likelihood(views, words, start, end).cpu()
            for name, value in zip(("seen", "region_blanked", "others_blanked"), likely, strict=True):
                self.means[name].add(value)
            self.means["relies"].add((likely[1] < likely[2]).float())

    def _named(self, image: LabeledImage, words: Tensor) -> list[tuple[int, int, int]]:
        """Return the labels that a caption names and that half of the patches or fewer show: the label's number, and
        where the name's tokens begin and end in the caption."""
        ids, found = words.tolist(), []
        for number, label in enumerate(image.labels):
            name = self.subject.labels.tokens(label)
            shown = 0 < 2 * int(image.shown[number].sum()) <= image.shown.shape[1]
            for start in range(len(ids) - len(name) + 1):
                if name and shown and ids[start : start + len(name)] == name and self._ends(ids, start + len(name)):
                    found.append((number, start, start + len(name)))
                    break
        return found

    def _ends(self, ids: list[int], end: int) -> bool:
        """Return whether a word ends before the token `end`: `cat` does not end in `cattle`."""
        if end == len(ids):
            return True
        joined = str(self.subject.tokenizer.decode(ids[end - 1 : end + 1]))
        alone = str(self.subject.tokenizer.decode(ids[end - 1 : end]))
        return not joined[len(alone) : len(alone) + 1].isalnum()

    def _blanked(self, image: LabeledImage, tokens: Tensor) -> Tensor:
        """Return the view with the patches of some tokens, bool `[M]`, in the mean color."""
        grid, size = math.isqrt(len(tokens)), image.pixels.shape[-1]
        hidden = F.interpolate(tokens.float().view(1, 1, grid, grid), (size, size), mode="nearest")[0] > 0
        return image.pixels.masked_fill(hidden, 0.0)

    def _log_likelihood(self, views: Tensor, words: Tensor, start: int, end: int) -> Tensor:
        """Return the log-likelihood of the words from `start` to `end` behind each view, in nats per token, `[V]`.

        It is among ordinary tokens: an exported model has a row for `<image>` too, which no text can hold.
        """
        tokens = self.subject.placed(self.subject.encode_images(views)[1])
        text = self.subject.words[words[:end]].expand(len(views), -1, -1)
        sequence = self.subject.with_bos(torch.cat([tokens.to(text.dtype), text], 1))
        hidden = self.subject.language_model(inputs_embeds=sequence, use_cache=False).last_hidden_state
        count = end - start
        logits = self.subject.llm.get_output_embeddings()(hidden[:, -count - 1 : -1]).float()
        wanted = logits.gather(-1, words[start:end].expand(len(views), -1)[..., None])[..., 0]
        likely: Tensor = (wanted - logits[..., self.ordinary.to(logits.device)].logsumexp(-1)).mean(1)
        return likely

    def result(self) -> dict[str, Any]:
        """Return the mean log-likelihood of a name, in nats per token: with the whole image, with its region blanked,
        and with as many other patches blanked; the drop by the region and by the others; and the share of images in
        which the region matters more than the others (`relies`, 0.5 by chance)."""
        found = {name: mean.value() for name, mean in self.means.items()}
        drops = {f"drop_by_{name}": found["seen"] - found[f"{name}_blanked"] for name in ("region", "others")}
        return found | drops | {"images": self.means["seen"].count, "images_passed_over": self.passed_over}

    @staticmethod
    def chart(result: dict[str, Any]) -> Chart:
        """Return bars of the two drops."""
        bars = {name.replace("_", " "): result[name] for name in ("drop_by_region", "drop_by_others")}
        return Chart("drop of the log-likelihood of a region's name, nats per token", bars, plain=("others",))
