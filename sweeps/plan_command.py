"""`python -m sweeps plan SPEC`: what it would do and, calibrated, how long that takes. Nothing is made."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from simpo.errors import ConfigError
from sweeps.calibration import METHOD, calibrate, planned, span
from sweeps.comparison_spec import parse_comparison
from sweeps.spec import SweepSpec, parse_spec, read_spec_file, with_absolute_paths

SpecFile = Annotated[Path, typer.Argument(help="The sweep, run or comparison, YAML or JSON.", show_default=False)]
Calibrate = Annotated[
    bool,
    typer.Option(
        "--calibrate", help="Train a few real steps here, in other processes, and tell hours with their interval."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="The plan as JSON.")]


def plan(spec: SpecFile, calibrated: Calibrate = False, as_json: AsJson = False) -> None:
    """Check a spec and show its plan: trials, steps, limits; with --calibrate also hours. Nothing is started or kept.

    What is wrong is refused by name, as `run` would; with --calibrate also what is wrong with the data and the base.
    """
    values = read_spec_file(spec)
    console = Console()
    if isinstance(values, dict) and "methods" in values:
        told = _comparison(values, str(spec), calibrated)
        rows = told["methods"].values()
    else:
        told = _sweep(with_absolute_paths(parse_spec(values, source=str(spec))), calibrated)
        rows = [told]
    if as_json:
        console.print_json(json.dumps(told, allow_nan=False))
        return
    for row in rows:
        for line in plan_lines(row):
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def plan_lines(told: dict[str, Any]) -> list[str]:
    """A plan for people."""
    counts = told["plan"]
    lines = [f"{told['name']}: {told['method']}"]
    lines += [f"  {key.replace('_', ' ')}: {'-' if value in (None, []) else value}" for key, value in counts.items()]
    if told["hours"] is not None:
        step = told["calibration"]["step_seconds"]
        lines += [
            f"  one step: {step['estimate']:.3g} s ({step['low']:.3g} to {step['high']:.3g}, n = {step['n']}), with "
            f"{told['calibration']['processes']} at once",
            f"  wall clock: {span(told['hours']['wall_clock'])}",
            f"  accelerator-hours: {span(told['hours']['accelerator'])}",
            f"  {METHOD}",
        ]
    return lines + [f"  note: {note}" for note in told["notes"]]


def _sweep(spec: SweepSpec, calibrated: bool) -> dict[str, Any]:
    from sweeps.samplers import check_installed  # noqa: PLC0415  # lazy: optuna, which --help need not load

    check_installed(spec)
    return planned(spec, calibrate(spec) if calibrated else None)


def _comparison(values: dict[str, Any], source: str, calibrated: bool) -> dict[str, Any]:
    if calibrated:
        raise ConfigError("times one sweep: plan a method's own, e.g. with method: in the place of methods:", "methods")
    comparison = parse_comparison(values, source=source)
    sweeps = comparison.sweeps().items()
    return {"name": comparison.name, "methods": {name: planned(sweep, None) for name, sweep in sweeps}}
