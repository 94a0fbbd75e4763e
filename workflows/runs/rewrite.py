"""Shards from shards, without a model: `pad retarget` (another view, LLM, other regions), `pad filter`, `pad merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.geometry import View
from pad_pipeline.labels import LabelSettings
from pad_pipeline.shards.run import Run
from pad_pipeline.sources.stored import StoredSource
from pad_pipeline.stages.edit import EditSettings
from pad_pipeline.storage import Folder
from pad_pipeline.workflows.engine.chain import Link
from pad_pipeline.workflows.engine.progress import Totals
from pad_pipeline.workflows.models.fingerprints import label_fingerprint
from pad_pipeline.workflows.runs.build import carry_out, open_out
from pad_pipeline.workflows.runs.chains import rewriting_chain
from pad_pipeline.workflows.runs.options import RunOptions

LLM_FILES = ("llm_embedding", "llm_tokenizer")
"""The fingerprints that another LLM changes."""


def rewrite(
    source: StoredSource,
    out: Path | str,
    options: RunOptions,
    view: View | None = None,
    labels: LabelSettings | None = None,
    edits: EditSettings | None = None,
) -> Totals:
    """Write the images of `source` into `out`, resumable as a build is.

    Where the regions are left as they are, what comes out is what the build itself would have written with that view
    and that LLM, to the byte; so the run says that it is that build's.

    Args:
        source: images of one run or of several.
        out: the new run's folder, or its URL.
        options: how.
        view: the new one; by default the one that the shards have.
        labels: the new LLM; by default the one that they have.
        edits: which regions stay, under which labels.

    Returns:
        Images, `ok`, `empty`, `failed`, tags and regions over all shards.

    Raises:
        UserError: the runs do not go together, the LLM is not there or has changed, or the folder can't be used.
    """
    edits = edits or EditSettings()
    folder = open_out(out, options)
    if any(_where(shards.folder) == _where(folder) for shards in source.runs):
        raise UserError("out", out, "these are the shards that are read", "name a new folder")
    runs = [shards.run for shards in source.runs]
    chosen_view = view or _common("view", "`fit`, `view_size` or `patch`", [run.view for run in runs])
    chosen_labels = labels or _labels(_common("llm", "`llm`", [run.settings.get("llm") for run in runs]))
    words, width = label_fingerprint(chosen_labels)
    if labels is None:
        for run in runs:
            if changed := [name for name in LLM_FILES if run.fingerprints.get(name) != words[name]]:
                rule = f"it is not what it was when the shards were made ({' and '.join(changed)} differ)"
                raise UserError("llm.llm", chosen_labels.llm, rule, "put it back, or say with `llm` what to embed with")
    kind, settings, fingerprints = _made_with(runs)
    settings |= {"llm": chosen_labels.model_dump(mode="json")}
    if edits.changes:
        settings["edits"] = [*settings.get("edits", []), edits.model_dump(mode="json", exclude_defaults=True)]
    run = Run(
        kind=kind,
        images=0,
        shards=0,
        shard_size=options.shard_size,
        counts={},
        view=chosen_view,
        embedding_width=width,
        settings=settings,
        fingerprints=fingerprints | words,
    )

    def chain(folder: Folder, identity: str) -> list[Link]:
        return rewriting_chain(folder, identity, edits, chosen_labels, chosen_view, source.root)

    with rename_field(images="shards"):
        return carry_out(run, source, folder, chain, options, title="rewrite")


def _where(folder: Folder) -> str:
    return str(folder) if folder.remote else str(folder.path.resolve())


def _common(what: str, parameter: str, values: list[Any]) -> Any:
    """The one value that all runs have.

    Raises:
        UserError: they have several, or none.
    """
    if values[0] is None or any(value != values[0] for value in values):
        shown = ", ".join(dict.fromkeys(str(value) for value in values))
        raise UserError("shards", shown, f"the runs differ in their {what}", f"say with {parameter} which is wanted")
    return values[0]


def _labels(settings: Any) -> LabelSettings:
    try:
        return LabelSettings.model_validate(settings)
    except ValidationError as error:
        rule = "this is no LLM that this version of pad knows"
        raise UserError("run.json: settings.llm", settings, rule, "say with `llm` what to embed with") from error


def _made_with(runs: list[Run]) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Kind, settings and fingerprints of weights: of the run, or of all where they are alike; else each run's."""
    first = _facts(runs[0])
    if all(_facts(run) == first for run in runs):
        return first
    parts = [dict(zip(("kind", "settings", "fingerprints"), _facts(run), strict=True)) for run in runs]
    return "merge", {"merged": parts}, {}


def _facts(run: Run) -> tuple[str, dict[str, Any], dict[str, str]]:
    weights = {name: value for name, value in run.fingerprints.items() if name not in ("inputs", "code", *LLM_FILES)}
    return run.kind, {name: value for name, value in run.settings.items() if name != "llm"}, weights
