"""`simpo keys ...`, `simpo projects ...`, `simpo audit ...`: who may do what, and who did what."""

import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli_session import (
    JsonFlag,
    UserError,
    WorkFailed,
    err,
    out,
    print_fields,
    print_json,
    print_table,
    session,
)

keys_app = typer.Typer(no_args_is_help=True, help="API keys of your project.")
projects_app = typer.Typer(no_args_is_help=True, help="Projects of the installation, for operators.")
audit_app = typer.Typer(no_args_is_help=True, help="Who changed what, and who was refused.")

Json = dict[str, Any]
KeyId = Annotated[str, typer.Argument(help="Its id: key_...", show_default=False)]
ProjectOption = Annotated[
    str | None, typer.Option(help="Name or id of another project, for operators.", show_default=False)
]
_NONE = "A number, or none."
PerMinute = Annotated[str | None, typer.Option(help=f"Completions within a minute. {_NONE}", show_default=False)]
TokensPerMinute = Annotated[
    str | None, typer.Option(help=f"Tokens read and written within a minute. {_NONE}", show_default=False)
]
TokensPerDay = Annotated[str | None, typer.Option(help=f"The same within 24 hours. {_NONE}", show_default=False)]
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@keys_app.command("whoami")
def keys_whoami(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """The key that you use: its project, role and scopes."""
    with session(ctx).connect() as client:
        me = client.keys.me()
    _shown(me, as_json)


@keys_app.command("create")
def keys_create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="To tell keys apart: a-z, 0-9 and -.", show_default=False)],
    role: Annotated[str | None, typer.Option(help="viewer, member, admin or operator.", show_default=False)] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="Give these scopes alone; may be repeated.", show_default=False)
    ] = None,
    project: ProjectOption = None,
    expires_in: Annotated[
        str | None, typer.Option(help="E.g. 90d, 12h: when it ends by itself.", show_default=False)
    ] = None,
    requests_per_minute: PerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    tokens_per_day: TokensPerDay = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key. Its secret is printed this once: nobody can show it again.

    \b
    Examples:
      simpo keys create ci --role member --expires-in 90d
      simpo keys create chat-only --scope inference --requests-per-minute 60 --tokens-per-day 1000000
      simpo keys create first --role admin --project north
    """
    end = None if expires_in is None else datetime.now(UTC) + timedelta(seconds=seconds_of(expires_in))
    limits = limits_given(requests_per_minute, tokens_per_minute, tokens_per_day)
    with session(ctx).connect() as client:
        expires_at = None if end is None else end.isoformat()
        made = client.keys.create(
            name, role=role, scopes=scope or None, project=project, expires_at=expires_at, limits=limits
        )
    _secret(made, as_json)


@keys_app.command("list")
def keys_list(
    ctx: typer.Context,
    state: Annotated[str | None, typer.Option(help="ACTIVE, EXPIRED or REVOKED.", show_default=False)] = None,
    project: ProjectOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Keys of the project, newest first; revoked ones only by --state."""
    with session(ctx).connect() as client:
        found = list(client.keys.iterate(**_given(state=state, project=project)))
    if as_json:
        print_json(found)
        return
    print_table(
        ["name", "id", "begins", "may", "state", "last used", "expires"],
        [[k["name"], k["id"], k["prefix"], _may(k), k["state"], k["last_used_at"], k["expires_at"]] for k in found],
        empty="There is no such key.",
    )


@keys_app.command("show")
def keys_show(ctx: typer.Context, key: KeyId, as_json: JsonFlag = False) -> None:
    """One key; never its secret."""
    with session(ctx).connect() as client:
        body = client.keys.get(key)
    _shown(body, as_json)


@keys_app.command("rotate")
def keys_rotate(
    ctx: typer.Context,
    key: KeyId,
    grace: Annotated[str, typer.Option(help="How long the old secret goes on, e.g. 24h; 0s ends it at once.")] = "24h",
    as_json: JsonFlag = False,
) -> None:
    """Give a key a new secret, printed this once. The old one goes on for a while, so that nobody is cut off."""
    with session(ctx).connect() as client:
        made = client.keys.rotate(key, grace_s=seconds_of(grace))
    _secret(made, as_json)


@keys_app.command("limit")
def keys_limit(
    ctx: typer.Context,
    key: KeyId,
    requests_per_minute: PerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    tokens_per_day: TokensPerDay = None,
    as_json: JsonFlag = False,
) -> None:
    """Change what a key may ask of models. What is not given stays; `none` lifts a limit."""
    limits = limits_given(requests_per_minute, tokens_per_minute, tokens_per_day)
    if not limits:
        raise UserError("nothing to change: give --requests-per-minute, --tokens-per-minute or --tokens-per-day")
    with session(ctx).connect() as client:
        body = client.keys.limit(key, **limits)
    _shown(body, as_json)


@keys_app.command("revoke")
def keys_revoke(ctx: typer.Context, key: KeyId, as_json: JsonFlag = False) -> None:
    """End a key for good."""
    with session(ctx).connect() as client:
        body = client.keys.revoke(key)
    if as_json:
        print_json(body)
        return
    out().print(f"{body['name']} ({body['id']}) is {body['state']}.", markup=False)


@projects_app.command("create")
def projects_create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="a-z, 0-9 and -.", show_default=False)],
    as_json: JsonFlag = False,
) -> None:
    """Make a project. Then: simpo keys create first --role admin --project NAME."""
    with session(ctx).connect() as client:
        body = client.projects.create(name)
    if as_json:
        print_json(body)
        return
    out().print(f"{body['name']}: {body['id']}", markup=False)


@projects_app.command("list")
def projects_list(
    ctx: typer.Context,
    archived: Annotated[bool, typer.Option("--archived", help="The closed ones.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Projects, newest first."""
    with session(ctx).connect() as client:
        found = list(client.projects.iterate(state="ARCHIVED" if archived else "ACTIVE"))
    if as_json:
        print_json(found)
        return
    rows = [[p["name"], p["id"], p["state"], p["created_at"], p["archived_at"]] for p in found]
    print_table(["name", "id", "state", "created", "archived"], rows, empty="There is none.")


@projects_app.command("show")
def projects_show(
    ctx: typer.Context,
    project: Annotated[str, typer.Argument(help="Its name or id.", show_default=False)],
    as_json: JsonFlag = False,
) -> None:
    """One project."""
    with session(ctx).connect() as client:
        body = client.projects.find(project)
    if body is None:
        raise UserError(f"there is no project {project}: simpo projects list")
    _shown(body, as_json)


@projects_app.command("archive")
def projects_archive(
    ctx: typer.Context,
    project: Annotated[str, typer.Argument(help="Its name or id.", show_default=False)],
    as_json: JsonFlag = False,
) -> None:
    """Close a project: its keys open nothing any more. What runs in it goes on to its end, and all of it stays."""
    with session(ctx).connect() as client:
        found = client.projects.find(project)
        if found is None:
            raise UserError(f"there is no project {project}: simpo projects list")
        body = client.projects.archive(found["id"])
    if as_json:
        print_json(body)
        return
    out().print(f"{body['name']} ({body['id']}) is {body['state']}.", markup=False)


@audit_app.command("list")
def audit_list(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Rows at most.")] = 50,
    actor: Annotated[str | None, typer.Option(help="Id of a key.", show_default=False)] = None,
    target: Annotated[str | None, typer.Option(help="Id of what was changed.", show_default=False)] = None,
    outcome: Annotated[str | None, typer.Option(help="done or refused.", show_default=False)] = None,
    project: ProjectOption = None,
    as_json: JsonFlag = False,
) -> None:
    """The newest changes."""
    filters = _given(actor=actor, target=target, outcome=outcome, project=project)
    with session(ctx).connect() as client:
        rows = client.audit.iterate(limit=min(limit, 200), **filters)
        found = [row for row, _ in zip(rows, range(limit), strict=False)]
    if as_json:
        print_json(found)
        return
    print_table(
        ["time", "who", "did", "to", "outcome"],
        [[r["created_at"], r["actor_name"] or r["actor"], r["action"], r["target"], r["outcome"]] for r in found],
        empty="Nothing was changed yet.",
    )


@audit_app.command("export")
def audit_export(
    ctx: typer.Context,
    to: Annotated[Path | None, typer.Option("--to", help="File to write; unset: standard output.")] = None,
    since: Annotated[str | None, typer.Option(help="RFC 3339 time with a zone.", show_default=False)] = None,
    project: ProjectOption = None,
) -> None:
    """All of it as lines of JSON, the oldest first."""
    with session(ctx).connect() as client:
        lines = client.audit.export(**_given(since=since, project=project))
        if to is None:
            sys.stdout.writelines(f"{line}\n" for line in lines)
            return
        number = _written(to, lines)
    err().print(f"{number} rows in {to}", markup=False)


def seconds_of(text: str) -> float:
    """Of 90d, 12h, 30m, 5s. Raises `UserError`."""
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is None:
        raise UserError(f"{text!r} is no duration: write e.g. 90d, 12h, 30m or 5s")
    return float(int(match[1]) * _UNITS[match[2]])


def limits_given(
    requests_per_minute: str | None, tokens_per_minute: str | None, tokens_per_day: str | None
) -> dict[str, int | None]:
    """Those that were given, as the API takes them. Raises `UserError`."""
    given = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "tokens_per_day": tokens_per_day,
    }
    return {name: _limit(name, text) for name, text in given.items() if text is not None}


def _limit(name: str, text: str) -> int | None:
    if text == "none":
        return None
    if not text.isascii() or not text.isdigit():
        raise UserError(f"--{name.replace('_', '-')}: must be a number or none, not {text!r}")
    return int(text)


def _written(to: Path, lines: Iterable[str]) -> int:
    with to.open("w", encoding="utf-8") as file:
        return sum(file.write(f"{line}\n") > 0 for line in lines)


def _secret(made: Json, as_json: bool) -> None:
    if made["key"] is None:
        raise WorkFailed(f"the secret of {made['id']} was lost on its way: ask for a new one, simpo keys rotate")
    if as_json:
        print_json(made)
        return
    # The secret alone on standard output: KEY=$(simpo keys create ...)
    typer.echo(made["key"])
    err().print(f"{made['name']} ({made['id']}) of {made['project']}: {_may(made)}", markup=False, soft_wrap=True)


def _shown(body: Json, as_json: bool) -> None:
    if as_json:
        print_json(body)
        return
    shown = {field: value for field, value in body.items() if field not in ("key", "limits")}
    print_fields({**shown, **body.get("limits", {})})


def _may(key: Json) -> str:
    return key["role"] or ", ".join(key["scopes"])


def _given(**filters: str | None) -> dict[str, str]:
    return {name: value for name, value in filters.items() if value is not None}
