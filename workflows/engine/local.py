"""The local engine: it runs a chain over shards, one after another, in this process or in a child of it."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from pad_pipeline.errors import UserError
from pad_pipeline.records import shard_name
from pad_pipeline.workflows.engine.attempts import Attempts, Begin
from pad_pipeline.workflows.engine.chain import Chain, Done, Link, Worked, add_worked
from pad_pipeline.workflows.engine.child import Child, ChildDied
from pad_pipeline.workflows.engine.progress import StageState, Watch


class LocalEngine:
    """Runs all steps in one process: the same callables as on Ray, so the same bytes.

    Args:
        isolated: work in a child process. If the child dies, that costs one attempt at its shard, and a new child
            continues. If it is false, an image that kills the process kills the caller.
    """

    def __init__(self, isolated: bool = False) -> None:
        self.isolated = isolated

    def run(self, chain: list[Link], numbers: Iterable[int], begin: Begin, watch: Watch) -> Generator[Done, None, None]:
        """Work on shards, and yield the result of each once it is committed. Closing the generator stops the work.

        Args:
            chain: the links of the run.
            numbers: the numbers of the shards; results come in this order.
            begin: makes the attempts at a shard.
            watch: shows the progress of the stages.

        Raises:
            UserError: a stage stops the run, the child can't start, or a shard kills every child.
        """
        link = Link("all", [step for link in chain for step in link.steps], breaker=chain[0].breaker)
        worker = _ChildWorker(link, watch) if self.isolated else _Worker(link, watch)
        try:
            for number in numbers:
                attempts = begin(number)
                done = worker.tried(attempts)
                while done is None or not attempts.survived():
                    done = worker.tried(attempts)
                yield done
        finally:
            worker.close()


class _Worker:
    """A worker in this process. It builds its chain for the first shard."""

    def __init__(self, link: Link, watch: Watch) -> None:
        self.link, self.watch = link, watch
        self.chain: Chain | None = None

    def tried(self, attempts: Attempts) -> Done | None:
        """Return the result of the task of the attempts, or None if the process died over it."""
        self.chain = self.chain or Chain(self.link, self.look)
        done: Done = self.chain.run(attempts.task())
        self.look()
        return done

    def worked(self) -> dict[str, Worked]:
        """Return the work of each stage."""
        return self.chain.worked() if self.chain else {}

    def look(self) -> None:
        """Show the progress of the stages."""
        self.watch.look({name: StageState(worked, workers=1) for name, worked in self.worked().items()})

    def close(self) -> None:
        """Stop the process of the worker, if it has one."""


class _ChildWorker(_Worker):
    """A worker with its chain in a child process. After a death, the next task starts a new child."""

    def __init__(self, link: Link, watch: Watch) -> None:
        super().__init__(link, watch)
        self.child: Child | None = None
        self.past: list[dict[str, Worked]] = [{}]
        """The work of the stages in each child, the present one last."""

    def tried(self, attempts: Attempts) -> Done | None:
        """See `_Worker.tried`."""
        stage = ""
        try:
            child = self.child or self._started()
            child.send(attempts.task())
            while not isinstance(answer := child.receive(), Done):
                if isinstance(answer, str):
                    stage = answer
                elif answer:
                    self.past[-1] = answer
                    self.look()
            return answer
        except ChildDied as death:
            self.child = None
            self.past.append({})
            where = f"over {shard_name(attempts.number)}" + (f", in {stage}" if stage else "")
            self.watch.say(f"The process died ({death}) {where}; going on in a new one.")
            attempts.died(stage)
            return None

    def _started(self) -> Child:
        self.child = Child.taken()
        try:
            self.child.begin(self.link)
        except ChildDied as death:
            rule = f"its process died ({death}) before it had begun a shard"
            raise UserError("engine", "local", rule, "see what it said; if its memory ran out, give it more") from death
        return self.child

    def worked(self) -> dict[str, Worked]:
        """Return the work of each stage, over all children."""
        return add_worked(self.past)

    def close(self) -> None:
        """Stop the child."""
        if self.child:
            self.child.stop()
