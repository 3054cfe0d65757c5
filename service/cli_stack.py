"""`simpo up`, `down`, `status`: the embedded stack."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from service.cli_session import JsonFlag, WorkFailed, out, print_json, session

HomeOption = Annotated[Path | None, typer.Option("--home", help="Same as simpo --home, for convenience.")]


def up(
    ctx: typer.Context,
    home: HomeOption = None,
    host: Annotated[
        str | None, typer.Option(help="Address the service listens on. [default: as before, or 127.0.0.1]")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Its port; 0: any free one. [default: as before, or 8080]", min=0, max=65535)
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Start the service on this machine: a private Ray and the API, in the background.

    What runs already is left alone, so it may be called again.

    \b
    Examples:
      simpo up
      simpo --home /data/simpo up --port 9000
      curl -H "Authorization: Bearer $(cat .simpo/key)" http://127.0.0.1:8080/v1/sweeps
    """
    from service.local import LocalStack, LocalStackError  # noqa: PLC0415  # lazy: SQL, for these commands alone

    home, console = home or session(ctx).home, out()
    try:
        stack = LocalStack(home).up(
            host=host,
            port=port,
            progress=lambda stage, sentence: None if as_json else console.print(sentence, style="dim", markup=False),
        )
    except LocalStackError as error:
        raise WorkFailed(str(error)) from error
    if as_json:
        print_json({**dataclasses.asdict(stack), "home": str(home)})
        return
    console.print(f"The service is at {stack.url}", markup=False, soft_wrap=True)
    if stack.key_is_new:
        console.print(f"API key, shown once and kept in {home / 'key'}: {stack.key}", markup=False, soft_wrap=True)
    console.print("next: simpo sweep create -f sweep.yaml --watch; end it: simpo down", style="dim", soft_wrap=True)


def down(ctx: typer.Context, home: HomeOption = None) -> None:
    """Stop the service on this machine, with everything it started. Data stays."""
    from service.local import LocalStack, LocalStackError  # noqa: PLC0415  # lazy: SQL, for these commands alone

    home, console = home or session(ctx).home, out()
    try:
        stopped = LocalStack(home).down(
            progress=lambda stage, sentence: console.print(sentence, style="dim", markup=False)
        )
    except LocalStackError as error:
        raise WorkFailed(str(error)) from error
    console.print(f"stopped; the data stays in {home}" if stopped else f"nothing runs in {home}", markup=False)


def status(ctx: typer.Context, home: HomeOption = None, as_json: JsonFlag = False) -> None:
    """What runs on this machine. Exit code 1 unless all of it does."""
    from service.local import LocalStack  # noqa: PLC0415  # lazy: SQL, for these commands alone

    home = home or session(ctx).home
    found = LocalStack(home).status()
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        parts = [f"API {'answers' if found.api else 'is silent'} at {found.url}"] if found.url else []
        parts += [f"Ray {'answers' if found.ray else 'is silent'}"] if found.url else []
        parts += [f"{found.processes} processes, {found.memory_bytes / 2**20:.0f} MiB"] if found.processes else []
        out().print(
            ": ".join([found.state, "; ".join(parts)] if parts else [found.state]), markup=False, soft_wrap=True
        )
    if found.state != "running":
        raise typer.Exit(1)
