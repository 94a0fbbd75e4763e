"""The specification of a run: the facts that decide its bytes before any image is known, and its chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pad_pipeline.geometry import View
from pad_pipeline.plan import PlanFacts
from pad_pipeline.shards.run import Run
from pad_pipeline.sources.choose import SampleFirst
from pad_pipeline.storage import Folder
from pad_pipeline.workflows.engine.chain import Link
from pad_pipeline.workflows.runs.cpu_workers import with_cpu_workers
from pad_pipeline.workflows.runs.fingerprint import code_fingerprint, environment
from pad_pipeline.workflows.runs.options import RunOptions


class RunSpec(NamedTuple):
    """The facts about a run that do not depend on its images."""

    kind: str
    """See `Run.kind`."""
    view: View
    embedding_width: int
    settings: dict[str, Any]
    """See `Run.settings`."""
    fingerprints: dict[str, str]
    """sha256 of each model's files, by name."""
    chain: Callable[[Folder, str, int, int], list[Link]]
    """A function from the run's folder, `Run.identity`, the number of its images and the CPU threads of each model to
    the links of the chain."""
    model_bytes: int | None = 0
    """Size of the models' files; 0 for a run without models, None if it is not known."""
    code: str = ""
    """Versions of the user's own classes; empty if there are none."""
    title: str = ""
    """Name of the run in the progress display; if it is empty, `kind` is shown."""
    reads_texts: bool = False
    """Whether a stage makes tags of captions, so that a source without any texts is useless."""
    input_field: str = "images"
    """The parameter that names the source, for errors."""

    def to_run(self, planned: PlanFacts, counts: dict[str, int], options: RunOptions, first: SampleFirst) -> Run:
        """Return the content of run.json for a plan. `first` is the sample that the plan begins with."""
        shards = -(-planned.images // options.shard_size)
        code = " ".join(filter(None, [code_fingerprint(), self.code]))
        return Run(
            kind=self.kind,
            images=planned.images,
            shards=shards,
            shard_size=options.shard_size,
            sample=first.images,
            sample_seed=first.seed,
            counts=dict(sorted(counts.items())),
            view=self.view,
            embedding_width=self.embedding_width,
            settings=self.settings,
            fingerprints=self.fingerprints | {"inputs": planned.digest, "code": code},
            contents=planned.sample,
            plan=planned.seal,
            environment=environment(with_cpu_workers(options, shards, self.model_bytes).used_threads),
        )
