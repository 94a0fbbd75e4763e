"""The small CLIP: images and captions that belong together get near embeddings (Radford et al. 2021)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from examples.miniature.llm import build_tokenizer
from examples.miniature.recipe import TRAIN_WORLD, VALIDATION_WORLD, Batch, Budget, Recipe
from pad_pipeline.geometry import HALF, View
from pad_pipeline.miniature.kinds import THINGS
from pad_pipeline.miniature.language import SIDES, caption, listed, side, with_article
from pad_pipeline.miniature.world import EDGES, LABELS, Scene, draw_scene
from pad_pipeline.pretrained import quiet
from pad_pipeline.training.towers import CLIP_MEAN, CLIP_STD

VIEW = View(size=112, patch=8)
"""A grid of 14 x 14."""
END = 3
"""The token whose state is the text's: transformers' CLIP takes another way where it is 2."""


NOTHING = -1
"""Instead of a label where a patch shows no part: what cross-entropy passes over."""


class ClipRecipe(Recipe):
    """Symmetric cross-entropy over the batch, and beside it what each patch shows.

    Half of the images show a single thing: fewer words to choose from are sooner learned, and hold for many. Half of
    the captions name only kinds and sides: colors and grounds alone tell a hundred full captions apart, and a model
    that may rely on them never learns what a car is. And where no caption tells left from right, no patch does: a
    language model that reads the patches could then never say a box.

    OpenAI's CLIP saw 400 million images until its patches told what they show; this one sees 28,800, and captions
    alone teach its patches grounds and hardly a thing. So the hidden state that projectors read is also asked, through
    two linear heads that are thrown away, for the thing or ground of each patch and for its part.
    """

    name = "clip"

    def __init__(self, seed: int = 0, steps: int = 900) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.seed = seed
        self.budget = Budget(steps=steps, batch_size=96, learning_rate=2e-3, warmup=60, weight_decay=0.05, pool=300)
        captions = [caption(draw_scene(TRAIN_WORLD + seed, index)) for index in range(600)]
        special = ["<|unknown|>", "<|startoftext|>", "<|free|>", "<|endoftext|>"]
        self.tokenizer = build_tokenizer([*LABELS, *SIDES, *captions], special, ends=True)
        self.network = CLIPModel(build_config(len(self.tokenizer)))
        cells = self.network.vision_model.embeddings.position_embedding.weight
        with torch.no_grad():
            cells[1:] = positions(VIEW.grid, cells.shape[1])
        self.heads = nn.ModuleList([nn.Linear(cells.shape[1], len(LABELS)) for _ in range(2)])

    def batch(self, step: int) -> Batch:
        """Square images, so that nothing that the caption names is cut off, and token ids padded with 0."""
        size = self.budget.batch_size
        rng = np.random.default_rng((self.seed, step))
        images, ids, shown = [], [], []
        for cell in range(size):
            edge = int(rng.integers(EDGES[0], EDGES[1] + 1))
            most = 1 if cell % 2 else 4
            scene = draw_scene(TRAIN_WORLD + self.seed, step * size + cell, (edge, edge), most)
            text = caption(scene) if cell % 4 < 2 else kinds_and_sides(scene)
            images.append(torch.from_numpy(np.array(VIEW.apply(scene.image, (0, 0, 0)))).permute(2, 0, 1))
            ids.append(torch.tensor(self.encode(text)))
            shown.append(torch.from_numpy(shown_labels(scene)))
        return {
            "images": torch.stack(images),
            "ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
            "shown": torch.stack(shown),
        }

    def encode(self, text: str) -> list[int]:
        """Token ids with beginning and end, at most as many as the model takes."""
        most = self.network.config.text_config.max_position_embeddings
        return self.tokenizer(text, truncation=True, max_length=most)["input_ids"]

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Each image among all captions of the batch, each caption among all images, and the labels of patches."""
        images, texts, patches = self.embed(batch)
        with torch.autocast(images.device.type, enabled=False):  # logits up to 100 want more digits than bfloat16 has
            logits = self.network.logit_scale.exp().clamp(max=100) * images @ texts.t()
            # Images with the same caption are right for each other.
            same = (batch["ids"][:, None] == batch["ids"][None]).all(-1).float()
            target = same / same.sum(1, keepdim=True)
            loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2
            found = same.gather(1, logits.argmax(1, keepdim=True)).mean()
            whole, part = (head(patches.float()).flatten(0, 1) for head in self.heads)
            shown, parts = (labels.flatten() for labels in batch["shown"].long().unbind(1))
            things = (shown >= 0) & (shown < len(THINGS))
            # Each by itself: grounds fill seven patches of eight, and are learned in no time.
            loss = loss + F.cross_entropy(whole[things], shown[things])
            loss = (
                loss
                + F.cross_entropy(whole[~things], shown[~things])
                + F.cross_entropy(part, parts, ignore_index=NOTHING)
            )
            right = (whole.argmax(1) == shown)[things].float().mean()
        return loss, {"found": found, "things_right": right}

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Normed embeddings of images and texts `[B, 96]`, and the patches that projectors read `[B, N, 128]`."""
        mean, std = (
            torch.tensor(values, device=batch["images"].device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD)
        )
        pixels = (batch["images"].float() / 255 - mean) / std
        vision = self.network.vision_model(pixel_values=pixels, output_hidden_states=True)
        mask = (batch["ids"] != 0).long()
        text = self.network.text_model(input_ids=batch["ids"], attention_mask=mask).pooler_output
        images = self.network.visual_projection(vision.pooler_output)
        texts, patches = self.network.text_projection(text), vision.hidden_states[-2][:, 1:]
        return F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1), patches

    @torch.inference_mode()
    def export(self, folder: Path) -> dict[str, float]:
        """A folder of transformers; gives the share of unseen images whose caption is the nearest of 100."""
        with quiet():
            self.network.save_pretrained(folder / "clip")
            self.tokenizer.save_pretrained(folder / "clip")
            CLIPImageProcessorPil(
                size={"shortest_edge": VIEW.size}, crop_size={"height": VIEW.size, "width": VIEW.size}
            ).save_pretrained(folder / "clip")
        self.network.cpu().float().eval()
        found = []
        for start in range(0, max(self.validation, 100), 100):
            scenes = [draw_scene(VALIDATION_WORLD, start + cell, (160, 160), 4) for cell in range(100)]
            images, texts, _ = self.embed(
                {
                    "images": torch.stack(
                        [
                            torch.from_numpy(np.array(VIEW.apply(scene.image, (0, 0, 0)))).permute(2, 0, 1)
                            for scene in scenes
                        ]
                    ),
                    "ids": torch.nn.utils.rnn.pad_sequence(
                        [torch.tensor(self.encode(caption(scene))) for scene in scenes], batch_first=True
                    ),
                }
            )
            found.append(((images @ texts.t()).argmax(1) == torch.arange(100)).float().mean())
        return {"validation_caption_found_among_100": float(torch.stack(found).mean())}


def positions(side: int, width: int) -> Tensor:
    """Where the learned embeddings of places begin: sines and cosines of row and column, as in MAE (He et al. 2021).

    From CLIP's own small noise, hundreds of steps leave the patches hardly any sense of their column, which the ground
    below and the sky above do not tell as they tell the row; a language model that reads such patches can't say a box.

    Args:
        side: patches along an edge.
        width: of an embedding; a multiple of 4.

    Returns:
        float32 `[side * side, width]`, row by row: the row's sines and cosines, then the column's.
    """
    speeds = 10000.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * speeds
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    return torch.cat([waves.repeat_interleave(side, 0), waves.repeat(side, 1)], 1)


def shown_labels(scene: Scene) -> np.ndarray:
    """The label of which each patch shows most, as its place in `LABELS`.

    Returns:
        int8 `[2, grid * grid]`: of things and grounds; and of parts, `NOTHING` where they cover less than half.
    """
    wholes, parts = (
        [region for region in scene.regions if (region.kind == "part") is are_parts] for are_parts in (False, True)
    )
    shown = np.full((2, VIEW.grid**2), NOTHING, np.int8)
    for row, regions, least in (0, wholes, 1), (1, parts, HALF):
        if regions:
            coverage = np.stack([VIEW.coverage(region.mask).flatten() for region in regions])
            labels = np.array([LABELS.index(region.label) for region in regions], np.int8)
            shown[row] = np.where(coverage.max(0) >= least, labels[coverage.argmax(0)], NOTHING)
    return shown


def kinds_and_sides(scene: Scene) -> str:
    """`a car on the left, a house in the middle and a sun on the right.`"""
    things = [f"{with_article(thing.kind)} {side(scene, thing)}" for thing in scene.things]
    return f"{listed(things)}." if things else caption(scene)


def build_config(words: int) -> CLIPConfig:
    """Vision of width 128, text of width 96."""
    return CLIPConfig(
        vision_config={
            "image_size": VIEW.size, "patch_size": VIEW.patch, "hidden_size": 128, "intermediate_size": 320,
            "num_hidden_layers": 4, "num_attention_heads": 4,
        },
        text_config={
            "vocab_size": words, "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 96, "bos_token_id": 1, "eos_token_id": END,
            "pad_token_id": 0,
        },
        projection_dim=96,
    )  # fmt: skip
