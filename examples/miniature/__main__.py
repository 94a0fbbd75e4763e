"""`python -m examples.miniature`: train one of the five small models, or all."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# Before NumPy is loaded: its threads would wait in loops for cores that the training needs.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from pad_pipeline.errors import UserError

EXAMPLE = """\
Run the same command again to continue. To use the result: pad build --models OUT/models/models.toml

Example: python -m examples.miniature all --out my-miniature/
"""


def main(arguments: list[str] | None = None) -> int:
    """Train what the command line says, and return the exit code: 2 for a mistake, told in one line."""
    parser = argparse.ArgumentParser(
        "python -m examples.miniature",
        description="Train the small models anew: under 4 hours for all on two CPU cores, less on a GPU.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ("tagger", "detector", "segmenter", "clip", "llm", "all")
    parser.add_argument("name", choices=names, help="which model; the detector needs a trained tagger and SciPy")
    parser.add_argument("--out", type=Path, required=True, help="folder: models/ will be the miniature")
    parser.add_argument("--seed", type=_natural, default=0, help="of weights and scenes, 0 to 999999 (default: 0)")
    parser.add_argument("--steps", type=_natural, default=0, help="instead of the model's own budget, to try things")
    given = parser.parse_args(arguments)
    from examples.miniature.members import train_miniature

    try:
        print(train_miniature(given.name, given.out, given.seed, given.steps))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _natural(text: str) -> int:
    number = int(text)
    if not 0 <= number < 1_000_000:
        raise argparse.ArgumentTypeError("it should be from 0 to 999999")
    return number


if __name__ == "__main__":
    sys.exit(main())
