"""Train in the workers of Ray Train, for `pad train` with workers. Ray Train starts all workers again when one dies."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

from pad_pipeline.errors import UserError
from pad_pipeline.training.job import Job
from pad_pipeline.training.loop import Report, Say, train
from pad_pipeline.training.settings import settings_of
from pad_pipeline.training.training_log import read_log
from pad_pipeline.workflows.engine.ray_session import ray_session

_DESK = "pad-train-desk"
"""Name of the Ray actor that holds the workers' messages."""
_LOOK = 0.5
"""Seconds between two looks at the workers' messages."""


class _Desk:
    """Holds the workers' messages until the driver takes them, and the error that ends the training."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Any]] = []
        self.refusal: UserError | None = None

    def leave(self, kind: str, message: Any) -> None:
        """Store a message: a log entry (`kind` "entry") or a line of text ("text")."""
        self.messages.append((kind, message))

    def take(self) -> list[tuple[str, Any]]:
        """Return the messages that were stored since the last call."""
        messages, self.messages = self.messages, []
        return messages

    def refuse(self, error: UserError) -> None:
        """Store an error. The first one is kept, and no worker tries again."""
        self.refusal = self.refusal or error

    def refused(self) -> UserError | None:
        return self.refusal


def train_on_ray(
    job: Job, workers: tuple[int, int], address: str, max_failures: int, report: Report, say: Say
) -> list[dict[str, Any]]:
    """Run `pad_pipeline.training.loop.train` in workers of Ray Train as `Launch` describes them, and return its log.

    The job's paths must be the same on every node. Where fewest and most workers differ, the training goes on with
    fewer when nodes are lost.

    Raises:
        UserError: as in `train`; or the workers died too often.
    """
    with ray_session(address) as ray:
        from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        on_gpu = ray.cluster_resources().get("GPU", 0) > 0
        # Start the desk on the driver's node: on any other, the desk would be lost with the node, and the training too.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        desk = ray.remote(_Desk).options(name=_DESK, num_cpus=0, scheduling_strategy=here).remote()
        out = Path(job.out).resolve()
        low, high = workers
        storage = out.parent / f".{out.name}.ray"  # Ray Train's notes, which all nodes of a cluster must see
        trainer = TorchTrainer(
            _work,
            train_loop_config=job.model_copy(update={"out": str(out)}).facts(),
            scaling_config=ScalingConfig(num_workers=high if low == high else (low, high), use_gpu=on_gpu),
            run_config=RunConfig(
                name=out.name, storage_path=str(storage), failure_config=FailureConfig(max_failures=max_failures),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )  # fmt: skip
        done = threading.Event()

        def pass_on() -> None:
            for kind, message in ray.get(desk.take.remote()):
                report(message) if kind == "entry" else say(message)

        def listen() -> None:
            while not done.wait(_LOOK):
                pass_on()

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
            raise refusal
        pass_on()
    return read_log(Path(job.out), 1 << 62)


def _work(facts: dict[str, Any]) -> None:
    """Train as one worker of Ray Train; a `UserError` goes to the desk and does not count as a death."""
    import ray

    desk = ray.get_actor(_DESK)
    if ray.get(desk.refused.remote()):
        return
    settings = settings_of(facts["stage"]).model_validate(facts["settings"])
    job = Job.model_validate(facts | {"settings": settings})
    try:
        train(job, lambda entry: desk.leave.remote("entry", entry), lambda text: desk.leave.remote("text", text))
    except UserError as error:
        ray.get(desk.refuse.remote(error))
