"""`simpo deploy ...`: models behind an address."""

from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.table import Table

from service.cli_jobs import KINDS, why
from service.cli_people import seconds_of
from service.cli_session import (
    JsonFlag,
    UserError,
    WorkFailed,
    interruptible,
    out,
    plain,
    print_json,
    print_table,
    session,
)
from service.client import Client, Resource
from service.client_errors import ApiError

deploy_app = typer.Typer(no_args_is_help=True, help="Put a trained model behind an address.")

_SETTLED = frozenset({"READY", "FAILED"})


ComparisonName = Annotated[
    str | None, typer.Option("--comparison", "-c", help="Name or id of a comparison.", show_default=False)
]
MethodName = Annotated[
    str | None, typer.Option("--method", help="Of the comparison; else the one that leads.", show_default=False)
]


class Engine(StrEnum):
    """What generates the text of a deployment."""

    TRANSFORMERS = "transformers"
    VLLM = "vllm"


@deploy_app.command("create")
def deploy_create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="What callers say as `model`.", show_default=False)],
    sweep: Annotated[
        str | None, typer.Option("--sweep", "-s", help="Name or id of the sweep or run.", show_default=False)
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="winner, base, or the id of a trial.")] = "winner",
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="MODEL@production, in the place of a sweep: it is followed.")
    ] = None,
    comparison: ComparisonName = None,
    method: MethodName = None,
    engine: Annotated[Engine | None, typer.Option(help="What generates the text; transformers unless told.")] = None,
    idle: Annotated[
        str | None,
        typer.Option(help="Sleep after so long without a request, e.g. 10m; else it never does.", show_default=False),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Stay until it answers.")] = True,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait at most.", min=1)] = 300.0,
    as_json: JsonFlag = False,
) -> None:
    """Deploy a checkpoint of a finished sweep, or a winner of a comparison.

    \b
    Examples:
      simpo deploy create winner --sweep my-sweep
      simpo deploy create chat --model chat@production
      simpo deploy create dpo --comparison both --method dpo
      simpo deploy create base --sweep my-sweep --checkpoint base --no-wait
    """
    if sum(each is not None for each in (sweep, model, comparison)) != 1:
        raise UserError("give --sweep, or --comparison, or --model with an alias, e.g. --model chat@production")
    if method is not None and comparison is None:
        raise UserError("--method: is for --comparison")
    with session(ctx).connect() as client:
        source = None if sweep is None else find_job(client, sweep).id
        compared = None if comparison is None else client.find("comparisons", comparison).id
        more: dict[str, Any] = {"comparison": compared, "method": method, "engine": engine and engine.value}
        more["idle_s"] = None if idle is None else int(seconds_of(idle))
        deployment = client.deploy(name, sweep=source, checkpoint=checkpoint, model=model, **more)
        if wait:
            with interruptible(f"stopped waiting; {name} is still coming: simpo deploy list"):
                deployment = client.wait("deployments", deployment.id, until=_SETTLED, timeout_s=timeout_s)
    if as_json:
        print_json(deployment.body)
    if deployment.state == "FAILED":
        raise WorkFailed(f"deployment {name} is FAILED: {why(deployment)}")
    if not as_json:
        out().print(f'{name} is {deployment.state}; try: simpo chat {name} "..."', markup=False, soft_wrap=True)


@deploy_app.command("list")
def deploy_list(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """All deployments."""
    with session(ctx).connect() as client:
        found = list(client.iterate("deployments", limit=200))
    if as_json:
        print_json([item.body for item in found])
        return
    print_table(
        ["name", "id", "state", "why", "follows", "sweep", "checkpoint"],
        [
            [item.name, item.id, item.state, why(item), *(item.body.get(k) for k in ("model", "sweep", "checkpoint"))]
            for item in found
        ],
        empty="Nothing is deployed: simpo deploy create NAME --sweep SWEEP.",
    )


@deploy_app.command("delete")
def deploy_delete(
    ctx: typer.Context, name: Annotated[str, typer.Argument(help="Its name or id.", show_default=False)]
) -> None:
    """Take a deployment away; its checkpoint stays."""
    with session(ctx).connect() as client:
        client.delete_deployment(client.find("deployments", name).id)
    out().print(f"{name} is being taken away", markup=False)


def find_job(client: Client, ref: str) -> Resource:
    """A sweep or a run by name or id. Raises `UserError` when there is neither."""
    for kind in KINDS:
        try:
            return client.find(kind, ref)
        except ApiError as error:
            if error.status != 404:
                raise
    raise UserError(f"--sweep: there is no sweep or run {ref!r}: simpo sweep list shows them")


def side_by_side(rows: list[tuple[str, str, str]], *, left: str, right: str) -> Table:
    """(prompt, left answer, right answer) as a table."""
    table = Table(show_lines=True)
    for title in ("prompt", left, right):
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(plain(cell) or "(nothing)" for cell in row))
    return table
