"""Train stage 1 or 2 in one PyTorch loop, which runs in one process, under torchrun and on Ray Train."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.facts import differences, read_facts
from pad_pipeline.packages import installed, left_out_note
from pad_pipeline.shards.lock import locked
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.sources.llava import LlavaSource
from pad_pipeline.storage import Folder, atomic_write_text, claim_folder
from pad_pipeline.threads import Say
from pad_pipeline.training.batches import Batch, StepBatches, load_steps
from pad_pipeline.training.checkpoint import Checkpoints
from pad_pipeline.training.examples import DialogueExamples, Examples, Preprocessor, ShardExamples
from pad_pipeline.training.export import export
from pad_pipeline.training.flops import peak_flops, step_flops
from pad_pipeline.training.held_out import measure_held_out
from pad_pipeline.training.job import MAY_DIFFER, Job
from pad_pipeline.training.model import MultimodalModel, built_for, embedder_for, shard_with_fsdp
from pad_pipeline.training.order import SampleOrder, shuffled
from pad_pipeline.training.projector import build_projector
from pad_pipeline.training.ranks import Ranks, ranks
from pad_pipeline.training.step_counts import StepCounts, count_step
from pad_pipeline.training.template import Template
from pad_pipeline.training.towers import check_view, view_of
from pad_pipeline.training.training_log import DROPPED, TrainingLog, read_log
from pad_pipeline.weights import fetch_model

Report = Callable[[dict[str, Any]], None]
_noted: list[str] = []
"""Packages whose absence this process has reported: once is enough for several trainings."""
FACTS = "training.json"
"""The file with a training's job and a fingerprint of its samples."""


def train(job: Job, report: Report = lambda entry: None, say: Say = lambda text: None) -> list[dict[str, Any]]:
    """Train, or continue a training that was stopped. Return the log: one entry for each step, see `Trainer.step`.

    The first rank calls `report` with each entry, and `say` with each message for the user.

    Raises:
        UserError: models, data and settings do not fit together, the loss is not finite, or nothing can be learned from
            too many samples.
    """
    with ranks() as here:
        quiet = (lambda entry: None), (lambda text: None)
        return Trainer(job, here, *((report, say) if here.first else quiet)).run()


class Trainer:
    """One rank's part of a training."""

    def __init__(self, job: Job, here: Ranks, report: Report, say: Say) -> None:
        self.job, self.here, self.report, self.say = job, here, report, say
        self.settings, self.out = job.settings, Path(job.out)
        self.data_field = ("shards", job.shards) if job.shards else ("data", job.data)  # for errors
        self._check_out()
        tower = fetch_model("vision", job.vision)
        self.shards = open_shards(job.shards) if job.shards else None
        if self.shards:
            check_view(self.shards.run.view, tower, job.vision)  # before the models are loaded
        self.view = self.shards.run.view if self.shards else view_of(tower, job.fit)
        with torch.device("meta"):  # find a grid that does not fit the projector before the models are loaded
            build_projector(self.settings.projector, 8, 8, self.view.grid, self.settings.abstractor_tokens)
        self.model = MultimodalModel(job.vision, job.llm, self.settings, here.device, job.init)
        if self.settings.max_length < 2 + self.model.vision_tokens:
            rule = f"an image takes {self.model.vision_tokens} tokens, and BOS and a caption need more"
            raise UserError("max_length", self.settings.max_length, rule, "raise it in the training's settings")
        self.examples = self._examples()
        self.facts = self._facts()
        self._split()
        self.total = self.settings.steps or max(1, math.ceil(self.settings.epochs * self.trained / self.batch_size))
        self.sharded = here.world > 1 and self.settings.llm == "full"
        if self.sharded:
            shard_with_fsdp(self.model)
        self.learning = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = self._optimizer()
        self.checkpoints = Checkpoints(self.out / "checkpoints", self.settings.keep_checkpoints)
        self.dropped = 0
        self.peak = peak_flops(here.device)

    # ---- preparation, before the first step

    def _check_out(self) -> None:
        """Check that the output folder is empty, or holds a training of the same job."""
        claim_folder(self.out, FACTS)
        self._check_earlier()

    def _check_earlier(self) -> None:
        """Check that a training that the output folder holds is of the same job."""
        self.earlier = read_facts(self.out / FACTS)
        facts, earlier = self.job.model_dump(mode="json"), dict((self.earlier or {}).get("job") or {})
        with suppress(ValidationError, TypeError):  # a setting that an earlier version lacked had its default
            settings = type(self.settings)(**earlier.get("settings", {}))
            earlier["settings"] = settings.model_dump(mode="json")
        if self.earlier is not None and (different := differences(earlier, facts, MAY_DIFFER)):
            rule = "it holds a training that differs: " + "; ".join(different[:8])
            raise UserError("out", self.out, rule, "repeat its settings to continue it, or name another `out`")

    def _examples(self) -> Examples:
        """Open the samples of the job's shards or LLaVA JSON."""
        job, model = self.job, self.model
        try:
            template = Template(self.settings.template, model.tokenizer)
            # Otherwise a template that fits no dialogue would be blamed on the data, sample by sample.
            template([{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A dog."}], image=True)
        except ValueError as error:
            rule = f"it can't be used with this LLM's tokenizer ({error})"
            raise UserError("template", self.settings.template, rule, "choose another in the settings") from error
        preprocessor = Preprocessor(self.view, model.mean, model.std, model.vision_tokens, model.resample)
        if not self.shards:
            with rename_field(images="data"):
                source = LlavaSource(job.data, job.image_root or None)
                return DialogueExamples(
                    source, preprocessor, template, self.settings, model.width, job.private_addresses
                )
        stored, words = built_for(model.llm_folder, self.shards.run), self.settings.patch_loss.needs_words
        embedder = None if stored and not words else embedder_for(model.llm_folder, self.shards.run)
        if not stored:
            self.say("The shards were built for another LLM, so labels are embedded again with this LLM's words.")
        label_tokens = embedder.tokens if embedder and words else None
        return ShardExamples(
            self.shards, preprocessor, template, self.settings, None if stored else embedder, self.say, label_tokens
        )

    def _facts(self) -> dict[str, Any]:
        """Return the content of training.json. Check that an earlier part of the training had the same samples."""
        samples: dict[str, Any] = {"count": len(self.examples)}
        if self.shards:
            samples |= {"run": self.shards.run.identity, "fingerprints": self.shards.run.fingerprints}
        if self.earlier and self.earlier.get("samples") != samples:
            rule = f"its samples have changed since the training began (now {samples['count']})"
            raise UserError(*self.data_field, rule, "restore them, or name another `out`")
        job, view = self.job.model_dump(mode="json"), self.view.model_dump()
        return {"job": job, "samples": samples, "view": view, "ranks": self.here.world}

    def _split(self) -> None:
        """Choose the held-out samples at random, and the order of the others."""
        count, held = len(self.examples), self.settings.held_out
        if held >= count:
            raise UserError("held_out", held, f"there are {count} samples in all", "hold out fewer")
        self.held = np.arange(0)
        if held:
            self.held = np.sort(shuffled(np.random.default_rng(self.settings.seed), count)[count - held :])
        self.trained = count - held
        self.batch_size = min(self.settings.batch_size, self.trained)
        lengths = self.examples.lengths if self.settings.group_by_length else None
        with_image = self.examples.with_image
        self.order = SampleOrder(count, self.batch_size, self.settings.seed, lengths, with_image, self.held)

    def _optimizer(self) -> torch.optim.Optimizer:
        """Build AdamW with two parameter groups, the projector and the rest, each with its highest learning rate."""
        projector, rate = set(self.model.projector.parameters()), self.settings.learning_rate
        own_rate = self.settings.projector_learning_rate or rate
        groups = [
            {"params": [p for p in self.learning if p in projector], "peak": own_rate},
            {"params": [p for p in self.learning if p not in projector], "peak": rate},
        ]
        used = [group for group in groups if group["params"]]
        return torch.optim.AdamW(used, rate, weight_decay=self.settings.weight_decay)

    # ---- the steps

    def run(self) -> list[dict[str, Any]]:
        """Run the remaining steps, then export the model. Return the log of all steps.

        Raises:
            UserError: see `step`; or no sample has a caption or a region; or another training writes into the folder.
        """
        if not self.here.first:
            return self._run()
        self.out.mkdir(parents=True, exist_ok=True)
        with locked(Folder(self.out)):
            self._check_earlier()  # again, because another training may have ended while the models were loaded
            return self._run()

    def _run(self) -> list[dict[str, Any]]:
        log, first = self._resume()
        if self.here.first and not installed("tensorboard") and not _noted:
            self.say(left_out_note("no TensorBoard log is written", "tensorboard"))
            _noted.append("tensorboard")
        every = self.settings.checkpoint_every or max(50, -(-self.total // 20))
        measure_every = self.settings.held_out_every or self.total
        span = range(first, self.total)
        batches = load_steps(self.examples, self.order.step, span, self.here.rank, self.here.world)
        with closing(TrainingLog(self.out, log, self.here, self.job.wandb)) as training_log:
            began = time.monotonic()
            for number, step in zip(span, batches, strict=True):
                waited = time.monotonic() - began
                entry = self.step(number, step)
                entry |= self._speed(entry, time.monotonic() - began, waited)
                # Log before the checkpoint is saved, so that the log of a continued training has no gap.
                due = (number + 1) % every == 0 or number + 1 == self.total
                if self.settings.held_out and (due or (number + 1) % measure_every == 0):
                    entry |= measure_held_out(self.model, self.examples, self.held, self.batch_size, self.here)
                training_log.add(entry)
                self.report(entry | {"steps": self.total})
                if number == first:
                    self._report_memory(len(step.batches[0].keys))
                    self._report_left_out(entry)
                if due:
                    self.checkpoints.save(number + 1, self.model, self.optimizer, self.here, entry.get("held_out_loss"))
                began = time.monotonic()
        if first < self.total and not any(entry["supervised_tokens"] or entry["regions"] for entry in log):
            raise UserError(*self.data_field, "no sample has a caption or a region in view", "give other samples")
        export(self.model, self.view, self.out, self.here)
        return log

    def _resume(self) -> tuple[list[dict[str, Any]], int]:
        """Load the latest checkpoint, if there is one. Return the log up to it, and the number of the next step."""
        saved = self.here.gather(self.checkpoints.latest(self.say) if self.here.first else None)[0]
        if self.here.first:
            atomic_write_text(self.out / FACTS, json.dumps(self.facts, indent=2) + "\n")
        if not saved:
            return [], 0
        self.checkpoints.load(saved, self.model, self.optimizer, self.here)
        first = saved.step
        self.say(f"Going on from step {first} of {self.total}.")
        log = read_log(self.out, first)
        self.dropped = self.here.gather(sum(entry["dropped"] for entry in log))[0]
        return log, first

    def step(self, number: int, step: StepBatches) -> dict[str, Any]:
        """Make one optimizer step over the micro-batches of all ranks. Both losses are means over the whole step.

        Returns:
            The log entry: losses, beta, learning rate, mean cosine of patches and labels, gradient norm, the share of
            L_patch in the gradient at the vision tokens, and the counts of `StepCounts`.

        Raises:
            UserError: the loss is not finite, or nothing can be learned from too many samples.
        """
        settings, here = self.settings, self.here
        # Compute beta, learning rates, divisors and the labels of all ranks before the first micro-batch.
        beta = settings.beta(number, self.total)
        rate = self._set_rates(number)
        counts = count_step(self.model, step, here)
        if counts.dropped:
            self._count_dropped(step, number)
        # Dropout depends only on the step and the rank, so that a continued training repeats it.
        torch.manual_seed((settings.seed * 1_000_003 + number) * 4099 + here.rank)
        # Add up the gradients of the micro-batches, then the sums of all ranks.
        self.optimizer.zero_grad(set_to_none=True)
        partial_sums = torch.zeros(6, device=here.device)
        self.model.llm.train(settings.llm != "frozen" or settings.activation_checkpointing)
        for batch in step.batches:
            partial_sums += self._backward(batch.to(here.device), beta, counts)
        if not self.sharded:
            here.sum_gradients(self.learning)
        clipped = nn.utils.clip_grad_norm_(self.learning, settings.max_grad_norm)
        norm = float(clipped.full_tensor() if isinstance(clipped, DTensor) else clipped)
        # Stop at losses or gradients that are not finite; else update the weights.
        caption, patch, cosine, cosine_weight, *squares = here.sum(partial_sums).tolist()
        caption_norm, patch_norm = (math.sqrt(max(square, 0.0)) for square in squares)
        apart = caption_norm + patch_norm and not settings.patch_loss.needs_words
        if not math.isfinite(caption + patch + norm):
            keys = [key for of_rank in here.gather([k for b in step.batches for k in b.keys]) for key in of_rank]
            losses = f"L_caption {caption}, L_patch {patch}, gradient {norm}; images {', '.join(keys[:8])}"
            rule = f"the loss of step {number} is not finite ({losses}); the last checkpoint is kept"
            raise UserError("learning_rate", settings.learning_rate, rule, "lower it, or check these images")
        self.optimizer.step()
        return {
            "step": number,
            "beta": beta,
            "learning_rate": rate,
            "loss": settings.caption_weight * caption + beta * patch,
            "caption_loss": caption if settings.runs_llm else None,
            "patch_loss": patch,
            "patch_cosine": cosine / cosine_weight if cosine_weight else None,
            "grad_norm": norm,
            "patch_gradient_share": patch_norm / (caption_norm + patch_norm) if apart else None,
        } | {name: value for name, value in counts._asdict().items() if name != "divisor"}

    def _backward(self, batch: Batch, beta: float, counts: StepCounts) -> Tensor:
        """Add the gradients of a micro-batch to the parameters' gradients.

        Return the micro-batch's part of the step's sums, float32 `[6]`: L_caption, L_patch, both sums of
        `mean_cosine`, and the squared norms of the gradients of L_caption and of beta x L_patch at the vision tokens.
        """
        try:
            losses = counts.losses(self.model, batch)
            tokens = losses.tokens
            # The gradient of L_patch at the tokens costs little where it is computed directly from them. Over the
            # vocabulary or through the LLM, it would cost as much as the step.
            by_patch = torch.zeros_like(tokens)
            if not self.settings.patch_loss.needs_words:
                by_patch = beta * torch.autograd.grad(losses.patch, tokens, retain_graph=True)[0]
            tokens.retain_grad()  # not earlier, or `autograd.grad` would store its gradient in `tokens.grad`
            loss = self.settings.caption_weight * losses.caption + beta * losses.patch
            scale = self.here.world if self.sharded else 1  # FSDP averages gradients over ranks
            torch.autograd.backward(loss * scale)
            assert tokens.grad is not None
            by_caption = (tokens.grad / scale - by_patch).float()
        except torch.OutOfMemoryError as error:
            rule = "the GPU has not enough memory for so many samples at a time"
            remedy = "lower it, or set `activation_checkpointing`; the results stay the same"
            raise UserError("micro_batch", len(batch.keys), rule, remedy) from error
        squares = torch.stack([by_caption.square().sum(), by_patch.float().square().sum()])
        return torch.cat([torch.stack([losses.caption, losses.patch]).detach().float(), losses.cosine, squares])

    def _set_rates(self, number: int) -> float:
        """Set the learning rates of a step: linear warm-up, then half a cosine to 0, as in transformers.
        Return the rate of the parameters outside the projector."""
        warmup = math.ceil(self.settings.warmup * self.total)
        share = number / max(warmup, 1)
        if number >= warmup:
            share = (1 + math.cos(math.pi * (number - warmup) / max(self.total - warmup, 1))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        return float(self.settings.learning_rate * share)

    def _count_dropped(self, step: StepBatches, number: int) -> None:
        """Record all ranks' samples from which nothing can be learned. Raise an error if `max_dropped` is exceeded."""
        problems = [problem for of_rank in self.here.gather(step.problems) for problem in of_rank]
        self.dropped += len(problems)
        if self.here.first:
            with (self.out / DROPPED).open("a") as stream:
                for key, reason in problems:
                    stream.write(json.dumps({"step": number, "key": key, "reason": reason}) + "\n")
        allowed = self.settings.max_dropped * self.total * self.batch_size
        if self.dropped > allowed:
            rule = f"nothing can be learned from {self.dropped} samples up to step {number}; {': '.join(problems[0])}"
            remedy = "correct the data (see dropped.jsonl), or raise it"
            raise UserError("max_dropped", self.settings.max_dropped, rule, remedy)

    def _speed(self, entry: dict[str, Any], seconds: float, waited: float) -> dict[str, Any]:
        """Return the speed of a step. `seconds` is its whole duration, and `waited` the part that it waited for data.

        On a known GPU, the result includes the MFU (model FLOP utilization, the share of the peak rate).
        """
        speed = {
            "samples_per_second": self.batch_size / seconds,
            "tokens_per_second": entry["positions"] / seconds,
            "data_wait": waited / seconds,
        }
        if self.peak:
            flops = step_flops(self.model, entry["images"], entry["positions"], entry["supervised_tokens"])
            speed["mfu"] = flops / self.here.world / seconds / self.peak
        return speed

    def _report_left_out(self, entry: dict[str, Any]) -> None:
        """Report how many regions of a step the settings leave out of L_patch."""
        if left_out := entry["regions_left_out"]:
            all_regions = left_out + entry["regions"]
            rule = "because of `patch_loss.largest` and `patch_loss.without`"
            self.say(f"L_patch leaves out {left_out} of the {all_regions} regions of this step, {rule}.")

    def _report_memory(self, size: int) -> None:
        """Report the GPU memory that micro-batches of `size` samples need, and the size that would fill the GPU."""
        if self.here.device.type != "cuda":
            return
        # Weights and optimizer stay allocated between steps. The rest of the peak grows with the size.
        kept, most = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        room = torch.cuda.get_device_properties(self.here.device).total_memory
        fits = int((0.9 * room - kept) / max(most - kept, 1) * size)
        used = f"GPU memory: {most / 2**30:.1f} of {room / 2**30:.0f} GiB with a micro-batch of {size}"
        self.say(f"{used}; about {max(fits, 1)} would fit.")
