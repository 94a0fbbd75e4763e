"""A few random histories of a faulty store; `make chaos-store` runs 200."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.long
def test_random_faults_of_a_store_change_no_byte() -> None:
    """Catches what no other test thought of: any command that loses or changes something, hangs, or ends in a traceback
    because its store failed at the wrong request."""
    command = [sys.executable, "-m", "tests.store_chaos", "--histories", "3", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert sum(facts["outcomes"].values()) == 3 and sum(facts["faults"].values()) > 5
