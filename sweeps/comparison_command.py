"""`python -m sweeps compare`, and what `resume` and `show` do with a comparison's directory."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from simpo.errors import SimPOError
from sweeps.budget import plan_budget
from sweeps.comparison_report import write_comparison
from sweeps.comparison_spec import ComparisonSpec, parse_comparison
from sweeps.comparison_view import ComparisonScreen, boards_table, comparison_view, read_boards
from sweeps.run_dir import RunDir
from sweeps.stopping import Stopped

if TYPE_CHECKING:
    from sweeps.judges import JudgeAccess

RESULT = "comparison.json"


def is_comparison(spec: Mapping[str, Any]) -> bool:
    """Whether a directory's spec.json asks for several methods."""
    return "methods" in spec


def read_comparison(root: Path) -> ComparisonSpec:
    """The comparison that is to be run in a directory. Raises SimPOError when it has its result."""
    if (root / RESULT).exists():
        raise SimPOError("this comparison has its result already: see `python -m sweeps show`", str(root))
    return parse_comparison(RunDir(root).read_spec(), source=str(root / "spec.json"))


def compare(root: Path, *, ray_address: str | None, threads: int, access: "JudgeAccess", quiet: bool) -> None:
    """Run, or go on with, the comparison whose spec lies in `root`, and write its reports. A signal exits with 130."""
    from sweeps.comparison import run_comparison  # noqa: PLC0415  # lazy: torch and ray take seconds, --help must not

    spec = read_comparison(root)
    console = Console(quiet=quiet)
    console.print(f"{spec.name}: {plan(spec)}", highlight=False)
    try:
        with ComparisonScreen(spec.sweeps(), console) as screen:
            result = run_comparison(
                root,
                ray_address=ray_address,
                listener=screen.take,
                preparing=screen.preparing,
                build_threads=threads,
                access=access,
            )
    except Stopped as stopped:
        Console(stderr=True).print(f"stopped: {stopped}. Go on with: python -m sweeps resume {root}")
        sys.exit(130)
    console.print(comparison_view(result))
    for path in write_comparison(result, spec.model_dump(mode="json"), root):
        console.print(f"report: {path}", highlight=False, markup=False, soft_wrap=True)


def show_comparison(root: Path, console: Console) -> None:
    """Print the table and the verdicts, or how far the methods have come."""
    if (root / RESULT).exists():
        console.print(comparison_view(json.loads((root / RESULT).read_text(encoding="utf-8"))))
        return
    sweeps = parse_comparison(RunDir(root).read_spec(), source=str(root / "spec.json")).sweeps()
    runs = {name: RunDir(root / "sweeps" / name) for name in sweeps}
    console.print(boards_table(read_boards(runs, sweeps)))


def plan(spec: ComparisonSpec) -> str:
    """What it will take, in a sentence."""
    plans = [plan_budget(sweep) for sweep in spec.sweeps().values()]
    each = f"{spec.budget.trials} trials" if spec.budget.rule == "trials" else f"{spec.budget.total_steps} steps"
    return (
        f"{len(plans)} methods, {each} each, {plans[0].steps} steps a trial, {spec.drawn} of the trials random; "
        f"about {sum(plan.likely_steps for plan in plans)} steps in all"
    )
