"""`pad miniature evaluate`: score the miniature on scenes that it was never trained on, with `build` and `train`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from pad_pipeline.analysis.model import Subject
from pad_pipeline.console import say
from pad_pipeline.miniature.files import index_of, write_world
from pad_pipeline.miniature.language import caption, is_caption
from pad_pipeline.miniature.score import Score, score_shards
from pad_pipeline.miniature.shipped import check_labels
from pad_pipeline.miniature.world import Scene, draw_scene
from pad_pipeline.pretrained import load_pretrained, load_tokenizer
from pad_pipeline.sources.open import open_source
from pad_pipeline.stages.tag import TaggerSettings, read_tags
from pad_pipeline.storage import claim_folder
from pad_pipeline.training.job import Job
from pad_pipeline.training.model import check_view
from pad_pipeline.training.settings import TrainSettings
from pad_pipeline.weights import fetch_model
from pad_pipeline.workflows.learning.launch import train
from pad_pipeline.workflows.miniature.truth import label_accuracy
from pad_pipeline.workflows.models.settings import ModelSettings
from pad_pipeline.workflows.runs.build import build
from pad_pipeline.workflows.runs.options import EngineName, RunOptions

TEST_WORLD = 0
"""Seed of the scenes that are scored and trained on here; the models were trained on scenes of other seeds."""
PROBE_WORLD = 1
"""Seed of the scenes on which projectors are compared, which differ from those that they are trained on."""
PROBES = 100
"""Number of these scenes."""


@dataclass
class Alignment:
    """The label accuracy of two projectors that differ in the patch loss only: of all patches, and of things'."""

    seed: int
    caption_only: tuple[float, float]
    with_patch_loss: tuple[float, float]


@dataclass
class Evaluation:
    """All numbers of the table."""

    score: Score
    perplexity: float | None = None
    """Perplexity of the scenes' captions; None if the LLM was not asked."""
    grammatical: float | None = None
    alignment: list[Alignment] = field(default_factory=list)


def annotate(world: Path, out: Path, models: ModelSettings, count: int, seed: int, engine: EngineName) -> Score:
    """Draw `count` scenes below `world`, build their shards in `out`, and score them."""
    files = write_world(world, count, seed)
    source = open_source(files.llava, files.images)
    build(source, out, models, models.view, RunOptions(shard_size=64, engine=engine))
    return score_shards(out, lambda key: draw_scene(seed, index_of(key)))


def align(
    shards: Path, out: Path, vision: str, models: ModelSettings, seeds: int, steps: int, console: Console
) -> list[Alignment]:
    """Train the projector twice for each seed, with caption loss alone and with the patch loss, and compare."""
    scenes = [draw_scene(PROBE_WORLD, index) for index in range(PROBES)]
    llm, found = models.llm.llm, []
    for seed in range(seeds):
        accuracy = {}
        for name, beta in (("caption", 0.0), ("patch", 5.0)):
            run = out / f"{name}-{seed}"
            console.print(f"seed {seed}, {'caption loss alone' if beta == 0 else 'with the patch loss'}:", end=" ")
            settings = TrainSettings(
                batch_size=16,
                micro_batch=16,
                steps=steps,
                learning_rate=3e-3,
                beta_end=beta,
                seed=seed,
                loader_threads=2,
            )
            said = train(Job(stage=1, shards=str(shards), vision=vision, llm=llm, out=str(run), settings=settings))
            say(said.partition(" Wrote")[0], to=console)
            accuracy[name] = label_accuracy(Subject(run), scenes, models.view)
        found.append(Alignment(seed, accuracy["caption"], accuracy["patch"]))
    return found


def evaluate(
    out: Path,
    models: ModelSettings,
    vision: str,
    scenes: int,
    seeds: int,
    steps: int,
    engine: EngineName,
    console: Console,
) -> Evaluation:
    """Draw, build, score and train.

    Args:
        out: folder for everything; it must be new or empty.
        models: the models, whose tags must be labels of the world.
        vision: the CLIP that goes with the models.
        scenes: number of scenes to draw and annotate.
        seeds: number of pairs of projectors; 0 for none.
        steps: steps of each training.
        engine: see `RunOptions.engine`.
        console: console for the progress.

    Raises:
        UserError: the tagger has labels that the world lacks, or an error of `build` or `train`.
    """
    claim_folder(out)
    tagger = models.annotator(TaggerSettings)
    check_labels("models", tagger.tag_list, read_tags(tagger)[0])
    check_view(models.view, fetch_model("vision", vision), vision)  # reports a wrong one before the build
    llm = fetch_model("llm.llm", models.llm.llm)
    network = load_pretrained("llm.llm", llm, LlamaForCausalLM, torch.float32)
    tokenizer = load_tokenizer("llm.llm", llm)
    score = annotate(out / "world", out / "shards", models, scenes, TEST_WORLD, engine)
    result = Evaluation(
        score,
        perplexity(network, tokenizer, (draw_scene(TEST_WORLD, index) for index in range(scenes))),
        grammatical(network, tokenizer, scenes),
        align(out / "shards", out / "stage1", vision, models, seeds, steps, console),
    )
    (out / "evaluation.json").write_text(json.dumps(as_dict(result), indent=1) + "\n")
    return result


GOALS = {
    "tag_micro_f1": 0.92,
    "box_recall": 0.88,
    "box_precision": 0.80,
    "mask_iou": 0.85,
    "patch_iou": 0.85,
    "captions_that_parse": 0.95,
}
"""The scores that the miniature should reach on 500 scenes."""


def as_dict(found: Evaluation) -> dict[str, Any]:
    """Return the numbers by name."""
    score = found.score
    return {
        "scenes": score.scenes,
        "tag_micro_f1": score.tag_f1,
        "box_recall": score.things.recall,
        "box_recall_of_tagged_things": score.recall_given_tags,
        "box_precision": score.things.precision,
        "label_accuracy_of_boxes": score.label_accuracy,
        "part_recall": score.parts.recall,
        "part_precision": score.parts.precision,
        "mask_iou": score.mask_iou,
        "patch_iou": score.patch_iou,
        "caption_perplexity": found.perplexity,
        "captions_that_parse": found.grammatical,
        "stage1": [
            {"seed": pair.seed, "caption_loss_alone": pair.caption_only, "with_patch_loss": pair.with_patch_loss}
            for pair in found.alignment
        ],
    }


def table(found: Evaluation) -> Table:
    """Return a table with a row for each number, and its goal."""
    names = {
        "tag_micro_f1": "tags: micro F1",
        "box_recall": f"boxes of things: recall at IoU 0.5, of {found.score.things.true}",
        "box_recall_of_tagged_things": "    of those that the tagger named",
        "box_precision": "boxes of things: precision",
        "label_accuracy_of_boxes": "labels of boxes that are on a thing: accuracy",
        "part_recall": f"boxes of parts: recall, of {found.score.parts.true}",
        "part_precision": "boxes of parts: precision",
        "mask_iou": "masks of matched things: mean IoU",
        "patch_iou": "patch masks of matched things: mean soft IoU",
        "caption_perplexity": "LLM: perplexity of held-out captions",
        "captions_that_parse": "LLM: generated captions that parse",
    }
    numbers = as_dict(found)
    drawn = Table("what", "found", "goal", title=f"{found.score.scenes} drawn scenes, never trained on")
    for name, said in names.items():
        if numbers[name] is not None:
            value, goal = f"{numbers[name]:.3f}", GOALS.get(name, 0.0)
            missed = numbers[name] < goal
            drawn.add_row(said, f"[yellow]{value}[/yellow]" if missed else value, f"{goal:.2f}" if goal else "")
    for pair in found.alignment:
        both = {"caption loss alone": pair.caption_only, "with the patch loss": pair.with_patch_loss}
        for said, (patches, things) in both.items():
            label = f"patches nearest to their label, seed {pair.seed}, {said}"
            drawn.add_row(label, f"{patches:.3f} (things {things:.3f})", "")
    if len(found.alignment) > 1:
        for which, position in (("all patches", 0), ("patches of things", 1)):
            gains = [pair.with_patch_loss[position] - pair.caption_only[position] for pair in found.alignment]
            drawn.add_row(f"    gain on {which}: mean, least", f"{fmean(gains):+.3f}, {min(gains):+.3f}", "> 0")
    return drawn


@torch.inference_mode()
def perplexity(network: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, scenes: Iterable[Scene]) -> float:
    """Return exp of the mean cross-entropy over the tokens of the scenes' captions, each with a BOS and a "\\n"."""
    total, count = 0.0, 0
    for scene in scenes:
        ids = torch.tensor([[1, *tokenizer(caption(scene) + "\n", add_special_tokens=False)["input_ids"]]])
        logits = network(ids).logits[0, :-1]
        total += float(F.cross_entropy(logits.float(), ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    return math.exp(total / count)


@torch.inference_mode()
def grammatical(network: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int, seed: int = 0) -> float:
    """Return the share of `count` generated captions that are sentences of the world's grammar.

    They are sampled after a BOS, at temperature 1 from the whole distribution. The first token is one with which
    captions begin, because the LLM also generates other kinds of text (a row of words, a conversation).
    """
    words = ("a", "an", "on", "the")  # how captions begin
    first = torch.tensor([tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words])
    generator = torch.Generator().manual_seed(seed)
    start = network(torch.tensor([[1]])).logits[0, -1].float().softmax(-1)
    only = torch.zeros_like(start)
    only[first] = start[first]
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    right = 0
    for done in range(0, count, 250):
        ids = torch.multinomial(only, min(250, count - done), replacement=True, generator=generator)[:, None]
        ids = torch.cat([torch.ones_like(ids), ids], 1)
        cache = None
        for _ in range(120):
            output = network(ids if cache is None else ids[:, -1:], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            following = torch.multinomial(output.logits[:, -1].float().softmax(-1), 1, generator=generator)
            ids = torch.cat([ids, following], 1)
            if bool((ids == newline).any(1).all()):
                break
        right += sum(is_caption(tokenizer.decode(row[1:]).split("\n")[0]) for row in ids)
    return right / count
