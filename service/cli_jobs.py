"""The verbs that sweeps and runs share, because a run is the one-point sweep."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import typer
from rich.text import Text

from service.cli_session import WorkFailed, interruptible, out, plain, print_json, print_table, session
from service.cli_spec import read_spec
from service.client import Client, Resource
from sweeps.board import Board
from sweeps.board_view import Screen, point, short, trial_table

Kind = Literal["sweeps", "runs"]
KINDS: tuple[Kind, ...] = ("sweeps", "runs")


def create(
    ctx: typer.Context,
    kind: Kind,
    file: Path,
    overrides: list[str],
    *,
    stay: bool,
    as_json: bool,
    priority: str | None = None,
) -> None:
    """POST the spec, say what came of it, and stay until the end if asked to."""
    spec = read_spec(file, overrides)
    with session(ctx).connect() as client:
        created = client.create(kind, spec, priority=priority)
        if as_json:
            print_json(created.body)
        else:
            then = "" if stay else f"; follow it: simpo {kind[:-1]} watch {created.name}"
            out().print(f"{created.name} ({created.id}) is {created.state}{then}", markup=False, soft_wrap=True)
        if stay:
            follow(client, kind, created, quiet=as_json)


def plan(ctx: typer.Context, kind: Kind, file: Path, overrides: list[str], *, as_json: bool) -> None:
    """What the spec would do; nothing is made."""
    spec = read_spec(file, overrides)
    with session(ctx).connect() as client:
        planned = client.plan(kind, spec)
    if as_json:
        print_json(planned)
        return
    counts, console = planned.get("plan") or {}, out()
    console.print(f"{planned.get('name')} is a valid {kind[:-1]}; nothing was started", markup=False)
    for key, value in counts.items():
        console.print(f"  {key.replace('_', ' ')}: {value if value not in (None, []) else '-'}", markup=False)
    hours = planned.get("hours") or {}
    for of in (key for key in ("wall_clock", "accelerator") if key in hours):
        told = f"{hours[of]['estimate']:.3g} h ({hours[of]['low']:.3g} to {hours[of]['high']:.3g})"
        known = f"by {hours['trials']} trials of earlier sweeps"
        console.print(f"  {of.replace('_', ' ')}: {told}, {known}", markup=False)


def follow(client: Client, kind: Kind, resource: Resource, *, quiet: bool = False) -> None:
    """Show it until it is over, then what it found. Raises `WorkFailed` unless it succeeded."""
    noun, name = kind[:-1], resource.name
    with interruptible(f"stopped watching; the {noun} goes on: simpo {noun} watch {name}, simpo {noun} cancel {name}"):
        ended = follow_to_end(client, kind, resource, quiet=quiet)
    if ended.state != "SUCCEEDED":
        raise WorkFailed(f"{noun} {name} is {ended.state}: {why(ended)}")
    if quiet:
        return
    for line in result_lines(ended.body):
        out().print(line, markup=False, soft_wrap=True)
    out().print(f"deploy it: simpo deploy create NAME --sweep {name}", style="dim", markup=False, soft_wrap=True)


def follow_to_end(client: Client, kind: Kind, started: Resource, *, quiet: bool = False) -> Resource:
    """Show a sweep or run until it is over, and return it as it is then."""
    events = client.events(kind, started.id)
    if quiet:
        for _ in events:
            pass
    else:
        with Screen(_board_of(started), out()) as screen:
            for event in events:
                screen.take(event.type, event.message, event.data)
    return client.wait(kind, started.id, timeout_s=30.0)


def list_all(ctx: typer.Context, kind: Kind, *, as_json: bool) -> None:
    """Newest first."""
    with session(ctx).connect() as client:
        found = list(client.iterate(kind, limit=200))
    if as_json:
        print_json([resource.body for resource in found])
        return
    rows = []
    for item in found:
        best, body = item.body.get("best") or {}, item.body
        rows.append([item.name, item.id, item.state, item.reason, body.get("phase"), short(best.get("value"))])
        rows[-1].append(body.get("created_at"))
    print_table(
        ["name", "id", "state", "why", "phase", "best", "created"],
        rows,
        empty=f"No {kind} yet: simpo {kind[:-1]} create -f spec.yaml starts one.",
    )


def show(ctx: typer.Context, kind: Kind, ref: str, *, as_json: bool) -> None:
    """State and why, the trials of a sweep, and the result."""
    with session(ctx).connect() as client:
        found = client.find(kind, ref)
        if as_json:
            print_json(found.body)
            return
        board = _board_of(found)
        if kind == "sweeps":
            board.take(client.trials(found.id), best_id=(found.body.get("best") or {}).get("trial_id"))
    console, reason = out(), why(found)
    console.print(
        Text.assemble((found.name, "bold"), f" ({found.id}) is {found.state}", f": {reason}" if reason else "")
    )
    if board.trials:
        console.print(trial_table(board))
    if found.state == "SUCCEEDED":
        for line in result_lines(found.body):
            console.print(line, markup=False, soft_wrap=True)


def cancel(ctx: typer.Context, kind: Kind, ref: str, *, as_json: bool) -> None:
    """Ask for the end."""
    with session(ctx).connect() as client:
        found = client.cancel(kind, client.find(kind, ref).id)
    if as_json:
        print_json(found.body)
    else:
        out().print(f"{found.name} is {found.state}", markup=False)


def events(ctx: typer.Context, kind: Kind, ref: str, *, to_the_end: bool, as_json: bool) -> None:
    """The history; JSON comes as one object a line, so that it can be read while it grows."""
    with session(ctx).connect() as client, interruptible("stopped following"):
        id = client.find(kind, ref).id
        for event in client.events(kind, id) if to_the_end else client.past_events(kind, id):
            if as_json:
                typer.echo(json.dumps(dataclasses.asdict(event)))
                continue
            style = {"warn": "yellow", "error": "red"}.get(event.level, "")
            line = f"{event.created_at}  {event.type:16}  {event.message}"
            out().print(Text(plain(line), style=style), soft_wrap=True)


def why(resource: Resource) -> str:
    """One sentence on the state of a resource, the most telling one that the service gave."""
    error = resource.body.get("error") or {}
    said = str(error.get("message") or resource.body.get("message") or resource.reason)
    return plain(f"{said} (stale since {resource.stale_since})" if resource.stale_since else said)


def result_lines(body: Mapping[str, Any]) -> list[str]:
    """What a finished sweep found, in a few lines."""
    result = body.get("result") or {}
    best = result.get("best") or body.get("best") or {}
    lines = [f"best: {best.get('method') or result.get('method') or ''} {point(best.get('params') or {})}"]
    if result.get("win_rate"):
        lines.append(f"win rate over the base: {interval(result['win_rate'])}")
    accuracy = result.get("accuracy") or {}
    if accuracy.get("winner"):
        lines.append(f"held-out accuracy: base {interval(accuracy.get('base'))}, winner {interval(accuracy['winner'])}")
    return lines


def interval(value: Mapping[str, Any] | None) -> str:
    """`0.652 (95 %: 0.611 to 0.693, n = 500)`."""
    if not value or value.get("estimate") is None:
        return "-"
    return f"{value['estimate']:.3f} (95 %: {value['low']:.3f} to {value['high']:.3f}, n = {value['n']})"


def _board_of(resource: Resource) -> Board:
    return Board.of({**(resource.body.get("spec") or {}), "name": resource.name})
