"""`python -m tests.bench.sweep`: a whole sweep against Ray Tune with TRL, on the same rows, base and sixteen points.

halving   ours with all it has: warm processes, the pair step, successive halving (the full arm)
fifo      ours, every trial to full budget
tune-asha Ray Tune's ASHA over TRL's CPOTrainer, a process a trial
tune-fifo the same without early stopping

Two trials run at once on one thread each. `makespan` is everything from the start of the command until the best
trial is known: Ray, imports, data, trials. Ours then measures winner and base on the report split, which no stock arm
does: those seconds stand apart. Early stopping is open to any user of Ray; the step is ours: the table says both
factors. After the arms one scorer measures each arm's winner on the report split, which nobody chose on. Exit 1 below a
bar.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from tests.bench.readme import RESULTS, markdown, record, recorded, write
from tests.bench.sweep_task import POINTS, Task, halving, make_task, our_spec, read_task
from tests.house import REPO

ARMS = ("halving", "fifo", "tune-asha", "tune-fifo")
BARS = {"tune-asha": 4.0, "tune-fifo": 15.0}
"""Least makespan of these over the full arm's."""
FIXED_BAR = 0.3
"""Most seconds that a further trial in a warm process costs beside its training and measuring."""
DEFAULT = Task(steps=32, reduction=4, rung_pairs=16, report_pairs=250)


def main() -> int:
    """Run the arms, print the table and say which bars were missed; 2 if the data is not here."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sweep", description=__doc__)
    parser.add_argument("--arm", choices=ARMS, action="append", help="only this one; may be given again")
    parser.add_argument("--steps", type=int, default=DEFAULT.steps, help="optimiser steps of a full trial")
    parser.add_argument("--out", type=Path, help="keep the arms here, and do not repeat those that are here")
    parser.add_argument("--write", action="store_true", help="record the figures and put their table into README.md")
    args = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="bench-sweep-") as temporary:
        out = (args.out or Path(temporary)).absolute()
        try:
            task = Task(**{**vars(DEFAULT), "steps": args.steps})
            make_task(out / "task", task)
        except (FileNotFoundError, ValueError) as error:
            console.print(f"the sweep bench needs hh_harmless: {error}")
            return 2
        arms: dict[str, dict[str, Any]] = {}
        for arm in args.arm or ARMS:
            console.print(f"running {arm} ...")
            arms[arm] = kept(out / f"{arm}.json", lambda arm=arm: run(arm, out / "task", out / arm))  # type: ignore[misc]
            console.print(f"{arm}: {arms[arm]['seconds']:.0f} s")
        figures = {"task": vars(read_task(out / "task")), "arms": arms}
    console.print(sweep_table(figures), markup=False)
    for line in missed(figures):
        console.print(f"[red]below the bar[/red] {line}")
    if args.write:
        record("sweep", figures)
        write("sweep", sweep_table(figures))
    return 1 if missed(figures) else 0


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds, or what is made now and then held."""
    if not path.exists():
        path.write_text(json.dumps(make(), indent=1))
    held: dict[str, Any] = json.loads(path.read_text())
    return held


def run(arm: str, task: Path, out: Path) -> dict[str, Any]:
    """One arm, in processes of its own: makespan, steps, the winner and its accuracy on the report split."""
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    if arm.startswith("tune"):
        points = out / "points.json"
        points.write_text(json.dumps(_grid_order(task)))
        command = ["tests.bench.sweep_stock", "--task", str(task), "--out", str(out), "--points", str(points)]
        _run([*command, *(["--asha"] if arm == "tune-asha" else [])])
        seconds = time.monotonic() - began
        result = json.loads((out / "result.json").read_text())
        steps, best, more = result["steps"], result["best"], dict[str, Any]()
        checkpoint = Path(best["checkpoint"])
    else:
        spec = our_spec(task, read_task(task), scheduler=halving(read_task(task)) if arm == "halving" else "none")
        (out / "spec.json").write_text(json.dumps(spec))
        at = time.time()
        _run(["sweeps", "run", str(out / "spec.json"), "--out", str(out / "run"), "--quiet"])
        steps, best, more = _ours(out / "run")
        seconds = more.pop("searched_at") - at
        more["finals_s"] = time.monotonic() - began - seconds
        checkpoint = out / "run" / best["checkpoint"]
    accuracy = report_accuracy(checkpoint, task)
    return {"seconds": seconds, "steps": steps, "point": best["point"], "accuracy": accuracy, **more}


def report_accuracy(checkpoint: Path, task: Path) -> dict[str, float]:
    """A winner's accuracy on the report rows, with its 95 % interval; the same scorer for every arm."""
    import torch  # noqa: PLC0415  # lazy: --help stays quick

    from simpo.config import TokenPolicy  # noqa: PLC0415  # lazy: as above
    from simpo.evaluation.preference import preference_accuracy  # noqa: PLC0415  # lazy: as above
    from simpo.model import load_model, load_tokenizer  # noqa: PLC0415  # lazy: as above
    from simpo.packing import PairStore  # noqa: PLC0415  # lazy: as above
    from simpo.records import load_preferences  # noqa: PLC0415  # lazy: as above
    from simpo.scores import score_pairs  # noqa: PLC0415  # lazy: as above
    from simpo.tokenize import tokenize_preferences  # noqa: PLC0415  # lazy: as above

    torch.set_num_threads(1)
    rows = load_preferences(str(task / "eval.jsonl")).rows
    pairs = tokenize_preferences(rows, load_tokenizer(task / "base"), TokenPolicy(max_length=4096)).pairs
    scores = score_pairs(load_model(checkpoint, dtype="float32"), PairStore.of(pairs).evaluation_batches(4096))
    accuracy = preference_accuracy(scores).accuracy
    return {"estimate": accuracy.estimate, "low": accuracy.low, "high": accuracy.high}


def sweep_table(figures: dict[str, Any]) -> str:
    """README's table: one row an arm, then the factors."""
    arms = figures["arms"]
    full = arms.get("halving")
    rows = []
    for arm in filter(arms.__contains__, ARMS):  # a file's keys are sorted
        row = arms[arm]
        ratio = f"{row['seconds'] / full['seconds']:.1f}x" if full and arm != "halving" else ""
        held = row["accuracy"]
        accuracy = f"{held['estimate']:.3f} [{held['low']:.3f}, {held['high']:.3f}]"
        rows.append([arm, f"{row['seconds']:.0f} s", ratio, f"{row['steps']}", accuracy])
    header = ["arm", "makespan", "of `halving`", "optimiser steps", "winner's held-out accuracy"]
    return markdown(header, rows) + _factors(arms)


def missed(figures: dict[str, Any]) -> list[str]:
    """Which bars the figures miss."""
    arms, lines = figures["arms"], []
    full = arms.get("halving")
    if full is None:
        return []
    for arm, bar in BARS.items():
        if arm in arms:
            ratio = arms[arm]["seconds"] / full["seconds"]
            if ratio < bar:
                lines.append(f"{ratio:.1f}x {arm}, bar {bar:.0f}x")
            if full["accuracy"]["high"] < arms[arm]["accuracy"]["estimate"]:
                lines.append(f"held-out accuracy {full['accuracy']['estimate']:.3f} is below {arm}'s")
    if "fifo" in arms and arms["fifo"]["fixed_s"] > FIXED_BAR:
        lines.append(f"fixed cost of a trial {arms['fifo']['fixed_s']:.2f} s, bar {FIXED_BAR} s")
    return lines


def engine_cost(ends: list[Any]) -> dict[str, float]:
    """fixed_s: median seconds between a trial's end and the next one's end in the same process that are not the next
    trial's own. overhead: the share of all such seconds."""
    lanes: dict[int, list[tuple[float, float]]] = {}
    for end in ends:
        lanes.setdefault(end["data"]["pid"], []).append((_seconds(end), end["data"]["seconds"]))
    gaps, spans = [], []
    for lane in lanes.values():
        for (before, _), (after, own) in pairwise(lane):
            gaps.append(after - before - own)
            spans.append(after - before)
    return {"fixed_s": median(gaps), "overhead": sum(gaps) / sum(spans)} if gaps else {"fixed_s": 0.0, "overhead": 0.0}


def readme_tables() -> dict[str, str]:
    """What README must show; empty before the first recorded run."""
    return {"sweep": sweep_table(recorded("sweep")) if (RESULTS / "sweep.json").exists() else ""}


def _factors(arms: dict[str, dict[str, Any]]) -> str:
    if not {"halving", "fifo", "tune-fifo"} <= set(arms):
        return ""
    step = arms["tune-fifo"]["seconds"] / arms["fifo"]["seconds"]
    stopping = arms["fifo"]["seconds"] / arms["halving"]["seconds"]
    fifo = arms["fifo"]
    return (
        f"\nThe step and the warm processes: {step:.1f}x. Early stopping: {stopping:.1f}x. A further trial in a warm "
        f"process costs {fifo['fixed_s']:.2f} s beside its training; the engine takes {fifo['overhead']:.1%} of the "
        f"search. Measuring the winner and the base afterwards took {arms['halving']['finals_s']:.0f} s.\n"
    )


def _ours(root: Path) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Optimiser steps, the winner, and what the journal says of the engine."""
    from sweeps.recorded import ENDINGS  # noqa: PLC0415  # lazy: --help stays quick
    from sweeps.run_dir import RunDir, read_journal, read_result  # noqa: PLC0415  # lazy: as above

    attempt = RunDir(root).attempts()[-1]
    result = read_result(attempt)
    assert result is not None
    journal = read_journal(attempt)
    ends = [each for each in journal if each["type"] in ENDINGS.values()]
    starts = {each["data"]["number"]: each for each in journal if each["type"] == "trial.created"}
    steps = sum(end["data"]["step"] for end in ends)
    steps -= sum(_inherited(start, ends) for start in starts.values())
    best = {"point": result["best"]["params"], "checkpoint": result["best"]["checkpoint"]}
    # The last end is in the journal, and with it who is best.
    more = {"searched_at": max(map(_seconds, ends)), "seconds_by_phase": result["seconds"]}
    return steps, best, engine_cost(ends) | more


def _seconds(record: Any) -> float:
    """A record's moment, Unix time."""
    return datetime.fromisoformat(record["at"]).timestamp()


def _inherited(start: Any, ends: list[Any]) -> int:
    """Steps that a trial did not take itself."""
    parent = start["data"].get("parent")
    return next((end["data"]["step"] for end in ends if end["data"]["trial_id"] == parent), 0)


def _grid_order(task: Path) -> list[dict[str, float]]:
    """The points in the order in which our grid tries them."""
    from sweeps.samplers import planned_point  # noqa: PLC0415  # lazy: --help stays quick
    from sweeps.spec import parse_spec  # noqa: PLC0415  # lazy: as above

    spec = parse_spec(our_spec(task, read_task(task), scheduler="none"))
    return [{key: float(value) for key, value in planned_point(spec, n).items()} for n in range(len(POINTS))]


def _run(command: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=REPO, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")


if __name__ == "__main__":
    sys.exit(main())
