"""`python -m sweeps control DIR ...`: one edit of a running sweep, and the sweep's answer to it."""

import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from simpo.errors import ConfigError, SimPOError
from sweeps.comparison_command import is_comparison
from sweeps.control import APPLIED, answers, parse_edit, trial_id, write_edit
from sweeps.run_dir import Record, RunDir, last_result, read_heartbeat
from sweeps.spec import read_spec_file
from sweeps.working_copy import open_run
from sweeps.yaml_text import read_yaml

POLL_S = 0.5

control_app = typer.Typer(no_args_is_help=True, add_completion=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as one JSON object.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Leave the edit there and do not wait for the answer.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.0, help="Seconds to wait for the answer.")]
TrialName = Annotated[str, typer.Argument(help="Its id, or its number.", show_default=False)]
Values = Annotated[
    list[str] | None,
    typer.Option("--set", help="One value of the point, e.g. beta=2.5; once for each.", show_default=False),
]


@control_app.callback()
def control(
    ctx: typer.Context,
    directory: Annotated[str, typer.Argument(help="A run directory, or s3://BUCKET/PREFIX.", show_default=False)],
    copies: Annotated[
        Path | None,
        typer.Option(help="Where working copies of run directories in an object store lie.", show_default=False),
    ] = None,
) -> None:
    """Change a sweep that is running: pause, resume, cancel, more budget, another space, single trials.

    Each edit is a file in DIRECTORY/control; whichever attempt runs answers it within seconds, and a later one goes by
    it too. Exit status: 0 applied, 2 refused, 3 no answer in time.
    """
    run = open_run(directory, copies)
    if is_comparison(run.read_spec()):
        raise SimPOError(f"is a comparison: name one of its sweeps, {run.root / 'sweeps'}/METHOD", str(directory))
    ctx.obj = run


@control_app.command()
def pause(ctx: typer.Context, as_json: AsJson = False, no_wait: NoWait = False, timeout: Timeout = 60.0) -> None:
    """Start no further trial and hold the running ones before their next step. The wall clock's budget stands still."""
    _send(ctx.obj, {"action": "pause"}, as_json, no_wait, timeout)


@control_app.command()
def resume(ctx: typer.Context, as_json: AsJson = False, no_wait: NoWait = False, timeout: Timeout = 60.0) -> None:
    """Go on after a pause."""
    _send(ctx.obj, {"action": "resume"}, as_json, no_wait, timeout)


@control_app.command()
def cancel(ctx: typer.Context, as_json: AsJson = False, no_wait: NoWait = False, timeout: Timeout = 60.0) -> None:
    """End the sweep for good, without finals and result. What its trials wrote stays."""
    _send(ctx.obj, {"action": "cancel"}, as_json, no_wait, timeout)


@control_app.command()
def extend(
    ctx: typer.Context,
    trials: Annotated[int | None, typer.Option(help="Trials in all.", show_default=False)] = None,
    wall_clock_s: Annotated[float | None, typer.Option(help="Seconds of the attempt.", show_default=False)] = None,
    total_steps: Annotated[int | None, typer.Option(help="Optimiser steps in all.", show_default=False)] = None,
    accelerator_hours: Annotated[
        float | None, typer.Option(help="Hours of training processes, over all attempts.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    no_wait: NoWait = False,
    timeout: Timeout = 60.0,
) -> None:
    """Raise limits of the budget. Each value is the new total, not what is added."""
    limits = {"trials": trials, "wall_clock_s": wall_clock_s, "total_steps": total_steps}
    edit = {"action": "extend", **limits, "accelerator_hours": accelerator_hours}
    _send(ctx.obj, edit, as_json, no_wait, timeout)


@control_app.command()
def space(
    ctx: typer.Context,
    axes: Annotated[
        str, typer.Argument(help="A YAML or JSON file, or the text itself: '{beta: 2.0}'.", show_default=False)
    ],
    as_json: AsJson = False,
    no_wait: NoWait = False,
    timeout: Timeout = 60.0,
) -> None:
    """Give axes of the space other ranges, choices or a constant, for the trials that nobody has asked yet.

    Axes that are not named stay; none can be added or removed.
    """
    given = read_yaml(axes) if axes.lstrip().startswith("{") else read_spec_file(axes)
    _send(ctx.obj, {"action": "space", "axes": given}, as_json, no_wait, timeout)


@control_app.command()
def stop(
    ctx: typer.Context,
    trial: TrialName,
    as_json: AsJson = False,
    no_wait: NoWait = False,
    timeout: Timeout = 60.0,
) -> None:
    """End one running trial before its next step, as PRUNED."""
    _send(ctx.obj, {"action": "stop_trial", "trial_id": _trial(trial)}, as_json, no_wait, timeout)


@control_app.command()
def clone(
    ctx: typer.Context,
    trial: TrialName,
    values: Values = None,
    as_json: AsJson = False,
    no_wait: NoWait = False,
    timeout: Timeout = 60.0,
) -> None:
    """Train a trial's point once more, with --set values in their place. Takes one trial of the budget."""
    edit = {"action": "clone_trial", "trial_id": _trial(trial), "params": _point(values or ())}
    _send(ctx.obj, edit, as_json, no_wait, timeout)


@control_app.command()
def add(
    ctx: typer.Context,
    values: Values = None,
    as_json: AsJson = False,
    no_wait: NoWait = False,
    timeout: Timeout = 60.0,
) -> None:
    """Train a point of your own: --set a value for every axis. Takes one trial of the budget.

    A point outside of the space is trained and ranked like any other; the sampler learns nothing from it.
    """
    _send(ctx.obj, {"action": "add_point", "params": _point(values or ())}, as_json, no_wait, timeout)


def answer_to(run: RunDir, seq: int, timeout_s: float) -> Record | None:
    """The journal's answer to an edit; None when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        run.refresh()
        for record in answers(run).values():
            if record["data"]["seq"] == seq:
                return record
        if time.monotonic() >= deadline:
            return None
        time.sleep(POLL_S)


def _send(run: RunDir, values: Mapping[str, Any], as_json: bool, no_wait: bool, timeout: float) -> None:
    edit = parse_edit(values)
    if last_result(run) is not None:
        raise SimPOError("this sweep has its result: there is nothing left to change", run.place.uri)
    seq = write_edit(run, edit)
    if no_wait:
        _print({"state": "waiting", "seq": seq, "action": edit.action}, f"edit {seq} waits to be answered", as_json)
        return
    record = answer_to(run, seq, timeout)
    if record is None:
        why = f"edit {seq} has no answer yet: {_whereabouts(run)}"
        _print({"state": "waiting", "seq": seq, "action": edit.action, "message": why}, why, as_json, error=True)
        sys.exit(3)
    applied = record["type"] == APPLIED
    facts = {"state": "applied" if applied else "refused", **record["data"]}
    _print(facts, record["message"], as_json, error=not applied)
    if not applied:
        sys.exit(2)


def _whereabouts(run: RunDir) -> str:
    attempts = run.attempts()
    beat = read_heartbeat(attempts[-1]) if attempts else None
    resumed = f"the next attempt answers it (python -m sweeps resume {run.place.uri})"
    if beat is None:
        return f"no attempt has begun; {resumed}"
    time.sleep(3 * run.place.beat_s)  # of a driver that lives
    run.refresh()
    later = read_heartbeat(attempts[-1])
    if later is None or later["counter"] == beat["counter"]:
        return f"attempt {beat['attempt']} is not running any more; {resumed}"
    return f"attempt {beat['attempt']} runs, and edits of the search wait until it has begun"


def _print(facts: Mapping[str, Any], message: str, as_json: bool, *, error: bool = False) -> None:
    stream = sys.stdout if as_json or not error else sys.stderr
    stream.write((json.dumps(facts) if as_json else message) + "\n")


def _trial(name: str) -> str:
    return trial_id(int(name)) if name.isdecimal() else name


def _point(values: Iterable[str]) -> dict[str, Any]:
    point: dict[str, Any] = {}
    for each in values:
        key, equals, text = each.partition("=")
        if not equals or not key or key in point:
            raise ConfigError(f"must be KEY=VALUE, each key once, not {each!r}", "--set")
        point[key] = read_yaml(text)
    return point
