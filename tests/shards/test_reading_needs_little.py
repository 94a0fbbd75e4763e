"""Whoever only reads shards needs seven packages, and neither PyTorch nor Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

PACKAGES = ("numpy", "pyarrow", "pillow", "orjson", "fsspec", "pydantic", "pycocotools")
"""As docs/howto/sharing.md lists them."""
READ = """
import re, sys
from importlib.metadata import packages_distributions, requires

wanted, asked = {"pad-pipeline"}, sys.argv[2].split(",")
while asked:  # with what they bring along themselves
    name = asked.pop().lower().replace("_", "-")
    if name not in wanted:
        wanted.add(name)
        needs = [text for text in requires(name) or [] if "extra ==" not in text and "python_version" not in text]
        asked += [re.match("[A-Za-z0-9._-]+", text)[0] for text in needs]

class Blocked:
    def find_spec(self, name, path=None, target=None):
        owners = distributions.get(name.partition(".")[0], [])
        if owners and not any(owner.lower().replace('_', '-') in wanted for owner in owners):
            raise ModuleNotFoundError(f"{name} is blocked: a reader should not need it")

distributions = packages_distributions()
sys.meta_path.insert(0, Blocked())
from pad_pipeline.shards.reader import open_shards

shards = open_shards(sys.argv[1])
rows = shards.usable()
for number in range(len(rows)):
    name, row = rows[number]
    sample = shards.sample(name, row)
    regions, patches = sample.patches("half").shape[:2]
    print(sample.key, regions, patches, len(sample.image))
print("torch" in sys.modules, "ray" in sys.modules)
"""


def test_shards_are_read_without_torch_and_ray(shards: Path) -> None:
    """A data loader of somebody else's trainer; an import of a heavy package in a light module would break it."""
    command = [sys.executable, "-c", READ, str(shards), ",".join(PACKAGES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    *samples, last = done.stdout.splitlines()
    assert len(samples) == 10 and last == "False False"


def test_the_page_lists_these_packages() -> None:
    """The page could promise less than the code needs."""
    page = (ROOT / "docs/howto/sharing.md").read_text()
    assert f"pip install {' '.join(PACKAGES)}" in page
