"""`simpo sweep ...` and `simpo run ...`: the same verbs, because a run is the one-point sweep."""

from pathlib import Path
from typing import Annotated

import typer

from service import cli_jobs
from service.cli_session import JsonFlag, print_json, print_table, session
from sweeps.board_view import point, short

SpecFile = Annotated[
    Path, typer.Option("--file", "-f", help="The spec, YAML or JSON; - reads standard input.", show_default=False)
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Change one value of the spec: budget.trials=4. May be repeated.")
]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Stay and show what happens until it is over.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check the spec and show its plan; start nothing.")]
Priority = Annotated[
    str | None,
    typer.Option("--priority", help="low, normal or high: before others of your project.", show_default=False),
]
Ref = Annotated[str, typer.Argument(help="Its name or id.", show_default=False)]

sweep_app = typer.Typer(no_args_is_help=True, help="Searches over hyperparameters.")
run_app = typer.Typer(no_args_is_help=True, help="Single training jobs: the one-point sweep.")


@sweep_app.command("create")
def sweep_create(
    ctx: typer.Context,
    file: SpecFile,
    set_: Overrides = None,
    stay: Watch = False,
    dry_run: DryRun = False,
    priority: Priority = None,
    as_json: JsonFlag = False,
) -> None:
    """Start a sweep from a spec.

    A relative path in dataset or base_model means: from here.

    \b
    Examples:
      simpo sweep create -f sweep.yaml --watch
      simpo sweep create -f sweep.yaml --set budget.trials=4 --set seed=1
      echo '{name: first, dataset: practice}' | simpo sweep create -f -
    """
    if dry_run:
        cli_jobs.plan(ctx, "sweeps", file, set_ or [], as_json=as_json)
    else:
        cli_jobs.create(ctx, "sweeps", file, set_ or [], stay=stay, as_json=as_json, priority=priority)


@run_app.command("create")
def run_create(
    ctx: typer.Context,
    file: SpecFile,
    set_: Overrides = None,
    stay: Watch = False,
    dry_run: DryRun = False,
    priority: Priority = None,
    as_json: JsonFlag = False,
) -> None:
    """Train one model with the hyperparameters that the spec names.

    \b
    Example:
      echo '{name: one, method: {name: simpo, beta: 10}, learning_rate: 1.0e-4}' | simpo run create -f - --watch
    """
    if dry_run:
        cli_jobs.plan(ctx, "runs", file, set_ or [], as_json=as_json)
    else:
        cli_jobs.create(ctx, "runs", file, set_ or [], stay=stay, as_json=as_json, priority=priority)


@sweep_app.command("list")
def sweep_list(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """All sweeps, newest first."""
    cli_jobs.list_all(ctx, "sweeps", as_json=as_json)


@run_app.command("list")
def run_list(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """All runs, newest first."""
    cli_jobs.list_all(ctx, "runs", as_json=as_json)


@sweep_app.command("show")
def sweep_show(ctx: typer.Context, sweep: Ref, as_json: JsonFlag = False) -> None:
    """One sweep: state, why, best so far, result."""
    cli_jobs.show(ctx, "sweeps", sweep, as_json=as_json)


@run_app.command("show")
def run_show(ctx: typer.Context, run: Ref, as_json: JsonFlag = False) -> None:
    """One run: state, why, result."""
    cli_jobs.show(ctx, "runs", run, as_json=as_json)


@sweep_app.command("watch")
def sweep_watch(ctx: typer.Context, sweep: Ref) -> None:
    """Follow a sweep live until it is over: a table on a terminal, plain lines in a log. Ctrl-C stops only watching."""
    with session(ctx).connect() as client:
        cli_jobs.follow(client, "sweeps", client.find("sweeps", sweep))


@run_app.command("watch")
def run_watch(ctx: typer.Context, run: Ref) -> None:
    """Follow a run live until it is over. Ctrl-C stops only watching."""
    with session(ctx).connect() as client:
        cli_jobs.follow(client, "runs", client.find("runs", run))


@sweep_app.command("cancel")
def sweep_cancel(ctx: typer.Context, sweep: Ref, as_json: JsonFlag = False) -> None:
    """End a sweep early. What its finished trials found stays."""
    cli_jobs.cancel(ctx, "sweeps", sweep, as_json=as_json)


@run_app.command("cancel")
def run_cancel(ctx: typer.Context, run: Ref, as_json: JsonFlag = False) -> None:
    """End a run early."""
    cli_jobs.cancel(ctx, "runs", run, as_json=as_json)


@sweep_app.command("leaderboard")
def sweep_leaderboard(ctx: typer.Context, sweep: Ref, as_json: JsonFlag = False) -> None:
    """The trials of a sweep, best first.

    \b
    Example:
      simpo sweep leaderboard my-sweep --json | jq '.[0].params'
    """
    with session(ctx).connect() as client:
        rows = client.leaderboard(client.find("sweeps", sweep).id)
    if as_json:
        print_json(rows)
        return
    cells = []
    for place, row in enumerate(rows, 1):
        cells.append([row.get("rank", place), row.get("number"), row.get("state"), point(row.get("params") or {})])
        cells[-1] += [row.get("step"), short(row.get("value")), row.get("reason")]
    print_table(
        ["rank", "trial", "state", "point", "step", "value", "why it ended"],
        cells,
        empty="No trial has a score yet: simpo sweep watch shows them coming.",
    )


@sweep_app.command("events")
def sweep_events(
    ctx: typer.Context,
    sweep: Ref,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the sweep is over.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """What happened to a sweep, oldest first; --json prints one object a line."""
    cli_jobs.events(ctx, "sweeps", sweep, to_the_end=follow, as_json=as_json)


@run_app.command("events")
def run_events(
    ctx: typer.Context,
    run: Ref,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run is over.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """What happened to a run, oldest first; --json prints one object a line."""
    cli_jobs.events(ctx, "runs", run, to_the_end=follow, as_json=as_json)
