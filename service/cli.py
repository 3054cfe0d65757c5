"""`simpo`: the command line, over the public API alone. Every command is in a file of its kind; this one joins them."""

from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated

import httpx
import typer

from service.cli_chat import chat
from service.cli_comparisons import comparison_app
from service.cli_data import PASSED_ON, doctor, score
from service.cli_datasets import dataset_app
from service.cli_edits import EDIT_COMMANDS, RUN_COMMANDS
from service.cli_feedback import feedback_app
from service.cli_models import deploy_app
from service.cli_people import audit_app, keys_app, projects_app
from service.cli_promotions import model_app, promote, promotion_app
from service.cli_quickstart import quickstart
from service.cli_quotas import capacity, quotas_app
from service.cli_rollout import rollout_app
from service.cli_session import DEFAULT_HOME, OneSentence, Session
from service.cli_stack import down, status, up
from service.cli_sweeps import run_app, sweep_app
from service.cli_webhooks import webhook_app

app = typer.Typer(
    cls=OneSentence,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the `simpo` script. Exit codes: 0 done, 1 the work failed, 2 a mistake of the user's."""
    app(prog_name="simpo")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"simpo {installed_version('simpo')}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    home: Annotated[
        Path, typer.Option(envvar="SIMPO_HOME", help="Directory of the embedded stack: its address, key and data.")
    ] = DEFAULT_HOME,
    url: Annotated[
        str | None, typer.Option(envvar="SIMPO_URL", help="Address of the service; unset: the one in --home.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(envvar="SIMPO_API_KEY", help="API key; unset: the one in --home.", show_envvar=True)
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Which objective, with which hyperparameters, makes your model best on your preferences? Search, compare, deploy.

    \b
    See it work:           simpo quickstart
    Look at your data:     simpo doctor pairs.jsonl
    Upload it:             simpo dataset upload pairs.jsonl
    Start the service:     simpo up
    Search:                simpo sweep create -f sweep.yaml --watch
    Compare methods:       simpo comparison create -f both.yaml --watch
    Put the winner online: simpo deploy create winner --sweep my-sweep
    Promote by evidence:   simpo promote my-sweep --model chat
    Talk to it:            simpo chat winner "Add 3 and 4."
    Stop everything:       simpo down

    Exit codes: 0 done, 1 the work failed, 2 something to correct.
    """
    transport = ctx.obj if isinstance(ctx.obj, httpx.BaseTransport) else None
    ctx.obj = Session(home=home, url=url, key=key, transport=transport)


for name, edit_command in EDIT_COMMANDS.items():
    sweep_app.command(name)(edit_command)
for name, run_command in RUN_COMMANDS.items():
    run_app.command(name)(run_command)
app.add_typer(sweep_app, name="sweep")
app.add_typer(run_app, name="run")
app.add_typer(comparison_app, name="comparison")
app.add_typer(dataset_app, name="dataset")
app.add_typer(feedback_app, name="feedback")
deploy_app.add_typer(rollout_app)
app.add_typer(deploy_app, name="deploy")
app.add_typer(promotion_app, name="promotion")
app.add_typer(model_app, name="model")
app.add_typer(webhook_app, name="webhooks")
app.add_typer(quotas_app, name="quotas")
app.add_typer(keys_app, name="keys")
app.add_typer(projects_app, name="projects")
app.add_typer(audit_app, name="audit")
for command in (up, down, status, quickstart, promote, chat, capacity):
    app.command()(command)
for passed_on in (doctor, score):
    app.command(context_settings=PASSED_ON)(passed_on)
