"""`pad train` with workers: the same function in the workers of Ray Train, which starts them anew when one dies."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

from pad_pipeline.errors import UserError
from pad_pipeline.training.job import Job
from pad_pipeline.training.logbook import read_log
from pad_pipeline.training.loop import Report, Say, train
from pad_pipeline.training.settings import settings_of
from pad_pipeline.workflows.engine.ray_session import ray_session

DESK = "pad-train-desk"
LOOK = 0.5
"""Seconds between two looks at what the workers say."""


class Desk:
    """Where workers leave what the user is to see, and what ends the run."""

    def __init__(self) -> None:
        self.said: list[tuple[str, Any]] = []
        self.refusal: tuple[str, str, str, str] | None = None

    def leave(self, kind: str, what: Any) -> None:
        """A log entry or a line of text."""
        self.said.append((kind, what))

    def take(self) -> list[tuple[str, Any]]:
        """What was left since the last time."""
        said, self.said = self.said, []
        return said

    def refuse(self, parts: tuple[str, str, str, str]) -> None:
        """A user's mistake: no worker should try again."""
        self.refusal = self.refusal or parts

    def refused(self) -> tuple[str, str, str, str] | None:
        """The mistake, if there was one."""
        return self.refusal


def train_on_ray(
    job: Job, workers: tuple[int, int], address: str, max_failures: int, report: Report, say: Say
) -> list[dict[str, Any]]:
    """`pad_pipeline.training.loop.train` in workers of Ray Train.

    Args:
        job: what is trained; its paths must be the same on every node.
        workers: fewest and most; where they differ, the training goes on with fewer when nodes are lost.
        address: of a cluster; empty for Ray on this machine.
        max_failures: how often workers may die before it gives up; -1 for any number.
        report: is given each step's log entry.
        say: is given what is worth a line.

    Raises:
        UserError: as in `train`, or the workers died too often.
    """
    with ray_session(address) as ray:
        from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        on_gpu = ray.cluster_resources().get("GPU", 0) > 0
        # On the driver's node: with any other node that is lost, the desk would be lost too, and the training with it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        desk = ray.remote(Desk).options(name=DESK, num_cpus=0, scheduling_strategy=here).remote()
        out = Path(job.out).resolve()
        low, high = workers
        storage = out.parent / f".{out.name}.ray"  # Ray Train's own notes; on a cluster the workers must see them
        trainer = TorchTrainer(
            _work,
            train_loop_config=job.model_copy(update={"out": str(out)}).facts(),
            scaling_config=ScalingConfig(num_workers=high if low == high else (low, high), use_gpu=on_gpu),
            run_config=RunConfig(
                name=out.name,
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=max_failures),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        done = threading.Event()

        def listen() -> None:
            while not done.wait(LOOK):
                for kind, what in ray.get(desk.take.remote()):
                    report(what) if kind == "entry" else say(what)

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        try:
            trainer.fit()
        except Exception as error:
            if not ray.get(desk.refused.remote()):
                rule = f"Ray Train gave up ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
                raise UserError("workers", f"{low}-{high}", rule, "run the same command again to go on") from error
        finally:
            done.set()
            listener.join()
            shutil.rmtree(storage, ignore_errors=True)
        if refusal := ray.get(desk.refused.remote()):
            raise UserError(*refusal)
        for kind, what in ray.get(desk.take.remote()):
            report(what) if kind == "entry" else say(what)
    return read_log(Path(job.out), 1 << 62)


def _work(facts: dict[str, Any]) -> None:
    """One worker."""
    import ray

    desk = ray.get_actor(DESK)
    if ray.get(desk.refused.remote()):
        return
    settings = settings_of(facts["stage"]).model_validate(facts["settings"])
    job = Job.model_validate(facts | {"settings": settings})
    try:
        train(job, lambda entry: desk.leave.remote("entry", entry), lambda text: desk.leave.remote("text", text))
    except UserError as error:
        ray.get(desk.refuse.remote((error.field, str(error.value), error.rule, error.remedy)))
