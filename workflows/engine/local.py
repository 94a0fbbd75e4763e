"""The local engine: it runs a chain over shards, one after another, in this process or in a child process."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from pad_pipeline.errors import UserError
from pad_pipeline.records import shard_name
from pad_pipeline.workflows.engine.attempts import Attempts
from pad_pipeline.workflows.engine.chain import Chain, Done, Link, StageWork, add_work, merged
from pad_pipeline.workflows.engine.child import Child, ChildDied
from pad_pipeline.workflows.engine.progress import Progress, StageState


class LocalEngine:
    """Runs the whole chain in one process, with the same operations as on Ray. So the bytes are the same.

    Args:
        isolated: work in a child process. A child that dies costs one attempt at its shard, and a new child continues.
            If false, an image that kills the process kills the caller.
    """

    def __init__(self, isolated: bool = False) -> None:
        self.isolated = isolated

    def run(self, chain: list[Link], shards: Iterable[Attempts], progress: Progress) -> Generator[Done, None, None]:
        """Work on shards, and yield the result of each shard after the commit. Closing the generator stops the work.

        Args:
            chain: the links of the run.
            shards: the attempts at each shard. The results come in this order.
            progress: receives the progress of the stages.

        Raises:
            UserError: a stage stops the run, a child can't start, or a shard kills every child.
        """
        worker = (_ChildWorker if self.isolated else _Worker)(merged(chain), progress)
        try:
            for attempts in shards:
                done = worker.attempt(attempts)
                while done is None or not attempts.survived():
                    done = worker.attempt(attempts)
                yield done
        finally:
            worker.close()


class _Worker:
    """A worker in this process. It builds its chain for the first shard."""

    def __init__(self, link: Link, progress: Progress) -> None:
        self.link, self.progress = link, progress
        self.chain: Chain | None = None

    def attempt(self, attempts: Attempts) -> Done | None:
        """Carry out the next task of the attempts. Return its result, or None if the process died over it."""
        self.chain = self.chain or Chain(self.link, self.report)
        done: Done = self.chain.run(attempts.task())
        self.report()
        return done

    def work(self) -> dict[str, StageWork]:
        """Return the work of each stage."""
        return self.chain.work() if self.chain else {}

    def report(self) -> None:
        """Report the work of the stages."""
        self.progress.update({name: StageState(work, workers=1) for name, work in self.work().items()})

    def close(self) -> None:
        """Stop the worker's process, if it has one."""


class _ChildWorker(_Worker):
    """A worker with its chain in a child process. After a death, the next task starts a new child."""

    def __init__(self, link: Link, progress: Progress) -> None:
        super().__init__(link, progress)
        self.child: Child | None = None
        self.past: list[dict[str, StageWork]] = [{}]
        """The work of the stages in each child, the present child last."""

    def attempt(self, attempts: Attempts) -> Done | None:
        stage = ""
        try:
            child = self.child or self._started()
            child.send(attempts.task())
            while not isinstance(answer := child.receive(), Done):
                if isinstance(answer, str):
                    stage = answer
                elif answer:
                    self.past[-1] = answer
                    self.report()
            return answer
        except ChildDied as death:
            self.child = None
            self.past.append({})
            where = f"over {shard_name(attempts.number)}" + (f", in {stage}" if stage else "")
            self.progress.say(f"The process died ({death}) {where}; going on in a new one.")
            attempts.died(stage)
            return None

    def _started(self) -> Child:
        self.child = Child.take()
        try:
            self.child.begin(self.link)
        except ChildDied as death:
            rule = f"its process died ({death}) before it had begun a shard"
            remedy = "read what the process printed above; if its memory ran out, give it more"
            raise UserError("engine", "local", rule, remedy) from death
        return self.child

    def work(self) -> dict[str, StageWork]:
        return add_work(self.past)

    def close(self) -> None:
        if self.child:
            self.child.stop()
