"""`simpo comparison ...`: several methods under one budget, as one job."""

from typing import Annotated

import typer

from service import cli_jobs
from service.cli_session import JsonFlag, WorkFailed, interruptible, out, plain, print_json, print_table, session
from service.cli_spec import read_spec
from service.cli_sweeps import DryRun, Overrides, Priority, SpecFile, Watch
from service.client import Client, Resource
from sweeps.comparison_view import comparison_view

comparison_app = typer.Typer(no_args_is_help=True, help="Several methods, each tuned under one budget.")

Ref = Annotated[str, typer.Argument(help="Its name or id.", show_default=False)]


@comparison_app.command("create")
def create(
    ctx: typer.Context,
    file: SpecFile,
    set_: Overrides = None,
    stay: Watch = False,
    dry_run: DryRun = False,
    priority: Priority = None,
    as_json: JsonFlag = False,
) -> None:
    """Start a comparison from a spec.

    A relative path in dataset or base_model means: from here.

    \b
    Example:
      echo '{name: both, methods: [sft, simpo], budget: {trials: 4}}' | simpo comparison create -f - --watch
    """
    spec = read_spec(file, set_ or [])
    with session(ctx).connect() as client:
        if dry_run:
            _show_plan(client.plan("comparisons", spec), as_json=as_json)
            return
        created = client.create("comparisons", spec, priority=priority)
        if as_json:
            print_json(created.body)
        else:
            then = "" if stay else f"; follow it: simpo comparison watch {created.name}"
            text = f"{created.name} ({created.id}) is {created.state}{then}"
            out().print(plain(text), markup=False, soft_wrap=True)
        if stay:
            _follow(client, created, quiet=as_json)


@comparison_app.command("list")
def list_all(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """All comparisons, newest first."""
    with session(ctx).connect() as client:
        found = list(client.iterate("comparisons", limit=200))
    if as_json:
        print_json([resource.body for resource in found])
        return
    rows = []
    for item in found:
        body = item.body
        methods = ", ".join(body.get("methods") or ())
        rows.append([item.name, item.id, item.state, item.reason, methods, body.get("created_at")])
    print_table(
        ["name", "id", "state", "why", "methods", "created"],
        rows,
        empty="No comparisons yet: simpo comparison create -f spec.yaml starts one.",
    )


@comparison_app.command("show")
def show(ctx: typer.Context, comparison: Ref, as_json: JsonFlag = False) -> None:
    """One comparison: state and why, and once it is over the ranked methods and the verdicts."""
    with session(ctx).connect() as client:
        found = client.find("comparisons", comparison)
    if as_json:
        print_json(found.body)
        return
    reason, share = cli_jobs.why(found), found.body.get("progress")
    done = f" ({share:.0%})" if share is not None and found.state == "RUNNING" else ""
    text = f"{found.name} ({found.id}) is {found.state}{f': {reason}' if reason else ''}{done}"
    out().print(plain(text), markup=False, soft_wrap=True)
    if found.body.get("result"):
        out().print(comparison_view(found.body["result"]))


@comparison_app.command("cancel")
def cancel(ctx: typer.Context, comparison: Ref, as_json: JsonFlag = False) -> None:
    """End a comparison early. What its methods have found so far stays in its directory."""
    with session(ctx).connect() as client:
        found = client.cancel("comparisons", client.find("comparisons", comparison).id)
    if as_json:
        print_json(found.body)
    else:
        out().print(plain(f"{found.name} is {found.state}"), markup=False)


@comparison_app.command("watch")
def watch(ctx: typer.Context, comparison: Ref) -> None:
    """Follow a comparison until it is over, a line for each thing that happens. Ctrl-C stops only watching."""
    with session(ctx).connect() as client:
        _follow(client, client.find("comparisons", comparison), quiet=False)


def _follow(client: Client, started: Resource, *, quiet: bool) -> None:
    name = started.name
    with interruptible(f"stopped watching; it goes on: simpo comparison watch {name}, simpo comparison cancel {name}"):
        for event in client.events("comparisons", started.id):
            if not quiet:
                out().print(plain(f"{event.created_at}  {event.message}"), markup=False, soft_wrap=True)
        ended = client.wait("comparisons", started.id, timeout_s=30.0)
    if ended.state != "SUCCEEDED":
        raise WorkFailed(f"comparison {name} is {ended.state}: {cli_jobs.why(ended)}")
    if not quiet and ended.body.get("result"):
        out().print(comparison_view(ended.body["result"]))


def _show_plan(planned: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json(planned)
        return
    counts = planned.get("plan")
    out().print(plain(f"{planned.get('name')} is a valid comparison; nothing was started"), markup=False)
    rows = []
    for method, plan in counts.items() if isinstance(counts, dict) else ():
        rows.append([method, plan.get("trials"), plan.get("steps"), plan.get("likely_steps"), plan.get("most_steps")])
    print_table(["method", "trials", "steps each", "likely steps", "most steps"], rows, empty="It has no methods.")
