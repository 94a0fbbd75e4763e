"""Kill runs, resume them, compare bytes: `python -m tests.chaos --engine local --kills 200` (`make chaos`).

A warm process forks one run after another, so that a death costs no imports. Prints one JSON line; exit code 1 where a
run that was killed did not end in the bytes of an unbroken one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pad_pipeline.miniature.files import write_world
from pad_pipeline.miniature.world import LABELS
from pad_pipeline.workflows.commands import runs
from tests import doomed
from tests.conftest import data
from tests.small_models import write_small_models

GOOD = 0


class Trouble(Exception):
    """A promise was broken."""


def start(what: str, arguments: list[object], log: Path, isolated: bool) -> int:
    """Fork a run; its process number. An isolated one has a child that works."""
    child = os.fork()
    if child:
        return child
    try:
        with log.open("ab") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        runs.ISOLATED = isolated
        doomed.run(what, [str(argument) for argument in arguments])
    except SystemExit as end:
        sys.stderr.flush()
        os._exit(int(end.code or 0))
    except BaseException:
        import traceback

        traceback.print_exc()
    os._exit(99)


def finish(child: int) -> int:
    """Its exit code; negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Chaos:
    """Runs over one small world, on one engine; with the local one in this process, or in a child of it."""

    def __init__(
        self, home: Path, command: str, options: list[object], images: int, shard_size: int, isolated: bool
    ) -> None:
        self.home, self.log, self.isolated = home, home / "log.txt", isolated
        world = write_world(home / "world", images, seed=5)
        texts = ["a red house on the grass under the sky.", "a blue ball on the floor in front of the wall."]
        models = write_small_models(home / "models", list(LABELS), texts)
        build = ["build", "--images", world.llava, "--image-root", world.images, "--threads", 1]
        coco = ["import", "coco", "--annotations", world.instances, "--images", world.images]
        what = build if command == "build" else coco
        self.command: list[object] = [
            *what,
            "--models",
            models,
            "--view-size",
            112,
            "--shard-size",
            shard_size,
            *options,
        ]
        began = time.monotonic()
        self.expected = self.whole(home / "unbroken")
        self.seconds = time.monotonic() - began
        self.deaths: Counter[str] = Counter()

    def start(self, what: str, out: Path) -> int:
        """Fork a run; its process number."""
        return start(what, [*self.command, "--out", out], self.log, self.isolated)

    def whole(self, out: Path) -> dict[str, str]:
        """Run to the end, and what came out."""
        code = finish(self.start("", out))
        if code != GOOD:
            raise Trouble(f"a run that nobody killed ended with {code}: {self.log.read_text()[-2000:]}")
        return data(out)

    def compare(self, out: Path) -> None:
        """Whether it is the unbroken run's."""
        found = data(out)
        wrong = sorted(name for name in found.keys() | self.expected if found.get(name) != self.expected.get(name))
        if wrong:
            raise Trouble(f"{out} differs from the unbroken run in {wrong}; log: {self.log.read_text()[-2000:]}")

    def at_points(self, driver: bool) -> None:
        """One run that is killed at each commit point in turn, and resumed after each."""
        out = self.home / "points"
        for point in doomed.POINTS:
            what = f"at:{point}:1" + (":driver" if driver else "")
            code = finish(self.start(what, out))
            if code != -signal.SIGKILL:
                raise Trouble(f"nothing killed the run at {point!r}: it ended with {code}")
            self.deaths[point] += 1
        self.whole(out)
        self.compare(out)

    def at_random(self, kills: int, lot: random.Random) -> None:
        """Kills at any time between start and end; a run that came through is compared, and another begins."""
        folder = 0
        while self.deaths["random"] < kills:
            out = self.home / f"random-{folder}"
            child = self.start("", out)
            deadline = time.monotonic() + lot.uniform(0, self.seconds)
            while time.monotonic() < deadline and os.waitpid(child, os.WNOHANG)[0] == 0:
                time.sleep(0.005)
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(child, signal.SIGKILL)
                code = finish(child)
                if code == -signal.SIGKILL:
                    self.deaths["random"] += 1
                    continue
            self.compare(out)
            shutil.rmtree(out)
            folder += 1
        self.whole(out)
        self.compare(out)


def main() -> None:
    """Options, a folder, the kills."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--command", choices=["build", "import"], default="build")
    parser.add_argument("--isolated", action="store_true", help="the local engine in a child, as pad has it")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--shard-size", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pad-chaos-") as home, contextlib.ExitStack() as stack:
        os.environ["PAD_CACHE"] = str(Path(home, "cache"))
        options: list[object] = ["--engine", asked.engine]
        if asked.engine == "ray":
            from tests.cluster import cluster

            options += ["--gpus", 0, "--address", stack.enter_context(cluster(cpus=2))]
        began = time.monotonic()
        chaos = Chaos(Path(home), asked.command, options, asked.images, asked.shard_size, asked.isolated)
        chaos.at_points(driver=asked.engine == "ray" or asked.isolated)
        chaos.at_random(asked.kills, random.Random(asked.seed))
        facts = {"engine": asked.engine, "seed": asked.seed, "deaths": dict(chaos.deaths)}
        facts |= {"unbroken_seconds": round(chaos.seconds, 2), "seconds": round(time.monotonic() - began, 1)}
        print(json.dumps(facts | {"shards_identical": True}))


if __name__ == "__main__":
    main()
