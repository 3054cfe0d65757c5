"""`make bench-load`: the service under load, against its targets, on SQLite and PostgreSQL with 10,000 sweeps stored.

    python -m tests.bench.load                              both, half an hour
    python -m tests.bench.load --database sqlite --quick    does it work? two minutes

A real API process (uvicorn, one worker, its reconciler in it; for the request loops on PostgreSQL one more without) on
a database that waits for the disk; clients are one more process on the same machine, whose CPU-seconds are told. Exit 1
below a gate. Rates are of the machine and its load; queries, Ray calls and memory are not.
"""

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.load_cases import CASES, QUICK, Size
from tests.bench.load_data import fill
from tests.bench.load_stage import DATABASES, stage
from tests.bench.readme import RESULTS, markdown, record, recorded, write

Figures = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Target:
    """One row of the table."""

    title: str
    """What is measured."""
    case: str
    """Name in CASES."""
    gate: str
    """Below it, the run fails."""
    aim: str
    """What is wished."""
    shown: Callable[[Figures], str]
    """The figures of the case, in words."""
    passes: Callable[[Figures], bool]
    """At the gate."""
    reaches: Callable[[Figures], bool] = lambda figures: False
    """The aim."""


def rate(figures: Figures) -> float:
    """Requests a second that were answered as wished."""
    good = sum(number for status, number in figures["statuses"].items() if status in ("200", "202"))
    return float(good / figures["seconds"])


def _loop(title: str, name: str, gate: tuple[float, float], aim: tuple[float, float | None]) -> Target:
    """A closed loop; gate and aim: (requests a second, p99 in ms)."""

    def words(bar: tuple[float, float | None]) -> str:
        return f"{bar[0]:,.0f} req/s" + (f", p99 < {bar[1]:g} ms" if bar[1] else "")

    def shown(all_of: Figures) -> str:
        figures = all_of[name]
        each = 1000 * figures["api_cpu_s"] / max(figures["requests"], 1) * figures["seconds"] / (figures["seconds"] + 1)
        times = f"p50 {figures['p50_ms']:.0f} ms, p99 {figures['p99_ms']:.0f} ms"
        return f"{rate(figures):,.0f} req/s, {times}; {each:.2f} CPU-ms each"

    def meets(all_of: Figures, bar: tuple[float, float | None]) -> bool:
        figures = all_of[name]
        sound = set(figures["statuses"]) <= {"200", "202"}
        return sound and rate(figures) >= bar[0] and (bar[1] is None or figures["p99_ms"] < bar[1])

    return Target(
        title=title,
        case="requests",
        gate=words(gate),
        aim=words(aim),
        shown=shown,
        passes=lambda all_of: meets(all_of, gate),
        reaches=lambda all_of: meets(all_of, aim),
    )


TARGETS = (
    _loop("`GET` of a sweep", "get", (300, 150), (1000, 60)),
    _loop("list page of 50, the newest", "list_newest", (300, 150), (1000, 60)),
    _loop("list page of 50, anywhere", "list_anywhere", (300, 150), (1000, 60)),
    _loop("create: idempotent, audited, durable", "create", (150, 200), (500, None)),
    Target(
        title="200 watchers of a running sweep, driver to reader",
        case="watchers",
        gate="p95 < 1 s, no growth",
        aim="p95 < 250 ms",
        shown=lambda f: (
            f"p95 {f['p95_ms']:.0f} ms, {f['growth_mb']:+.1f} MiB in {f['seconds'] / 60:.1f} min, {f['gaps']} gaps"
        ),
        passes=lambda f: f["p95_ms"] < 1000 and f["growth_mb"] < 5 and not f["gaps"] and not f["broken"],
        reaches=lambda f: f["p95_ms"] < 250,
    ),
    Target(
        title="journal into tables",
        case="ingestion",
        gate="1,000 rows/s",
        aim="5,000 rows/s",
        shown=lambda f: (
            f"{f['rows_per_s']:,} rows/s, {f['records'] / f['cpu_s']:,.0f} a CPU-second, "
            f"{f['queries_per_1000']:.0f} queries per 1,000"
        ),
        passes=lambda f: f["rows_per_s"] >= 1000,
        reaches=lambda f: f["rows_per_s"] >= 5000,
    ),
    Target(
        title="reconciler pass over 5,000 live sweeps, nothing to do",
        case="live",
        gate="< 2 s, 1 query per 100, 1 Ray call",
        aim="< 0.5 s",
        shown=lambda f: (
            f"{f['pass_s']:.2f} s ({f['pass_cpu_s']:.2f} CPU), {f['queries']} queries, {f['ray_calls']} Ray call"
        ),
        passes=lambda f: f["pass_s"] < 2 and f["queries"] <= max(f["sweeps"] / 100, 50) and f["ray_calls"] == 1,
        reaches=lambda f: f["pass_s"] < 0.5,
    ),
    Target(
        title="accepted to submitted",
        case="submitting",
        gate="p95 < 2 s",
        aim="p95 < 1 s",
        shown=lambda f: f"p95 {f['p95_ms']} ms, {f['ray_accepts_in_ms']} of it Ray's",
        passes=lambda f: f["p95_ms"] < 2000,
        reaches=lambda f: f["p95_ms"] < 1000,
    ),
    Target(
        title="1,000 accepted sweeps of two projects, 4 places",
        case="queue",
        gate="all end, in order, none starves",
        aim="",
        shown=lambda f: (
            f"{f['ended']} ended in {f['seconds']:.0f} s, {f['overtaken']} overtaken, the small project's after "
            f"{f['few_done_at']:.0%}, {f['growth_mb']:+.1f} MiB"
        ),
        passes=lambda f: (
            f["ended"] == f["queued"] and f["overtaken"] == 0 and f["few_done_at"] < 0.5 and f["growth_mb"] < 20
        ),
    ),
    Target(
        title="start with 5,000 live sweeps",
        case="live",
        gate="ready < 5 s",
        aim="ready < 2 s",
        shown=lambda f: f"ready in {f['ready_s']:.1f} s, then {f['rss_mb']:.0f} MiB",
        passes=lambda f: f["ready_s"] < 5,
        reaches=lambda f: f["ready_s"] < 2,
    ),
    Target(
        title="memory of the API at 10,000 sweeps",
        case="requests",
        gate="< 300 MiB",
        aim="",
        shown=lambda f: f"{f['rss_mb']:.0f} MiB after the reads, {f['start_rss_mb']:.0f} before",
        passes=lambda f: max(f["rss_mb"], f["rss_after_creates_mb"]) < 300,
    ),
)


def main() -> int:
    """Measure, print, and say which gates were missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.load", description=__doc__)
    parser.add_argument("--database", choices=DATABASES, action="append", help="only this one; again for both")
    parser.add_argument("--quick", action="store_true", help="small: does it work? Its figures are not recorded")
    parser.add_argument("--case", choices=CASES, action="append", help="only this one; again for several")
    parser.add_argument("--watch-s", type=float, help="seconds that the watchers watch (300)")
    parser.add_argument("--write", action="store_true", help="record the figures and put their table into README.md")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    size = QUICK if args.quick else Size()
    if args.watch_s is not None:
        size = replace(size, watch_s=args.watch_s)
    names = [name for name in CASES if args.case is None or name in args.case]
    results: dict[str, Any] = {}
    for database in args.database or DATABASES:
        if database == "postgresql" and shutil.which("initdb") is None:
            print("postgresql: not measured, there is no initdb in the PATH (Debian: postgresql)", file=sys.stderr)
            continue
        results[database] = measured(database, names, size)
    missed = [f"{database}: {line}" for database, cases in results.items() for line in report(database, cases)]
    if args.write and not args.quick:
        before = recorded("load") if (RESULTS / "load.json").exists() else {}
        figures = {name: {**before.get(name, {}), **cases} for name, cases in {**before, **results}.items()}
        record("load", figures)
        write("load", load_table(figures))
    return 1 if missed else 0


def measured(database: str, names: list[str], size: Size) -> dict[str, Any]:
    """Fill a database of that kind and run the cases; figures by case."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="load-") as home, stage(database, Path(home)) as on:
        began = time.monotonic()
        on.data = fill(on.store, sweeps=size.sweeps, trials=size.trials)
        print(f"{database}: {size.sweeps} x {size.trials} stored in {time.monotonic() - began:.0f} s", file=sys.stderr)
        for name in names:
            began, day = time.monotonic(), datetime.now(UTC).date().isoformat()
            around = {"day": day, "cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 1)}
            figures[name] = {**CASES[name](on, size), **around}
            took = time.monotonic() - began
            print(f"{database}: {name} in {took:.0f} s: {json.dumps(figures[name])}", file=sys.stderr)
    return figures


def report(database: str, cases: Mapping[str, Figures]) -> list[str]:
    """Print each target with its figures; those that missed their gate."""
    missed = []
    for target in TARGETS:
        if target.case in cases:
            figures = cases[target.case]
            print(f"{database}: {target.title}: {target.shown(figures)}")
            print(f"    gate {target.gate}; aim {target.aim or 'none'}: {verdict(target, figures)}")
            if not target.passes(figures):
                missed.append(target.title)
    clients = sum(each.get("generator_cpu_s", 0.0) for each in _loops(cases))
    print(f"{database}: clients: own asyncio generator, {clients:.1f} CPU-seconds in all")
    return missed


def verdict(target: Target, figures: Figures) -> str:
    """One word."""
    if target.reaches(figures):
        return "aim"
    return "gate" if target.passes(figures) else "MISSED"


def load_table(figures: Mapping[str, Mapping[str, Figures]]) -> str:
    """README's table: a row a target, a column a database, with the verdict and the machine's load in each cell."""
    rows = []
    for target in TARGETS:
        cells = []
        for database in DATABASES:
            case = figures.get(database, {}).get(target.case)
            cells.append("not run" if case is None else _cell(target, case))
        rows.append([target.title, target.gate, target.aim, *cells])
    return markdown(["load", "gate", "aim", "SQLite", "PostgreSQL"], rows)


def _cell(target: Target, case: Figures) -> str:
    load = case.get("get", case).get("load_average", case["load_before"])  # at the end of the loop, where there is one
    return f"{target.shown(case)}: {verdict(target, case)} (load {load:.0f})"


def _loops(cases: Mapping[str, Figures]) -> list[Figures]:
    inner = [each for case in cases.values() for each in (case, *case.values()) if isinstance(each, Mapping)]
    return [each for each in inner if "generator_cpu_s" in each]


if __name__ == "__main__":
    sys.exit(main())
