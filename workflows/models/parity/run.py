"""Run upstream's example in a process of its own, with the Python that has upstream's packages."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from pad_pipeline.errors import printable
from pad_pipeline.workflows.models.parity.base import NotCompared, Numbers

SCRIPT = Path(__file__).with_name("script.py")
SECONDS = 3600
"""The longest time for an example. The largest models take minutes on a few cores."""


def run_example(python: str, job: dict[str, Any], install: str, folder: Path) -> Numbers:
    """Run upstream's example of `job` on the CPU, and return its numbers.

    Args:
        python: the Python that has upstream's packages.
        job: the name of the example, and its arguments.
        install: the command that installs upstream's packages.
        folder: an empty folder for the files of this example.

    Raises:
        NotCompared: a package is missing, the example fails, or writes something else than numbers.
    """
    (folder / "job.json").write_text(json.dumps(job), "utf-8")
    without_gpu = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONIOENCODING": "utf-8"}
    try:
        done = subprocess.run(
            [python, str(SCRIPT), str(folder)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env=without_gpu, timeout=SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error.strerror) if isinstance(error, OSError) else f"no answer after {SECONDS} seconds"
        raise NotCompared(f"{python} can't run upstream's example ({why})", "name another `upstream_python`") from error
    said = printable(done.stdout.decode("utf-8", "replace")).strip()
    last = (said.splitlines() or ["it said nothing"])[-1].strip()[:300]
    facts, failure = _read_facts(folder / "result.json"), f"upstream's example failed with exit code {done.returncode}"
    if done.returncode:
        raise NotCompared(f"{failure} ({last})", f"see whether {python} has the right versions: {install}")
    if facts is None:
        raise NotCompared(f"{python} ran, and wrote no numbers ({last})", "name a Python by `upstream_python`")
    if "missing" in facts:
        why = f"{python} can't import upstream's code ({str(facts['missing'])[:200]})"
        raise NotCompared(why, f"in another environment, {install}; then name its Python by `upstream_python`")
    try:
        with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
            return Numbers({name: arrays[name] for name in arrays.files}, facts)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise NotCompared(f"upstream's example wrote no numbers that can be read ({last})", "report this") from error


def _read_facts(path: Path) -> dict[str, Any] | None:
    """Return the facts that an example wrote; None if it wrote none."""
    try:
        facts = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None
