"""`pad miniature compare`: both stages with and without the patch loss, and what comes of it on scenes never seen."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pad_pipeline.analysis.model import Subject
from pad_pipeline.analysis.studies import AnalysisSettings
from pad_pipeline.errors import UserError
from pad_pipeline.miniature.files import WORLD, key_of, write_world
from pad_pipeline.miniature.language import DESCRIBE, REFER, questions
from pad_pipeline.miniature.world import Scene, draw_scene
from pad_pipeline.sources.coco import CocoSource
from pad_pipeline.sources.open import open_source
from pad_pipeline.training.job import Job
from pad_pipeline.training.model import check_view
from pad_pipeline.training.settings import Stage2Settings, TrainSettings
from pad_pipeline.weights import fetch_model
from pad_pipeline.workflows.engine.local import Engine
from pad_pipeline.workflows.learning.analyze import analyze
from pad_pipeline.workflows.learning.launch import train
from pad_pipeline.workflows.miniature.alignment import label_accuracy
from pad_pipeline.workflows.miniature.answers import Speaker, ask_boxes, score_captions
from pad_pipeline.workflows.miniature.scoring import PROBE_WORLD, PROBES, TEST_WORLD
from pad_pipeline.workflows.models.settings import ModelSettings
from pad_pipeline.workflows.runs.build import build, import_coco
from pad_pipeline.workflows.runs.options import RunOptions

RESULT = "compare.json"
VARIANTS = {"caption": ("caption only", 0.0), "patch": ("patch-aligned", 5.0)}
"""Name -> what the table calls it, and what beta rises to in stage 1. Nothing else differs."""
OTHER_TURNS = 1
"""Turns of a stage-2 dialogue besides its referring expressions."""


@dataclass(frozen=True)
class Budget:
    """How much of what; the same for both variants."""

    scenes: int
    """Annotated by `pad build`, for stage 1."""
    dialogues: int
    """Scenes that stage 2 talks of, the annotated ones first: to draw one takes no time beside its annotation."""
    seeds: int
    stage1_steps: int
    stage2_steps: int
    probes: int = PROBES
    """Scenes that are scored."""

    def stage1(self, beta: float, seed: int) -> TrainSettings:
        """Settings of stage 1."""
        return TrainSettings(
            batch_size=16, micro_batch=16, steps=self.stage1_steps, learning_rate=3e-3, beta_end=beta, seed=seed,
            loader_threads=2,
        )  # fmt: skip

    def stage2(self, seed: int) -> Stage2Settings:
        """Settings of stage 2; a rate of 2e-5, LLaVA's, would leave so small an LLM as it is."""
        return Stage2Settings(
            batch_size=8, micro_batch=8, steps=self.stage2_steps, learning_rate=2e-3, seed=seed, loader_threads=2
        )


@dataclass
class Outcome:
    """Of one training of both stages."""

    seed: int
    variant: str
    numbers: dict[str, float] = field(default_factory=dict)
    """By the names of `ROWS`, and more that the JSON tells."""
    seconds: dict[str, float] = field(default_factory=dict)


ROWS = {
    "patch_accuracy": "patch labels",
    "patch_accuracy_things": "  of things",
    "caption_slots": "caption slots",
    "caption_kinds": "  kinds",
    "captions_that_parse": "  that parse",
    "align": "Align(V, W)",
    "align_shuffled": "  labels shuffled",
    "compression": "dH, nats",
    "pursuit_precision": "pursuit, precision",
    "pursuit_first_true": "  first word true",
    "pursuit_readable": "  first word readable",
    "caption_slots_after_2": "caption slots",
    "caption_kinds_after_2": "  kinds",
    "captions_that_parse_after_2": "  that parse",
    "rec_accuracy": "REC at IoU 0.5",
    "rec_iou": "  mean IoU",
    "rec_unparsed": "  no box",
}
"""What is measured, in the order of the table: after stage 1 the share of patches whose token is nearest to their own
label, and of the captions' slots that are right, and the paper's analyses; after stage 2 the captions again, and
referring expressions."""
PAPER = {"align": "up from weak", "compression": "2.80, 3.84", "rec_accuracy": "+16%"}
"""What arXiv 2505.17316 says of the same rows."""
FIRST_OF_2 = "caption_slots_after_2"
"""The first row of what is measured after stage 2."""


def write_dialogues(path: Path, count: int, seed: int) -> None:
    """A LLaVA JSON for stage 2: for each scene all its referring expressions, with a few other turns among them.

    `llava_chat.json` has one such turn a scene, as instruction data has of many kinds; from so few, a model that is
    given minutes learns how a box is written and not where things are.
    """
    records = []
    for index in range(count):
        turns = questions(draw_scene(seed, index), np.random.default_rng((seed, index, 1)))
        others = [turn for turn in turns if not turn[0].startswith(REFER)][:OTHER_TURNS]
        said: list[dict[str, str]] = []
        for question, answer in (turn for turn in turns if turn[0].startswith(REFER) or turn in others):
            mark = "" if said else "<image>\n"
            said += [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
        records.append({"id": key_of(index), "image": f"{key_of(index)}.png", "conversations": said})
    path.write_text(json.dumps(records, indent=1) + "\n", "utf-8")


class Comparison:
    """Trainings of both stages, in pairs that differ in nothing but beta.

    Args:
        out: folder for everything: new, empty, or of the same comparison, which then goes on.
        models: which models annotate; `models.llm.llm` is the LLM.
        vision: the CLIP that goes with them.
        budget: how much of what.
        console: for what is said on the way.

    Raises:
        UserError: `out` holds something else, or the tower does not fit.
    """

    def __init__(self, out: Path, models: ModelSettings, vision: str, budget: Budget, console: Console) -> None:
        known = (out / "world" / WORLD).is_file()
        if out.exists() and not known and (not out.is_dir() or any(out.iterdir())):
            raise UserError("out", out, "it is there already, and holds no comparison", "name a new folder")
        check_view(models.view, fetch_model("vision", vision), vision)  # told before the build
        self.out, self.models, self.vision, self.budget, self.console = out, models, vision, budget, console
        self.llm = models.llm.llm
        self.world, self.shards, self.dialogues = out / "world", out / "shards", out / "dialogues.json"
        self.probe_world, self.probes = out / "probe-world", out / "probes"
        self.seconds: dict[str, float] = {}

    def prepare(self, engine: Engine, threads: int = 0) -> None:
        """Draw the scenes, write the dialogues, build the shards; `threads` of each model, 0 for all cores."""
        clock = Clock(self.seconds)
        count = max(self.budget.scenes, self.budget.dialogues)
        self.say(f"drawing {count} scenes")
        files = write_world(self.world, count, TEST_WORLD)
        write_dialogues(self.dialogues, self.budget.dialogues, TEST_WORLD)
        clock.note("draw")
        source = open_source(files.llava, files.images)
        options = RunOptions(shard_size=64, limit=self.budget.scenes, engine=engine, threads=threads)
        build(source, self.shards, self.models, self.models.view, options)
        clock.note("build")
        files = write_world(self.probe_world, self.budget.probes, PROBE_WORLD)
        truth = CocoSource(files.instances, files.images, files.llava)
        options = RunOptions(shard_size=64, engine="local")
        import_coco(truth, self.probes, self.models.llm, self.models.decode, self.models.view, options)

    def run(self) -> list[Outcome]:
        """Train and score; the numbers are in `compare.json` too, after each training."""
        scenes = [draw_scene(PROBE_WORLD, index) for index in range(self.budget.probes)]
        outcomes: list[Outcome] = []
        for seed in range(self.budget.seeds):
            for variant in VARIANTS:
                outcomes.append(self.train(seed, variant, scenes))
                self.write(outcomes)
        return outcomes

    def train(self, seed: int, variant: str, scenes: list[Scene]) -> Outcome:
        """Both stages of one variant, each scored."""
        said, beta = VARIANTS[variant]
        found = Outcome(seed, variant)
        one, two = (self.out / f"{variant}-{seed}" / stage for stage in ("stage1", "stage2"))
        clock = Clock(found.seconds)
        settings: dict[str, Any] = {"vision": self.vision, "llm": self.llm}
        self.say(f"seed {seed}, {said}: stage 1")
        train(Job(stage=1, shards=str(self.shards), out=str(one), settings=self.budget.stage1(beta, seed), **settings))
        clock.note("stage1")
        projector = one / "mm_projector.bin"
        accuracy = label_accuracy(self.vision, self.llm, projector, scenes, self.models.view)
        captions = score_captions(Speaker(one / "hf", "plain"), scenes, "")
        found.numbers |= {"patch_accuracy": accuracy[0], "patch_accuracy_things": accuracy[1]} | captions.rates()
        found.numbers |= self.analyses(one)
        clock.note("scoring")
        self.say(
            f"    patches {accuracy[0]:.3f}, caption slots {captions.share():.3f}, in {found.seconds['stage1']:.0f} s"
        )
        self.say(f"seed {seed}, {said}: stage 2")
        train(
            Job(
                stage=2, data=str(self.dialogues), image_root=str(self.world / "images"), init=str(projector),
                out=str(two), settings=self.budget.stage2(seed), **settings,
            )
        )  # fmt: skip
        clock.note("stage2")
        speaker = Speaker(two / "hf", "v1")
        captions, boxes = score_captions(speaker, scenes, DESCRIBE[0]), ask_boxes(speaker, scenes)
        found.numbers |= {f"{name}_after_2": rate for name, rate in captions.rates().items()}
        asked, padded = boxes["expressions"], boxes["padded"]
        found.numbers |= {"rec_accuracy": padded["accuracy"], "rec_iou": padded["mean_iou"]}
        found.numbers |= {"rec_unparsed": boxes["unparsed"] / asked}
        clock.note("scoring")
        self.say(
            f"    caption slots {captions.share():.3f}, REC {padded['accuracy']:.3f} of {asked}, mean IoU "
            f"{padded['mean_iou']:.3f}, {boxes['unparsed']} without a box, in {found.seconds['stage2']:.0f} s"
        )
        return found

    def analyses(self, model: Path) -> dict[str, float]:
        """The paper's, over the exact masks of the probes."""
        found = analyze(["entropy", "align", "pursuit"], Subject(model), str(self.probes), AnalysisSettings(), None)
        return {
            "align": found["align"]["align"],
            "align_shuffled": found["align"]["shuffled_labels"],
            "align_everywhere": found["align"]["everywhere"],
            "compression": found["entropy"]["image"]["dH"],
            "pursuit_precision": found["pursuit"]["precision"],
            "pursuit_first_true": found["pursuit"]["first_true"],
            "pursuit_readable": found["pursuit"]["first_readable"],
        } | {f"entropy_{name}": found["entropy"]["image"][name] for name in ("before", "after", "text", "labels")}

    def write(self, outcomes: list[Outcome]) -> None:
        """`compare.json`."""
        found = {
            "budget": asdict(self.budget),
            "stage1": self.budget.stage1(0, 0).model_dump(mode="json", exclude={"seed", "beta_end"}),
            "stage2": self.budget.stage2(0).model_dump(mode="json", exclude={"seed"}),
            "beta_end": {name: beta for name, (_, beta) in VARIANTS.items()},
            "seconds": self.seconds,
            "outcomes": [asdict(outcome) for outcome in outcomes],
            "summary": summary(outcomes),
        }
        (self.out / RESULT).write_text(json.dumps(found, indent=1) + "\n", "utf-8")

    def say(self, text: str) -> None:
        """A line of progress."""
        self.console.print(text, highlight=False, soft_wrap=True)


class Clock:
    """Adds up what each part of a training takes."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.began = seconds, time.monotonic()

    def note(self, name: str) -> None:
        """The time since the last note was `name`'s."""
        now = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.began
        self.began = now


def summary(outcomes: list[Outcome]) -> dict[str, dict[str, Any]]:
    """Per row of the table: mean and deviation of both variants, and of the difference within the pairs of a seed."""
    found: dict[str, dict[str, Any]] = {}
    seeds = sorted({outcome.seed for outcome in outcomes})
    by = {(outcome.seed, outcome.variant): outcome.numbers for outcome in outcomes}
    whole = [seed for seed in seeds if all((seed, variant) in by for variant in VARIANTS)]
    for name in ROWS if whole else ():
        before, after = ([by[seed, variant][name] for seed in whole] for variant in VARIANTS)
        gains = [b - a for a, b in zip(before, after, strict=True)]
        found[name] = {variant: spread(values) for variant, values in zip(VARIANTS, (before, after), strict=True)} | {
            "difference": spread(gains),
            "relative": fmean(gains) / fmean(before) if fmean(before) else None,
        }
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation (of a sample; 0 for a single one)."""
    return {"mean": fmean(values), "deviation": stdev(values) if len(values) > 1 else 0.0}


def table(outcomes: list[Outcome]) -> Table:
    """One row a number, one column a variant."""
    seeds = len({outcome.seed for outcome in outcomes})
    title = f"held-out scenes: mean and deviation over {seeds} seed{'s' * (seeds != 1)}"
    heads = (*(said for said, _ in VARIANTS.values()), "difference", "relative", "the paper")
    drawn = Table("after stage 1", *heads, title=title)
    for name, row in summary(outcomes).items():
        if name == FIRST_OF_2:
            drawn.add_section()
            drawn.add_row("[bold]after stage 2[/bold]")
        values = [f"{row[variant]['mean']:.3f} ± {row[variant]['deviation']:.3f}" for variant in VARIANTS]
        gain = f"{row['difference']['mean']:+.3f} ± {row['difference']['deviation']:.3f}"
        relative = "" if row["relative"] is None else f"{row['relative']:+.0%}"
        drawn.add_row(ROWS[name], *values, gain, relative, PAPER.get(name, ""))
    drawn.add_section()
    for name in ("stage1", "stage2"):
        took = [[one.seconds[name] for one in outcomes if one.variant == variant] for variant in VARIANTS]
        drawn.add_row(f"{name[:-1]} {name[-1]}, seconds", *(f"{fmean(seconds):.0f}" for seconds in took))
    return drawn
