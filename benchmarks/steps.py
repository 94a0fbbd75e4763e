"""Single steps of the annotation chain, each beside the usual way: `python -m benchmarks.steps`.

The ways run in turns in one process, and give the same result; the times are the shortest of several. On a machine
with a GPU, the sampling runs there.
"""

from __future__ import annotations

import argparse
import io
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from transformers.models.grounding_dino.modeling_grounding_dino import MultiScaleDeformableAttention

from benchmarks.overlap import overlap
from benchmarks.photographs import draw_sizes
from pad_pipeline.images import DecodeSettings, decode
from pad_pipeline.records import ImageRecord, Tag
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.decode import image
from pad_pipeline.stages.dino.sampling import FusedSampling
from pad_pipeline.stages.ground import Detector, DetectorSettings
from pad_pipeline.stages.rle import encode_mask, encode_runs, run_starts
from pad_pipeline.workflows.models.settings import load_models

WIDTH, HEIGHT, BOXES = 640, 480, 20
"""Of an image; of its boxes."""
Ways = dict[str, Callable[[], Any]]
"""Name of a way -> what it does. The first is the usual way."""


def main() -> None:
    """Time all steps, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print("| step | way | ms an image | against the usual way |\n| --- | --- | --- | --- |")
    for step, ways in (*masks(), *sampling(), *pixels()):
        best = dict.fromkeys(ways, float("inf"))
        with torch.inference_mode():
            for _ in range(rounds):
                for name, work in ways.items():
                    best[name] = min(best[name], seconds(work))
        usual = next(iter(best.values()))
        for name, found in best.items():
            print(f"| {step} | {name} | {found * 1e3:.2f} | {usual / found:.1f}x |", flush=True)
    print("\n| detector's `pad_to` | images in a batch | pixels that are padding |\n| --- | --- | --- |")
    for pad_to in (1, 32):
        images, padding = batches(pad_to)
        print(f"| {pad_to} | {images:.1f} | {padding:.1%} |")
    print("\n| engine | seconds | share of the time in which the models work |\n| --- | --- | --- |")
    for name, isolated in (("operations one after another", False), ("pad build", True)):
        total, share = overlap(isolated)
        print(f"| {name} | {total:.1f} | {share:.1%} |", flush=True)


def seconds(work: Callable[[], Any]) -> float:
    """Return the seconds of one call, also on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def masks() -> Iterator[tuple[str, Ways]]:
    """Yield the encoding of an image's masks: all of it on the CPU, and what is left to the host behind a GPU."""
    chance = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    ellipses = [
        ((y - chance.integers(HEIGHT)) / chance.integers(20, 150)) ** 2
        + ((x - chance.integers(WIDTH)) / chance.integers(20, 200)) ** 2
        < 1
        for _ in range(BOXES)
    ]
    masks = torch.from_numpy(np.stack(ellipses))
    bits = np.packbits(masks.numpy(), axis=-1)
    starts = run_starts(masks).numpy()

    def usual() -> list[dict[str, Any]]:
        return [encode_mask(mask) for mask in np.unpackbits(bits, axis=-1, count=WIDTH).view(bool)]

    def behind() -> list[dict[str, Any]]:
        return [encode_runs(of_mask, WIDTH, HEIGHT) for of_mask in starts]

    assert usual() == behind()
    yield f"{BOXES} masks to RLE, on the host", {"pixels, by pycocotools": usual, "starts of runs": behind}


def sampling() -> Iterator[tuple[str, Ways]]:
    """Yield a layer of Grounding DINO's encoder at official size: all places of four levels are queries."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shapes = [(100, 134), (50, 67), (25, 34), (13, 17)]
    places = torch.cat([centers(*shape) for shape in shapes])
    chance = torch.Generator().manual_seed(0)
    near = places[None, :, None, None, None] + 0.03 * torch.randn(1, len(places), 8, 4, 4, 2, generator=chance)
    value = torch.randn(1, len(places), 8, 32, generator=chance)
    weights = torch.rand(1, len(places), 8, 4, 4, generator=chance)
    begins = torch.tensor([0, *(height * width for height, width in shapes)][:-1]).cumsum(0)
    value, near, weights, begins, sizes = (
        tensor.to(device) for tensor in (value, near, weights, begins, torch.tensor(shapes))
    )
    arguments = value, sizes, shapes, begins, near, weights, 64
    usual, fused = MultiScaleDeformableAttention(), FusedSampling()
    assert (usual(*arguments) - fused(*arguments)).abs().max() < 1e-4
    yield (
        f"deformable sampling of a layer, {device.type}",
        {"transformers": lambda: usual(*arguments), "pad": lambda: fused(*arguments)},
    )


def centers(height: int, width: int) -> Tensor:
    """Return the centers of a map's pixels, x and y in fractions, `[height * width, 2]`."""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def pixels() -> Iterator[tuple[str, Ways]]:
    """Yield the decoding of a photograph for four stages, and two decoders."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    data, settings = stream.getvalue(), DecodeSettings()
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)

    def kept() -> None:
        row = ImageRecord("one", "one", key="one", data=data)
        decode(row.data, settings)
        for _ in range(3):
            image(row, settings)

    yield (
        "a JPEG for four stages",
        {"decoded by each": lambda: [decode(data, settings) for _ in range(4)], "decoded by the first two": kept},
    )
    theirs = decode_jpeg(raw, ImageReadMode.RGB).permute(1, 2, 0).numpy()
    differ = int(np.abs(theirs.astype(int) - np.asarray(decode(data, settings)[0])).max())
    yield (
        f"a JPEG, decoded once (torchvision's pixels differ by {differ})",
        {"Pillow": lambda: decode(data, settings), "torchvision": lambda: decode_jpeg(raw, ImageReadMode.RGB)},
    )


def batches(pad_to: int, images: int = 2048, shard: int = 512) -> tuple[float, float]:
    """Return the mean number of images in the batches of the detector for drawn sizes of web images, at official
    settings, and the share of all pixels that is padding."""
    rows = [
        ImageRecord(str(number), str(number), key=str(number), width=width, height=height, tags=[Tag("tree", 1.0)])
        for number, (width, height) in enumerate(draw_sizes(images))
    ]
    detector = load_models("miniature").annotator(DetectorSettings).model_copy(update={"pad_to": pad_to})
    stage = detector.model_copy(update={"batch_size": 8}).make(DecodeSettings(), ComputeSettings())
    assert isinstance(stage, Detector)
    stage.model.processor.size = {"shortest_edge": 800, "longest_edge": 1333}
    found = [batch for first in range(0, images, shard) for batch in stage.batches(rows[first : first + shard])]
    inside = sum(math.prod(stage.model.resized(row.width, row.height)) for row in rows)
    return images / len(found), 1 - inside / sum(math.prod(stage.shape(row)) for row in rows)


if __name__ == "__main__":
    main()
