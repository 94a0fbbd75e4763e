"""What the engines cost: `python -m benchmarks.engines`. The miniature through a bare loop over the stages, through
`--engine local`, and through `--engine ray` with two workers; all with one CPU thread for each model, in one run.

The rate is that of the shards committed after the first quarter of them and before the last few, when every worker
is at work; what comes before the first shard is start-up. Runs take turns, and the median of each engine's counts.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from pad_pipeline.miniature.files import write_world
from pad_pipeline.plan import Plan
from pad_pipeline.sources.open import open_source
from pad_pipeline.storage import Folder
from pad_pipeline.workflows.engine.chain import Chain, Task, merged
from pad_pipeline.workflows.models.settings import load_models
from pad_pipeline.workflows.runs.build import build, build_spec
from pad_pipeline.workflows.runs.options import RunOptions
from pad_pipeline.workflows.runs.prepare import prepare

SHARD = 8


def bare(world: Path, out: Path, count: int) -> None:
    """The stages one after another over each shard, and nothing else: what any engine is held against."""
    models = load_models("miniature")
    options = RunOptions(shard_size=SHARD, limit=count, threads=1, depth="sizes")
    source, folder = open_source(world), Folder(out)
    out.mkdir()
    spec = build_spec(source, models, models.view)
    run, _ = prepare(spec, source, folder, options)
    chain = Chain(merged(spec.chain(folder, run.identity, run.images, 1)))
    for number in range(len(Plan(folder))):
        chain.run(Task(number))


def engine(**how: object) -> Callable[[Path, Path, int], None]:
    """`pad build` with these options."""

    def run(world: Path, out: Path, count: int) -> None:
        models = load_models("miniature")
        options = RunOptions(shard_size=SHARD, limit=count, threads=1, depth="sizes", **how)
        build(open_source(world), out, models, models.view, options)

    return run


def measured(way: Callable[[Path, Path, int], None], world: Path, out: Path, count: int) -> tuple[float, float]:
    """Images per second, and seconds until the first shard was committed."""
    began = time.time()
    way(world, out, count)
    committed = sorted(path.stat().st_mtime for path in out.glob("pad-*.parquet"))
    steady = committed[len(committed) // 4 : -2]
    return SHARD * (len(steady) - 1) / (steady[-1] - steady[0]), committed[0] - began


def main() -> None:
    """Draw, run in turns, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    ways = {
        "bare loop": bare,
        "local": engine(engine="local"),
        f"ray, {asked.workers} workers": engine(engine="ray", workers=asked.workers),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory(prefix="pad-bench-") as home:
        world = write_world(Path(home, "world"), asked.images, seed=0).images
        for repeat in range(asked.repeats):  # in turns, so that a noisy minute hits all alike
            for name, way in ways.items():
                found[name].append(measured(way, world, Path(home, f"{name}-{repeat}"), asked.images))
    print(
        f"\n{asked.images} drawn scenes, {SHARD} in a shard, {os.cpu_count()} CPU cores, {asked.repeats} runs each.\n"
    )
    print(
        "| engine | images/s | lowest-highest | against local | first shard after, s |\n| --- | --- | --- | --- | --- |"
    )
    middle = {name: median(rate for rate, _ in runs) for name, runs in found.items()}
    for name, runs in found.items():
        rates, first = [rate for rate, _ in runs], median(seconds for _, seconds in runs)
        spread = f"{min(rates):.2f}-{max(rates):.2f}"
        print(f"| {name} | {middle[name]:.2f} | {spread} | {middle[name] / middle['local']:.2f} | {first:.1f} |")


if __name__ == "__main__":
    main()
