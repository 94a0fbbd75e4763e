"""Boxes -> masks: upstream's numbers, whatever is batched, packed or fused; and the SAMs of transformers by name."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from segment_anything import SamPredictor
from segment_anything.modeling import MaskDecoder, Sam, TwoWayTransformer
from segment_anything.modeling.image_encoder import Attention, ImageEncoderViT
from torch import nn

from benchmarks.official import SAMS
from pad_pipeline.errors import UserError
from pad_pipeline.images import DecodeSettings, decode
from pad_pipeline.miniature.files import World
from pad_pipeline.pretrained import quiet
from pad_pipeline.records import ImageRecord, Region, Shard
from pad_pipeline.stages.compute import Compute, ComputeSettings
from pad_pipeline.stages.ground import DetectorSettings
from pad_pipeline.stages.sam.attention import RelativeAttention
from pad_pipeline.stages.sam.hub import HubSam, use_attended_features
from pad_pipeline.stages.sam.network import OfficialSam, SamShape, build_sam, load_sam, read_shape
from pad_pipeline.stages.segment import Segmenter, SegmenterSettings
from pad_pipeline.workflows.models.settings import ModelSettings
from tests.conftest import record
from tests.hub_models import small_sam, write_sam
from tests.small_models import SAM_SHAPE

DECODING = DecodeSettings()
TWO = ComputeSettings(threads=2)


def upstream(path: Path, shape: SamShape) -> Sam:
    """The checkpoint in upstream's network, with upstream's own attention everywhere."""
    sam, _ = load_sam(path)
    state = sam.image_encoder.state_dict()
    sam.image_encoder = ImageEncoderViT(
        img_size=shape.image_size, patch_size=shape.patch, embed_dim=shape.width, depth=shape.depth,
        num_heads=shape.heads, mlp_ratio=4, out_chans=shape.decoder_width, qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=shape.window,
        global_attn_indexes=tuple(shape.global_attention),
    )  # fmt: skip
    sam.image_encoder.load_state_dict(state)
    state = sam.mask_decoder.state_dict()
    transformer = TwoWayTransformer(2, shape.decoder_width, 8, shape.decoder_mlp)
    sam.mask_decoder = MaskDecoder(
        transformer_dim=shape.decoder_width, transformer=transformer, iou_head_hidden_dim=shape.decoder_width
    )
    sam.mask_decoder.load_state_dict(state)
    return sam.eval()


@pytest.fixture(scope="module")
def sam_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SAM in the official format, with relative positions that matter."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        sam = build_sam(SAM_SHAPE)
        for name, parameter in sam.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                nn.init.normal_(parameter, std=0.5)
    path = tmp_path_factory.mktemp("sam") / "sam_vit_small.pth"
    torch.save(sam.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def settings(sam_path: Path) -> SegmenterSettings:
    return SegmenterSettings(weights=str(sam_path), batch_size=3, boxes_per_call=7)


def boxed(world: World, count: int, boxes: int = 5) -> list[ImageRecord]:
    """Images of all shapes with random boxes; the first has more than the others."""
    rng = np.random.default_rng(0)
    rows = [record(world.images / f"scene-{index:05d}.png") for index in range(count)]
    for place, row in enumerate(rows):
        for _ in range(boxes + 4 * (place == 0)):
            x0, y0 = rng.uniform(0, row.width * 0.6), rng.uniform(0, row.height * 0.6)
            row.regions.append(Region("thing", (x0, y0, x0 + row.width * 0.35, y0 + row.height * 0.3)))
    return rows


@pytest.mark.parametrize(("side", "dim", "heads"), [(8, 32, 2), (14, 80, 1), (5, 36, 3)])
def test_attention_equals_upstreams_and_needs_its_bias(side: int, dim: int, heads: int) -> None:
    """The relative positions inside the matrix product, against upstream's module that writes the biases out: 1e-5.
    Without them, or with rows and columns exchanged, the numbers are far off, so the test can tell."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = Attention(dim, heads, qkv_bias=True, use_rel_pos=True, input_size=(side, side)).eval()
        for parameter in theirs.parameters():
            nn.init.normal_(parameter, std=0.3)
        x = torch.randn(2, side, side, dim)
    ours = RelativeAttention(dim, heads, side).eval()
    ours.load_state_dict(theirs.state_dict())
    with torch.inference_mode():
        wanted = theirs(x)
        assert (ours(x) - wanted).abs().max() < 1e-5 * wanted.abs().max()
        ours.rel_pos_h.data, ours.rel_pos_w.data = theirs.rel_pos_w.data, theirs.rel_pos_h.data
        assert (ours(x) - wanted).abs().max() > 0.1
        ours.rel_pos_h.data, ours.rel_pos_w.data = (torch.zeros_like(theirs.rel_pos_h) for _ in range(2))
        assert (ours(x) - wanted).abs().max() > 0.1


def test_no_matrix_of_scores_is_written_out() -> None:
    """The point of it: 4096 tokens ask for 4096 x 4096 scores a head, 64 MB in float32; a fused kernel never has them
    at once. The unfused path, which a value of another width would select, shows as a softmax of its own."""
    attention = RelativeAttention(32, 2, 24).eval()
    with torch.inference_mode(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        attention(torch.randn(1, 24, 24, 32))
    names = {event.key for event in profile.key_averages()}
    assert any("flash" in name for name in names), names
    assert not any("softmax" in name for name in names), names


def test_packed_boxes_equal_predict_torch(sam_path: Path, world: World) -> None:
    """Logits before any resize, to 1e-4: each image alone by upstream, and all boxes of all images in one call in
    mixed order. A wrong image for a box would be off by far."""
    sam = OfficialSam(sam_path, Compute(TWO))
    predictor = SamPredictor(upstream(sam_path, sam.network_shape))
    rows = boxed(world, 4)
    embeddings = sam.encode([sam.prepare(decode(row.data, DECODING)[0]) for row in rows])
    wanted, quality = [], []
    for row in rows:
        predictor.set_image(np.asarray(decode(row.data, DECODING)[0]))
        boxes = torch.tensor(np.array([region.box for region in row.regions]))
        boxes = predictor.transform.apply_boxes_torch(boxes, (row.height, row.width)).float()
        _, iou, low = predictor.predict_torch(None, None, boxes, multimask_output=False)
        wanted.append(low[:, 0])
        quality.append(iou[:, 0])
    corners = [
        sam.scale_boxes(np.array([region.box for region in row.regions]), row.width, row.height).astype(np.float32)
        for row in rows
    ]
    image = torch.repeat_interleave(torch.arange(4), torch.tensor([len(part) for part in corners]))
    order = torch.randperm(len(image), generator=torch.Generator().manual_seed(0))
    logits, iou = sam.decode(embeddings, image[order], torch.from_numpy(np.concatenate(corners))[order])
    assert torch.cat(wanted).std() > 0.05
    assert (logits - torch.cat(wanted)[order]).abs().max() < 1e-4
    assert (iou - torch.cat(quality)[order]).abs().max() < 1e-4
    wrong, _ = sam.decode(embeddings, (image[order] + 1) % 4, torch.from_numpy(np.concatenate(corners))[order])
    assert (wrong - torch.cat(wanted)[order]).abs().max() > 1e-2


def test_segmenter_equals_sam_predictor(settings: SegmenterSettings, sam_path: Path, world: World) -> None:
    """From file to RLE: identical masks, predicted IoU to 1e-4. Portrait, landscape and odd sizes; a swapped x and y,
    or one resize in place of upstream's two, would show."""
    segmenter = Segmenter(settings.model_copy(update={"pixels_upscaled": 90_000}), DECODING, TWO)
    rows = boxed(world, 5)
    segmenter(Shard(0, rows))
    predictor = SamPredictor(upstream(sam_path, SAM_SHAPE))
    seen = 0
    for row in rows:
        assert row.status == "ok", row.reason
        predictor.set_image(np.asarray(decode(row.data, DECODING)[0]))
        boxes = torch.tensor([region.box for region in row.regions], dtype=torch.float64)
        boxes = predictor.transform.apply_boxes_torch(boxes, (row.height, row.width)).float()
        masks, quality, _ = predictor.predict_torch(None, None, boxes, multimask_output=False)
        for region, mask, iou in zip(row.regions, masks[:, 0].numpy(), quality[:, 0].tolist(), strict=True):
            found = coco_mask.decode(region.rle).astype(bool)
            assert np.array_equal(found, mask)
            assert abs(region.predicted_iou - iou) < 1e-4
            seen += int(mask.any() and not mask.all())
    assert seen > 5, "masks that are all or nothing would make this test blind"


def test_an_image_gets_the_same_masks_alone_in_a_batch_and_in_another_order(
    settings: SegmenterSettings, world: World
) -> None:
    segmenter = Segmenter(settings, DECODING, TWO)
    together = segmenter(Shard(0, boxed(world, 5))).rows
    shuffled = segmenter(Shard(0, [boxed(world, 5)[index] for index in (2, 4, 0, 3, 1)])).rows
    for index, row in enumerate(together):
        (alone,) = segmenter(Shard(0, [boxed(world, 5)[index]])).rows
        (other,) = (other for other in shuffled if other.key == row.key)
        for again in (alone, other):
            assert [region.rle for region in again.regions] == [region.rle for region in row.regions]
            moved = [
                abs(one.predicted_iou - two.predicted_iou) for one, two in zip(again.regions, row.regions, strict=True)
            ]
            assert max(moved) < 1e-5


@pytest.mark.parametrize("shape", [*SAMS.values(), SAM_SHAPE])
def test_a_checkpoint_tells_its_size(shape: SamShape) -> None:
    """ViT-B given where ViT-H was meant used to be a size mismatch; now the file decides."""
    with torch.device("meta"):
        state = build_sam(shape).state_dict()
    assert read_shape({name: tuple(tensor.shape) for name, tensor in state.items()}) == shape


def test_files_that_are_no_sam_are_named(sam_path: Path, tmp_path: Path) -> None:
    """RAM's file and half a file: which it is, and what to give instead."""
    torch.save(
        {
            "label_embed": torch.zeros(1),
            "tagging_head.encoder.layer.0.crossattention.self.query.weight": torch.zeros(1),
        },
        tmp_path / "ram.pth",
    )
    with pytest.raises(UserError, match=r"look like RAM, and should be a SAM's .* give sam_vit_b"):
        load_sam(tmp_path / "ram.pth")
    (tmp_path / "cut.pth").write_bytes(sam_path.read_bytes()[:100_000])
    with pytest.raises(UserError, match="truncated"):
        load_sam(tmp_path / "cut.pth")


def test_weights_that_are_no_numbers_are_refused(sam_path: Path, tmp_path: Path) -> None:
    """NaN gave "ok" images with empty masks and JSON that is none; whole numbers a traceback; and 51 KB whose tensors
    claim gigabytes took all memory before they were looked at."""
    state = torch.load(sam_path, weights_only=True)
    name = "mask_decoder.iou_prediction_head.layers.0.weight"
    for tensor, message in (
        (state[name] * torch.nan, "not finite"),
        (state[name].to(torch.int32), "should hold floating point numbers"),
        (torch.zeros(1).expand(state[name].shape), "no data for its shape"),
    ):
        torch.save(state | {name: tensor}, tmp_path / "odd.pth")
        with pytest.raises(UserError, match=message):
            load_sam(tmp_path / "odd.pth")
    torch.save(state | {"image_encoder.pos_embed": torch.zeros(3)}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match="should be a SAM's"):
        load_sam(tmp_path / "odd.pth")
    with pytest.raises(ValueError, match="more than any SAM's"):
        SamShape(image_size=4096, patch=4, width=16, depth=1, heads=1, global_attention=[0])


def test_an_image_without_finite_masks_fails(settings: SegmenterSettings, world: World) -> None:
    """Whatever the reason: a NaN among the scores made key.json unreadable for strict readers."""
    segmenter = Segmenter(settings, DECODING, TWO)
    head = segmenter.sam.sam.mask_decoder.iou_prediction_head  # type: ignore[union-attr]
    head.layers[-1].bias.data = head.layers[-1].bias.data * torch.nan
    (row,) = segmenter(Shard(0, boxed(world, 1))).rows
    assert (row.status, row.reason) == ("failed", "ValueError: the segmenter gives no finite numbers for this image")


@pytest.mark.parametrize("kind", ["sam", "sam_hq", "sam2"])
def test_sams_of_transformers_equal_their_own_path(kind: str, world: World, tmp_path: Path) -> None:
    """By folder name alone, boxes of several images packed: the masks that transformers' processor and model give for
    each image by itself, pixel for pixel."""
    model, processor = small_sam(kind)
    with quiet():
        model = type(model).from_pretrained(write_sam(tmp_path, kind)).eval()
    if kind == "sam_hq":
        use_attended_features(model.mask_decoder)
    segmenter = Segmenter(SegmenterSettings(weights=str(tmp_path), batch_size=3), DECODING, TWO)
    assert isinstance(segmenter.sam, HubSam)
    rows = segmenter(Shard(0, boxed(world, 4))).rows
    seen = 0
    for row in rows:
        assert row.status == "ok", row.reason
        image = decode(row.data, DECODING)[0]
        boxes = [[list(region.box) for region in row.regions]]
        inputs = processor(images=image, input_boxes=boxes, return_tensors="pt")
        with torch.inference_mode():
            wanted = model(
                pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"].float(), multimask_output=False
            )
        arguments = [wanted.pred_masks, inputs["original_sizes"].tolist()]
        if kind != "sam2":
            arguments.append(inputs["reshaped_input_sizes"].tolist())
        masks = processor.image_processor.post_process_masks(*arguments)[0][:, 0].numpy()
        for region, mask, iou in zip(row.regions, masks, wanted.iou_scores[0, :, 0].tolist(), strict=True):
            assert (coco_mask.decode(region.rle).astype(bool) != mask.astype(bool)).mean() < 1e-3
            assert abs(region.predicted_iou - iou) < 1e-4
            seen += int(mask.any() and not mask.all())
    assert seen > 5, "masks that are all or nothing would make this test blind"


def test_sam_hq_makes_masks_from_the_features_that_saw_the_box(tmp_path: Path) -> None:
    """transformers 5.23 upsamples the image features from before the decoder's transformer, with rows and columns
    exchanged: masks did not lie in their boxes. With pad's correction, the full-size network equals the authors'."""
    sam = HubSam(write_sam(tmp_path, "sam_hq"), Compute(TWO))
    seen: dict[str, torch.Tensor] = {}
    decoder = sam.model.mask_decoder
    decoder.transformer.register_forward_hook(lambda _m, _i, output: seen.update(attended=output[1]))
    decoder.upscale_conv1.register_forward_hook(lambda _m, inputs, _o: seen.update(upsampled=inputs[0]))
    features = sam.encode([torch.randn(3, 128, 128, generator=torch.Generator().manual_seed(1))])
    sam.decode(features, torch.tensor([0, 0]), torch.tensor([[8.0, 8, 60, 90], [40, 20, 100, 50]]))
    for box in range(2):
        rows = seen["upsampled"][box].flatten(1).T
        assert torch.equal(rows, seen["attended"].flatten(0, 1)[box])
    assert not torch.allclose(seen["upsampled"][0], features[0][0], atol=1e-2)


def test_a_model_folder_of_another_kind_is_named(models: ModelSettings) -> None:
    """The detector's folder given as the segmenter's."""
    settings = SegmenterSettings(weights=models.annotator(DetectorSettings).model)
    with pytest.raises(
        UserError, match=r"model_type is 'grounding-dino', and should be sam or sam2 or sam2_video or sam_hq"
    ):
        Segmenter(settings, DECODING, TWO)


def test_bfloat16_changes_few_pixels(world: World) -> None:
    """The GPU's precision, on the trained miniature: masks for true boxes overlap float32's by 0.98 on average."""
    from pad_pipeline.miniature.world import draw_scene
    from pad_pipeline.workflows.models.settings import load_models

    shipped = load_models("miniature").annotator(SegmenterSettings)

    def rows() -> list[ImageRecord]:
        found = [record(world.images / f"scene-{index:05d}.png") for index in range(4)]
        for index, row in enumerate(found):
            row.regions = [Region(region.label, region.box) for region in draw_scene(3, index).regions]
        return found

    exact, rough = (
        Segmenter(shipped, DECODING, ComputeSettings(threads=2, precision=precision))(Shard(0, rows())).rows
        for precision in ("float32", "bfloat16")
    )
    overlaps = [
        coco_mask.iou([one.rle], [two.rle], [0])[0, 0]
        for a, b in zip(exact, rough, strict=True)
        for one, two in zip(a.regions, b.regions, strict=True)
    ]
    assert len(overlaps) > 20
    assert np.mean(overlaps) > 0.98
