"""`python -m tests.bench.compare`: the ten methods of the SimPO paper under one budget, on three sets of preferences.

practice    the built-in task, steered and judged by its own judge
hh          hh_helpful: real preferences, steered by held-out accuracy; the base is a small model made of the data
qa          qa_feedback, likewise

Each task is an ordinary `python -m sweeps compare` on two cores; the three together are to take less than an hour.
Stopped and started again with the same --out, a task goes on. `--write` keeps the figures and puts their tables into
README.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sweeps.comparison_report import cells, head
from sweeps.comparison_spec import PAPER, ComparisonSpec, parse_comparison
from tests.bench.readme import RESULTS, markdown, record, recorded, write
from tests.house import REPO

DATA = REPO.parent / "shared" / "data" / "preferences"
MINUTES_BAR = 60.0
"""Of all tasks together, on two idle cores. A full trial takes about 7 (practice), 8 (hh), 10 (qa) CPU-seconds."""
TASKS = ("practice", "hh", "qa")
DRAWN = 16
"""Random trials of each method: they speak of the best of one and of two."""


def body(task: str) -> dict[str, Any]:
    """The comparison of a task, in spec form."""
    common = {"name": f"bench-{task}", "methods": list(PAPER), "random_stratum": DRAWN, "parallel": {"trials": 2}}
    if task == "practice":
        return common | {
            "budget": {"trials": 20, "steps": 32},
            "evaluation": {"rung_prompts": 100, "max_new_tokens": 32},
            "finals": {"candidates": 1, "prompts": 400},
        }
    name = {"hh": "hh_helpful", "qa": "qa_feedback"}[task]
    long = task == "qa"  # its prompts hold the passages that the answers are from
    data = {"train": str(DATA / f"{name}_train.jsonl.gz"), "eval": str(DATA / f"{name}_eval.jsonl.gz")}
    return common | {
        "dataset": data | ({"limit": 1000} if long else {}),
        "budget": {"trials": 20, "steps": 16 if long else 20},
        "train": {"batch_pairs": 12 if long else 16, "token_budget": 4096},
        "tokens": {"max_length": 256},
        "evaluation": {"rung_prompts": 16, "max_new_tokens": 32},
        "finals": {"candidates": 1, "prompts": 100},
    }


def main() -> int:
    """Run the tasks, print their tables; 1 if they took too long, 2 if the data is not here."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.compare", description=__doc__)
    parser.add_argument("--task", choices=TASKS, action="append", help="only this one; may be given again")
    parser.add_argument("--methods", help="only these, e.g. sft,dpo,simpo (a quick look)")
    parser.add_argument("--trials", type=int, help="so many trials of each method (a quick look)")
    parser.add_argument("--random", type=int, help="of which so many are random")
    parser.add_argument("--steps", type=int, help="optimiser steps of a trial (a quick look)")
    parser.add_argument("--out", type=Path, help="keep the comparisons here, and go on with those that are here")
    parser.add_argument("--write", action="store_true", help="record the figures and put their tables into README.md")
    args = parser.parse_args()
    tasks = args.task or list(TASKS)
    if not DATA.is_dir() and set(tasks) != {"practice"}:
        print(f"the data of {', '.join(tasks)} is not at {DATA}: use --task practice", file=sys.stderr)
        return 2
    minutes = 0.0
    with tempfile.TemporaryDirectory(prefix="bench-compare-") as temporary:
        for task in tasks:
            spec = _spec(task, args)
            figures = run(task, spec, args.out or Path(temporary))
            minutes += figures["minutes"]
            print(f"\n{task}: {figures['minutes']:.1f} minutes\n{compare_table(figures)}", flush=True)
            if args.write:
                record(f"compare-{task}", figures)
                write(f"compare-{task}", compare_table(figures))
    print(f"{minutes:.1f} minutes in all, bar {MINUTES_BAR:.0f}")
    return 1 if minutes > MINUTES_BAR else 0


def run(task: str, spec: ComparisonSpec, out: Path) -> dict[str, Any]:
    """Run a task's comparison in a process of its own; its result and how long it took."""
    root, file = out / task, out / f"{task}.json"
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(spec.model_dump_json())
    if not (root / "comparison.json").exists():
        before, began = _spent(root), time.monotonic()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "sweeps", "compare", str(file), "--out", str(root)]
        subprocess.run(command, cwd=REPO, env=environment, check=True)
        (root / "minutes.json").write_text(json.dumps((before + time.monotonic() - began) / 60))
    result: dict[str, Any] = json.loads((root / "comparison.json").read_text())
    for row in result["leaderboard"]:
        row["best"] = None if row["best"] is None else {"params": row["best"]["params"]}
    return {"task": task, "minutes": round(json.loads((root / "minutes.json").read_text()), 2), "result": result}


def compare_table(figures: dict[str, Any]) -> str:
    """README's table of a task: the leaderboard with finals, tuning curves and verdicts, then what was undecided."""
    result = figures["result"]
    decided = sum(verdict["above"] is not None for verdict in result["verdicts"])
    text = markdown(head(result), cells(result))
    pairs = f"{decided} of {len(result['verdicts'])} pairs decided, {figures['minutes']:.0f} minutes."
    return f"{text}\n{pairs}\n"


def shown() -> list[str]:
    """Tasks whose figures are recorded."""
    return [task for task in TASKS if (RESULTS / f"compare-{task}.json").exists()]


def readme_tables() -> dict[str, str]:
    """What README must show, by marker; a task that was never run has an empty table."""
    done = shown()
    return {f"compare-{t}": compare_table(recorded(f"compare-{t}")) if t in done else "" for t in TASKS}


def _spec(task: str, args: argparse.Namespace) -> ComparisonSpec:
    values = body(task)
    if args.methods:
        values["methods"] = args.methods.split(",")
    if args.random:
        values["random_stratum"] = args.random
    for key in ("trials", "steps"):
        if getattr(args, key):
            values["budget"][key] = getattr(args, key)
    return parse_comparison(values)


def _spent(root: Path) -> float:
    """Seconds that an earlier run took until it was stopped: from its spec to its newest heartbeat."""
    times = [path.stat().st_mtime for path in root.glob("sweeps/*/attempts/*/heartbeat.json")]
    return max(times) - (root / "spec.json").stat().st_mtime if times else 0.0


if __name__ == "__main__":
    sys.exit(main())
