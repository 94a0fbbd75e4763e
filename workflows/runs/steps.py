"""The first and the last step of every chain: a shard's plan is read, and the finished shard is written."""

from __future__ import annotations

from pad_pipeline.errors import UserError
from pad_pipeline.plan import Plan
from pad_pipeline.records import Shard
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.shards.writer import write_shard
from pad_pipeline.storage import Folder
from pad_pipeline.workflows.engine.chain import Done, Task


class ReadShard:
    """The first step of every chain: a task -> its planned images."""

    name = "plan"

    def __init__(self, out: Folder) -> None:
        self.out, self.plan = out, Plan(out)
        self._shards: ShardFolder | None = None

    def __call__(self, task: Task) -> Shard:
        """The shard with nothing but its plan; on a retry, with everything that is finished in it already."""
        shard = Shard(task.number, self.plan.shard(task.number), trial=task.part is not None)
        if task.retry:
            self._restore(shard)
        for row, stage in task.killers:
            if not shard.rows[row].done:
                shard.rows[row].fail(stage, "it killed the process that worked on it, every time")
        if task.part is not None:
            shard.rows = shard.rows[slice(*task.part)]
        return shard

    def _restore(self, shard: Shard) -> None:
        self._shards = shards = self._shards or ShardFolder(self.out)  # it lists the whole folder
        for record, row in zip(shard.rows, shards.index(shard.name), strict=True):
            if row["status"] != "failed":
                sample = shards.sample(shard.name, row)
                record.restore(sample.meta)
                record.data, record.coverage, record.embeds = sample.image, sample.coverage, sample.embeds
                record.status, record.done = row["status"], True


class WriteShard:
    """The last step of every chain: a finished shard -> its two files, and what is in them."""

    name = "write"

    def __init__(self, out: Folder, identity: str) -> None:
        self.out, self.identity = out, identity

    def __call__(self, shard: Shard) -> Done:
        """Written, if it is not a part that was only tried."""
        if shard.trial:
            return Done(shard.number, {})
        try:
            return Done(shard.number, dict(write_shard(shard, self.out, self.identity)))
        except OSError as error:
            raise unwritable(self.out, error) from error


def unwritable(out: Folder, error: OSError) -> UserError:
    """The error for an output folder that is full, read-only or gone."""
    rule = f"it can't be written ({error.strerror or error})"
    return UserError("out", out, rule, "make room, mend it or name another, then run the same command again")
