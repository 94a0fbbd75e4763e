"""How fast samples come from shards to the model: `python -m benchmarks.loader`.

Ours, which reads by offset in an order of its own and decodes in threads, beside plain `webdataset`, which reads tars
from end to end in processes. Both give the same normalized images, token ids, coverages and embeddings; in turns, in
one run.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
import webdataset as wds
from rich.console import Console
from rich.table import Table

from pad_pipeline.miniature.files import write_world
from pad_pipeline.miniature.shipped import NAME, member_reference
from pad_pipeline.pretrained import load_tokenizer
from pad_pipeline.shards.reader import load_npy, open_shards
from pad_pipeline.sources.coco import CocoSource
from pad_pipeline.training.batches import collate, load_steps
from pad_pipeline.training.examples import Example, Preprocessor, ShardExamples
from pad_pipeline.training.order import SampleOrder
from pad_pipeline.training.settings import TrainSettings
from pad_pipeline.training.template import Template
from pad_pipeline.training.towers import preprocessing
from pad_pipeline.weights import fetch_model
from pad_pipeline.workflows.models.settings import load_models
from pad_pipeline.workflows.runs.build import import_coco
from pad_pipeline.workflows.runs.options import RunOptions

BATCH = 32


def ours(examples: ShardExamples, workers: int) -> Iterator[object]:
    """Batches as the trainer takes them."""
    examples.settings = TrainSettings(batch_size=BATCH, micro_batch=BATCH, loader_threads=workers)
    order = SampleOrder(len(examples), BATCH, 0)
    return load_steps(examples, order.step, range(len(examples) // BATCH))


def plain(examples: ShardExamples, workers: int) -> Iterator[object]:
    """The same by `webdataset`."""
    folder = Path(str(examples.shards.folder))
    grid, width = examples.preprocessor.view.grid, examples.shards.run.embedding_width

    def example(sample: dict[str, bytes]) -> Example:
        meta = json.loads(sample["json"])
        image = next(value for name, value in sample.items() if name in ("jpg", "png", "jpeg", "webp"))
        rows = [region["embedding"] for region in meta["regions"]]
        labels = {o["embedding"] for r in meta["regions"] for o in [r, *r["alternates"]]}
        coverage = load_npy(sample["masks.npy"], (len(rows), grid, grid), np.uint8).reshape(-1, grid * grid)
        embeds = load_npy(sample["embeds.npy"], (len(labels), width), np.float16)[rows]
        text = examples.template.caption(meta["caption"])
        return Example(
            str(sample["__key__"]), text, examples.preprocessor.pixels(image, examples.decoding), coverage, embeds,
            np.ones(len(embeds), bool),
        )  # fmt: skip

    tars = sorted(map(str, folder.glob("pad-*.tar")))
    dataset = wds.WebDataset(tars, shardshuffle=False).map(example).batched(BATCH, collation_fn=list, partial=False)
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers)
    return (collate(batch, examples.preprocessor) for batch in loader)


def main() -> None:
    """Draw, build, read in turns, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="pad-bench-") as home:
        models = load_models(NAME)
        world = write_world(Path(home, "world"), asked.images, seed=0)
        source = CocoSource(world.instances, world.images, world.llava)
        shards = Path(home, "shards")
        import_coco(source, shards, models.llm, models.decode, models.view, RunOptions(shard_size=256))
        folder = open_shards(shards)
        mean, std, _ = preprocessing(fetch_model("vision", member_reference(NAME, "clip")))
        preprocessor = Preprocessor(folder.run.view, mean, std, folder.run.view.grid**2)
        tokenizer = load_tokenizer("llm", fetch_model("llm", member_reference(NAME, "llm")))
        examples = ShardExamples(folder, preprocessor, Template("plain", tokenizer), TrainSettings())
        rates: dict[str, list[float]] = {"webdataset": [], "pad": []}
        for _ in range(asked.repeats):
            for name, way in (("webdataset", plain), ("pad", ours)):
                began, batches = time.monotonic(), sum(1 for _ in way(examples, asked.workers))
                rates[name].append(batches * BATCH / (time.monotonic() - began))
    table = Table("loader", "samples/s", "lowest-highest", "against webdataset")
    base = median(rates["webdataset"])
    for name, found in rates.items():
        table.add_row(name, f"{median(found):.0f}", f"{min(found):.0f}-{max(found):.0f}", f"{median(found) / base:.2f}")
    console = Console(width=100)
    console.print(f"{asked.images} scenes, batches of {BATCH}, {asked.workers} workers, {asked.repeats} runs each.")
    console.print(table)


if __name__ == "__main__":
    main()
