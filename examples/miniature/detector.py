"""The small Grounding DINO: transformers' model, with a loss of our own.

Why not transformers' own loss (5.23): its encoder proposals get no gradient (they are detached, and scored with the
learned queries instead of the image's features), and in a batch of more than two the targets of the third image and
on are taken from another image's words, because the offset into the label maps does not add up. With it, recall is 0
after 20,000 images. Here every place of the image is asked what stands there (many places to each box, as
one-stage detectors are trained), and the decoder's queries are matched one to one (DETR).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss
from transformers import (
    BertConfig,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    SwinConfig,
)

from examples.miniature.recipe import TRAIN_WORLD, VALIDATION_WORLD, Batch, Budget, Recipe
from examples.miniature.tagger import SHAPE, normalized
from pad_pipeline.images import DecodeSettings
from pad_pipeline.miniature.score import Score
from pad_pipeline.miniature.world import EDGES, LABELS, Scene, draw_scene
from pad_pipeline.pretrained import quiet
from pad_pipeline.records import ImageRecord, Shard, Tag
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.ground import Detector, DetectorSettings
from pad_pipeline.stages.spans import CLS, DOT, SEP, Prompt, build_prompts
from pad_pipeline.weights import file_sha256

EDGE = 128
"""The short edge of an image inside the detector, in pixels."""
SETTINGS: dict[str, Any] = {"nms_iou_across_labels": 1.0, "unboxable": "", "pad_to": 1, "batch_size": 16}
"""How the detector is used: parts fill things, and `night` is a ground of the drawn world."""
STRIDES = (8, 16, 32)
PLACES_PER_BOX = 6
"""How many places of the image learn each box."""
UNSURE = 4.0
"""All class logits start near -UNSURE: hardly any pair of place and word belongs together."""


class DetectorRecipe(Recipe):
    """Starts from the tagger's Swin, which knows the labels by then."""

    name = "detector"
    validation = 300

    def __init__(self, tagger: Path | None = None, seed: int = 0, steps: int = 4200) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.seed = seed
        self.budget = Budget(steps=steps, batch_size=16, learning_rate=1.5e-3)
        self.tokenizer = build_tokenizer()
        self.processor = GroundingDinoImageProcessorPil(size={"shortest_edge": EDGE, "longest_edge": 2 * EDGE})
        with quiet():
            self.network = GroundingDinoForObjectDetection(build_config(len(self.tokenizer)))
        calibrate(self.network)
        if tagger is not None:
            load_backbone(self.network, tagger)
            self.start = file_sha256(tagger)
            swin = self.network.model.backbone.conv_encoder.model.swin
            for module in (swin.embeddings, swin.encoder.layers[0]):
                module.requires_grad_(False)  # edges and colors; they cost a sixth of a step, and hardly change

    def slow(self) -> dict[nn.Module, float]:
        """The backbone."""
        return {self.network.model.backbone: 0.3}

    def batch(self, step: int) -> Batch:
        """Images of one size, prompts, boxes (cxcywh, parts of the image) and the tokens of each box's label."""
        rng = np.random.default_rng((self.seed, step))
        width, height = (int(edge) for edge in rng.integers(EDGES[0], EDGES[1] + 1, 2))
        size = self.budget.batch_size
        scenes = [draw_scene(TRAIN_WORLD + self.seed, step * size + cell, (width, height)) for cell in range(size)]
        prompts = [self.prompt(scene, rng) for scene in scenes]
        length = max(len(prompt.ids) for prompt in prompts)
        ids = torch.zeros(size, length, dtype=torch.long)
        boxes, spans = [], []
        for row, (scene, prompt) in enumerate(zip(scenes, prompts, strict=True)):
            ids[row, : len(prompt.ids)] = torch.tensor(prompt.ids)
            corners = torch.tensor([region.box for region in scene.regions], dtype=torch.float32)
            boxes.append(box_convert(corners / torch.tensor([width, height] * 2), "xyxy", "cxcywh"))
            tokens = torch.zeros(len(scene.regions), length)
            for cell, region in enumerate(scene.regions):
                start, end = prompt.spans[prompt.tags.index(region.label)]
                tokens[cell, start:end] = 1
            spans.append(tokens)
        count = max(len(found) for found in boxes)
        return {
            "pixels": torch.stack([self.resized(scene) for scene in scenes]),
            "ids": ids,
            "attended": (torch.arange(length) < torch.tensor([len(prompt.ids) for prompt in prompts])[:, None]).long(),
            "boxes": torch.stack([F.pad(found, (0, 0, 0, count - len(found))) for found in boxes]),
            "spans": torch.stack([F.pad(found, (0, 0, 0, count - len(found))) for found in spans]),
        }

    def mirrored(self, batch: Batch) -> Batch:
        """Left and right exchanged; no label depends on them."""
        boxes = batch["boxes"].clone()
        boxes[..., 0] = 1 - boxes[..., 0]
        return batch | {"pixels": batch["pixels"].flip(-1), "boxes": boxes}

    def resized(self, scene: Scene) -> Tensor:
        """The image as the processor resizes it, uint8 `[3, H, W]`."""
        inputs = self.processor(images=scene.image, do_rescale=False, do_normalize=False, return_tensors="pt")
        return inputs["pixel_values"][0].to(torch.uint8)

    def prompt(self, scene: Scene, rng: np.random.Generator) -> Prompt:
        """All labels of the scene and up to five that are not in it, in any order."""
        there = list(dict.fromkeys(region.label for region in scene.regions))  # a set has no order to rely on
        absent = [label for label in LABELS if label not in there]
        asked = [*there, *rng.choice(absent, int(rng.integers(6)), replace=False)]
        return build_prompts([asked[cell] for cell in rng.permutation(len(asked))], self.encode)[0]

    def encode(self, tag: str) -> list[int]:
        """Token ids of one tag."""
        return self.tokenizer(str(tag), add_special_tokens=False)["input_ids"]

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Places of the encoder + queries after each layer of the decoder."""
        output = self.network.model(
            pixel_values=normalized(batch["pixels"]),
            input_ids=batch["ids"],
            attention_mask=batch["attended"],
            token_type_ids=torch.zeros_like(batch["ids"]),
        )
        with torch.autocast(batch["pixels"].device.type, enabled=False):
            return self._losses(output, batch)

    def _losses(self, output: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        length = batch["ids"].shape[1]
        asked = batch["attended"].bool()[:, None, :]
        there = batch["spans"].any(-1)
        text = output.encoder_last_hidden_state_text.float()
        pixels = batch["pixels"].shape[-2:]

        logits = output.enc_outputs_class[..., :length].float()
        target, wanted = assign_places(batch, pixels, there)
        cells = focal(logits, target, asked)
        found = output.enc_outputs_coord_logits.float()[wanted[0], wanted[1]].sigmoid()
        cells = cells / there.sum() + 2 * box_loss(found, batch["boxes"][wanted[0], wanted[2]])

        references = torch.cat(
            [output.init_reference_points[:, None], output.intermediate_reference_points[:, :-1]], 1
        ).float()
        total = cells
        numbers = {"places": cells.detach()}
        for layer in range(references.shape[1]):
            hidden = output.intermediate_hidden_states[:, layer].float()
            logits = (hidden @ text.transpose(1, 2)).masked_fill(~asked, -1e4)
            reference = torch.special.logit(references[:, layer], eps=1e-5)
            boxes = (self.network.bbox_embed[layer](hidden).float() + reference).sigmoid()
            pairs = match(logits.detach(), boxes.detach(), batch, there)
            target = torch.zeros_like(logits)
            target[pairs[0], pairs[1]] = batch["spans"][pairs[0], pairs[2]]
            classes = focal(logits, target, asked) / there.sum()
            fit = box_loss(boxes[pairs[0], pairs[1]], batch["boxes"][pairs[0], pairs[2]])
            total = total + classes + 2 * fit
            numbers |= {f"classes{layer}": classes.detach(), f"boxes{layer}": fit.detach()}
        return total, numbers

    def export(self, folder: Path) -> dict[str, float]:
        """A folder of transformers; gives the box threshold with the best F1 of things on half of the validation
        world, where the detector is asked for the labels that are there, and what comes of it on the other half."""
        path = folder / "detector"
        with quiet():
            self.network.save_pretrained(path)
            self.tokenizer.save_pretrained(path)
            self.processor.save_pretrained(path)
        settings = DetectorSettings(model=str(path), box_threshold=0.1, **SETTINGS)
        stage = Detector(settings, DecodeSettings(), ComputeSettings(precision="float32"))
        scenes = [draw_scene(VALIDATION_WORLD, index) for index in range(self.validation)]
        rows = stage(Shard(0, [_row(scene) for scene in scenes])).rows
        if failed := [row.reason for row in rows if row.status == "failed"]:
            raise RuntimeError(f"the exported detector fails: {failed[0]}")
        found = {}
        half = len(scenes) // 2
        for threshold in (step / 20 for step in range(2, 17)):
            found[threshold] = _score(scenes[:half], rows[:half], threshold)
        best = max(found, key=lambda threshold: _f1(found[threshold]))
        score = _score(scenes[half:], rows[half:], best)
        metrics = {"box_threshold": best, "validation_box_f1": _f1(score)}
        return metrics | {
            "validation_box_recall": score.things.recall,
            "validation_box_precision": score.things.precision,
        }


def _score(scenes: list[Scene], rows: list[ImageRecord], threshold: float) -> Score:
    score = Score()
    for scene, row in zip(scenes, rows, strict=True):
        score.add_boxes(scene, [(region.label, region.box) for region in row.regions if region.score >= threshold])
    return score


def _f1(score: Score) -> float:
    things = score.things
    return 2 * things.matched / max(things.found + things.true, 1)


def _row(scene: Scene) -> ImageRecord:
    """A scene as it comes from the tagger, if that makes no mistake."""
    stream = io.BytesIO()
    scene.image.save(stream, "PNG")
    tags = [Tag(label, 1.0) for label in LABELS if any(region.label == label for region in scene.regions)]
    row = ImageRecord("scene", "scene.png", key="scene", data=stream.getvalue(), format="PNG", tags=tags)
    row.width, row.height = scene.image.size
    return row


def build_tokenizer(labels: Sequence[str] = LABELS) -> BertTokenizer:
    """BERT's kind of tokenizer over the words of the labels, with letters for all other words."""
    words = sorted({word for label in labels for word in label.lower().split()})
    letters = "abcdefghijklmnopqrstuvwxyz0123456789-'"
    # Grounding DINO has BERT's ids of these built in; everything else may stand anywhere.
    fixed = {0: "[PAD]", 100: "[UNK]", CLS: "[CLS]", SEP: "[SEP]", 103: "[MASK]", DOT: ".", 1029: "?"}
    free = iter([*letters, *(f"##{letter}" for letter in letters), *(word for word in words if len(word) > 1)])
    vocabulary = {fixed.get(index) or next(free, f"[unused{index}]"): index for index in range(1030)}
    return BertTokenizer(vocab=vocabulary, do_lower_case=True)


def build_config(words: int) -> GroundingDinoConfig:
    """One encoder and two decoder layers over three scales; the Swin is the tagger's."""
    return GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=EDGE, embed_dim=SHAPE.embed_dim, depths=SHAPE.depths, num_heads=SHAPE.num_heads,
            window_size=SHAPE.window, drop_path_rate=0.0, out_features=["stage2", "stage3"],
        ),
        text_config=BertConfig(
            vocab_size=words, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128,
            max_position_embeddings=256, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        ),
        d_model=128, encoder_layers=1, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=256, decoder_ffn_dim=256, num_queries=100, max_text_len=128, num_feature_levels=3,
        encoder_n_points=2, dropout=0.0,
        fusion_droppath=0.0, fusion_dropout=0.0, text_enhancer_dropout=0.0, disable_custom_kernels=True,
    )  # fmt: skip


@torch.no_grad()
def calibrate(network: GroundingDinoForObjectDetection) -> None:
    """Let the class logits start near -UNSURE.

    They are products of normed vectors without a scale or bias, about sqrt(d) large at the start, which saturates
    every sigmoid. The norms before the product have what is needed: a small weight for the words, and biases along
    (1, ..., 1), to which a normed vector is orthogonal, so that the product of the biases adds to each logit and
    nothing else does.
    """
    model = network.model
    width = model.config.d_model
    words = [layer.text_enhancer_layer.layer_norm_after for layer in model.encoder.layers][-1]
    words.weight.fill_(width**-0.5)
    words.bias.fill_(width**-0.5)
    for norm in (model.enc_output_norm, model.decoder.layer_norm):
        norm.bias.fill_(-UNSURE * width**-0.5)
    for layer in model.encoder.layers:  # 1e-4 would take a small budget to open
        layer.fusion_layer.vision_param.fill_(0.1)
        layer.fusion_layer.text_param.fill_(0.1)


def load_backbone(network: GroundingDinoForObjectDetection, tagger: Path) -> None:
    """Put the tagger's Swin into the detector's: the same weights under transformers' names. Its last stage is a start
    only, because transformers shifts windows there too, where the image is no larger than a window."""
    from safetensors.torch import load_file

    state = load_file(tagger)
    swin = network.model.backbone.conv_encoder.model.swin
    own = swin.state_dict()
    names = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection", "patch_embed.norm": "embeddings.norm",
        "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj",
        "attn.relative_position_bias_table": "attention.relative_position_bias.relative_position_bias_table",
    }  # fmt: skip
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith("visual_encoder.") or name.startswith("visual_encoder.norm."):
            continue
        name = name.removeprefix("visual_encoder.")
        if name.startswith("layers."):
            name = f"encoder.{name}"
        for old, new in names.items():
            name = name.replace(old, new)
        if ".attn.qkv." in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                renamed[name.replace("attn.qkv", f"attention.{part}_proj")] = piece
        else:
            renamed[name] = tensor
    free = ("layernorm.", "relative_position_index")  # not used, and computed anew
    missing = [name for name in own if name not in renamed and not any(word in name for word in free)]
    if missing or not renamed.keys() <= own.keys():
        raise ValueError(f"the tagger's Swin does not fit: {missing[:3]} {sorted(renamed.keys() - own.keys())[:3]}")
    swin.load_state_dict(renamed, strict=False)


def focal(logits: Tensor, target: Tensor, asked: Tensor, alpha: float = 0.3, gamma: float = 2.0) -> Tensor:
    """Sum of the focal loss (Lin et al. 2017) over pairs of place and word, where the word is one."""
    probability = logits.sigmoid()
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    wrong = torch.where(target > 0, 1 - probability, probability)
    weight = torch.where(target > 0, alpha, 1 - alpha)
    return (loss * weight * wrong**gamma).masked_fill(~asked, 0).sum()


def box_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """DETR's: 5 L1 + 2 GIoU, halved; boxes cxcywh `[N, 4]`, mean over them."""
    l1 = (found - wanted).abs().sum(-1).mean()
    giou = generalized_box_iou_loss(
        box_convert(found, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy"), reduction="mean"
    )
    return 2.5 * l1 + giou


def assign_places(batch: Batch, pixels: tuple[int, int], there: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Which places learn which box: the nearest to its center on the scale nearest to its size.

    Returns:
        The words that each place should name `[B, places, tokens]`, and as indices the image, the place and the box of
        each pair.
    """
    height, width = pixels
    device = batch["boxes"].device
    centers, sizes = [], []
    for stride in STRIDES:
        rows, columns = -(-height // stride), -(-width // stride)
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        centers.append(torch.stack([(x.flatten() + 0.5) / columns, (y.flatten() + 0.5) / rows], -1))
        sizes.append(torch.full((rows * columns,), float(stride)))
    cell = torch.cat(centers).to(device)
    scale = torch.cat(sizes).to(device)
    edges = torch.tensor([width, height], device=device)
    boxes = batch["boxes"]
    extent = boxes[..., 2:] * edges  # in pixels
    off = (cell - boxes[:, :, None, :2]).abs() * edges  # [B, boxes, places, 2]
    distance = (off / (extent.clamp_min(8)[:, :, None] / 2)).amax(-1)
    level = (torch.log2(extent.prod(-1).sqrt().clamp_min(1))[..., None] - torch.log2(3 * scale)).abs()
    cost = distance + level.clamp_max(4)
    cost = cost.masked_fill(~there[..., None], 1e4)
    nearest = cost.topk(PLACES_PER_BOX, dim=-1, largest=False)
    limit = nearest.values[..., -1:]
    outside = (distance > 1.0) & (cost > nearest.values[..., :1])  # the very nearest counts in any case
    cost = cost.masked_fill((cost > limit) | outside, 1e4)
    best = cost.min(1)  # a place learns one box
    image, position = (best.values < 1e3).nonzero(as_tuple=True)
    box = best.indices[image, position]
    target = torch.zeros(*best.values.shape, batch["spans"].shape[-1], device=device)
    target[image, position] = batch["spans"][image, box]
    return target, (image, position, box)


def match(logits: Tensor, boxes: Tensor, batch: Batch, there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cheapest one-to-one assignment of queries to boxes for each image, with DETR's costs: as indices the image,
    the query and the box of each pair."""
    from scipy.optimize import linear_sum_assignment  # of an extra

    probability = logits.sigmoid()
    words = batch["spans"] / batch["spans"].sum(-1, keepdim=True).clamp_min(1)
    right = 0.25 * (1 - probability) ** 2 * -(probability + 1e-8).log()
    wrong = 0.75 * probability**2 * -(1 - probability + 1e-8).log()
    classes = (right - wrong) @ words.transpose(1, 2)
    l1 = torch.cdist(boxes, batch["boxes"], p=1)
    found, wanted = box_convert(boxes, "cxcywh", "xyxy"), box_convert(batch["boxes"], "cxcywh", "xyxy")
    giou = torch.stack([generalized_box_iou(a, b) for a, b in zip(found, wanted, strict=True)])
    cost = (2 * classes + 5 * l1 - 2 * giou).cpu().numpy()
    pairs = []
    for image, count in enumerate(there.sum(1).tolist()):
        queries, targets = linear_sum_assignment(cost[image][:, :count])
        pairs.append(np.stack([np.full(len(queries), image), queries, targets]))
    image, query, box = torch.from_numpy(np.concatenate(pairs, 1)).to(logits.device)
    return image, query, box
