"""`simpo quickstart`."""

from pathlib import Path
from typing import Annotated

import typer

from service.cli_session import out


def quickstart(
    home: Annotated[Path, typer.Option(help="Where everything is made; emptied first.")] = Path(".simpo/quickstart"),
    seed: Annotated[int, typer.Option(help="Same seed, same winner.", min=0)] = 0,
    trials: Annotated[int, typer.Option(help="Points of the search.", min=1)] = 14,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of a full trial.", min=4)] = None,
    data: Annotated[str | None, typer.Option(help="Your preferences: .jsonl, .jsonl.gz, .parquet, hub id.")] = None,
    eval: Annotated[str | None, typer.Option("--eval", help="Held-out preferences, same forms.")] = None,
    model: Annotated[str | None, typer.Option(help="Your base model: a directory or a hub id.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the service and both models running.")] = False,
) -> None:
    """See the product work in minutes: data, base model, sweep, winner, deployed, compared, then everything stopped.

    Writes report.html and report.json into --home.

    \b
    Examples:
      simpo quickstart
      simpo quickstart --data train.jsonl.gz --eval eval.jsonl.gz
      simpo quickstart --data train.jsonl.gz --model Qwen/Qwen2.5-0.5B-Instruct --keep
    """
    from service.quickstart import Quickstart, run  # noqa: PLC0415  # lazy: SQL and reports, for this command alone

    order = Quickstart(home=home, seed=seed, trials=trials, steps=steps, data=data, eval=eval, model=model, keep=keep)
    run(order, out())
    if keep:
        out().print(
            f'still running: simpo --home {home} chat winner "..."; end it: simpo down --home {home}', markup=False
        )
