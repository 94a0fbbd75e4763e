"""Measure what the GPU path of pad does: `python -m benchmarks.gpu --minutes 9 --out DIR`.

The parts run in order of worth, each in a process of its own with a limit of its own; what one leaves of its time goes
to the next. Each writes `NAME.md` and `NAME.json` into DIR after every row, and `summary.md` holds all of them after
each part: whenever the run is cut, everything that was measured is there.

It needs what pad needs, without Ray and without network: torch, transformers, torchvision, numpy, pyarrow, scipy and
others that machines with a GPU usually have, and annotated-types, braceexpand, orjson, pycocotools, pydantic,
pydantic-core, segment-anything, typing-inspection (3 MB of wheels). Weights are random. Those of the annotation models
are drawn on the GPU and kept in memory (/dev/shm), 4 GB; those of the 7B LLM are drawn on the GPU by each process that
needs them. `--smoke` tries all of it with small models on a CPU.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

# Torch may not initialize CUDA in this process, whose forks could not use the GPU then.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from benchmarks.annotate import commit
from benchmarks.gpu import BEGAN, analyses, card, compiled, correctness, engine, profiles, training, waterfall
from benchmarks.gpu.runner import Part, all_well, run_parts

PARTS = (
    Part("card", "Roofline of this card, and weights", 35, card.measure),
    Part("correctness", "Correctness on the GPU", 80, correctness.measure),
    Part("waterfall", "Images per second, technique by technique", 105, waterfall.measure),
    Part("profile", "Profile of each stage", 35, profiles.measure),
    Part("engine", "The whole chain: JPEG to shards", 60, engine.measure),
    Part("stage1", "Training stage 1 at 7B", 95, training.measure),
    Part("compile", "Compiled image encoders", 95, compiled.measure),
    Part("analyses", "Analyses at 32,000 words of 4,096 numbers", 35, analyses.measure),
)
"""All parts in order of worth, with their limits in seconds of 540."""
ROOM = 12 * 2**30
"""Bytes of free memory in /dev/shm for weights; with less, they are in the folder for temporary files."""


def main() -> None:
    """Run the parts; exit with 1 if one of them did not measure all it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="limit of the whole run")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], help="all by default")
    parser.add_argument("--smoke", action="store_true", help="small models, each step once: for a CPU")
    asked = parser.parse_args()
    parts = [part for part in PARTS if not asked.parts or part.name in asked.parts]
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > ROOM
    command = f"python -m benchmarks.gpu {' '.join(sys.argv[1:])}"
    heading = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit()}, `{command}`;"
    with tempfile.TemporaryDirectory(prefix="pad-gpu-", dir=memory if roomy and not asked.smoke else None) as work:
        os.environ["PAD_CACHE"] = str(Path(work, "cache"))
        ends = run_parts(parts, asked.out, Path(work), BEGAN + asked.minutes * 60, asked.smoke, heading)
    print((asked.out / "summary.md").read_text("utf-8"))
    sys.exit(0 if all_well(asked.out, ends) else 1)


if __name__ == "__main__":
    main()
