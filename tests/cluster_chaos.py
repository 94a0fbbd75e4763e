"""Runs on clusters whose nodes come and go: `python -m tests.cluster_chaos --histories 30` (`make chaos-cluster`).

Each history is drawn from a seed: it begins with the head alone or with a node, and while the run goes on nodes join,
leave and are replaced, workers are killed, and in some histories Ray's own processes on the head. Ray's health checks
are as they are by default. The script prints a JSON line for each history, with the shards that each node did, and one
line at the end. Its exit code is 1 if a run hung, lost anything or ended in other bytes than an unbroken run, if a node
got no worker, or if no node left and no process was killed.

A run whose head loses a process of Ray's ends with exit code 4, and is finished on another cluster. Ray and pad take up
to 40 seconds to notice it: a run that ends well before counts as "finished before it was noticed".
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pad_pipeline.miniature.files import write_world
from pad_pipeline.miniature.world import LABELS
from tests.conftest import data
from tests.runs.processes import process, ray_workers
from tests.small_models import write_small_models

DEADLINE = 300.0
"""Seconds after which a run counts as one that hangs."""
HIRED_WITHIN = 15.0
"""Seconds within which a node gets a worker. On a busy machine, Ray needs several to notice a node."""
MEMORY = {"object_store_memory": 100_000_000}
UNAVAILABLE = 4
"""The exit code of a run whose cluster went away."""


class Trouble(Exception):
    """A promise was broken."""


class History:
    """One cluster and one run on it."""

    def __init__(self, command: list[object], shards: int, out: Path, lot: random.Random) -> None:
        from ray.cluster_utils import Cluster

        self.command, self.shards, self.out, self.lot = command, shards, out, lot
        head = {"num_cpus": 0, "include_dashboard": False, **MEMORY}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes: list[Any] = []
        self.joined: dict[str, float] = {}
        """Id of a node that is there -> when it joined."""
        self.hired: set[str] = set()
        """The nodes on which pad has started a worker."""
        self.events: Counter[str] = Counter()
        self.deserted = False
        """Whether no node joins any more."""

    def done(self) -> int:
        """Return the number of finished shards."""
        return len(list(self.out.glob("pad-*.parquet")))

    def add(self) -> None:
        """Let a node join that has a GPU by Ray's account."""
        self.events["node joins"] += 1
        self.nodes.append(self.cluster.add_node(num_cpus=1, num_gpus=1, **MEMORY))
        self.joined[self.nodes[-1].node_id] = time.monotonic()

    def remove(self) -> None:
        """Let a node leave, all its processes at once."""
        self.events["node leaves"] += 1
        node = self.nodes.pop(self.lot.randrange(len(self.nodes)))
        self.joined.pop(node.node_id)
        self.cluster.remove_node(node, allow_graceful=False)

    def happen(self, event: str) -> None:
        """Carry out one event of the history."""
        if event == "add" and len(self.nodes) < 2:
            self.add()
        elif event == "remove" and self.nodes:
            self.remove()
        elif event == "replace" and self.nodes:
            self.remove()
            self.add()
        elif event == "flash" and len(self.nodes) < 2:  # a node that leaves while its workers load
            self.add()
            time.sleep(self.lot.uniform(0, 4))
            self.remove()
        elif event == "kill":
            if workers := ray_workers(os.getpid()):
                self.events["worker killed"] += 1
                os.kill(self.lot.choice(workers), signal.SIGKILL)
        elif event in ("raylet", "gcs_server"):
            self.events[f"{event} killed"] += 1
            self.cluster.head_node.all_processes[event][0].process.kill()
            self.deserted = self.lot.random() < 0.5  # then the run can't end before the death is noticed
            while self.deserted and self.nodes:
                self.remove()

    def run(self, fatal: str) -> tuple[int, str]:
        """Begin a run, carry out events while it works, and return its exit code and output."""
        head_alone = self.lot.random() < 0.5
        if not head_alone:
            self.add()
        kinds = ["add", "add", "remove", "replace", "flash", "kill"]
        marks = sorted(self.lot.uniform(0, 0.8) for _ in range(self.lot.randint(2, 4)))
        plan = [(mark, self.lot.choice(kinds)) for mark in marks]
        if fatal:
            mark = self.lot.uniform(0, 0.4)  # early, so that the run is not over before the death is noticed
            plan = [*[one for one in plan if one[0] < mark][: self.lot.randrange(3)], (mark, fatal)]
        with tempfile.TemporaryFile("w+") as log:
            started = process(
                [*self.command, "--engine", "ray", "--address", self.cluster.address, "--out", self.out], stdout=log
            )
            try:
                self._follow(started, plan, head_alone)
            finally:
                if started.poll() is None:
                    started.kill()
                started.wait()
            log.seek(0)
            return started.returncode, log.read()

    def _follow(self, started: subprocess.Popen[str], plan: list[tuple[float, str]], head_alone: bool) -> None:
        until, empty = time.monotonic() + DEADLINE, time.monotonic()
        while started.poll() is None:
            if time.monotonic() > until:
                raise Trouble("the run hangs")
            time.sleep(0.05)
            if self.nodes:
                empty = time.monotonic()
            elif not self.deserted and time.monotonic() - empty > (8 if head_alone else 3):
                self.add()  # the run may wait for a while, and not for ever
            while plan and self.done() >= plan[0][0] * self.shards and (self.out / "run.json").exists():
                self.happen(plan.pop(0)[1])
            for node in self.nodes:
                if node.node_id not in self.hired and ray_workers(node.all_processes["raylet"][0].process.pid):
                    self.hired.add(node.node_id)

    def settled(self) -> list[str]:
        """Return the nodes that were there for long enough to get a worker."""
        return [node for node, joined in self.joined.items() if time.monotonic() - joined > HIRED_WITHIN]

    def shares(self) -> dict[str, int]:
        """Return the number of shards that each node did, by the beginning of its id."""
        lines = (self.out / "metrics.jsonl").read_text().splitlines()
        return dict(json.loads(lines[-1])["nodes"]) if lines else {}


def one(command: list[object], expected: dict[str, str], shards: int, home: Path, seed: int) -> dict[str, Any]:
    """Carry out the history of a seed, and return what happened."""
    lot, out, began = random.Random(seed), home / f"history-{seed}", time.monotonic()
    fatal = lot.choice(["raylet", "gcs_server"]) if seed % 5 == 4 else ""
    codes, events, shares, all_said = [], Counter[str](), {}, ""
    for attempt in range(2):
        history = History(command, shards, out, lot)
        try:
            code, said = history.run("" if attempt else fatal)
            settled = history.settled()
        finally:
            history.cluster.shutdown()
        events += history.events
        all_said += said
        codes.append(code)
        if fatal and not attempt:
            if not events[f"{fatal} killed"]:
                raise Trouble(f"seed {seed}: the run was over before the {fatal} was killed: {said[-2000:]}")
            if code == 0:
                del events[f"{fatal} killed"]
                events[f"{fatal} killed, finished before it was noticed"] += 1
        if code == 0:
            shares = history.shares()
            if idle := [node for node in settled if node not in history.hired]:
                raise Trouble(f"seed {seed}: nodes without a worker: {idle}; {shares}; {said[-2000:]}")
            events["nodes that were there at the end, with a worker"] += len(settled)
            break
        if code == 1 and fatal == "raylet" and "ended while it joined the cluster" in said and not attempt:
            events["raylet killed while the run joined"] += 1
            continue
        if code != UNAVAILABLE or not fatal or attempt or "Traceback" in said:
            raise Trouble(f"seed {seed}: exit code {code}: {said[-3000:]}")
    found = data(out)
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected if found.get(name) != expected.get(name))
        raise Trouble(f"seed {seed}: other bytes in {wrong}: {said[-2000:]}")
    blamed = all_said.count("A worker died over")
    if blamed > events["worker killed"]:
        raise Trouble(
            f"seed {seed}: {blamed} deaths were blamed on shards, {events['worker killed']} are real: {all_said}"
        )
    seconds = round(time.monotonic() - began, 1)
    return {"seed": seed, "exit_codes": codes, "events": dict(events), "shards_of_nodes": shares, "seconds": seconds}


def main() -> None:
    """Read the options, make an unbroken run, and carry out the histories."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--histories", type=int, default=30)
    parser.add_argument("--first", type=int, default=0, help="the seed of the first history")
    parser.add_argument("--images", type=int, default=80, help="one in each shard")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pad-chaos-") as folder:
        home = Path(folder)
        os.environ["PAD_CACHE"] = str(home / "cache")
        world = write_world(home / "world", asked.images, seed=5)
        texts = ["a red house on the grass under the sky.", "a blue ball on the floor in front of the wall."]
        models = write_small_models(home / "models", list(LABELS), texts)
        command = ["build", "--images", world.images, "--models", models, "--view-size", 112]
        command += ["--shard-size", 1, "--threads", 1]
        whole = home / "unbroken"
        if process([*command, "--engine", "local", "--out", whole], stdout=sys.stderr).wait():
            raise SystemExit("the unbroken run failed")
        events: Counter[str] = Counter()
        for seed in range(asked.first, asked.first + asked.histories):
            try:
                found = one(command, data(whole), asked.images, home, seed)
            except Trouble as trouble:
                raise SystemExit(str(trouble)) from None
            events.update(found["events"])
            print(json.dumps(found), flush=True)
        if not events.keys() - {"node joins", "nodes that were there at the end, with a worker"}:
            raise SystemExit(f"nothing happened in {asked.histories} histories: {dict(events)}")
        print(json.dumps({"histories": asked.histories, "events": dict(events), "identical": True}))


if __name__ == "__main__":
    main()
