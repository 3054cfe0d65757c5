"""`simpo webhooks ...`: who is told of events, and how that went."""

from typing import Annotated, Any

import typer

from service.cli_people import seconds_of
from service.cli_session import JsonFlag, WorkFailed, out, plain, print_fields, print_json, print_table, session

webhook_app = typer.Typer(no_args_is_help=True, help="Addresses that are told of events.")

Id = Annotated[str, typer.Argument(help="Its id.", show_default=False)]
Json = dict[str, Any]


@webhook_app.command("create")
def webhook_create(
    ctx: typer.Context,
    url: Annotated[str, typer.Argument(help="https, of the public internet, port 443 or 8443.", show_default=False)],
    event: Annotated[
        list[str], typer.Option("--event", "-e", help="Type of event, like job.succeeded, trial.* or *; repeatable.")
    ],
    description: Annotated[str, typer.Option(help="For people.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Tell an address of events. Prints the secret of its signatures, this once.

    \b
    Example:
      simpo webhooks create https://hooks.example.com/simpo --event job.succeeded --event job.failed
    """
    with session(ctx).connect() as client:
        body = client.webhooks.create(url, event, description=description)
    if as_json:
        print_json(body)
        return
    out().print(f"{body['id']}\nsecret, shown this once: {_secret(body)}", markup=False, soft_wrap=True)


@webhook_app.command("list")
def webhook_list(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """All webhooks, newest first."""
    with session(ctx).connect() as client:
        found = list(client.webhooks.iterate())
    if as_json:
        print_json(found)
        return
    print_table(
        ["id", "state", "reason", "failures", "events", "url"],
        [[*(row[name] for name in ("id", "state", "reason", "failures")), ", ".join(row["events"]), row["url"]]
         for row in found],
        empty="There is no webhook: simpo webhooks create URL --event job.succeeded.",
    )  # fmt: skip


@webhook_app.command("show")
def webhook_show(ctx: typer.Context, webhook: Id, as_json: JsonFlag = False) -> None:
    """One webhook."""
    with session(ctx).connect() as client:
        body = client.webhooks.get(webhook)
    _print(body, as_json)


@webhook_app.command("deliveries")
def webhook_deliveries(
    ctx: typer.Context,
    webhook: Id,
    state: Annotated[str | None, typer.Option(help="PENDING, DELIVERED or DEAD.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="Rows.", min=1)] = 50,
    as_json: JsonFlag = False,
) -> None:
    """What it was told, or is to be told, newest first."""
    with session(ctx).connect() as client:
        rows = client.webhooks.deliveries(webhook, **({"state": state} if state else {}))
        found = [row for row, _ in zip(rows, range(limit), strict=False)]
    if as_json:
        print_json(found)
        return
    columns = ["id", "type", "parent", "state", "attempts", "status", "message", "next_attempt_at"]
    print_table(columns, [[row[name] for name in columns] for row in found], empty="It was told nothing yet.")


@webhook_app.command("test")
def webhook_test(
    ctx: typer.Context,
    webhook: Id,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait for the first attempt.")] = 30.0,
    as_json: JsonFlag = False,
) -> None:
    """Send it an event, and say how that went. Exit code 1: it did not get through."""
    with session(ctx).connect() as client:
        asked = client.webhooks.test(webhook)
        found = client.webhooks.wait(webhook, asked["id"], timeout_s=timeout_s)
    if as_json:
        print_json(found)
    elif found["state"] == "DELIVERED":
        out().print(f"delivered: {found['status']}", markup=False)
    if found["state"] != "DELIVERED":
        raise WorkFailed(f"not delivered: {plain(found['message'])}")


@webhook_app.command("retry")
def webhook_retry(
    ctx: typer.Context,
    webhook: Id,
    delivery: Annotated[str, typer.Argument(help="Id of a DEAD delivery.", show_default=False)],
    as_json: JsonFlag = False,
) -> None:
    """Try a delivery again that was given up."""
    with session(ctx).connect() as client:
        body = client.webhooks.retry(webhook, delivery)
    _print(body, as_json)


@webhook_app.command("rotate")
def webhook_rotate(
    ctx: typer.Context,
    webhook: Id,
    grace: Annotated[str, typer.Option(help="How long the old secret signs too: 0s, 90m, 24h, 7d.")] = "24h",
    as_json: JsonFlag = False,
) -> None:
    """Give it a new secret, printed this once."""
    with session(ctx).connect() as client:
        body = client.webhooks.rotate(webhook, grace_s=seconds_of(grace))
    if as_json:
        print_json(body)
        return
    out().print(_secret(body), markup=False, soft_wrap=True)


@webhook_app.command("enable")
def webhook_enable(ctx: typer.Context, webhook: Id, as_json: JsonFlag = False) -> None:
    """Tell a DISABLED one of events again, from now on."""
    with session(ctx).connect() as client:
        body = client.webhooks.enable(webhook)
    _print(body, as_json)


@webhook_app.command("delete")
def webhook_delete(ctx: typer.Context, webhook: Id, as_json: JsonFlag = False) -> None:
    """End it."""
    with session(ctx).connect() as client:
        body = client.webhooks.delete(webhook)
    if as_json:
        print_json(body)
        return
    out().print(f"{body['id']} is deleted", markup=False)


def _secret(body: Json) -> str:
    if "secret" not in body:  # the first answer got lost, and a repeated one has none
        raise WorkFailed(f"the secret of {body['id']} was lost on its way: simpo webhooks rotate {body['id']}")
    return str(body["secret"])


def _print(body: Json, as_json: bool) -> None:
    if as_json:
        print_json(body)
        return
    print_fields(body)
