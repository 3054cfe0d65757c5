"""`simpo doctor` and `simpo score`: the same as `python -m simpo doctor` and `score`, in a process of their own.

They look at files on this machine and need no service; torch comes with them, which this command line must not load.
"""

import subprocess
import sys

import typer

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Options, --help among them, belong to the command behind."""


def doctor(ctx: typer.Context) -> None:
    """What is wrong with preference data, before any accelerator-hour is spent."""
    _pass_on("doctor", ctx)


def score(ctx: typer.Context) -> None:
    """AlpacaEval 2, Arena-Hard and MT-Bench figures from files of judgements."""
    _pass_on("score", ctx)


def _pass_on(command: str, ctx: typer.Context) -> None:
    raise typer.Exit(subprocess.call([sys.executable, "-m", "simpo", command, *ctx.args]))
