"""The local engine: it runs a chain over shards, one after another, in this process or in a child process."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence

from pad_pipeline.errors import UserError
from pad_pipeline.records import shard_name
from pad_pipeline.workflows.engine.attempts import Attempts
from pad_pipeline.workflows.engine.chain import Chain, Done, Link, StageWork, add_work, merged, without_gpus
from pad_pipeline.workflows.engine.child import Child, ChildDied
from pad_pipeline.workflows.engine.progress import Progress, StageState

UNEXPLAINED = 2
"""Number of deaths over several shards, without a death over one of them, after which shards are worked on singly."""


class LocalEngine:
    """Runs the whole chain in one process, with the same operations as on Ray. So the bytes are the same, if the
    number of threads is.

    Args:
        isolated: work in a child process. If a child dies, a new child tries the shards again that it had in hand.
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
            yield from worker.results(iter(shards))
        finally:
            worker.close()


class _Worker:
    """A worker in this process. It builds its chain for the first shard."""

    def __init__(self, link: Link, progress: Progress) -> None:
        self.link, self.progress = link, progress
        self.chain: Chain | None = None

    def results(self, shards: Iterator[Attempts]) -> Iterator[Done]:
        """Yield the result of each shard."""
        for attempts in shards:
            self.chain = self.chain or Chain(self.link, self.report)
            done: Done = self.chain.run(attempts.task())
            self.report()
            yield done

    def work(self) -> dict[str, StageWork]:
        """Return the work of each stage."""
        return self.chain.work() if self.chain else {}

    def report(self) -> None:
        """Report the work of the stages."""
        self.progress.update({name: StageState(work, workers=1) for name, work in self.work().items()})

    def close(self) -> None:
        """Stop the worker's process, if it has one."""


class _ChildWorker(_Worker):
    """A worker with its chain in a child process. After a death, the next task starts a new child.

    A child may have up to three shards in hand, see `Link.before`. Nobody knows which of them it died over, so they are
    tried again one at a time, and only a death over a single shard counts. If that happens twice, and none kills alone,
    the memory may be too small for several: then the rest of the run has one shard in hand.
    """

    def __init__(self, link: Link, progress: Progress) -> None:
        super().__init__(link, progress)
        self.child: Child | None = None
        self.past: list[dict[str, StageWork]] = [{}]
        """The work of the stages in each child, the present child last."""
        self.stage = ""
        """The operation that the child began last."""

    def results(self, shards: Iterator[Attempts]) -> Iterator[Done]:
        in_hand: deque[Attempts] = deque()
        again: deque[Attempts] = deque()
        singly = 0  # number of shards that are tried one at a time
        unexplained = 0  # number of deaths over several shards, none of which killed alone
        most = 1 + bool(self.link.before) + bool(self.link.after)
        while True:
            try:
                while len(in_hand) < (1 if singly else most):
                    if (attempts := again.popleft() if again else next(shards, None)) is None:
                        break
                    in_hand.append(attempts)
                    child = self.child or self._started()
                    child.send(attempts.task())
                if not in_hand:
                    return
                done = self._received()
            except ChildDied as death:
                self.child = None
                self.past = [*self.past[:-1], without_gpus(self.past[-1]), {}]
                singly = max(singly, len(in_hand))
                self._say(death, in_hand)
                if len(in_hand) == 1:
                    in_hand[0].died(self.stage)
                    unexplained = 0
                elif (unexplained := unexplained + 1) == UNEXPLAINED:
                    most = 1
                    self.progress.say("The rest of the run works on one shard at a time, which takes less memory.")
                again.extendleft(reversed(in_hand))
                in_hand.clear()
                continue
            attempts = in_hand.popleft()
            if attempts.survived():
                singly = max(0, singly - 1)
                yield done
            else:
                again.appendleft(attempts)

    def _received(self) -> Done:
        assert self.child
        while not isinstance(answer := self.child.receive(), Done):
            if isinstance(answer, str):
                self.stage = answer
            elif answer:
                self.past[-1] = answer
                self.report()
        return answer

    def _say(self, death: ChildDied, in_hand: Sequence[Attempts]) -> None:
        where = f"over {shard_name(in_hand[0].number)}" + (f", in {self.stage}" if self.stage else "")
        ending = "going on in a new one"
        if len(in_hand) > 1:
            names = [shard_name(attempts.number) for attempts in in_hand]
            where, ending = f"over {', '.join(names[:-1])} or {names[-1]}", f"{ending}, with one shard at a time"
        self.progress.say(f"The process died ({death}) {where}; {ending}.")

    def _started(self) -> Child:
        self.child, self.stage = Child.take(), ""
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
