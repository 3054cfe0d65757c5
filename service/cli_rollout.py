"""`simpo deploy canary, weight, promote, abort, rollback, show`: one version of a model after another."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli_models import find_job
from service.cli_people import seconds_of
from service.cli_session import JsonFlag, UserError, out, plain, print_json, print_table, session
from service.cli_spec import read_spec
from service.client import Client

rollout_app = typer.Typer()
"""Commands of `simpo deploy`."""

Name = Annotated[str, typer.Argument(help="Name or id of the deployment.", show_default=False)]
Weight = Annotated[int, typer.Option("--weight", "-w", min=0, max=100, help="Percent of the requests.")]
_RATES = ("answers", "errors", "error_rate", "p95_first_event_s", "p95_answer_s", "repetition_rate", "truncation_rate")


@rollout_app.command("canary")
def canary(
    ctx: typer.Context,
    name: Name,
    sweep: Annotated[
        str | None, typer.Option("--sweep", "-s", help="Name or id of the sweep or run.", show_default=False)
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="winner, base, or the id of a trial.")] = "winner",
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="In the place of a sweep: of the registry.", show_default=False)
    ] = None,
    version: Annotated[int | None, typer.Option(help="With --model: which version.", show_default=False)] = None,
    weight: Weight = 10,
    sticky: Annotated[bool, typer.Option("--sticky", help="One `user` keeps to one version.")] = False,
    guard: Annotated[
        Path | None,
        typer.Option(
            help="When it is rolled back by itself, YAML or JSON; without it, by default.", show_default=False
        ),
    ] = None,
    unguarded: Annotated[bool, typer.Option("--unguarded", help="Never roll back by itself.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Put a candidate beside the champion.

    \b
    Examples:
      simpo deploy canary chat --sweep my-sweep --weight 5
      simpo deploy weight chat 50
      simpo deploy promote chat
    """
    if (sweep is None) == (model is None):
        raise UserError("give --sweep, or --model with --version")
    if guard is not None and unguarded:
        raise UserError("--guard and --unguarded exclude each other")
    wish: dict[str, Any] = {"weight": weight, "sticky": sticky}
    if guard is not None or unguarded:
        wish["guard"] = None if guard is None else read_spec(guard, [])
    with session(ctx).connect() as client:
        if sweep is not None:
            wish |= {"sweep": find_job(client, sweep).id, "checkpoint": checkpoint}
        else:
            wish |= {"model": model, "model_version": version}
        _tell(client.rollout.start(_id(client, name), **wish), as_json=as_json)


@rollout_app.command("weight")
def weigh(
    ctx: typer.Context,
    name: Name,
    percent: Annotated[int, typer.Argument(min=0, max=100, help="Percent of the requests.", show_default=False)],
    as_json: JsonFlag = False,
) -> None:
    """Change how many requests the candidate answers."""
    with session(ctx).connect() as client:
        _tell(client.rollout.set(_id(client, name), weight=percent), as_json=as_json)


@rollout_app.command("promote")
def promote(ctx: typer.Context, name: Name, as_json: JsonFlag = False) -> None:
    """Let the candidate become the champion."""
    with session(ctx).connect() as client:
        _tell(client.rollout.promote(_id(client, name)), as_json=as_json)


@rollout_app.command("abort")
def abort(ctx: typer.Context, name: Name, as_json: JsonFlag = False) -> None:
    """Take the candidate away."""
    with session(ctx).connect() as client:
        _tell(client.rollout.abort(_id(client, name)), as_json=as_json)


@rollout_app.command("rollback")
def roll_back(
    ctx: typer.Context,
    name: Name,
    revision: Annotated[int | None, typer.Option(help="Of an earlier champion.", show_default=False)] = None,
    as_json: JsonFlag = False,
) -> None:
    """Go back: a candidate is taken away; without one, the champion before comes back."""
    with session(ctx).connect() as client:
        told = client.rollout.roll_back(_id(client, name), revision=revision)
    if as_json:
        print_json(told)
        return
    out().print(plain(f"{told['name']} is {told['state']}: {told['message']}"), markup=False, soft_wrap=True)


@rollout_app.command("sleep")
def sleep(
    ctx: typer.Context,
    name: Name,
    after: Annotated[str | None, typer.Option(help="So long without a request, e.g. 10m.", show_default=False)] = None,
    never: Annotated[bool, typer.Option("--never", help="Its replica stays.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Let a deployment sleep while nobody asks: the next request waits until a replica is there again.

    \b
    Examples:
      simpo deploy sleep chat --after 10m
      simpo deploy sleep chat --never
    """
    if (after is None) != never:
        raise UserError("give --after or --never")
    scaling: dict[str, Any] = {"min_replicas": 1} if after is None else {"min_replicas": 0}
    if after is not None:
        scaling["idle_s"] = int(seconds_of(after))
    with session(ctx).connect() as client:
        told = client.rollout.scale(_id(client, name), **scaling)
    if as_json:
        print_json(told)
        return
    text = "never sleeps" if told["idle_s"] is None else f"sleeps after {told['idle_s']} s without a request"
    out().print(plain(f"{told['name']} {text}"), markup=False, soft_wrap=True)


@rollout_app.command("show")
def show(ctx: typer.Context, name: Name, as_json: JsonFlag = False) -> None:
    """The newest candidate of a deployment, and how both versions answer."""
    with session(ctx).connect() as client:
        _tell(client.rollout.get(_id(client, name)), as_json=as_json)


def _id(client: Client, name: str) -> str:
    return client.find("deployments", name).id


def _tell(told: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(told)
        return
    keeps = ", one user to one version" if told["sticky"] else ""
    head = f"{told['name']}: revision {told['revision']} beside {told['champion']}, {told['weight']} %{keeps}: "
    out().print(plain(f"{head}{told['state']}"), markup=False, soft_wrap=True)
    out().print(plain(f"  {told['message']}"), style="dim", markup=False, soft_wrap=True)
    both = [told["figures"][arm] for arm in ("champion", "candidate")]
    rows = [[name.replace("_", " "), *(_figure(each[name]) for each in both)] for name in _RATES]
    print_table(["", "champion", "candidate"], rows, empty="")


def _figure(value: float | None) -> str:
    return "" if value is None else json.dumps(value)
