"""Write shards from shards, without a model: `pad retarget` (another view or LLM), `pad filter` and `pad merge`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.labels import LabelEmbedder, LabelSettings
from pad_pipeline.shards.run import Run
from pad_pipeline.sources.stored import StoredSource
from pad_pipeline.stages.edit_settings import EditSettings
from pad_pipeline.storage import resolved
from pad_pipeline.workflows.engine.progress import Totals
from pad_pipeline.workflows.runs.build import carry_out, open_out
from pad_pipeline.workflows.runs.chains import rewriting_chain
from pad_pipeline.workflows.runs.options import RunOptions
from pad_pipeline.workflows.runs.recipe import Recipe

Value = TypeVar("Value")
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
    """Write the images of `source` into `out`. The run can be resumed like a build.

    If no region is edited, the shards are byte for byte those of a build with this view and this LLM. So the new run's
    kind and settings are those of that build.

    Args:
        source: images of one run or of several runs.
        out: the new run's folder, or its URL.
        options: the options of the new run.
        view: the new view; by default that of the shards.
        labels: the new LLM; by default that of the shards.
        edits: the regions to keep, and their labels.

    Returns:
        The counts of `TOTALS` over all shards.

    Raises:
        UserError: the runs do not fit together, the LLM is not there or has changed, or the folder can't be used.
    """
    # Open the new folder, which must not be one that is read.
    edits = edits or EditSettings()
    folder = open_out(out, options.fork)
    if any(resolved(shards.folder) == resolved(folder) for shards in source.runs):
        raise UserError("out", out, "these are the shards that are read", "name a new folder")
    # Take the new view and LLM, or else those that all runs share. An LLM that is kept must not have changed.
    runs = [shards.run for shards in source.runs]
    chosen_view = view or _common("view", "`fit`, `size` or `patch`", [run.view for run in runs])
    chosen_labels = labels or _labels(_common("llm", "`llm`", [run.settings.get("llm") for run in runs]))
    embedder = LabelEmbedder(chosen_labels)
    words = embedder.fingerprints()
    if labels is None:
        for run in runs:
            if changed := [name for name in LLM_FILES if run.fingerprints.get(name) != words[name]]:
                rule = f"it is not what it was when the shards were made ({' and '.join(changed)} differ)"
                raise UserError("llm.llm", chosen_labels.llm, rule, "put it back, or say with `llm` what to embed with")
    # The new run has the kind and the settings of the old ones, with the LLM and the edits that were chosen.
    kind, settings, fingerprints = _made_with(runs)
    settings |= {"llm": chosen_labels.model_dump(mode="json")}
    if edits.changes:
        settings["edits"] = [*settings.get("edits", []), edits.model_dump(mode="json", exclude_defaults=True)]
    chain = partial(rewriting_chain, edits=edits, labels=chosen_labels, view=chosen_view, root=source.root)
    facts = (kind, chosen_view, embedder.width, settings, fingerprints | words)
    recipe = Recipe(*facts, chain, title="rewrite", input_field="shards")
    return carry_out(recipe, source, folder, options)


def _common(what: str, settings: str, values: list[Value]) -> Value:
    """Return the value that all runs share; the error names `what` it is, and the `settings` that choose another.

    Raises:
        UserError: the runs have several values, or none.
    """
    if values[0] is None or any(value != values[0] for value in values):
        shown = ", ".join(dict.fromkeys(str(value) for value in values))
        raise UserError("shards", shown, f"the runs differ in their {what}", f"say with {settings} which is wanted")
    return values[0]


def _labels(settings: object) -> LabelSettings:
    try:
        return LabelSettings.model_validate(settings)
    except ValidationError as error:
        rule = "this is no LLM that this version of pad knows"
        raise UserError("run.json: settings.llm", settings, rule, "say with `llm` what to embed with") from error


def _made_with(runs: list[Run]) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Return kind, settings and fingerprints of weights that all runs share, or else those of a merge of the runs."""
    first = _facts(runs[0])
    if all(_facts(run) == first for run in runs):
        return first
    parts = [dict(zip(("kind", "settings", "fingerprints"), _facts(run), strict=True)) for run in runs]
    return "merge", {"merged": parts}, {}


def _facts(run: Run) -> tuple[str, dict[str, Any], dict[str, str]]:
    weights = {name: value for name, value in run.fingerprints.items() if name not in ("inputs", "code", *LLM_FILES)}
    return run.kind, {name: value for name, value in run.settings.items() if name != "llm"}, weights
