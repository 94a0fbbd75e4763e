"""The ceiling of grounding in the miniature: the boxes that an LLM finds if each vision token is the ideal one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pad_pipeline.analysis.model import Subject
from pad_pipeline.evaluation.boxes import score_boxes
from pad_pipeline.geometry import View
from pad_pipeline.miniature.language import REFER_PROMPT
from pad_pipeline.miniature.world import LABELS, Scene
from pad_pipeline.training.chat import Chat
from pad_pipeline.workflows.miniature.answers import BOX_TOKENS, expressions_of

BATCH = 16


@torch.inference_mode()
def ask_ideal_boxes(subject: Subject, chat: Chat, scenes: list[Scene]) -> dict[str, Any]:
    """Ask for the box of every referring expression, with ideal tokens instead of the model's own.

    Return the scores of `score_boxes`. What the LLM does not find with ideal tokens, no projector can make it find.
    """
    view = View(size=subject.tower.config.image_size, patch=subject.tower.config.patch_size, fit="pad")
    tokens = subject.placed(ideal_tokens(subject, scenes, view))
    expressions = expressions_of(scenes)
    table, mark = chat.model.get_input_embeddings(), chat.model.config.image_token_index
    groups: dict[int, list[tuple[int, Tensor]]] = {}
    for number, asked in enumerate(expressions):
        ids = chat.prepare(scenes[int(asked.image)].image, REFER_PROMPT + asked.text)["input_ids"].to(chat.device)
        words = table(ids)
        words[ids == mark] = tokens[int(asked.image)].to(words)
        groups.setdefault(ids.shape[1], []).append((number, words))
    answers = [""] * len(expressions)
    for same in groups.values():  # prompts of the same length are answered together, without padding
        for part in (same[start : start + BATCH] for start in range(0, len(same), BATCH)):
            sequence = torch.cat([words for _, words in part])
            mask = torch.ones(sequence.shape[:2], dtype=torch.long, device=chat.device)
            options = {"attention_mask": mask, "max_new_tokens": BOX_TOKENS, "do_sample": False}
            rows = chat.model.generate(inputs_embeds=sequence, **options)
            for (number, _), row in zip(part, rows, strict=True):
                answers[number] = str(chat.processor.decode(row, skip_special_tokens=True))
    return score_boxes(expressions, answers)


def ideal_tokens(subject: Subject, scenes: list[Scene], view: View) -> Tensor:
    """Return the tokens that say exactly what each patch shows, `[scenes, M, d]`: the mean of the label embeddings of
    its regions, weighed by their coverage as in L_patch. A patch of padding has zeros."""
    embeds = subject.embed(list(LABELS))
    found = []
    for scene in scenes:
        covered = torch.zeros(len(LABELS), view.grid**2)
        for region in scene.regions:
            covered[LABELS.index(region.label)] += torch.from_numpy(view.coverage(region.mask)).flatten()
        shares = covered / covered.sum(0).clamp_min(1)
        found.append(shares.T @ embeds)
    return torch.stack(found).to(subject.device)
