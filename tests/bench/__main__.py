"""`make bench`: every benchmark with its baseline in the same run; ratios, never bare seconds. Exit 1 below a bar."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "preferences" / "hh_helpful_train.jsonl.gz"
BAR = 4.0
"""Least ratio of CPU-seconds, TRL stock over ours, bfloat16."""
LOSS_TOLERANCE = 1e-5


def main() -> int:
    """Run the step benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="preference jsonl.gz (default: the HH helpful pairs)")
    parser.add_argument("--pairs", type=int, default=48, help="pairs in the sample (48: about 6 minutes)")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    if not args.data.exists():
        print(f"--data: no file {args.data}: give a preference jsonl.gz", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as work:
        exact = {arm: _arm(arm, "float32", 8, 1, args.data, work) for arm in ("ours", "trl")}
        arms = ("ours", "trl", "trl-tuned")
        fast = {arm: _arm(arm, "bfloat16", args.pairs, args.repeats, args.data, work) for arm in arms}
    error = max(abs(a - b) for a, b in zip(exact["ours"]["losses"], exact["trl"]["losses"], strict=True))
    print(f"\n{args.pairs} pairs of {args.data.name}, 30M Llama, micro-batches of 4, one thread, forward + backward\n")
    print(f"{'arm':<12}{'CPU-s/step':>12}{'pairs/s':>10}{'tok/s':>8}{'memory':>10}{'ours is':>10}")
    for arm, row in fast.items():
        ratio = row["cpu_s_per_step"] / fast["ours"]["cpu_s_per_step"]
        megabytes = row["bytes_above_model"] / 2**20
        print(
            f"{arm:<12}{row['cpu_s_per_step']:>12.3f}{row['pairs_per_s']:>10.2f}"
            f"{row['response_tokens_per_s']:>8.0f}{megabytes:>7.0f} MB{ratio:>9.2f}x"
        )
    ratio = fast["trl"]["cpu_s_per_step"] / fast["ours"]["cpu_s_per_step"]
    print(f"\nstep ratio TRL stock / ours: {ratio:.2f}x (bar {BAR:.0f}x)")
    print(f"largest difference of the fp32 losses, same weights: {error:.1e} (bar {LOSS_TOLERANCE:.0e})")
    if args.json:
        args.json.write_text(json.dumps({"exact": exact, "fast": fast, "ratio": ratio, "loss_error": error}, indent=1))
    return 0 if ratio >= BAR and error <= LOSS_TOLERANCE else 1


def _arm(arm: str, dtype: str, pairs: int, repeats: int, data: Path, work: str) -> dict[str, Any]:
    print(f"running {arm}, {dtype}, {pairs} pairs ...", flush=True)
    command = [sys.executable, "-m", "tests.bench.step", "--arm", arm, "--dtype", dtype, "--pairs", str(pairs)]
    command += ["--repeats", str(repeats), "--data", str(data), "--work", work]
    # One thread, no spinning: CPU-seconds of one core are what is compared.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KMP_BLOCKTIME": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{arm} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


if __name__ == "__main__":
    sys.exit(main())
