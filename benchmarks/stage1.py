"""How fast stage 1 trains, technique by technique: `python -m benchmarks.stage1 --size 7b` on a GPU.

Random weights in the shape of LLaVA-1.5 (CLIP-ViT-L/14-336, 576 vision tokens; LLaMA-2's), synthetic batches on the
device: forward, both losses, backward, one step of AdamW on the projector. The reference does what LLaVA's trainer
does: it computes the LLM's blocks twice, and logits at every position. FLOP are the useful ones: what is computed twice
does not count.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig

from benchmarks.official import drawn_on, write_embedding
from pad_pipeline.training.batches import Batch
from pad_pipeline.training.flops import peak_flops, step_flops
from pad_pipeline.training.losses import patch_loss
from pad_pipeline.training.model import MultimodalModel
from pad_pipeline.training.patch_terms import Regions
from pad_pipeline.training.settings import TrainSettings

CAPTION = 30
"""Tokens of a caption."""
REGIONS = 4
"""In an image."""


class Size(NamedTuple):
    """Of the models."""

    vision: dict[str, int]
    llm: dict[str, int]


SIZES = {
    "7b": Size(
        {"image_size": 336, "patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
         "num_attention_heads": 16},
        {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
         "num_attention_heads": 32},
    ),
    "tiny": Size(
        {"image_size": 56, "patch_size": 14, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 2},
        {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 2},
    ),
}  # fmt: skip


class Row(NamedTuple):
    """One row of the table."""

    name: str
    recompute: bool = False
    every_logit: bool = False
    compiled: bool = False


ROWS = (
    Row("reference: blocks twice, all logits", recompute=True, every_logit=True),
    Row("- blocks once", every_logit=True),
    Row("- supervised logits only"),
    Row("+ compiled blocks", compiled=True),
)


def write_configs(folder: Path, size: Size) -> None:
    """Write what `drawn_on` needs of the models: their configurations, a tokenizer, and the input embedding."""
    CLIPVisionConfig(**size.vision).save_pretrained(folder / "vision")
    write_embedding(folder / "llm", LlamaConfig(**size.llm, max_position_embeddings=4096))


def build_model(folder: Path, row: Row, device: torch.device) -> MultimodalModel:
    """Build the model of a row with weights that are drawn on the device."""
    settings = TrainSettings(activation_checkpointing=row.recompute, compile=row.compiled)
    with drawn_on(device):
        model = MultimodalModel(str(folder / "vision"), str(folder / "llm"), settings, device)
    model.llm.train(row.recompute)
    return model


def drawn(model: MultimodalModel, samples: int, device: torch.device) -> Batch:
    """A micro-batch of `BOS <image> caption`."""
    vision, size = model.vision_tokens, int(model.vision_config["image_size"])
    length = 1 + vision + CAPTION
    start = torch.arange(samples, device=device)[:, None] * length
    ids = torch.randint(3, int(model.llm.config.vocab_size), (samples, length), device=device)
    at = start + 1 + torch.arange(vision, device=device)
    predicting = start + vision + torch.arange(CAPTION, device=device)
    return Batch(
        [str(n) for n in range(samples)],
        ids,
        torch.randn(samples, 3, size, size, device=device),
        at.flatten(),
        predicting.flatten(),
        ids.flatten()[predicting.flatten() + 1],
        Regions.of(
            torch.randn(samples * REGIONS, model.width, device=device, dtype=torch.float16),
            torch.randint(0, 256, (samples * REGIONS, model.grid**2), device=device, dtype=torch.uint8),
            torch.arange(samples, device=device).repeat_interleave(REGIONS),
        ),
    )


def loss_of(model: MultimodalModel, batch: Batch, every_logit: bool) -> Tensor:
    """Both losses of a micro-batch."""
    if not every_logit:
        losses = model(batch)
        return losses.caption + losses.patch
    tokens = model.encode_images(batch.pixels)
    logits = model.llm.get_output_embeddings()(model.run_llm(tokens, batch)).float()
    targets = torch.full((len(logits),), -100, device=logits.device).index_copy(0, batch.predicting, batch.targets)
    patch = patch_loss(tokens, batch.regions, model.settings.patch_loss)
    return F.cross_entropy(logits, targets) + patch


class Step:
    """A training step of one micro-batch: forward, both losses, backward, one step of AdamW on the projector."""

    def __init__(self, model: MultimodalModel, row: Row, samples: int, device: torch.device) -> None:
        self.model, self.row, self.samples, self.device = model, row, samples, device
        self.optimizer = torch.optim.AdamW(model.projector.parameters(), 1e-3)
        self.batch = drawn(model, samples, device)

    def __call__(self) -> None:
        """Take the step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss_of(self.model, self.batch, self.row.every_logit).backward()
        self.optimizer.step()

    def measure(self, steps: int, warm: int = 3) -> dict[str, float | int]:
        """Return samples per second, TFLOP/s, the share of the peak in data sheets, and the peak of memory in GiB.

        Raises:
            torch.OutOfMemoryError: the micro-batch does not fit.
        """
        for _ in range(warm):
            self()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.monotonic()
        for _ in range(steps):
            self()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = (time.monotonic() - began) / steps
        flops = step_flops(self.model, self.samples, self.batch.ids.numel(), len(self.batch.targets)) / seconds
        found: dict[str, float | int] = {"micro-batch": self.samples, "samples/s": self.samples / seconds}
        found["TFLOP/s"] = flops / 1e12
        if most := peak_flops(self.device):
            found["of the data sheet"] = flops / most
        if self.device.type == "cuda":
            found["GiB"] = torch.cuda.max_memory_allocated() / 2**30
        return found


def main() -> None:
    """Measure each row at each micro-batch, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--micro-batch", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--steps", type=int, default=10)
    asked = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    columns = ("samples/s", "TFLOP/s", "of the data sheet", "GiB")
    table = Table("what", "micro-batch", *columns)
    with tempfile.TemporaryDirectory(prefix="pad-bench-") as home:
        write_configs(Path(home), SIZES[asked.size])
        for row in ROWS:
            model = build_model(Path(home), row, device)
            for samples in asked.micro_batch:
                try:
                    found = Step(model, row, samples, device).measure(asked.steps)
                except torch.OutOfMemoryError:
                    found = {}
                table.add_row(
                    row.name, str(samples), *(f"{found[name]:.3g}" if name in found else "-" for name in columns)
                )
                gc.collect()
                if device.type == "cuda":
                    torch.cuda.empty_cache()
            del model
    console = Console(width=120)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    console.print(f"Stage 1, {asked.size}, random weights, on {name}; torch {torch.__version__}.")
    console.print(table)


if __name__ == "__main__":
    main()
