"""The training of both stages: one plain PyTorch loop, the same alone, under torchrun and on Ray Train."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.packages import installed, left_out
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.sources.llava import LlavaSource
from pad_pipeline.training.batches import Batch, Step, steps
from pad_pipeline.training.checkpoint import Checkpoints
from pad_pipeline.training.examples import DialogueExamples, Examples, ShardExamples, Sight, check_room
from pad_pipeline.training.export import export
from pad_pipeline.training.flops import flops_of, peak
from pad_pipeline.training.job import Job
from pad_pipeline.training.logbook import DROPPED, Logbook, read_log, write_whole
from pad_pipeline.training.losses import patch_loss_weight
from pad_pipeline.training.model import MultimodalModel, check_view, embedder_for, view_of
from pad_pipeline.training.order import InOrder, Order
from pad_pipeline.training.probe import Probe
from pad_pipeline.training.ranks import Ranks, ranks
from pad_pipeline.training.template import Template
from pad_pipeline.weights import fetch_model

Report = Callable[[dict[str, Any]], None]
Say = Callable[[str], None]
FACTS = "training.json"


def train(job: Job, report: Report = lambda entry: None, say: Say = lambda text: None) -> list[dict[str, Any]]:
    """Train, or go on with a training that was stopped.

    Args:
        job: what and how.
        report: is given each step's log entry, on the first rank.
        say: is given what is worth a line, likewise.

    Returns:
        The log: one entry a step (see `Trainer.step`).

    Raises:
        UserError: something does not fit, the loss is no number any more, or too many samples teach nothing.
    """
    with ranks() as here:
        quiet = (lambda entry: None), (lambda text: None)
        trainer = Trainer(job, here, *((report, say) if here.first else quiet))
        return trainer.run()


class Trainer:
    """A training on this rank."""

    def __init__(self, job: Job, here: Ranks, report: Report, say: Say) -> None:
        self.job, self.here, self.report, self.say = job, here, report, say
        self.settings, self.out = job.settings, Path(job.out)
        self._check_out()
        tower = fetch_model("vision", job.vision)
        self.shards = open_shards(job.shards) if job.shards else None
        if self.shards:
            check_view(self.shards.run.view, tower, job.vision)  # before the models are loaded
        self.view = self.shards.run.view if self.shards else view_of(tower, job.fit)
        self.model = MultimodalModel(job.vision, job.llm, self.settings, here.device, job.init)
        check_room(self.settings, self.model.vision_tokens)
        self.examples = self._examples()
        self.facts = self._facts()
        self._split()
        self.total = self.settings.steps or max(1, math.ceil(self.settings.epochs * self.trained / self.batch_size))
        self.speaks = self.settings.llm != "frozen" or self.settings.caption_weight > 0  # or the LLM is not even run
        self.sharded = here.world > 1 and self.settings.llm == "full"
        if self.sharded:
            _shard(self.model)
        self.learning = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = self._optimizer()
        self.checkpoints = Checkpoints(self.out / "checkpoints", self.settings.keep_checkpoints)
        self.dropped = 0
        self.peak = peak(here.device)

    # ---- what is there before the first step

    def _check_out(self) -> None:
        """A folder `out` that holds a training holds this one.

        Raises:
            UserError: it holds another, or something else.
        """
        path = self.out / FACTS
        self.earlier: dict[str, Any] = {}
        if not path.is_file():
            if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
                raise UserError("out", self.out, "it is there already, and not empty", "name a new folder")
            return
        try:
            self.earlier = json.loads(path.read_text())
            different = self.job.differences(self.earlier["job"])
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            raise UserError("out", path, "it can't be read", "name a new folder") from error
        if different:
            rule = "it holds a training that differs: " + "; ".join(different[:8])
            raise UserError("out", self.out, rule, "repeat its settings to go on, or name a new folder")

    def _examples(self) -> Examples:
        job, model = self.job, self.model
        try:
            template = Template(self.settings.template, model.tokenizer)
        except ValueError as error:
            rule = f"it does not go with this LLM's tokenizer ({error})"
            raise UserError("template", self.settings.template, rule, "choose another in the settings") from error
        sight = Sight(self.view, model.mean, model.std, model.vision_tokens)
        if not self.shards:
            with rename_field(images="data"):
                source = LlavaSource(job.data, job.image_root or None)
                return DialogueExamples(source, sight, template, self.settings, model.width)
        embedder = embedder_for(model.llm_folder, self.shards.run)
        if embedder:
            self.say("The shards were built for another LLM: labels are embedded anew with this one's words.")
        return ShardExamples(self.shards, sight, template, self.settings, embedder)

    def _facts(self) -> dict[str, Any]:
        """What training.json holds.

        Raises:
            UserError: the training began with other samples.
        """
        samples: dict[str, Any] = {"count": len(self.examples)}
        if self.shards:
            samples |= {"run": self.shards.run.identity, "fingerprints": self.shards.run.fingerprints}
        if self.earlier and self.earlier.get("samples") != samples:
            rule = f"its samples are not those that this training began with ({samples['count']} of them now)"
            remedy = "restore them, or train into a new `out`"
            raise UserError("shards" if self.shards else "data", self.job.shards or self.job.data, rule, remedy)
        return {"job": self.job.facts(), "samples": samples, "view": self.view.model_dump(), "ranks": self.here.world}

    def _split(self) -> None:
        """The last of a shuffle are held out."""
        count, held = len(self.examples), self.settings.held_out
        if held >= count:
            raise UserError("held_out", held, f"there are {count} samples in all", "hold out fewer")
        shuffled = np.random.default_rng(self.settings.seed).permutation(count) if held else np.arange(count)
        self.held, kept = np.sort(shuffled[count - held :]), np.sort(shuffled[: count - held])
        self.trained = len(kept)
        self.batch_size = min(self.settings.batch_size, self.trained)
        lengths = self.examples.lengths if self.settings.group_by_length else None
        with_image = self.examples.with_image
        self.order = Order(
            self.trained,
            self.batch_size,
            self.settings.seed,
            None if lengths is None else lengths[kept],
            None if with_image is None else with_image[kept],
            kept,
        )

    def _optimizer(self) -> torch.optim.Optimizer:
        settings = self.settings
        projector = set(self.model.projector.parameters())
        groups = [
            {"params": [p for p in self.learning if p in projector],
             "peak": settings.projector_learning_rate or settings.learning_rate},
            {"params": [p for p in self.learning if p not in projector], "peak": settings.learning_rate},
        ]  # fmt: skip
        used = [group for group in groups if group["params"]]
        return torch.optim.AdamW(used, settings.learning_rate, weight_decay=settings.weight_decay)

    # ---- the steps

    def run(self) -> list[dict[str, Any]]:
        """All steps that are left, then what comes out."""
        log, first = self._resume()
        if self.here.first and not installed("tensorboard"):
            self.say(left_out("no TensorBoard log is written", "tensorboard"))
        every = self.settings.checkpoint_steps(self.total)
        span = range(first, self.total)
        with Logbook(self.out, log, self.here, self.job.wandb) as kept:
            began = time.monotonic()
            for number, step in enumerate(
                steps(self.examples, self.order, self.settings, span, self.here.rank, self.here.world), start=first
            ):
                waited = time.monotonic() - began
                entry = self.step(number, step)
                entry |= self._speed(entry, time.monotonic() - began, waited)
                due = (number + 1) % every == 0 or number + 1 == self.total
                if self.settings.held_out and (due or self._looks(number)):
                    entry |= self._held_out()
                kept.add(entry)
                self.report(entry | {"steps": self.total})
                if number == first:
                    self._suggest_micro_batch(len(step.parts[0].keys))
                if due:
                    loss = entry.get("held_out_loss")
                    self.checkpoints.save(number + 1, self.model, self.optimizer, self.here, loss)
                began = time.monotonic()
        if first < self.total and not any(entry["supervised_tokens"] or entry["regions"] for entry in log):
            where = "shards" if self.job.shards else "data"
            rule = "no sample has a caption or a region in view"
            raise UserError(where, self.job.shards or self.job.data, rule, "give samples with either")
        export(self.model, self.view, self.out, self.here)
        return log

    def _resume(self) -> tuple[list[dict[str, Any]], int]:
        """The log of the steps that are done, and the number of the first one that is not."""
        saved = self.here.gather(self.checkpoints.saved() if self.here.first else None)[0]
        if self.here.first:
            self.out.mkdir(parents=True, exist_ok=True)
            write_whole(self.out / FACTS, json.dumps(self.facts, indent=2) + "\n")
        if not saved:
            return [], 0
        self.checkpoints.load(saved[-1], self.model, self.optimizer, self.here)
        first = saved[-1].step
        self.say(f"Going on from step {first} of {self.total}.")
        log = read_log(self.out, first)
        self.dropped = self.here.gather(sum(entry["dropped"] for entry in log))[0]
        return log, first

    def step(self, number: int, step: Step) -> dict[str, Any]:
        """One step of the optimizer over the micro-batches of all ranks; both losses are means over the whole step.

        Returns:
            Losses, beta, rates, mean cosine of patches and labels, what was in the batch, gradient norm, and the share
            of L_patch in the gradient at the vision tokens.

        Raises:
            UserError: the loss is not finite, or too many samples teach nothing.
        """
        settings, here = self.settings, self.here
        beta = settings.beta(number, self.total)
        rate = self._set_rates(number)
        counts = self._counts(step)
        if counts[5]:
            self._count_dropped(step, number)
        labels = self._labels(step.parts)
        torch.manual_seed((settings.seed * 1_000_003 + number) * 4099 + here.rank)  # dropout's, whatever came before
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(6, device=here.device)  # L_caption, L_patch, cosine and its weight, two squared norms
        self.model.llm.train(settings.llm != "frozen" or settings.activation_checkpointing)
        for part in step.parts:
            sums += self._backward(part.to(here.device), beta, counts, labels)
        if not self.sharded:
            self._reduce_gradients()
        clipped = nn.utils.clip_grad_norm_(self.learning, settings.max_grad_norm)
        norm = float(clipped.full_tensor() if isinstance(clipped, DTensor) else clipped)
        caption, patch, cosine, weight, by_caption, by_patch = here.sum(sums).tolist()
        if not math.isfinite(caption + patch + norm):
            keys = [key for of_rank in here.gather([k for part in step.parts for k in part.keys]) for key in of_rank]
            rule = (
                f"the loss of step {number} is no finite number (L_caption {caption}, L_patch {patch}, gradient "
                f"{norm}; images {', '.join(keys[:8])}); the last checkpoint is kept"
            )
            raise UserError("learning_rate", settings.learning_rate, rule, "lower it, or look at these images")
        self.optimizer.step()
        return {
            "step": number,
            "beta": beta,
            "learning_rate": rate,
            "loss": settings.caption_weight * caption + beta * patch,
            "caption_loss": caption if self.speaks else None,
            "patch_loss": patch,
            "patch_cosine": cosine / weight if weight else None,
            "grad_norm": norm,
            "patch_gradient_share": math.sqrt(by_patch) / total if (total := _roots(by_caption, by_patch)) else None,
            "supervised_tokens": int(counts[0]),
            "regions": int(counts[2]),
            "images": int(counts[3]),
            "positions": int(counts[4]),
            "dropped": int(counts[5]),
        }

    def _backward(self, batch: Batch, beta: float, counts: Tensor, labels: Tensor | None) -> Tensor:
        """Gradients of a micro-batch, added to what is there; what `step` sums up."""
        try:
            losses = self.model(batch, max(float(counts[0]), 1.0), counts[1].to(batch.ids.device), labels)
            tokens = losses.tokens
            # The patch loss's graph ends at the tokens, so its own part of their gradient costs next to nothing.
            by_patch = beta * torch.autograd.grad(losses.patch, tokens, retain_graph=True)[0]
            tokens.retain_grad()  # not before, or the line above would leave its gradient there too
            loss = self.settings.caption_weight * losses.caption + beta * losses.patch
            (loss * self.here.world if self.sharded else loss).backward()  # FSDP takes the mean over ranks
            scale = self.here.world if self.sharded else 1
            by_caption = (tokens.grad / scale - by_patch).float()
        except torch.OutOfMemoryError as error:
            rule = "the GPU has not enough memory for so many samples at a time"
            remedy = "lower it, or set activation_checkpointing; the results stay the same"
            raise UserError("micro_batch", len(batch.keys), rule, remedy) from error
        squares = torch.stack([by_caption.square().sum(), by_patch.float().square().sum()])
        return torch.cat([torch.stack([losses.caption, losses.patch]).detach().float(), losses.cosine, squares])

    def _counts(self, step: Step) -> Tensor:
        """Over all ranks: supervised tokens, L_patch's weight, regions, images, positions, dropped samples."""
        pooled = [self.model.pooled(part.coverage) for part in step.parts]
        weight = sum(float(patch_loss_weight(coverage, self.settings.patch_loss)) for coverage in pooled)
        counts = [
            sum(len(part.targets) for part in step.parts),
            weight,
            sum(len(part.coverage) for part in step.parts),
            sum(len(part.pixels) for part in step.parts),
            sum(part.ids.numel() for part in step.parts),
            len(step.problems),
        ]
        # In double precision: beyond 2^24 a float32 no longer counts.
        return self.here.sum(torch.tensor(counts, dtype=torch.float64, device=self.here.device)).cpu()

    def _labels(self, parts: list[Batch]) -> Tensor | None:
        """The distinct label embeddings of the step, over all ranks, for the contrastive loss."""
        if self.settings.patch_loss.kind != "contrastive":
            return None
        mine = torch.cat([part.embeds for part in parts]).unique(dim=0)
        return torch.cat(self.here.gather(mine)).unique(dim=0).to(self.here.device)

    def _set_rates(self, number: int) -> float:
        """Linear warm-up, then half a cosine to 0, as transformers' schedule has it."""
        warmup = math.ceil(self.settings.warmup * self.total)
        if number < warmup:
            share = number / max(warmup, 1)
        else:
            share = (1 + math.cos(math.pi * (number - warmup) / max(self.total - warmup, 1))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        return float(self.settings.learning_rate * share)

    def _count_dropped(self, step: Step, number: int) -> None:
        problems = [problem for of_rank in self.here.gather(step.problems) for problem in of_rank]
        self.dropped += len(problems)
        if self.here.first:
            with (self.out / DROPPED).open("a") as stream:
                for key, reason in problems:
                    stream.write(json.dumps({"step": number, "key": key, "reason": reason}) + "\n")
        allowed = self.settings.max_dropped * self.total * self.batch_size
        if self.dropped > allowed:
            first = f"{problems[0][0]}: {problems[0][1]}"
            rule = f"{self.dropped} samples teach nothing by step {number}, such as {first}"
            raise UserError(
                "max_dropped", self.settings.max_dropped, rule, "mend the data (see dropped.jsonl), or raise it"
            )

    def _reduce_gradients(self) -> None:
        if self.here.world == 1:
            return
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.learning]
        flat = self.here.sum(torch.cat([grad.flatten() for grad in grads]))
        for parameter, grad in zip(self.learning, flat.split([g.numel() for g in grads]), strict=True):
            parameter.grad = grad.view_as(parameter)

    def _looks(self, number: int) -> bool:
        every = self.settings.held_out_every
        return every > 0 and (number + 1) % every == 0

    @torch.no_grad()
    def _held_out(self) -> dict[str, Any]:
        """Both losses on the samples that are not trained on, with beta's end as the weight of L_patch; and how their
        patches stand to words."""
        order = InOrder(self.held, self.batch_size)
        self.model.eval()
        sums, probe = np.zeros(4), Probe(self.model)
        for step in steps(self.examples, order, self.settings, range(order.steps), self.here.rank, self.here.world):
            counts = self._counts(step)
            labels = self._labels(step.parts)
            part_sums = torch.zeros(2, device=self.here.device)
            for part in step.parts:
                losses = self.model(
                    part.to(self.here.device), max(float(counts[0]), 1.0), counts[1].to(self.here.device), labels
                )
                part_sums += torch.stack([losses.caption, losses.patch])
                probe.add(part, losses.tokens)
            caption, patch = self.here.sum(part_sums).tolist()
            tokens, weight = float(counts[0]), float(counts[1])
            sums += [caption * tokens, tokens, patch * weight, weight]
        caption, patch = sums[0] / max(sums[1], 1), sums[2] / max(sums[3], 1e-12)
        total = self.settings.caption_weight * caption + self.settings.beta_end * patch
        losses_ = {
            "held_out_caption_loss": caption if self.speaks else None,
            "held_out_patch_loss": patch,
            "held_out_loss": total,
        }
        return losses_ | probe.result(self.here)

    def _speed(self, entry: dict[str, Any], seconds: float, waited: float) -> dict[str, Any]:
        """How fast a step with this log entry was."""
        speed = {
            "samples_per_second": self.batch_size / seconds,
            "tokens_per_second": entry["positions"] / seconds,
            "data_wait": waited / seconds,
        }
        if self.peak:
            flops = flops_of(self.model, entry["images"], entry["positions"], entry["supervised_tokens"])
            speed["mfu"] = flops / self.here.world / seconds / self.peak
        return speed

    def _suggest_micro_batch(self, size: int) -> None:
        """After the first step: how many samples at a time the GPU would have room for."""
        if self.here.device.type != "cuda":
            return
        # What stays between steps is weights and optimizer; the rest of the peak goes with the samples.
        kept, most = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        room = torch.cuda.get_device_properties(self.here.device).total_memory
        fits = int((0.9 * room - kept) / max(most - kept, 1) * size)
        self.say(
            f"GPU memory: {most / 2**30:.1f} of {room / 2**30:.0f} GiB with a micro-batch of {size}; "
            f"about {max(fits, 1)} would fit."
        )


def _shard(model: MultimodalModel) -> None:
    """FSDP2: each decoder layer, then the rest but the tower, which does not learn."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    on_gpu = next(model.parameters()).device.type == "cuda"
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if on_gpu else MixedPrecisionPolicy()
    for block in model.blocks:
        fully_shard(block, mp_policy=policy)
    fully_shard(model, ignored_params=set(model.tower.parameters()))


def _roots(*squares: float) -> float:
    return sum(math.sqrt(max(square, 0.0)) for square in squares)
