"""What the engines cost: `python -m benchmarks.engines`. The miniature through a bare loop over the stages, through
`--engine local`, and through `--engine ray` with two workers; all with one CPU thread for each model, in one run.

Each is run over few images and over many: the difference gives images per second, free of loading and start-up, which
are what is left.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from pad_pipeline.miniature.files import write_world
from pad_pipeline.plan import Plan
from pad_pipeline.sources import open_source
from pad_pipeline.storage import Folder
from workflows.build import build, plan_build, prepare
from workflows.links import Chain, Link, Task
from workflows.models import load_models
from workflows.options import RunOptions

SHARD = 8


def bare(world: Path, out: Path, count: int) -> None:
    """The stages one after another over each shard, and nothing else: what any engine is held against."""
    models = load_models("miniature")
    options = RunOptions(shard_size=SHARD, limit=count, threads=1, depth="sizes")
    source, folder = open_source(world), Folder(out)
    out.mkdir()
    run, chain_for = plan_build(source, models, models.view, options)
    prepare(run, source, folder, options)
    chain = Chain(Link("all", [step for link in chain_for(folder, run.identity) for step in link.steps]))
    for number in range(len(Plan(folder))):
        chain.run(Task(number))


def engine(**how: object) -> Callable[[Path, Path, int], None]:
    """`pad build` with these options."""

    def run(world: Path, out: Path, count: int) -> None:
        models = load_models("miniature")
        options = RunOptions(shard_size=SHARD, limit=count, threads=1, depth="sizes", **how)  # type: ignore[arg-type]
        build(open_source(world), out, models, models.view, options)

    return run


def main() -> None:
    """Draw, run each twice, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--few", type=int, default=32)
    parser.add_argument("--many", type=int, default=192)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    asked = parser.parse_args()
    ways = {
        "bare loop": bare,
        "local": engine(engine="local"),
        f"ray, {asked.workers} workers": engine(engine="ray", workers=asked.workers),
    }
    with tempfile.TemporaryDirectory(prefix="pad-bench-") as home:
        world = write_world(Path(home, "world"), asked.many, seed=0).images
        best: dict[tuple[str, int], float] = {}
        for repeat in range(asked.repeats):  # in turns, so that a noisy minute hits all alike
            for name, way in ways.items():
                for count in (asked.few, asked.many):
                    began = time.monotonic()
                    way(world, Path(home, f"{name}-{count}-{repeat}"), count)
                    seconds = time.monotonic() - began
                    best[name, count] = min(seconds, best.get((name, count), seconds))
    print(f"\n{asked.few} and {asked.many} drawn scenes, {SHARD} in a shard, {os.cpu_count()} CPU cores.\n")
    print("| engine | images/s | against local | start-up, s |\n| --- | --- | --- | --- |")
    rate = {name: (asked.many - asked.few) / (best[name, asked.many] - best[name, asked.few]) for name in ways}
    for name in ways:
        start = best[name, asked.few] - asked.few / rate[name]
        print(f"| {name} | {rate[name]:.2f} | {rate[name] / rate['local']:.2f} | {start:.1f} |")


if __name__ == "__main__":
    main()
