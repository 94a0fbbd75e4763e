"""`pad miniature evaluate`: score the miniature models on drawn scenes that they were not trained on."""

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
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from pad_pipeline.analysis.model import Subject
from pad_pipeline.console import Table, say
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
from pad_pipeline.training.settings import TrainSettings
from pad_pipeline.training.towers import check_view
from pad_pipeline.weights import fetch_model
from pad_pipeline.workflows.learning.launch import train
from pad_pipeline.workflows.miniature.truth import LabelAccuracy, label_accuracy
from pad_pipeline.workflows.models.settings import ModelSettings
from pad_pipeline.workflows.runs.build import build
from pad_pipeline.workflows.runs.options import EngineName, RunOptions

TEST_WORLD = 0
"""The seed of the scenes that the models are scored on. Projectors are trained on them."""
PROBE_WORLD, PROBES = 1, 100
"""The seed and the number of the scenes on which the trained projectors are compared."""
TRAINING = {"batch_size": 16, "micro_batch": 16, "learning_rate": 3e-3, "loader_threads": 2}
"""The settings with which projectors are trained."""
PROJECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "caption": ("caption loss alone", {"beta_end": 0.0}),
    "patch": ("with the patch loss", {"objective": "aligned"}),
}
"""The two projectors that are compared: title and further settings of each."""


@dataclass
class Alignment:
    """The label accuracy of two projectors, without and with the patch loss."""

    seed: int
    caption_only: LabelAccuracy
    with_patch_loss: LabelAccuracy


@dataclass
class Evaluation:
    """The results for the models of a run, the LLM and the projectors; None for a part that was not measured."""

    score: Score
    perplexity: float | None = None
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
        for name, (title, chosen) in PROJECTORS.items():
            run = out / f"{name}-{seed}"
            console.print(f"seed {seed}, {title}:", end=" ")
            settings = TrainSettings.model_validate(TRAINING | chosen | {"steps": steps, "seed": seed})
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
    """Score the models, the LLM, and projectors that are trained here. Everything is written to `out`.

    Args:
        out: a new or empty folder.
        models: the models; each of their tags must be a label of the drawn world.
        vision: the CLIP that fits the models.
        scenes: the number of scenes to draw and annotate.
        seeds, steps: the number of pairs of projectors, and the steps of each training.
        engine: see `RunOptions.engine`.
        console: the console for the progress.

    Raises:
        UserError: the tagger has labels that the world does not have; or `build` or `train` raises it.
    """
    claim_folder(out)
    tagger = models.annotator(TaggerSettings)
    check_labels("models", tagger.tag_list, read_tags(tagger)[0])
    check_view(models.view, fetch_model("vision", vision), vision)  # now, because the build takes long
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


ROWS = {
    "tag_micro_f1": ("tags: micro F1", 0.92),
    "box_recall": ("boxes of things: recall at IoU 0.5, of {score.things.true}", 0.88),
    "box_recall_of_tagged_things": ("    of those that the tagger named", 0.0),
    "box_precision": ("boxes of things: precision", 0.80),
    "label_accuracy_of_boxes": ("labels of boxes that are on a thing: accuracy", 0.0),
    "part_recall": ("boxes of parts: recall, of {score.parts.true}", 0.0),
    "part_precision": ("boxes of parts: precision", 0.0),
    "mask_iou": ("masks of matched things: mean IoU", 0.85),
    "patch_iou": ("patch masks of matched things: mean soft IoU", 0.85),
    "caption_perplexity": ("LLM: perplexity of held-out captions", 0.0),
    "captions_that_parse": ("LLM: generated captions that parse", 0.95),
}
"""The title of each number, and the value that the miniature should reach on 500 scenes; 0 if there is no goal."""


def as_dict(found: Evaluation) -> dict[str, Any]:
    """Return the results as JSON data."""
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
            {
                "seed": pair.seed,
                "caption_loss_alone": pair.caption_only._asdict(),
                "with_patch_loss": pair.with_patch_loss._asdict(),
            }
            for pair in found.alignment
        ],
    }


def table(found: Evaluation) -> Table:
    """Return the results as a table with goals. Numbers below their goal are yellow."""
    numbers = as_dict(found)
    drawn = Table("what", "found", "goal", title=f"{found.score.scenes} drawn scenes, never trained on")
    for name, (title, goal) in ROWS.items():
        if (number := numbers[name]) is not None:
            value = f"{number:.3f}" if number >= goal else f"[yellow]{number:.3f}[/yellow]"
            drawn.add_row(title.format(score=found.score), value, f"{goal:.2f}" if goal else "")
    for pair in found.alignment:
        both = {"caption loss alone": pair.caption_only, "with the patch loss": pair.with_patch_loss}
        for said, right in both.items():
            label = f"patches nearest to their label, seed {pair.seed}, {said}"
            drawn.add_row(label, f"{right.all:.3f} (things {right.things:.3f}, parts {right.parts:.3f})", "")
    if len(found.alignment) > 1:
        for which, name in (("all patches", "all"), ("patches of things", "things"), ("patches of parts", "parts")):
            gains = [getattr(pair.with_patch_loss, name) - getattr(pair.caption_only, name) for pair in found.alignment]
            drawn.add_row(f"    gain on {which}: mean, least", f"{fmean(gains):+.3f}, {min(gains):+.3f}", "> 0")
    return drawn


@torch.inference_mode()
def perplexity(network: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, scenes: Iterable[Scene]) -> float:
    """Return the perplexity of the scenes' captions, each with a BOS before and a "\\n" behind it."""
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
    *firsts, newline = (tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in ("a", "an", "on", "the", "\n"))
    start = network(torch.tensor([[1]])).logits[0, -1].float().softmax(-1)
    only = torch.zeros_like(start)
    only[firsts] = start[firsts]
    right = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for done in range(0, count, 250):
            chosen = torch.multinomial(only, min(250, count - done), replacement=True)
            begun = torch.stack([torch.ones_like(chosen), chosen], 1)
            ids = network.generate(begun, do_sample=True, top_k=0, max_new_tokens=120, eos_token_id=newline)
            right += sum(is_caption(text.split("\n")[0]) for text in tokenizer.batch_decode(ids[:, 1:]))
    return right / count
