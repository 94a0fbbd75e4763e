"""Let a store fail at random, and compare bytes: `python -m tests.store_chaos --histories 200` (`make chaos-store`).

Each history draws a command and faults from its seed, runs the command while the store fails, lifts the faults and runs
it again. It must end in the bytes of an unbroken run, and every run before in success or in a clean stop. Commands run
in forks of a warm process, and the S3 server with its faulty proxy in another process. Prints one JSON line; exit code
1, and the seed of each history where a promise was broken. Histories that no fault met are counted apart, and a series
without any fault is an error.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas  # noqa: F401 (the commands import it: so each fork has it)
import s3fs
import scipy.ndimage  # noqa: F401 (as pandas)

from pad_pipeline import retries, stores
from pad_pipeline.miniature.files import write_world
from pad_pipeline.miniature.world import LABELS
from pad_pipeline.shards import lock
from pad_pipeline.workflows import cli
from pad_pipeline.workflows.commands import runs
from tests.faults import CUT, ERROR_200, HALF, HANG, LOST, SHORT, STALE, STALL, TORN, Rule, faulty
from tests.small_models import write_small_models

FOR_EVER, LONGEST = 10**9, 120.0
"""Times that a permanent fault happens; seconds after which a command counts as hanging."""
OK, STOPPED = 0, 2
MISSING = "images/scene-00004.png"


class Trouble(Exception):
    """A promise was broken."""


def serve(pipe: Connection) -> None:
    """Run an S3 server behind a faulty proxy. Orders come through a pipe: the name of a function and its arguments."""
    import logging

    from moto.s3.models import s3_backends
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    backend = s3_backends["123456789012"]["aws"]
    backend.create_bucket("bucket", "us-east-1")
    keys = backend.buckets["bucket"].keys
    with faulty(f"http://{host}:{port}") as (url, faults):

        def contents(prefix: str) -> dict[str, bytes]:
            return {name: key.value for name, key in list(keys.items()) if name.startswith(prefix)}

        def put(files: dict[str, bytes]) -> None:
            for name, content in files.items():
                backend.put_object("bucket", name, content)

        def remove(names: list[str]) -> None:
            for name in names:
                if name in keys:
                    keys.pop(name)

        def rules(given: list[Rule]) -> Counter[str]:
            faults.listings = {} if not given else faults.listings
            faults.rules(given)
            found, faults.injected = faults.injected, Counter()
            return found

        can = {"url": lambda: url, "contents": contents, "put": put, "remove": remove, "rules": rules}
        while order := pipe.recv():
            pipe.send(can[order[0]](*order[1:]))
    os._exit(0)


class Lab:
    """A small world in a bucket, the commands over it, and what each unbroken one gives."""

    def __init__(self, home: Path) -> None:
        self.home, self.log = home, home / "log.txt"
        pipe, other = multiprocessing.Pipe()
        self.pipe = pipe
        context = multiprocessing.get_context("fork")
        self.server = context.Process(target=serve, args=(other,), daemon=True)
        self.server.start()
        os.environ |= {"AWS_ENDPOINT_URL": self.ask("url"), "AWS_ACCESS_KEY_ID": "test", "AWS_MAX_ATTEMPTS": "1",
                       "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip
        world = write_world(home / "world", 8, seed=5)
        texts = ["a red house on the grass under the sky.", "a blue ball on the floor in front of the wall."]
        models = write_small_models(home / "models", list(LABELS), texts)
        self.put_world(world)
        shards = ["--models", models, "--view-size", 112, "--threads", 1, "--shard-size", 3, "--engine", "local"]
        train = ["--vision", models.parent / "clip", "--llm", models.parent / "llm", "--steps", 3, "--batch-size", 4]
        (home / "train.toml").write_text("checkpoint_every = 1\n")
        coco = ["import", "coco", "--annotations", world.instances, "--images", "s3://bucket/images"]
        listed = ["--images", "s3://bucket/list.json", "--image-root", "s3://bucket/images"]
        self.commands: dict[str, list[object]] = {
            "build of a folder": ["build", "--images", "s3://bucket/images", *shards],
            "build of a list": ["build", *listed, *shards],
            "build of a tar": ["build", "--images", "s3://bucket/world.tar", *shards],
            "import": [*coco, *[word for word in shards if word not in ("--threads", 1)]],
            "retry-failed": ["build", "--images", "s3://bucket/images", *shards, "--retry-failed"],
            "retarget": ["retarget", "s3://bucket/done", "--fit", "pad", "--engine", "local"],
            "verify": ["verify", "s3://bucket/done", "--deep"],
            "train": ["train", "--stage", 1, "--shards", "s3://bucket/done", *train, "--settings", home / "train.toml"],
        }
        self.injected: Counter[str] = Counter()
        self.expected: dict[str, dict[str, bytes]] = {}
        self.starts: dict[str, dict[str, bytes]] = {}
        self.unbroken("build of a folder", "done")

    def unbroken(self, name: str, out: str) -> None:
        """Let a command run without faults, and keep what it makes."""
        if name == "retry-failed":
            self.starts[name] = self.with_a_failure()
        self.begin(name, out)
        if self.run(name, out) != OK:
            raise Trouble(f"{name} fails without faults: {self.log.read_text()[-2000:]}")
        self.expected[name] = self.found(name, out)

    def ask(self, *order: Any) -> Any:
        """What the server's process answers."""
        self.pipe.send(order)
        return self.pipe.recv()

    def put_world(self, world: Any) -> None:
        """The images as objects, in a tar, and their list."""
        files = {f"images/{path.name}": path.read_bytes() for path in sorted(world.images.iterdir())}
        with tarfile.open(self.home / "world.tar", "w") as tar:
            for path in sorted(world.images.iterdir()):
                tar.add(path, path.name)
        files["world.tar"], files["list.json"] = (self.home / "world.tar").read_bytes(), world.llava.read_bytes()
        self.ask("put", files)

    def with_a_failure(self) -> dict[str, bytes]:
        """A run with a failed image, which is repaired afterwards."""
        image = self.ask("contents", MISSING)
        files = self.ask("contents", "images/")
        # An image that is no image at planning is a failed row; with its own content again, it is repaired.
        self.ask("put", {MISSING: b"no image"})
        self.commands["first"] = self.commands["retry-failed"][:-1]
        if self.run("first", "failed") != OK:
            raise Trouble(self.log.read_text()[-2000:])
        del self.commands["first"]
        self.ask("put", image)
        assert self.ask("contents", "images/") == files
        return self.objects("failed")

    def objects(self, out: str) -> dict[str, bytes]:
        """The objects of a run that have the same bytes each time, by name."""
        found = self.ask("contents", f"{out}/").items()
        return {name[len(out) + 1 :]: value for name, value in found if not name.endswith(("metrics.jsonl", ".lock"))}

    def begin(self, name: str, out: str, lot: random.Random | None = None) -> str:
        """Make the folder that a command begins with: nothing, a run with a failure, a part of a run, a whole one."""
        start = self.starts.get(name, {})
        if lot and name not in self.starts:
            whole = self.expected[name]
            shards = [file for file in whole if file.startswith("pad-")]
            state = lot.choice(["nothing", "a part", "a part", "whole"])
            gone = lot.sample(shards, lot.randrange(1, len(shards))) if state == "a part" and shards else []
            start = {file: value for file, value in whole.items() if file not in gone} if state != "nothing" else {}
        if name not in ("verify", "train"):
            self.ask("put", {f"{out}/{file}": value for file, value in start.items()})
        return out

    def found(self, name: str, out: str) -> dict[str, bytes]:
        """Return what a command has made; of verify, the last line that it printed."""
        if name == "verify":
            return {"the last line": self.log.read_bytes().strip().rpartition(b"\n")[2]}
        if name == "train":
            made = self.home / out / "mm_projector.bin"
            return {made.name: made.read_bytes()} if made.exists() else {}
        return self.objects(out)

    def run(self, name: str, out: str) -> int:
        """Run a command in a fork. Its exit code."""
        where = [] if name == "verify" else ["--out", self.home / out if name == "train" else f"s3://bucket/{out}"]
        words = [str(word) for word in ["pad", *self.commands[name], *where]]
        self.log.write_bytes(b"")
        child = os.fork()
        if not child:
            self.work(words)
        deadline = time.monotonic() + LONGEST
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(child, 9)
                os.waitpid(child, 0)
                raise Trouble(f"{name} hangs")
            time.sleep(0.01)
        return os.waitstatus_to_exitcode(ended[1])

    def work(self, words: list[str]) -> None:
        """The command, in the fork: with short waits, and tries of pad's own alone."""
        try:
            with self.log.open("ab") as stream:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
            s3fs.S3FileSystem.retries, s3fs.S3FileSystem.read_timeout = 1, 0.7
            retries.PAUSE, stores.SECONDS, lock.BEAT, runs.ISOLATED = 0.01, 5.0, 0.3, False
            sys.argv = words
            cli.main()
        except SystemExit as end:
            sys.stderr.flush()
            os._exit(int(end.code or 0))
        except BaseException:
            traceback.print_exc()
        os._exit(99)

    def history(self, number: int, lot: random.Random) -> str:
        """One history: what came of it, in words."""
        name = lot.choice(list(self.commands))
        if name not in self.expected:
            self.unbroken(name, f"whole-{len(self.expected)}")
        out = self.begin(name, f"h{number}", lot)
        before, done, injected = self.found(name, out), self.objects("done"), self.injected.total()
        kept = {file: before[file] for file in before if {f"{file[:10]}.tar", f"{file[:10]}.parquet"} <= before.keys()}
        stops = 0
        for _ in range(lot.choice([1, 1, 2, 3])):
            given = draw(lot, out, name)
            self.ask("rules", given)
            code = self.run(name, out)
            self.injected += self.ask("rules", [])
            said = self.log.read_text(errors="replace")
            context = f"{name}, {given}, code {code}: {said[-3000:]}"
            if code == OK:
                self.compare(name, out, context)
                break
            lines = re.findall(r"(?m)^error: .*", said)
            if code != STOPPED or "Traceback" in said or len(lines) != 1:
                raise Trouble(f"no clean stop: {context}")
            now = self.found(name, out)
            # A shard that a listing lacks is made again, into the same bytes.
            stale = name == "retry-failed" or any(rule.fault == STALE for rule in given)
            if not stale and (lost := [file for file, value in kept.items() if now.get(file) != value]):
                raise Trouble(f"{lost} were finished, and were touched: {context}")
            stops += 1
        code = self.run(name, out)
        if code != OK:
            raise Trouble(f"it does not go on once the store is well: code {code}: {self.log.read_text()[-2000:]}")
        self.compare(name, out, f"after the faults {name}: {self.log.read_text()[-2000:]}")
        if self.objects("done") != done:
            raise Trouble(f"{name} has changed the run in done/: {self.log.read_text()[-2000:]}")
        self.ask("remove", [f"{out}/{file}" for file in (*self.found(name, out), "metrics.jsonl", ".lock")])
        shutil.rmtree(self.home / out, ignore_errors=True)
        if self.injected.total() == injected:
            return f"{name}: no fault met it"
        return f"{name}: " + ("stopped cleanly, then the same bytes" if stops else "the same bytes under faults")

    def compare(self, name: str, out: str, context: str) -> None:
        """Whether a command made what the unbroken one did."""
        found, expected = self.found(name, out), dict(self.expected[name])
        # A retry that was stopped between the two files of a shard makes the whole shard again, as a build does.
        built = self.expected["build of a folder"] if name == "retry-failed" else {}
        for shard in {file[:10] for file in built if file.startswith("pad-")}:
            both = {file: value for file, value in built.items() if file.startswith(shard)}
            expected |= both if both.items() <= found.items() else {}
        wrong = sorted(file for file in found.keys() | expected if found.get(file) != expected.get(file))
        if wrong:
            raise Trouble(f"{wrong} differ: {context}")


def draw(lot: random.Random, out: str, name: str) -> list[Rule]:
    """The faults of one run: two to five, each of some requests, in a burst or for ever."""
    rules = []
    for _ in range(lot.randint(2, 5)):
        fault = lot.choice([503, 503, 500, 403, CUT, HANG, HALF, SHORT, STALL, LOST, TORN, ERROR_200, STALE])
        if fault == TORN and any(rule.fault == TORN for rule in rules):
            fault = 503
        methods = {HALF: "GET", SHORT: "GET", STALL: "GET", STALE: "GET", TORN: "PUT", ERROR_200: "GET"}
        method = methods.get(fault) or lot.choice(["PUT", "DELETE"] if fault == LOST else ["GET", "GET", "HEAD", "PUT"])
        folder = "done/" if name in ("verify", "train") else f"{out}/"
        parts = [
            "",
            "",
            folder,
            folder,
            "images/",
            "images/",
            "run.json",
            "plan.parquet",
            "pad-0",
            ".tar",
            "0.parquet",
            ".lock",
            "list-type",
        ]
        # The images of a folder are those that its store lists: no reader could know of others.
        part = f"prefix={folder}" if fault == STALE else lot.choice(parts)
        times = lot.choice([1, 2, 3, 4, 6, 15, FOR_EVER])
        # A store that keeps a half of each upload is none: what was there before is gone.
        times = min(times, 3) if fault == TORN else times
        rules.append(Rule(fault, method, part, lot.choice([0, 0, 0, 1, 2, 5, 12]), times))
    return rules


def main() -> None:
    """Options, a folder, the histories."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--histories", type=int, default=200)
    parser.add_argument(
        "--seed", type=int, default=random.randrange(1 << 30), help="of the first; each next one adds 1"
    )
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no history after this time")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pad-store-chaos-") as home:
        os.environ["PAD_CACHE"] = str(Path(home, "cache"))
        began, outcomes, broken = time.monotonic(), Counter[str](), dict[int, str]()
        lab = Lab(Path(home))
        for seed in range(asked.seed, asked.seed + asked.histories):
            if time.monotonic() - began > asked.seconds:
                break
            try:
                outcomes[lab.history(seed, random.Random(seed))] += 1
            except Trouble as trouble:
                lab.ask("rules", [])
                broken[seed] = str(trouble)
                print(f"seed {seed}: {trouble}", file=sys.stderr, flush=True)
        facts = {
            "seed": asked.seed,
            "histories": outcomes.total() + len(broken),
            "broken": sorted(broken),
            "outcomes": dict(outcomes),
        }
        facts |= {"faults": dict(lab.injected), "seconds": round(time.monotonic() - began, 1)}
        print(json.dumps(facts))
        lab.pipe.send(None)
    if not lab.injected:
        print("no fault was injected: nothing was tried", file=sys.stderr)
    sys.exit(bool(broken) or not lab.injected)


if __name__ == "__main__":
    main()
