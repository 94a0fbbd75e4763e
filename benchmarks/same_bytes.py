"""Whether two checkouts make the same data: for changes that move code and should change no byte.

    python -m benchmarks.same_bytes --old ../before --new . --photographs photos/

Each checkout draws 200 scenes, annotates them with the miniature, imports them with their exact regions, imports
photographs with human annotations where a folder of them is given, and trains a projector for 20 steps. Every tar,
every row of every index and plan, and `mm_projector.bin` are compared byte by byte. Fingerprints of code are not
compared. Exit code 1 where anything differs, or where a command fails.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq


def pad(checkout: Path, *arguments: object) -> None:
    """Run `pad` from a checkout, with this interpreter and its packages."""
    new = (checkout / "pad_pipeline/workflows").exists()
    module = "pad_pipeline.workflows.cli" if new else "workflows.cli"
    code = f"from {module} import main; main()"
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve()), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    started = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{checkout}: pad {' '.join(map(str, arguments))} ended with {done.returncode}:\n{done.stderr}")
    print(f"{checkout}: pad {arguments[0]} {arguments[1]}: {time.monotonic() - started:.1f} s", flush=True)


def make(checkout: Path, out: Path, scenes: int, steps: int, photographs: Path | None) -> None:
    """All outputs of one checkout, below `out`."""
    miniature = ["--models", "miniature"]
    pad(checkout, "miniature", "draw", "--count", scenes, "--out", out / "world")
    images = ["--images", out / "world/llava.json", "--image-root", out / "world/images"]
    pad(checkout, "build", *images, *miniature, "--shard-size", 64, "--engine", "local", "--out", out / "built")
    for name, folder in {"drawn": out / "world", "human": photographs}.items():
        if folder:
            exact = ["--annotations", folder / "instances.json", "--captions", folder / "llava.json"]
            pad(checkout, "import", "coco", *exact, "--images", folder / "images", *miniature, "--out", out / name)
    towers = ["--vision", "miniature", "--llm", "miniature", "--batch-size", 16, "--steps", steps]
    pad(checkout, "train", "--stage", 1, "--shards", out / "built", *towers, "--out", out / "trained")


def contents(out: Path) -> dict[str, str]:
    """What is compared: a file's name -> the sha256 of its bytes, or of its rows."""
    found = {}
    for path in sorted(path for pattern in ("*/*.tar", "*/mm_projector.bin") for path in out.glob(pattern)):
        found[path.relative_to(out).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(out.glob("*/*.parquet")):
        rows = repr(pq.read_table(path).to_pylist()).encode()
        found[path.relative_to(out).as_posix()] = hashlib.sha256(rows).hexdigest()
    return found


def main() -> int:
    """Compare, and print one line for each file that differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True)
    parser.add_argument("--new", type=Path, required=True)
    parser.add_argument("--photographs", type=Path, help="folder with images/, instances.json and llava.json")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pad-same-") as folder:
        sides = []
        for name in ("old", "new"):
            out = Path(folder, name)
            make(getattr(options, name), out, options.scenes, options.steps, options.photographs)
            sides.append(contents(out))
    old, new = sides
    different = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    for name in different:
        print(f"different: {name}")
    print(f"{len(old.keys() | new.keys()) - len(different)} files are the same, {len(different)} differ")
    return bool(different) or not old


if __name__ == "__main__":
    sys.exit(main())
