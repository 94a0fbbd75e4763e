"""Run a function of the tests in a process of its own, so that a crash (C code on hostile bytes) is a failed test."""

from __future__ import annotations

import faulthandler
import os
import resource
import subprocess
import sys
from collections.abc import Callable


def in_child(function: Callable[..., None], *arguments: object, seconds: int = 60) -> list[str]:
    """What a function prints in a process of its own, a line for each broken promise; it gets its arguments as text.

    It has 4 GB of address space, and memory that was freed or never written to holds 0x5a or 0xa5.
    """
    from tests.conftest import ROOT  # here, because the child needs neither that module nor torch

    module, name = function.__module__, function.__name__
    code = f"import sys; from {module} import {name}; {name}(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
        env=os.environ | {"MALLOC_PERTURB_": "165", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"it ended with {done.returncode}: {(done.stdout + done.stderr)[-3000:]}"
    return done.stdout.splitlines()


def as_child() -> None:
    """What `in_child` promises; and 20 seconds without a word end the process."""
    limit = 4 << 30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    faulthandler.enable()
    os.fsync = lambda descriptor: None  # nothing here has to outlive a power cut
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
