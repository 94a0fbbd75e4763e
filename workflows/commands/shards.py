"""The commands `pad verify` and `pad stats`."""

from __future__ import annotations

from typing import Annotated

import typer

from pad_pipeline.console import Table, console, say, track
from pad_pipeline.workflows.commands.common import (
    READ_OPTIONS,
    AsJson,
    Shards,
    counted,
    plain,
    print_json,
    reading,
    seen_by_workers,
)
from pad_pipeline.workflows.commands.options import OptionValues


def verify(
    *,
    shards: Shards,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also decode images and masks, and recompute coverages.")
    ] = False,
    read: Annotated[OptionValues, READ_OPTIONS],
    as_json: AsJson = False,
) -> None:
    """Check that shards hold each planned image exactly once, and that no byte has changed since the run wrote them.

    Each problem is printed, and the exit code is then 1.

    Examples:

      pad verify shards/

      pad verify shards/ --deep

      pad verify s3://bucket/shards --engine ray --address auto
    """
    from pad_pipeline.shards.run import Run
    from pad_pipeline.storage import folder_at
    from pad_pipeline.verify import verify_run

    shards_planned = Run.read(folder_at(shards)).shards
    wrong: dict[str, list[str]] = {}
    parts = verify_run(seen_by_workers(shards, read), deep, reading(shards, read, shards_planned))
    for name, problems in track(parts, "checking", shards_planned + 2):
        if problems:
            wrong[name] = problems
        for problem in () if as_json else problems:
            say(plain(f"{name}: {problem}"))
    if as_json:
        print_json({"shards": shards_planned, "problems": wrong})
        raise typer.Exit(1 if wrong else 0)
    if wrong:
        console.print(f"[red]{len(wrong)} not as it should be, of {counted(shards_planned, 'shard')}.[/red]")
        say("To make a shard again, delete its .parquet and repeat the command that built it.")
        raise typer.Exit(1)
    console.print(f"[green]Whole: {counted(shards_planned, 'shard')}.[/green]")


def stats(
    *,
    shards: Shards,
    top: Annotated[int, typer.Option(help="Number of labels to list, the most frequent first.", min=0)] = 15,
    read: Annotated[OptionValues, READ_OPTIONS],
    as_json: AsJson = False,
) -> None:
    """Count the images, statuses, regions and labels of a run.

    Example:

      pad stats shards/ --top 30
    """
    from pad_pipeline.shards.reader import open_shards
    from pad_pipeline.shards.stats import ShortStatistics, Statistics, read_statistics
    from pad_pipeline.shards.stats import as_json as json_of

    opened = open_shards(seen_by_workers(shards, read))
    over = reading(shards, read, len(opened.names))
    found = read_statistics(opened, over, Statistics if as_json else ShortStatistics, track)
    if as_json:
        typer.echo(json_of(found))
        return
    table = Table("what", "how many", title=plain(str(shards)))
    run = found.shards.run
    table.add_row("shards finished", f"{len(found.shards.names)} of {run.shards}")
    table.add_row("images", str(found.images))
    for status in ("ok", "empty", "failed"):
        table.add_row(f"  {status}", str(found.statuses[status]))
    table.add_row("with a caption", str(found.captions))
    for what, number in run.counts.items():
        table.add_row(plain(what), str(number))
    if found.partial.count:
        example = plain(found.partial.such_as[0])
        table.add_row("images of which annotations are left out", f"{found.partial.count} (the first: {example})")
    table.add_row("tags", str(found.tags))
    for source, number in found.sources.most_common():
        table.add_row(f"  from {plain(source)}", str(number))
    table.add_row("regions", str(found.regions))
    table.add_row("  crowds", str(found.crowds))
    table.add_row(f"  outside the view ({run.view.fit})", str(found.out_of_view))
    table.add_row("labels", str(len(found.labels)))
    console.print(table)
    if found.labels and top:
        labels = Table("label", "regions")
        for label, number in found.labels.most_common(top):
            labels.add_row(plain(label), str(number))
        console.print(labels)
    if found.failures:
        failures = Table("stage", "reason", "images", "such as", title="quarantine")
        for (stage, reason), failure in sorted(found.failures.items(), key=lambda entry: -entry[1].count)[:20]:
            failures.add_row(plain(stage), plain(reason), str(failure.count), plain(failure.such_as[0]))
        console.print(failures)
