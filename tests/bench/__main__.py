"""`make bench`: the SimPO step against TRL 1.16's, in the same run; ratios, never bare seconds. Exit 1 below a bar.

Each arm is a process of its own on one thread; CPU-seconds (user + system) are compared. `floor` is the share of the
time that the least possible products would take at the rate of a plain matrix product in the same process.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.readme import RESULTS, markdown, record, recorded, write

ROOT = Path(__file__).parents[2]
LOSS_BAR, GRADIENT_BAR, BFLOAT16_BAR = 1e-6, 1e-5, 2e-3
"""Of the float32 loss and gradients against a plain, unpadded forward, and of bfloat16 losses against float32."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the comparison: the same pairs and shape for every arm."""

    name: str
    arms: tuple[str, ...]
    """Baselines."""
    shape: str = "30M"
    sample: str = "short"
    pairs: int | None = None
    """None: the whole sample."""
    lora: bool = False
    device: str = "cpu"
    faster: float
    """Least ratio of CPU-seconds, first baseline over ours."""
    floor: float | None = None
    """Least share of the floor."""
    memory: float | None = None
    """Most memory above the model, ours over the first baseline's."""


GPU_CASES = (
    Case(name="short, 1B", arms=("trl", "trl-tuned"), shape="1B", device="cuda", faster=4.0, floor=0.4),
    Case(name="long, 1B", arms=("trl", "trl-tuned"), shape="1B", sample="long", device="cuda", faster=2.5, floor=0.45),
    Case(name="short, 8B LoRA", arms=("trl",), shape="8B", lora=True, device="cuda", faster=4.0, floor=0.4),
    Case(
        name="long, 8B LoRA", arms=("trl",), shape="8B", sample="long", lora=True, device="cuda", faster=2.5, floor=0.45
    ),
)
"""For `--gpu`: one H200, under ten minutes. Wall seconds take the place of CPU-seconds."""

CASES = (
    Case(name="short", arms=("trl", "trl-tuned"), faster=6.0, floor=0.6, memory=1 / 3),
    Case(name="short, sorted by length", arms=("trl-tuned",), sample="short-sorted", faster=2.0),
    Case(name="long", arms=("trl", "trl-tuned"), sample="long", faster=2.7, floor=0.6, memory=1 / 2),
    Case(name="short, LoRA", arms=("trl",), lora=True, pairs=24, faster=8.0),
    Case(name="short, 135M", arms=("trl",), shape="135M", pairs=12, faster=4.5),
    Case(name="long, 135M", arms=("trl",), shape="135M", sample="long", pairs=4, faster=2.2),
)


def main() -> int:
    """Run the cases, print the table, and say which bars were missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="the cases for one large GPU instead")
    parser.add_argument("--only", help="the case of this name, or the cases whose names contain it")
    parser.add_argument("--pairs", type=int, help="only the first so many pairs of each sample (a quick look)")
    parser.add_argument("--repeats", type=int, default=2, help="timed passes; the least time of each step counts")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--write", action="store_true", help="record the figures and put their table into README.md")
    args = parser.parse_args()
    every = GPU_CASES if args.gpu else CASES
    named = [case for case in every if case.name == args.only]
    cases = named or [case for case in every if args.only is None or args.only in case.name]
    if not cases:
        print(f"--only: no case is named like {args.only!r}: {', '.join(c.name for c in every)}", file=sys.stderr)
        return 2
    console = Console()
    exact = _run(console, "exactness, float32 against a plain forward", ["tests.bench.exact"])
    results: dict[str, dict[str, Any]] = {}
    for case in cases:
        pairs = min((n for n in (case.pairs, args.pairs) if n is not None), default=None)
        results[case.name] = {
            arm: _run(console, f"{case.name}: {arm}", _command(case, arm, pairs, args.repeats))
            for arm in ("ours", *case.arms)
        }
    console.print(_table(cases, results))
    missed = [*_missed(exact), *(line for case in cases for line in _missed_by(case, results[case.name]))]
    console.print(
        f"float32 loss within {exact['loss_error']:.1e}, gradients within {exact['gradient_error']:.1e} relative of a "
        f"plain forward; bfloat16 loss within {exact['bfloat16_loss_error']:.1e} of float32"
    )
    for line in missed:
        console.print(f"[red]below the bar[/red] {line}")
    if args.json:
        args.json.write_text(json.dumps({"exact": exact, "cases": results}, indent=1) + "\n")
    if args.write:
        kept = recorded("step") if (RESULTS / "step.json").exists() else {"cases": {}}
        figures = {"exact": exact, "cases": {**kept["cases"], **_without_losses(results)}}
        record("step", figures)
        write("step", step_table(figures))
    return 1 if missed else 0


def step_table(figures: dict[str, Any]) -> str:
    """README's table of the step: one row a case, also of those that were never run."""
    rows = []
    for case in (*CASES, *GPU_CASES):
        arms = figures["cases"].get(case.name)
        if arms is None:
            rows.append([case.name, "not run", "", "", ""])
            continue
        ours, stock = arms["ours"], arms[case.arms[0]]
        ratios = ", ".join(
            f"{row['seconds_per_step'] / ours['seconds_per_step']:.1f}x {arm}"
            for arm, row in arms.items()
            if arm != "ours"
        )
        memory = ours["bytes_above_model"]
        share = f"{memory / stock['bytes_above_model']:.2f} ({memory / 2**20:.0f} MB)"
        rows.append([case.name, ratios, f"{ours['pairs_per_s']:.2f}", f"{floor_share(ours):.0%}", share])
    return markdown(["case", "TRL takes", "ours, pairs/s", "of the floor", "memory, ours / TRL"], rows)


def _without_losses(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        case: {arm: {key: value for key, value in row.items() if key != "losses"} for arm, row in arms.items()}
        for case, arms in results.items()
    }


def floor_share(figures: dict[str, Any]) -> float:
    """Floor time over step time, at the matrix product's rate in the same process."""
    return float(figures["floor_flops_per_step"] / figures["peak_flops"] / figures["seconds_per_step"])


def _table(cases: list[Case], results: dict[str, dict[str, Any]]) -> Table:
    seconds = "wall s/step" if cases[0].device == "cuda" else "CPU-s/step"
    table = Table("case", "arm", seconds, "pairs/s", "tok/s", "of floor", "memory", "ours is")
    for case in cases:
        ours = results[case.name]["ours"]
        for arm, row in results[case.name].items():
            table.add_row(
                case.name if arm == "ours" else "",
                arm,
                f"{row['seconds_per_step']:.3f}",
                f"{row['pairs_per_s']:.2f}",
                f"{row['response_tokens_per_s']:.0f}",
                f"{floor_share(row):.0%}",
                f"{row['bytes_above_model'] / 2**20:.0f} MB",
                "" if arm == "ours" else f"{row['seconds_per_step'] / ours['seconds_per_step']:.2f}x",
            )
    return table


def _missed(exact: dict[str, float]) -> list[str]:
    bars = {"loss_error": LOSS_BAR, "gradient_error": GRADIENT_BAR, "bfloat16_loss_error": BFLOAT16_BAR}
    return [f"{key} {exact[key]:.1e}, bar {bar:.0e}" for key, bar in bars.items() if exact[key] > bar]


def _missed_by(case: Case, rows: dict[str, Any]) -> list[str]:
    ours, baseline = rows["ours"], rows[case.arms[0]]
    ratio = baseline["seconds_per_step"] / ours["seconds_per_step"]
    memory = ours["bytes_above_model"] / baseline["bytes_above_model"]
    missed = []
    if ratio < case.faster:
        missed.append(f"{case.name}: {ratio:.2f}x {case.arms[0]}, bar {case.faster}x")
    if case.floor is not None and floor_share(ours) < case.floor:
        missed.append(f"{case.name}: {floor_share(ours):.0%} of the floor, bar {case.floor:.0%}")
    if case.memory is not None and memory > case.memory:
        missed.append(f"{case.name}: {memory:.2f} of {case.arms[0]}'s memory, bar {case.memory:.2f}")
    return missed


def _command(case: Case, arm: str, pairs: int | None, repeats: int) -> list[str]:
    command = ["tests.bench.step", "--arm", arm, "--shape", case.shape, "--sample", case.sample]
    command += ["--repeats", str(repeats), "--device", case.device, *(["--lora"] if case.lora else [])]
    return command if pairs is None else [*command, "--pairs", str(pairs)]


def _run(console: Console, title: str, command: list[str]) -> dict[str, Any]:
    console.print(f"running {title} ...", highlight=False)
    # One thread, no spinning: CPU-seconds of one core are what is compared.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KMP_BLOCKTIME": "0"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{title} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


if __name__ == "__main__":
    sys.exit(main())
