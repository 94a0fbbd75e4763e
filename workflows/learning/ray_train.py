"""Train in workers of Ray Train, which restarts all workers when one dies."""

from __future__ import annotations

import _thread
import shutil
import threading
from pathlib import Path
from typing import Any

from pad_pipeline.errors import UnavailableError, UserError
from pad_pipeline.threads import Say
from pad_pipeline.training.job import Job
from pad_pipeline.training.loop import Report, train
from pad_pipeline.training.settings import settings_of
from pad_pipeline.training.training_log import read_log
from pad_pipeline.workflows.engine.ray_session import Cluster, Patience, gpus_each, ray_session, watched

_MAILBOX = "pad-train-mailbox"
"""The name of the Ray actor `_Mailbox`."""
_SECONDS = 0.5
"""Seconds between two looks into the mailbox."""


class _Mailbox:
    """Keeps the workers' messages until the driver takes them, and the error that ends the training."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Any]] = []
        self.error: UserError | None = None

    def put(self, kind: str, message: Any) -> None:
        """Store a message: a log entry (`kind` "entry") or a line of text ("text")."""
        self.messages.append((kind, message))

    def take(self) -> list[tuple[str, Any]]:
        """Return the messages since the last call."""
        messages, self.messages = self.messages, []
        return messages

    def put_error(self, error: UserError) -> None:
        """Store the first error, after which no worker tries again."""
        self.error = self.error or error

    def get_error(self) -> UserError | None:
        return self.error


def train_on_ray(
    job: Job, workers: tuple[int, int], cluster: Cluster, max_failures: int, report: Report, say: Say
) -> list[dict[str, Any]]:
    """Run `pad_pipeline.training.loop.train` in workers of Ray Train, and return its log.

    The job's paths must be valid on every node. If `workers` is a range, the training continues with fewer workers when
    nodes are lost.

    Raises:
        UserError: as in `train`; or the workers died too often.
    """
    with ray_session(cluster.address) as ray, watched(ray):
        from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from pad_pipeline.workflows.learning.ray_group import GroupConfig

        gpus = gpus_each(ray, cluster)
        # The mailbox runs on the driver's node, because the loss of its node would end the training.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        mailbox = ray.remote(_Mailbox).options(name=_MAILBOX, num_cpus=0, scheduling_strategy=here).remote()
        out = Path(job.out).resolve()
        low, high = workers
        if 0 < gpus < 1 and high > 1:
            rule = "each of several processes needs a GPU of its own, because NCCL refuses to share one"
            raise UserError("gpus", gpus, rule, "give 1, or 0 for the CPU")
        needs = {"CPU": 1.0} | ({"GPU": gpus} if gpus else {})
        patience = Patience(ray, needs, low, cluster.wait, say)
        stopped: list[UnavailableError] = []
        storage = out.parent / f".{out.name}.ray"  # Ray Train's own files, which all nodes of a cluster must see
        trainer = TorchTrainer(
            _work,
            train_loop_config=job.model_copy(update={"out": str(out)}).model_dump(mode="json"),
            torch_config=GroupConfig(),
            scaling_config=ScalingConfig(
                num_workers=high if low == high else (low, high), use_gpu=gpus > 0, resources_per_worker=needs,
            ),
            run_config=RunConfig(
                name=out.name, storage_path=str(storage), failure_config=FailureConfig(max_failures=max_failures),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )  # fmt: skip
        done = threading.Event()

        def pass_on() -> None:
            for kind, message in ray.get(mailbox.take.remote()):
                report(message) if kind == "entry" else say(message)

        def listen() -> None:
            while not done.wait(_SECONDS):
                pass_on()
                try:
                    patience.check()
                except UnavailableError as error:
                    stopped.append(error)
                    _thread.interrupt_main()
                    return

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        try:
            trainer.fit()
        except (Exception, KeyboardInterrupt) as error:
            if stopped:
                raise stopped[0] from error
            if not isinstance(error, Exception):
                raise
            if not ray.get(mailbox.get_error.remote()):
                rule = f"Ray Train gave up ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
                raise UserError("workers", f"{low}-{high}", rule, "run the same command to continue") from error
        finally:
            done.set()
            listener.join()
            shutil.rmtree(storage, ignore_errors=True)
        if found := ray.get(mailbox.get_error.remote()):
            raise found
        pass_on()
    return read_log(Path(job.out), 1 << 62)


def _work(facts: dict[str, Any]) -> None:
    """Train as one worker of Ray Train. A `UserError` goes to the mailbox, and does not count as a death."""
    import ray

    mailbox = ray.get_actor(_MAILBOX)
    if ray.get(mailbox.get_error.remote()):
        return
    settings = settings_of(facts["stage"]).model_validate(facts["settings"])
    job = Job.model_validate(facts | {"settings": settings})
    try:
        train(job, lambda entry: mailbox.put.remote("entry", entry), lambda text: mailbox.put.remote("text", text))
    except UserError as error:
        ray.get(mailbox.put_error.remote(error))
