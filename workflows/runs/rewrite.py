"""Write new shards from shards, without a model: `pad retarget` (another view or LLM), `pad filter`, `pad merge`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.labels import LabelEmbedder, LabelSettings
from pad_pipeline.llms import check_llm
from pad_pipeline.shards.run import Run
from pad_pipeline.sources.stored import StoredSource
from pad_pipeline.stages.edit_settings import EditSettings
from pad_pipeline.storage import resolved
from pad_pipeline.workflows.engine.progress import Totals
from pad_pipeline.workflows.runs.build import carry_out, note_partial, open_out
from pad_pipeline.workflows.runs.chains import rewriting_chain
from pad_pipeline.workflows.runs.options import RunOptions
from pad_pipeline.workflows.runs.spec import RunSpec

Value = TypeVar("Value")
LLM_FILES = ("llm_embedding", "llm_tokenizer")
"""Names of the fingerprints that depend on the LLM."""


def rewrite(
    source: StoredSource,
    out: Path | str,
    options: RunOptions,
    view: View | None = None,
    labels: LabelSettings | None = None,
    edits: EditSettings | None = None,
) -> Totals:
    """Write the images of `source` into new shards in `out`. The run can be resumed like a build.

    If no region is edited, the shards have the same bytes as in a build with the same view and LLM. So the new run has
    the kind and settings of such a build.

    Args:
        source: images of one run or of several runs.
        out: the new run's folder, or its URL.
        options: the options of the new run.
        view: the new view; by default the view of the shards.
        labels: the new LLM; by default the LLM of the shards.
        edits: the regions to keep, and their labels.

    Returns:
        The counts of `TOTALS` over all shards.

    Raises:
        UserError: the runs do not fit together, the LLM is missing or has changed, or the folder can't be used.
    """
    # Open the new folder. It must not be one of the folders that are read.
    edits = edits or EditSettings()
    folder = open_out(out, options.fork)
    if any(resolved(shards.folder) == resolved(folder) for shards in source.runs):
        raise UserError("out", out, "these are the shards that are read", "name a new folder")
    # Take the view and the LLM from the arguments, or else from the runs. The files of a kept LLM must be the same.
    runs = [shards.run for shards in source.runs]
    chosen_view = view or _common("view", "`fit`, `size` or `patch`", [run.view for run in runs])
    chosen_labels = labels or _labels(_common("llm", "`llm`", [run.settings.get("llm") for run in runs]))
    embedder = LabelEmbedder(chosen_labels)
    check_llm("llm.llm", embedder.folder)
    llm_files = embedder.fingerprints()
    if labels is None:
        for run in runs:
            if changed := [name for name in LLM_FILES if run.fingerprints.get(name) != llm_files[name]]:
                rule = f"it has changed since the shards were made ({' and '.join(changed)} differ)"
                raise UserError("llm.llm", chosen_labels.llm, rule, "put the original back, or name an LLM with `llm`")
    # The new run has the kind and the settings of the old runs, except for the chosen LLM and edits.
    kind, settings, fingerprints = _shared_facts(runs)
    corrected = bool(source.tool)
    if corrected:  # a merge of what the models made and of what people made, in the words of run.json
        models = {"kind": kind, "settings": settings, "fingerprints": fingerprints}
        kind = f"import-{source.tool}"
        people = {"kind": kind, "settings": {}, "fingerprints": {}}
        settings, fingerprints = {"merged": [models, people]} | _decoding([settings]), {}
    settings |= {"llm": chosen_labels.model_dump(mode="json"), **source.facts}
    if edits.changes:
        settings["edits"] = [*settings.get("edits", []), edits.model_dump(mode="json", exclude_defaults=True)]
    chain = partial(
        rewriting_chain, edits=edits, labels=chosen_labels, view=chosen_view, root=source.root, corrected=corrected
    )
    facts = (kind, chosen_view, embedder.width, settings, fingerprints | llm_files)
    field = "annotations" if corrected else "shards"
    totals = carry_out(RunSpec(*facts, chain, title="rewrite", input_field=field), source, folder, options)
    if corrected:
        note_partial(folder, options, source.counts)
    return totals


def _common(name: str, settings: str, values: list[Value]) -> Value:
    """Return the value that all runs share. In the error, `name` stands for the value, and `settings` for the
    parameters that choose another value.

    Raises:
        UserError: the runs have several values, or no value.
    """
    if values[0] is None or any(value != values[0] for value in values):
        shown = ", ".join(dict.fromkeys(str(value) for value in values))
        raise UserError("shards", shown, f"the runs differ in their {name}", f"choose one with {settings}")
    return values[0]


def _labels(settings: object) -> LabelSettings:
    try:
        return LabelSettings.model_validate(settings)
    except ValidationError as error:
        rule = "this version of pad can't read these settings"
        raise UserError("run.json: settings.llm", settings, rule, "name an LLM with `llm`") from error


def _shared_facts(runs: list[Run]) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Return the kind, settings and fingerprints that the runs share; if they differ, those of a merge."""
    first = _facts(runs[0])
    if all(_facts(run) == first for run in runs):
        return first
    parts = [dict(zip(("kind", "settings", "fingerprints"), _facts(run), strict=True)) for run in runs]
    return "merge", {"merged": parts} | _decoding([run.settings for run in runs]), {}


def _decoding(settings: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the limits for images that all runs share, by which a deep verification decodes; empty if they differ."""
    first = settings[0].get("decode")
    return {"decode": first} if first and all(one.get("decode") == first for one in settings) else {}


def _facts(run: Run) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Return the kind, settings and fingerprints of a run, except for inputs, code and LLM."""
    weights = {name: value for name, value in run.fingerprints.items() if name not in ("inputs", "code", *LLM_FILES)}
    return run.kind, {name: value for name, value in run.settings.items() if name != "llm"}, weights
