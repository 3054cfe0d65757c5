"""The stock arm of the sweep benchmark: Ray Tune, one process a trial, two at once, TRL's CPOTrainer with its defaults.

`python -m tests.bench.sweep_stock --task DIR --out DIR [--asha]` writes OUT/result.json. What differs from TRL's
defaults is what the task says: SimPO's loss, steps, batch, points, a constant rate after warm-up, bfloat16.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

from tests.bench.stock_trial import stock_trial
from tests.bench.sweep_task import read_task


def main() -> None:
    """Run the sweep; figures go to result.json, the winner's weights lie beside."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--points", type=Path, required=True, help="JSON list of points, in order")
    parser.add_argument("--asha", action="store_true")
    args = parser.parse_args()
    began = time.monotonic()
    out, points = args.out.absolute(), json.loads(args.points.read_text())
    task = read_task(args.task)

    import ray  # noqa: PLC0415  # lazy: --help stays quick
    from ray import tune  # noqa: PLC0415  # lazy: as above
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler  # noqa: PLC0415  # lazy: as above

    from sweeps.ray_session import start_private  # noqa: PLC0415  # lazy: as above

    temporary = Path(tempfile.mkdtemp(prefix="sb", dir="/tmp"))
    start_private(temporary, num_cpus=2, dashboard=False)
    try:
        asha = ASHAScheduler(
            time_attr="step", max_t=task.steps, grace_period=task.rungs[0], reduction_factor=task.reduction
        )
        tuner = tune.Tuner(
            tune.with_resources(stock_trial, {"CPU": 1}),
            param_space={
                "point": tune.grid_search(points),
                "task": str(args.task.absolute()),
                "out": str(out),
                "rungs": args.asha,
            },
            tune_config=tune.TuneConfig(
                metric="accuracy", mode="max", scheduler=asha if args.asha else FIFOScheduler(), max_concurrent_trials=2
            ),
            run_config=tune.RunConfig(name="tune", storage_path=str(out), verbose=0),
        )
        results = tuner.fit()
    finally:
        ray.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)
    if results.errors:
        raise SystemExit(f"a stock trial failed: {results.errors[0]}")
    ended = [result.metrics for result in results]
    full = [metrics for metrics in ended if metrics["step"] >= task.steps]
    best = max(full, key=lambda metrics: metrics["accuracy"])
    figures = {
        "seconds": time.monotonic() - began,
        "steps": sum(metrics["step"] for metrics in ended),
        "best": {"point": best["point"], "rung_accuracy": best["accuracy"], "checkpoint": best["saved"]},
    }
    (out / "result.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
