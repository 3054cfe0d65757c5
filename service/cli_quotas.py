"""`simpo quotas` and `simpo capacity`: what a project may take, what it takes, who waits for what."""

from typing import Annotated, Any

import typer

from service.cli_people import PerMinute, TokensPerDay, TokensPerMinute, limits_given
from service.cli_session import JsonFlag, UserError, out, plain, print_json, print_table, session

Project = Annotated[
    str | None, typer.Option("--project", help="Id of another project; for operators.", show_default=False)
]
Limit = "A number, unlimited, or default: what the installation says."

quotas_app = typer.Typer(help="What a project may take at once and by the month, what it takes, and who waits.")

_NAMES = {
    "concurrent_sweeps": "sweeps at once",
    "concurrent_trials": "trials at once",
    "accelerator_hours": "accelerator-hours",
}


@quotas_app.callback(invoke_without_command=True)
def quotas(ctx: typer.Context, project: Project = None, as_json: JsonFlag = False) -> None:
    """Show the quotas of your project: limits, used, left, and its line.

    \b
    Examples:
      simpo quotas
      simpo quotas set prj_01... --sweeps 4 --hours 200 --period month
    """
    if ctx.invoked_subcommand is not None:
        return
    with session(ctx).connect() as client:
        told = client.quotas.get(project)
    print_json(told) if as_json else _show(told)


@quotas_app.command("set")
def set_quotas(
    ctx: typer.Context,
    project: Annotated[str, typer.Argument(help="Id of the project.", show_default=False)],
    sweeps: Annotated[str | None, typer.Option(help=f"Sweeps at once. {Limit}", show_default=False)] = None,
    trials: Annotated[str | None, typer.Option(help=f"Trials at once. {Limit}", show_default=False)] = None,
    hours: Annotated[str | None, typer.Option(help=f"Accelerator-hours. {Limit}", show_default=False)] = None,
    period: Annotated[
        str | None, typer.Option(help="Of the hours: month, total, or default.", show_default=False)
    ] = None,
    requests_per_minute: PerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    tokens_per_day: TokensPerDay = None,
    as_json: JsonFlag = False,
) -> None:
    """Change a project's quotas, for operators. What is not given stays; what runs goes on."""
    given: dict[str, Any] = {**limits_given(requests_per_minute, tokens_per_minute, tokens_per_day)}
    if sweeps is not None:
        given["concurrent_sweeps"] = _limit(int, "--sweeps", sweeps)
    if trials is not None:
        given["concurrent_trials"] = _limit(int, "--trials", trials)
    if hours is not None:
        given["accelerator_hours"] = _limit(float, "--hours", hours)
    if period is not None:
        given["period"] = None if period == "default" else period
    if not given:
        raise UserError("nothing to change: give --sweeps, --trials, --hours, --period or a limit of inference")
    with session(ctx).connect() as client:
        told = client.quotas.set(project, **given)
    print_json(told) if as_json else _show(told)


def capacity(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """How full the installation is: what runs, what waits, how many places there are."""
    with session(ctx).connect() as client:
        told = client.quotas.capacity()
    if as_json:
        print_json(told)
        return
    sweeps, mine = told["sweeps"], told["project"]
    out().print(
        f"{sweeps['running']} of {sweeps['limit']} places taken, {sweeps['waiting']} waiting, {told['trials']} trials "
        f"train; of your project {mine['running']} run and {mine['waiting']} wait",
        markup=False,
        soft_wrap=True,
    )


def _show(told: dict[str, Any]) -> None:
    period = "this month" if told["period"] == "month" else "in all"
    rows = []
    for name, words in _NAMES.items():
        limit, used, left = (told[part][name] for part in ("limits", "used", "left"))
        text = f"{words} {period}" if name == "accelerator_hours" else words
        rows.append([text, *("unlimited" if each is None else f"{each:g}" for each in (limit, used, left))])
    print_table([f"quota of {told['project']}", "limit", "used", "left"], rows, empty="")
    for name, limit in told["inference"].items():
        if limit is not None:
            out().print(plain(f"{name.replace('_', ' ')} of models: {limit}"), markup=False)
    if told["promised_hours"]:
        out().print(plain(f"{told['promised_hours']:g} h are promised to running sweeps"), markup=False)
    keys = ("place", "name", "kind", "priority", "reason", "message")
    waiting = [[each[key] for key in keys] for each in told["queue"]]
    print_table(list(keys), waiting, empty="nothing waits")
    if told["waiting"] > len(waiting):
        out().print(f"and {told['waiting'] - len(waiting)} more", style="dim")


def _limit(kind: type[int] | type[float], option: str, text: str) -> int | float | str | None:
    if text in ("unlimited", "default"):
        return None if text == "default" else text
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{option}: must be a number, unlimited or default, not {text!r}") from None
