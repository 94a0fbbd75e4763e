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
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pad_pipeline.training.batches import Batch
from pad_pipeline.training.flops import peak_flops, step_flops
from pad_pipeline.training.losses import patch_loss
from pad_pipeline.training.model import MultimodalModel
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


def write_models(folder: Path, size: Size, device: torch.device) -> None:
    """Random weights in bfloat16, as a checkpoint."""
    with torch.device(device):
        for name, model in (
            ("vision", CLIPVisionModel(CLIPVisionConfig(**size.vision))),
            ("llm", LlamaForCausalLM(LlamaConfig(**size.llm, max_position_embeddings=4096)).to(torch.bfloat16)),
        ):
            model.save_pretrained(folder / name)
    words = {f"w{n}": n + 3 for n in range(size.llm["vocab_size"] - 3)} | {"<unk>": 0, "<s>": 1, "</s>": 2}
    tokenizer = Tokenizer(models.WordLevel(words, "<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder / "llm")


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
        torch.randint(0, 256, (samples * REGIONS, model.grid**2), device=device, dtype=torch.uint8),
        torch.randn(samples * REGIONS, model.width, device=device, dtype=torch.float16),
        torch.arange(samples, device=device).repeat_interleave(REGIONS),
    )


def loss_of(model: MultimodalModel, batch: Batch, every_logit: bool) -> Tensor:
    """Both losses of a micro-batch."""
    if not every_logit:
        losses = model(batch)
        return losses.caption + losses.patch
    tokens = model.encode_images(batch.pixels)
    logits = model.llm.get_output_embeddings()(model.run_llm(tokens, batch)).float()
    targets = torch.full((len(logits),), -100, device=logits.device).index_copy(0, batch.predicting, batch.targets)
    patch = patch_loss(tokens, batch.embeds, batch.coverage, batch.image, model.settings.patch_loss)
    return F.cross_entropy(logits, targets) + patch


def measure(folder: Path, row: Row, samples: int, steps: int, device: torch.device) -> list[str]:
    """Samples a second, share of the peak, memory; "-" where it does not fit."""
    settings = TrainSettings(activation_checkpointing=row.recompute, compile=row.compiled)
    model = MultimodalModel(str(folder / "vision"), str(folder / "llm"), settings, device)
    model.llm.train(row.recompute)
    optimizer = torch.optim.AdamW(model.projector.parameters(), 1e-3)
    batch = drawn(model, samples, device)
    on_gpu = device.type == "cuda"

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(model, batch, row.every_logit).backward()
        optimizer.step()

    try:
        for _ in range(3):
            step()
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.monotonic()
        for _ in range(steps):
            step()
        if on_gpu:
            torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return [row.name, str(samples), "-", "-", "-"]
    seconds = (time.monotonic() - began) / steps
    flops = step_flops(model, samples, batch.ids.numel(), len(batch.targets)) / seconds
    most = peak_flops(device)
    share = f"{flops / most:.1%}" if most else f"{flops / 1e12:.3f} TFLOP/s"
    memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if on_gpu else ""
    return [row.name, str(samples), f"{samples / seconds:.2f}", share, memory]


def main() -> None:
    """Write models, measure each row at each micro-batch, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--micro-batch", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--steps", type=int, default=10)
    asked = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table = Table("what", "micro-batch", "samples/s", "of the peak", "GiB")
    with tempfile.TemporaryDirectory(prefix="pad-bench-") as home:
        write_models(Path(home), SIZES[asked.size], device)
        for row in ROWS:
            for samples in asked.micro_batch:
                table.add_row(*measure(Path(home), row, samples, asked.steps, device))
                gc.collect()
                if device.type == "cuda":
                    torch.cuda.empty_cache()
    console = Console(width=120)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    console.print(f"Stage 1, {asked.size}, random weights, on {name}; torch {torch.__version__}.")
    console.print(table)


if __name__ == "__main__":
    main()
