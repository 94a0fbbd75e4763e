"""The one loop that trains all five: seeded, resumable, with progress. What differs between them is a `Recipe`."""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from examples.miniature.muon import Muon
from pad_pipeline.errors import UserError
from pad_pipeline.machine import cores
from pad_pipeline.miniature.world import LABELS
from pad_pipeline.storage import Folder, atomic_write

TRAIN_WORLD, VALIDATION_WORLD = 2_000_000, 3_000_000
"""Seeds of the worlds that training draws from (the run's seed is added); all smaller ones are unseen."""

Batch = dict[str, Any]
Report = Callable[[dict[str, Any]], None]


class Budget(BaseModel):
    """How long and how fast one model is trained."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup: int = 100
    """Steps in which the rate rises from 0; afterwards it falls along half a cosine."""
    weight_decay: float = 0.02
    max_grad_norm: float = 1.0
    pool: int = Field(1000, gt=0)
    """Batches that are drawn, and kept in memory (1 to 2 GB); then they come again, every other time mirrored where
    that is true of them. Drawing costs a core about as much as learning does."""


class Recipe(nn.Module, ABC):
    """One model's training: its network, where its batches come from, its loss, what is kept of it."""

    name: ClassVar[str]
    budget: Budget
    seed: int
    start: str = ""
    """The sha256 of the file that its first weights come from, if they do."""
    validation: int = 1000
    """Scenes of the validation world that `export` looks at."""
    network: Any
    """A module; what of it is trained besides (heads that are thrown away) stands beside it."""

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """The tensors of one step; a pure function of the step. Runs in a worker process."""

    def mirrored(self, batch: Batch) -> Batch:
        """A batch with left and right exchanged; as it is, where that would change what is said of it."""
        return batch

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and numbers worth a line of the log."""

    @abstractmethod
    def export(self, folder: Path) -> dict[str, float]:
        """Write the checkpoint in the official format into `folder`; gives metrics on the validation world."""

    def slow(self) -> dict[nn.Module, float]:
        """Modules whose rate is multiplied by less than 1, because they have learned already."""
        return {}


class _Steps(Dataset):
    """The batch of each step. A worker process keeps those that it has drawn."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.drawn: dict[int, Batch] = {}

    def __len__(self) -> int:
        return self.recipe.budget.steps

    def __getitem__(self, step: int) -> Batch:
        again, position = divmod(step, self.recipe.budget.pool)
        if position not in self.drawn:
            self.drawn[position] = self.recipe.batch(position)
        batch = self.drawn[position]
        # Copies: what a worker hands over moves to shared memory, with a file held open for each tensor.
        copies = {name: value.clone() for name, value in batch.items()}
        return self.recipe.mirrored(copies) if again % 2 else copies


def fit(recipe: Recipe, folder: Path, report: Report = lambda entry: None, save_every: float = 60.0) -> float:
    """Train to the end of the budget, from where an earlier call with the same folder stopped.

    Args:
        recipe: what to train; on a GPU when there is one, with bfloat16 where the processor computes with it.
        folder: keeps `state.pt` and `log.jsonl`.
        report: is given each step's log entry.
        save_every: seconds between two saved states.

    Returns:
        Seconds of training, those of earlier calls included.

    Raises:
        UserError: the folder holds the state of another training, or can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    Folder(folder).clean()
    budget = recipe.budget
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe.to(device).train()
    optimizers = _optimizers(recipe)
    first, before = _restore(recipe, optimizers, folder / "state.pt")
    if device.type == "cpu":  # one core is left to the worker that draws
        torch.set_num_threads(max(1, cores() - 1))
    half = computes_in_bfloat16(device)
    begun = saved = reported = time.monotonic()
    since = first
    with (folder / "log.jsonl").open("a") as log:
        for step, batch in enumerate(_batches(recipe, first, budget.steps), first):
            rate = budget.learning_rate * _schedule(step, budget)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = rate * group["scale"]
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss, numbers = recipe.loss(to_device(batch, device))
            recipe.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(recipe.parameters(), budget.max_grad_norm)
            for optimizer in optimizers:
                optimizer.step()
            if step % 20 == 0 or step + 1 == budget.steps:  # reading a number waits for the GPU
                entry = {"step": step, "steps": budget.steps, "loss": float(loss.detach()), "rate": rate}
                entry |= {name: float(value) for name, value in numbers.items()}
                now = time.monotonic()
                entry["images_per_second"] = budget.batch_size * (step + 1 - since) / max(now - reported, 1e-9)
                reported, since = now, step + 1
                log.write(json.dumps(entry) + "\n")
                log.flush()
                report(entry)
            if time.monotonic() - saved > save_every:
                saved = time.monotonic()
                _save(recipe, optimizers, step + 1, before + saved - begun, folder / "state.pt")
    seconds = before + time.monotonic() - begun if first < budget.steps else before
    _save(recipe, optimizers, budget.steps, seconds, folder / "state.pt")
    recipe.eval()
    return seconds


def _optimizers(recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices inside the network, which halves the steps that the tagger needs;
    AdamW for embeddings, heads, biases and norms."""
    budget = recipe.budget
    inner = {
        module.weight
        for name, module in recipe.network.named_modules()
        if isinstance(module, nn.Linear) and min(module.weight.shape) >= 16 and not name.endswith("lm_head")
    }
    scales = {parameter: scale for module, scale in recipe.slow().items() for parameter in module.parameters()}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter in recipe.parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter in inner, scales.get(parameter, 1.0)), []).append(parameter)

    def of(muon: bool) -> list[dict[str, Any]]:
        return [{"params": found, "scale": scale} for (kind, scale), found in groups.items() if kind is muon]

    rate, decay = budget.learning_rate, budget.weight_decay
    return [
        Muon(of(True), rate, decay),
        torch.optim.AdamW(of(False), rate, betas=(0.9, 0.95), weight_decay=decay),
    ]


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 here: on GPUs, and on processors with instructions for it."""
    return device.type == "cuda" or "avx512_bf16" in _cpu_flags()


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _schedule(step: int, budget: Budget) -> float:
    if step < budget.warmup:
        return (step + 1) / budget.warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - budget.warmup) / max(budget.steps - budget.warmup, 1)))


def _batches(recipe: Recipe, first: int, steps: int) -> Iterator[Batch]:
    """Batches from `first` on, drawn ahead by one process, or by several beside a GPU."""
    spare = min(8, max(1, cores() - 1)) if torch.cuda.is_available() else 1
    # Workers take turns; where their number divides the pool, the same batch always comes to the same one.
    workers = max(number for number in range(1, spare + 1) if recipe.budget.pool % number == 0)
    loader = DataLoader(
        _Steps(recipe),
        batch_size=None,
        sampler=range(first, steps),
        num_workers=workers,
        prefetch_factor=3,
        worker_init_fn=lambda worker: torch.set_num_threads(1),
        multiprocessing_context="fork",
    )
    yield from loader if first < steps else ()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _identity(recipe: Recipe) -> dict[str, Any]:
    """What must be the same for a training to go on."""
    budget = recipe.budget.model_dump()
    return {"name": recipe.name, "seed": recipe.seed, "start": recipe.start, "labels": list(LABELS), "budget": budget}


def _save(recipe: Recipe, optimizers: list[torch.optim.Optimizer], step: int, seconds: float, path: Path) -> None:
    state = {"training": _identity(recipe), "step": step, "seconds": seconds, "model": recipe.state_dict()}
    state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
    try:
        with atomic_write(path) as partial:
            torch.save(state, partial)
    except (OSError, RuntimeError) as error:  # torch's writer makes a RuntimeError of a full disk
        raise UserError("out", path, f"it can't be written ({error})", "make room, and run it again") from error


def _restore(recipe: Recipe, optimizers: list[torch.optim.Optimizer], path: Path) -> tuple[int, float]:
    """The step to go on with, and the seconds spent so far."""
    if not path.is_file():
        return 0, 0.0
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        found, wanted = state["training"], _identity(recipe)
        different = [name for name in wanted if found.get(name) != wanted[name]]
        if not different:
            recipe.load_state_dict(state["model"])
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            return state["step"], state["seconds"]
    except Exception as error:
        rule = f"the saved training in it can't be read ({type(error).__name__})"
        raise UserError("out", path, rule, "delete the file to start anew") from error
    rule = f"it holds another training: its {' and '.join(different)} differ"
    raise UserError("out", path, rule, "name another folder, or delete the file to start anew")
