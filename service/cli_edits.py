"""`simpo sweep pause`, `extend`, `stop-trial` and the like: changes of a sweep that is on its way, and its answers."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml

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
from service.client_edits import Edits
from sweeps.yaml_text import read_yaml

Ref = Annotated[str, typer.Argument(help="Name or id of the sweep.", show_default=False)]
RunRef = Annotated[str, typer.Argument(help="Name or id of the run.", show_default=False)]
TrialRef = Annotated[str, typer.Argument(help="Its id, or its number.", show_default=False)]
Wait = Annotated[bool, typer.Option(help="Stay until the sweep's driver has answered.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds to wait at most.", min=0)]
Values = Annotated[
    list[str] | None, typer.Option("--set", help="One value of the point: beta=2.5; once for each.", show_default=False)
]


def pause(
    ctx: typer.Context, sweep: Ref, wait: Wait = True, timeout_s: Timeout = 60.0, as_json: JsonFlag = False
) -> None:
    """Start no further trial and hold the running ones; the wall clock's budget stands still.

    Exit codes of this and the other changes: 0 applied, 1 refused or not answered in time, 2 something to correct.
    """
    _ask(ctx, sweep, lambda edits, id: edits.pause(id), wait, timeout_s, as_json)


def resume(
    ctx: typer.Context, sweep: Ref, wait: Wait = True, timeout_s: Timeout = 60.0, as_json: JsonFlag = False
) -> None:
    """Go on after a pause."""
    _ask(ctx, sweep, lambda edits, id: edits.resume(id), wait, timeout_s, as_json)


def extend(
    ctx: typer.Context,
    sweep: Ref,
    trials: Annotated[int | None, typer.Option(help="Trials in all.", show_default=False)] = None,
    wall_clock_s: Annotated[float | None, typer.Option(help="Seconds of the attempt.", show_default=False)] = None,
    total_steps: Annotated[int | None, typer.Option(help="Optimiser steps in all.", show_default=False)] = None,
    accelerator_hours: Annotated[
        float | None, typer.Option(help="Hours of training processes, over all attempts.", show_default=False)
    ] = None,
    wait: Wait = True,
    timeout_s: Timeout = 60.0,
    as_json: JsonFlag = False,
) -> None:
    """Raise limits of the budget. Each value is the new total, not what is added.

    \b
    Example:
      simpo sweep extend my-sweep --trials 24
    """
    limits: dict[str, Any] = {"trials": trials, "wall_clock_s": wall_clock_s, "total_steps": total_steps}
    limits["accelerator_hours"] = accelerator_hours
    _ask(ctx, sweep, lambda edits, id: edits.extend(id, **limits), wait, timeout_s, as_json)


def space(
    ctx: typer.Context,
    sweep: Ref,
    axes: Annotated[
        str, typer.Argument(help="A YAML or JSON file, or the text itself: '{beta: 2.0}'.", show_default=False)
    ],
    wait: Wait = True,
    timeout_s: Timeout = 60.0,
    as_json: JsonFlag = False,
) -> None:
    """Give axes of the space other ranges, choices or a constant, for the trials that nobody has asked yet."""
    given = _axes(axes)
    _ask(ctx, sweep, lambda edits, id: edits.space(id, given), wait, timeout_s, as_json)


def stop_trial(
    ctx: typer.Context,
    sweep: Ref,
    trial: TrialRef,
    wait: Wait = True,
    timeout_s: Timeout = 60.0,
    as_json: JsonFlag = False,
) -> None:
    """End one running trial before its next step, as PRUNED."""
    _ask(ctx, sweep, lambda edits, id: edits.stop_trial(id, _trial(trial)), wait, timeout_s, as_json)


def clone_trial(
    ctx: typer.Context,
    sweep: Ref,
    trial: TrialRef,
    set_: Values = None,
    wait: Wait = True,
    timeout_s: Timeout = 60.0,
    as_json: JsonFlag = False,
) -> None:
    """Train a trial's point once more, --set what is to be different. Takes one trial of the budget."""
    params = _point(set_ or ())
    _ask(ctx, sweep, lambda edits, id: edits.clone_trial(id, _trial(trial), params), wait, timeout_s, as_json)


def add_point(
    ctx: typer.Context,
    sweep: Ref,
    set_: Values = None,
    wait: Wait = True,
    timeout_s: Timeout = 60.0,
    as_json: JsonFlag = False,
) -> None:
    """Train a point of your own: --set a value for every axis. Takes one trial of the budget.

    \b
    Example:
      simpo sweep add-point my-sweep --set beta=2.5 --set gamma_beta_ratio=0.4 --set learning_rate=1e-5
    """
    params = _point(set_ or ())
    _ask(ctx, sweep, lambda edits, id: edits.add_point(id, params), wait, timeout_s, as_json)


def edits(ctx: typer.Context, sweep: Ref, as_json: JsonFlag = False) -> None:
    """What people asked of a sweep, and how its driver answered."""
    with session(ctx).connect() as client:
        found = list(client.edits.iterate(client.find("sweeps", sweep).id))
    if as_json:
        print_json(found)
        return
    rows = [[edit[key] for key in ("number", "action", "state", "trial", "message", "created_at")] for edit in found]
    print_table(
        ["number", "action", "state", "trial", "message", "asked"], rows, empty="Nobody has changed this sweep."
    )


EDIT_COMMANDS: Mapping[str, Callable[..., None]] = {
    "pause": pause,
    "resume": resume,
    "extend": extend,
    "space": space,
    "stop-trial": stop_trial,
    "clone-trial": clone_trial,
    "add-point": add_point,
    "edits": edits,
}
"""Commands of `simpo sweep`, by name."""


def pause_run(
    ctx: typer.Context, run: RunRef, wait: Wait = True, timeout_s: Timeout = 60.0, as_json: JsonFlag = False
) -> None:
    """Hold the training before its next step; the wall clock's budget stands still.

    Exit codes: 0 applied, 1 refused or not answered in time, 2 something to correct.
    """
    _ask(ctx, run, lambda edits, id: edits.pause(id), wait, timeout_s, as_json, kind="runs")


def resume_run(
    ctx: typer.Context, run: RunRef, wait: Wait = True, timeout_s: Timeout = 60.0, as_json: JsonFlag = False
) -> None:
    """Go on after a pause."""
    _ask(ctx, run, lambda edits, id: edits.resume(id), wait, timeout_s, as_json, kind="runs")


RUN_COMMANDS: Mapping[str, Callable[..., None]] = {"pause": pause_run, "resume": resume_run}
"""Commands of `simpo run`, by name."""


def _ask(
    ctx: typer.Context,
    sweep: str,
    wish: Callable[[Edits, str], dict[str, Any]],
    wait: bool,
    timeout_s: float,
    as_json: bool,
    *,
    kind: Literal["sweeps", "runs"] = "sweeps",
) -> None:
    with session(ctx).connect() as client:
        sweep_id = client.find(kind, sweep).id
        edits = client.edits if kind == "sweeps" else client.run_edits
        edit = wish(edits, sweep_id)
        if wait:
            with interruptible(f"stopped waiting; the edit stays, and is answered in its time: {sweep_id}"):
                edit = edits.wait(sweep_id, edit["id"], timeout_s=timeout_s)
    told = f"edit {edit['number']} ({edit['action']}) is {edit['state']}: {edit['message']}"
    if as_json:
        print_json(edit)
    elif edit["state"] != "refused":
        out().print(plain(told), markup=False, soft_wrap=True)
    if edit["state"] == "refused":
        raise WorkFailed(told)


def _trial(name: str) -> str:
    return f"trl_{int(name):04d}" if name.isdecimal() else name


def _axes(text: str) -> dict[str, Any]:
    try:
        written = text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8")
        given = read_yaml(written)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {text} ({getattr(error, 'strerror', None) or 'no text'}): check it") from error
    except yaml.YAMLError as error:
        raise UserError(f"the axes are not valid YAML or JSON: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise UserError("the axes are a mapping of names to ranges or values, e.g. '{beta: 2.0}'")
    return given


def _point(values: Iterable[str]) -> dict[str, Any]:
    point: dict[str, Any] = {}
    for each in values:
        key, equals, text = each.partition("=")
        if not equals or not key or key in point:
            raise UserError(f"--set: must be KEY=VALUE, each key once, not {each!r}")
        try:
            point[key] = read_yaml(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {key}: {text!r} is no value") from error
    return point
