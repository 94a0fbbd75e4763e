"""The beginning of a session with Ray."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize(("ending", "told"), [("os._exit(1)", 1), ("pass", 0), ("sys.exit(3)", 0)])
def test_a_process_that_ray_ends_while_it_joins_has_a_last_word(ending: str, told: int) -> None:
    """Ray's native code ends a process whose raylet dies: exit code 1 and no line at all. Nothing is said of a process
    that ends by itself."""
    code = "import os, sys\nfrom pad_pipeline.workflows.engine.ray_session import _spoken_for\n"
    code += f"with _spoken_for(): {ending}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.count("error: engine = ray: this process was ended while it joined the cluster") == told
    assert done.stderr.count("\n") == told
