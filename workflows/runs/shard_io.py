"""The first and the last operation of every chain: read a shard's plan, and write the finished shard."""

from __future__ import annotations

from functools import cached_property

from pad_pipeline.plan import Plan
from pad_pipeline.records import Shard
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.shards.writer import write_shard
from pad_pipeline.storage import Folder, write_error
from pad_pipeline.workflows.engine.chain import Done, Task


class ReadShard:
    """The first operation of every chain. It returns the planned images of a task as a shard."""

    def __init__(self, out: Folder, rewritten: bool = False) -> None:
        self.out, self.plan, self.rewritten = out, Plan(out), rewritten

    def __call__(self, task: Task) -> Shard:
        """Return the planned images of a task. On a retry, samples that are already finished are restored."""
        shard = Shard(task.number, self.plan.shard(task.number, self.rewritten), trial=task.rows is not None)
        if task.retry:
            self._restore(shard)
        for row, stage in task.killers:
            if not shard.rows[row].done:
                shard.rows[row].fail(
                    stage, "it killed the process that worked on it, or used up its memory, every time"
                )
        if task.rows is not None:
            shard.rows = shard.rows[slice(*task.rows)]
        return shard

    @cached_property
    def _shards(self) -> ShardFolder:
        return ShardFolder(self.out)  # opened only for a retry, and once, because it lists the whole folder

    def _restore(self, shard: Shard) -> None:
        for record, row in zip(shard.rows, self._shards.index(shard.name), strict=True):
            if row["status"] != "failed":
                sample = self._shards.sample(shard.name, row)
                record.restore(sample.meta)
                record.data, record.coverage, record.embeds = sample.image, sample.coverage, sample.embeds
                record.status, record.done = row["status"], True


class WriteShard:
    """The last operation of every chain. It writes the two files of a finished shard, and returns its counts."""

    def __init__(self, out: Folder, identity: str) -> None:
        self.out, self.identity = out, identity

    def __call__(self, shard: Shard) -> Done:
        """Write the shard. A part is not written, because it is tried only to find images that kill the process."""
        if shard.trial:
            return Done(shard.number, {})
        try:
            return Done(shard.number, dict(write_shard(shard, self.out, self.identity)))
        except OSError as error:
            raise write_error(self.out, error) from error
