"""The Ray engine repeats the work of workers and nodes that die, and blames an image only for what it did."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pad_pipeline.workflows.engine import crew
from pad_pipeline.workflows.engine.ray import RayEngine
from pad_pipeline.workflows.engine.ray_session import Cluster
from tests.cluster import nodes
from tests.engine.chains import Told, begin, doing, until
from tests.runs.processes import command_of, ray_workers

pytestmark = pytest.mark.slow


def test_an_image_that_kills_its_worker_is_set_aside_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a run that ends over one image, that tries it for ever, or that sets its neighbors aside too."""
    monkeypatch.setattr(crew, "OUTLIVES", 0.2)
    told = Told(4)
    done = {one.number: one.totals for one in RayEngine().run(doing("segfault", "2-1"), map(begin, range(4)), told)}
    assert done == {number: {"images": 4, "failed": int(number == 2)} for number in range(4)}
    assert "A worker died over pad-000002, in work (" in told.text.getvalue()


def test_a_node_that_goes_is_blamed_on_no_image_and_one_that_joins_works(tmp_path: Path) -> None:
    """A node goes while its worker works, with Ray's own health checks, which notice it after a while; another joins.
    Catches a lost node that counts as a death of the worker, and a run that goes on without the new node."""
    notes, told, done = tmp_path / "notes", Told(40), list[int]()
    with nodes(1) as (made, (first,)):
        for one in RayEngine(Cluster(made.address, 0)).run(doing("nothing", notes=notes), map(begin, range(40)), told):
            done.append(one.number)
            if len(done) == 3:
                made.remove_node(first, allow_graceful=False)
                second = made.add_node(num_cpus=1, object_store_memory=200_000_000)
    assert sorted(done) == list(range(40))
    assert told.nodes.keys() == {first.node_id[:8], second.node_id[:8]}
    assert "A node was lost" in told.text.getvalue() and "A worker died" not in told.text.getvalue()


@pytest.mark.long
def test_a_large_node_that_goes_while_its_workers_load_counts_once(tmp_path: Path) -> None:
    """Twelve workers load on one node when it goes, and Ray starts twelve more on it before it notices. Catches a run
    that ends because each of them counts as a lost node, as a death of a model, or as a worker that can't begin."""
    notes, told, enough = tmp_path / "notes", Told(40), crew.LOST_NODES + crew.TRIES
    notes.touch()

    def run(address: str) -> list[int]:
        engine = RayEngine(Cluster(address, 0), (1, 12))
        return [one.number for one in engine.run(doing("meet", "begin", notes=notes), map(begin, range(40)), told)]

    def loading() -> int:
        return sum(b"LinkActor.load" in command_of(one) for one in ray_workers(os.getpid()))

    with nodes(0) as (made, _), ThreadPoolExecutor() as pool:  # a node must be added by the main thread
        large = made.add_node(num_cpus=12, object_store_memory=200_000_000)
        done = pool.submit(run, made.address)
        until(lambda: done.done() or loading() > enough)
        made.remove_node(large, allow_graceful=False)
        until(lambda: done.done() or "Waiting" in told.text.getvalue())  # all deaths are known then
        notes.write_text("read 1\n")  # the next workers need not wait for it
        made.add_node(num_cpus=1, object_store_memory=200_000_000)
        assert sorted(done.result(120)) == list(range(40))
    assert told.text.getvalue().count("A node was lost") == 1
