"""`simpo promote`, `simpo promotion ...` and `simpo model ...`: who is in production, and on what evidence."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli_jobs import why
from service.cli_models import ComparisonName, MethodName, find_job
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
from service.cli_spec import read_spec
from service.client import Client, Resource, Wish
from service.states import LIVE_PROMOTIONS, PromotionState

promotion_app = typer.Typer(no_args_is_help=True, help="Checkpoints on their way to production.")
model_app = typer.Typer(no_args_is_help=True, help="The registry: models, versions, what their aliases point at.")

Ref = Annotated[str, typer.Argument(help="Its id, or the name of a model: its newest one.", show_default=False)]
_REFUSED = frozenset({"HELD", "FAILED", "CANCELLED"})
_STOPS = frozenset(str(state) for state in PromotionState) - {"PENDING", "RUNNING"}


def promote(
    ctx: typer.Context,
    model: Annotated[str, typer.Option("--model", "-m", help="Name in the registry.", show_default=False)],
    sweep: Annotated[
        str | None, typer.Argument(help="Name or id of the sweep or run; or give --version.", show_default=False)
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="winner, base, or the id of a trial.")] = "winner",
    comparison: ComparisonName = None,
    method: MethodName = None,
    version: Annotated[int | None, typer.Option(help="A registered version, in the place of a sweep.")] = None,
    gate: Annotated[
        Path | None, typer.Option(help="The gate, YAML or JSON; without it, the default one.", show_default=False)
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Approve by itself once the gate has passed.")] = False,
    wait: Annotated[bool, typer.Option(help="Stay until the gate has spoken.")] = True,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait at most.", min=1)] = 3600.0,
    as_json: JsonFlag = False,
) -> None:
    """Let a checkpoint take the champion's place, if the evidence says so.

    \b
    Examples:
      simpo promote my-sweep --model chat
      simpo promote my-sweep --model chat --auto --gate gate.yaml
      simpo promote --comparison both --method dpo --model chat
      simpo promotion approve chat
    """
    if sum(each is not None for each in (sweep, comparison, version)) != 1:
        raise UserError("name a sweep, a comparison with --comparison, or one of the model's versions with --version")
    if method is not None and comparison is None:
        raise UserError("--method: is for --comparison")
    wanted = "default" if gate is None else _gate(gate)
    with session(ctx).connect() as client:
        source = None if sweep is None else find_job(client, sweep).id
        compared = None if comparison is None else client.find("comparisons", comparison).id
        promotion = client.promote(
            model,
            sweep=source,
            checkpoint=checkpoint,
            comparison=compared,
            method=method,
            version=version,
            gate=wanted,
            approval="auto" if auto else "manual",
        )
        if wait:
            with interruptible(f"stopped waiting; it goes on: simpo promotion show {promotion.id}"):
                until = _STOPS - {"AWAITING_APPROVAL"} if auto else _STOPS
                promotion = client.wait("promotions", promotion.id, until=until, timeout_s=timeout_s)
    _tell(promotion, as_json=as_json)
    if promotion.state in _REFUSED:
        raise WorkFailed(f"{promotion.id} is {promotion.state}: {why(promotion)}")


@promotion_app.command("list")
def promotion_list(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Of this model alone.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """All promotions, newest first."""
    with session(ctx).connect() as client:
        found = list(client.iterate("promotions", limit=200, **({"model": model} if model else {})))
    if as_json:
        print_json([each.body for each in found])
        return
    rows = []
    for each in found:
        body = each.body
        rows.append([each.id, body.get("model"), body.get("version"), body.get("champion"), each.state, why(each)])
    print_table(
        ["id", "model", "version", "champion", "state", "why"],
        rows,
        empty="Nothing was promoted yet: simpo promote SWEEP --model NAME.",
    )


@promotion_app.command("show")
def promotion_show(ctx: typer.Context, promotion: Ref, as_json: JsonFlag = False) -> None:
    """One promotion: every condition of its gate, with the figures."""
    with session(ctx).connect() as client:
        _tell(_find(client, promotion), as_json=as_json)


@promotion_app.command("approve")
def promotion_approve(ctx: typer.Context, promotion: Ref, as_json: JsonFlag = False) -> None:
    """Let production move to the version whose gate has passed."""
    _wish(ctx, promotion, "approve", as_json=as_json)


@promotion_app.command("abort")
def promotion_abort(ctx: typer.Context, promotion: Ref, as_json: JsonFlag = False) -> None:
    """End a promotion that is not over."""
    _wish(ctx, promotion, "abort", as_json=as_json)


@promotion_app.command("rollback")
def promotion_rollback(ctx: typer.Context, promotion: Ref, as_json: JsonFlag = False) -> None:
    """Return production, and what follows it, to the version before."""
    _wish(ctx, promotion, "rollback", as_json=as_json)


@model_app.command("list")
def model_list(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """Registered models."""
    with session(ctx).connect() as client:
        found = list(client.registered_models())
    if as_json:
        print_json(found)
        return
    rows = []
    for each in found:
        aliases = each["aliases"]
        rows.append([each["name"], each["versions"], aliases.get("candidate"), aliases.get("production")])
    print_table(
        ["name", "versions", "candidate", "production"],
        rows,
        empty="No model is registered: simpo promote SWEEP --model NAME makes one.",
    )


@model_app.command("show")
def model_show(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Its name.", show_default=False)],
    as_json: JsonFlag = False,
) -> None:
    """The versions of a model, newest first."""
    with session(ctx).connect() as client:
        found = list(client.model_versions(model))
    if as_json:
        print_json(found)
        return
    rows = [
        [each["version"], ", ".join(each["aliases"]), each["sweep"], each["checkpoint"], each["created_at"]]
        for each in found
    ]
    print_table(["version", "aliases", "sweep", "checkpoint", "created"], rows, empty=f"{model} has no version yet.")


def _gate(file: Path) -> dict[str, Any]:
    """The service runs elsewhere on the disk: a capability set that exists from here is named in full."""
    gate = read_spec(file, [])
    if isinstance(path := gate.get("capability"), str) and Path(path).is_file():
        gate["capability"] = str(Path(path).absolute())
    return gate


def _find(client: Client, ref: str) -> Resource:
    """By id, or the newest of a model of that name. Raises `UserError`."""
    if ref.startswith("prm_"):
        return client.get("promotions", ref)
    for newest in client.iterate("promotions", limit=1, model=ref):
        return client.get("promotions", newest.id)
    raise UserError(f"there is no promotion of a model {ref!r}: simpo promotion list shows them")


def _wish(ctx: typer.Context, ref: str, verb: Wish, *, as_json: bool) -> None:
    with session(ctx).connect() as client:
        wished = client.promotion(_find(client, ref).id, verb)
        settled = frozenset(str(state) for state in PromotionState) - set(LIVE_PROMOTIONS)
        until = frozenset({"ROLLED_BACK"}) if verb == "rollback" else settled
        with interruptible(f"stopped waiting; it goes on: simpo promotion show {wished.id}"):
            ended = client.wait("promotions", wished.id, until=until, timeout_s=60.0)
    _tell(ended, as_json=as_json)


def _tell(promotion: Resource, *, as_json: bool) -> None:
    if as_json:
        print_json(promotion.body)
        return
    body, console = promotion.body, out()
    rival = "the base" if body.get("champion") is None else f"version {body['champion']}"
    console.print(
        f"{body.get('model')}, version {body.get('version')} against {rival}: {promotion.state} ({promotion.id})",
        markup=False,
        soft_wrap=True,
    )
    decision: Mapping[str, Any] = body.get("decision") or {}
    for each in decision.get("conditions") or []:
        console.print(plain(f"  {each['state']:12}  {each['message']}"), markup=False, soft_wrap=True)
    console.print(plain(f"  {why(promotion)}"), style="dim", markup=False, soft_wrap=True)
    if promotion.state == PromotionState.AWAITING_APPROVAL:
        hint = f"  approve it: simpo promotion approve {promotion.id}"
        console.print(hint, style="dim", markup=False, soft_wrap=True)
