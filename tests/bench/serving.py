"""Serving against its baselines, in the same run: ratios with their spread, never bare rates. Exit 1 below a bar.

    python -m tests.bench.serving                      all cases, half an hour of two idle cores
    python -m tests.bench.serving --case engine        one of them: engine, gateway, adapters
    python -m tests.bench.serving --write              and record the figures, with README's tables

engine: our engine, transformers' continuous batching and one request at a time on one thread each. gateway: a model
that says the same at once through Serve and our API. adapters: many prompts for eight adapters on one base.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.readme import RESULTS, markdown, record, recorded, write
from tests.bench.serving_adapters import STARTED, adapters
from tests.bench.serving_engines import ARMS, engine
from tests.bench.serving_gateway import CONNECTIONS, WAYS, gateway

Figures = Mapping[str, Any]

FASTER_AT_8 = 2.0
"""Least at 8 clients over transformers' continuous batching: ours in tokens a CPU-second, or vllm's by the wall."""
REQUESTS_PER_S = 2400.0
"""Least through Serve in HAProxy mode, and through our API before it, at 16 connections."""
P95_MS = 15.0
"""Less than that, there."""
MORE_MS = 1.0
"""Most that HAProxy mode may add to the p50 of uvicorn alone, and our API to that of HAProxy mode, one at a time."""
ADAPTERS_FASTER = 2.0
"""Least ratio of 8 starts of any engine, our own too, over one of ours with 8 adapters."""

CASES: Mapping[str, Callable[[Path, int], dict[str, Any]]] = {
    "engine": lambda home, repeats: engine(home, repeats=repeats),
    "gateway": lambda home, repeats: gateway(home, repeats=repeats),
    "adapters": lambda home, repeats: adapters(home, repeats=repeats),
}
"""By the name at the command line."""


def main() -> int:
    """Measure, print, and say which bars were missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.serving", description=__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="only this one; again for several")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of every arm, in turn")
    parser.add_argument("--write", action="store_true", help="record the figures and put their tables into README.md")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for case in [name for name in CASES if args.case is None or name in args.case]:
        began, load = time.monotonic(), os.getloadavg()[0]
        with tempfile.TemporaryDirectory(prefix="serving-") as home:
            figures = CASES[case](Path(home), args.repeats)
        around = {"day": datetime.now(UTC).date().isoformat(), "load_before": round(load, 1)}
        results[case] = {**figures, **around}
        print(f"{case} in {time.monotonic() - began:.0f} s (load {load:.0f}): {json.dumps(figures)}", file=sys.stderr)
        print(TABLES[case](results[case]))
    missed = missed_bars(results)
    for line in missed:
        print(f"below the bar: {line}")
    if args.write:
        kept = recorded("serving") if (RESULTS / "serving.json").exists() else {}
        record("serving", {**kept, **results})
        for case, figures in results.items():
            write(f"serving-{case}", TABLES[case](figures))
    return 1 if missed else 0


def missed_bars(results: Mapping[str, Figures]) -> list[str]:
    """One line for each bar that was missed, among the cases that ran."""
    missed = []
    if (figures := results.get("engine")) is not None:
        at_8 = figures["clients"]["8"]
        ours = at_8["batching"]["ours_cpu"][0]
        # Where ours is too slow, README has to recommend vllm: then its tokens a second are what people get.
        vllm = at_8["vllm"]["tokens_per_s"] / at_8["batching"]["tokens_per_s"] if "vllm" in at_8 else 0.0
        if max(ours, vllm) < FASTER_AT_8:
            both = f"ours {ours:.2f}x, vllm {vllm:.2f}x"
            missed.append(f"engine: {both} transformers' continuous batching at 8 clients, bar {FASTER_AT_8}x")
    if (figures := results.get("gateway")) is not None:
        ways = figures["ways"]
        for way in ("haproxy", "gateway"):  # Serve's way in, and ours before it
            at_16 = ways[way]["16"]
            if at_16["requests_per_s"][0] < REQUESTS_PER_S:
                rate = f"{at_16['requests_per_s'][0]:,.0f} req/s"
                missed.append(f"gateway: {WAYS[way]}: {rate}, bar {REQUESTS_PER_S:,.0f}")
            if at_16["p95_ms"] >= P95_MS:
                missed.append(f"gateway: {WAYS[way]}: p95 {at_16['p95_ms']:.1f} ms, bar {P95_MS:.0f} ms")
        for way, below in (("haproxy", "plain"), ("gateway", "haproxy")):
            more = ways[way]["1"]["p50_ms"] - ways[below]["1"]["p50_ms"]
            if more > MORE_MS:
                missed.append(f"gateway: {WAYS[way]} adds {more:.2f} ms to the p50, bar {MORE_MS} ms")
    for name, figures in results.get("adapters", {}).get("engines", {}).items():
        if figures["ratio"][0] < ADAPTERS_FASTER:
            missed.append(f"adapters: {figures['ratio'][0]:.2f}x eight starts of {name}, bar {ADAPTERS_FASTER}x")
    return missed


def engine_table(figures: Figures) -> str:
    """A row for each number of clients and engine."""
    rows = []
    for clients, of_arms in sorted(figures["clients"].items(), key=lambda item: int(item[0])):
        for name in [name for name in ARMS if name in of_arms]:
            row = of_arms[name]
            rows.append(
                [
                    f"{clients}",
                    ARMS[name],
                    f"{row['tokens_per_s']:.0f}",
                    f"{row['tokens_per_cpu_s']:.0f}",
                    "" if name == "ours" else _spread(row["ours_cpu"]),
                    _pair(row["first_ms"]),
                    _pair(row["gap_ms"]),
                    f"{row['rss_mb']:.0f}",
                ]
            )
    header = ["clients", "engine", "tok/s", "tok/CPU-s", "ours is", "first token, ms", "between tokens, ms", "RSS, MB"]
    return markdown(header, rows)


def gateway_table(figures: Figures) -> str:
    """A row for each way, a column for each number of connections."""
    rows = []
    for way, title in WAYS.items():
        cells = []
        for connections in CONNECTIONS:
            row = figures["ways"][way][str(connections)]
            median, least, most = row["requests_per_s"]
            times = f"p50 {row['p50_ms']:.2f}, p95 {row['p95_ms']:.1f} ms"
            failed = f", {row['failed']} failed" if row["failed"] else ""
            cells.append(f"{median:,.0f} [{least:,.0f}, {most:,.0f}] req/s, {times}{failed}")
        rows.append([title, *cells])
    return markdown(["way to an answer that costs nothing", *(f"{c} at a time" for c in CONNECTIONS)], rows)


def adapters_table(figures: Figures) -> str:
    """A row for each way, and how much longer the others take than one engine."""

    def row(title: str, way: Figures) -> list[str]:
        seconds = f"{_median(way['wall_s']):.0f} s, {_median(way['answering_s']):.0f} of them answering"
        return [
            title,
            seconds,
            *([_spread(way["ratio"]), f"{way['same_answers']:.1%}"] if "ratio" in way else ["", ""]),
        ]

    number = figures["adapters"]
    what = f"{figures['prompts']} prompts for each of {number} adapters, {figures['answer_tokens']} tokens"
    rows = [row(f"one engine `transformers` with {number} adapters", figures["one_engine"])]
    ways = figures["engines"]
    rows += [row(f"{number} starts of {title}, in turn", ways[name]) for name, title in STARTED.items() if name in ways]
    return markdown([what, "takes", "which is", "the same answers"], rows)


TABLES: Mapping[str, Callable[[Figures], str]] = {
    "engine": engine_table,
    "gateway": gateway_table,
    "adapters": adapters_table,
}
"""Case -> its table, between markers of README named serving-CASE."""


def _spread(ratio: list[float]) -> str:
    return f"{ratio[0]:.2f}x [{ratio[1]:.2f}, {ratio[2]:.2f}]"


def _pair(p50_p95: list[float]) -> str:
    return f"{p50_p95[0]:.0f} / {p50_p95[1]:.0f}"


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    sys.exit(main())
