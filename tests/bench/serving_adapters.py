"""The case `adapters`: 805 prompts for each of 8 adapters, by our engine with all of them or by 8 engines in turn.

    python -m tests.bench.serving_adapters BASE ADAPTER ...    one engine: the base, and the adapters beside it
    python -m tests.bench.serving_adapters CHECKPOINT          one of the others: its merged weights

Each engine is a process: its start, its imports and its loading count. The 8 are of either engine of the service, those
of vllm where `make test-vllm` has made its environment, or transformers' continuous batching as it comes. One vllm for
all adapters is no arm, but `--engine vllm` after the first form shows it: on CPUs its adapters are 50 times as slow as
merged weights.
"""

import argparse
import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.bench.serving_face import Arm, Ours
from tests.bench.serving_model import TINY, Asked, questions, saved_adapters, saved_model
from tests.house import REPO
from tests.serving import vllm_venv

Figures = dict[str, Any]

PROMPTS, ADAPTERS = 805, 8
ANSWER = 8
_AT_ONCE = 128  # so many wait or are answered: the batch of 64 is always full


def adapters(home: Path, *, repeats: int, prompts: int = PROMPTS) -> Figures:
    """Wall seconds of every way, `repeats` times in turn, from the first start to the last answer."""
    base = saved_model(home / "base", TINY)
    each = saved_adapters(home, base, ADAPTERS)
    shared, single = list[Figures](), dict[str, list[list[Figures]]]()
    for _ in range(repeats):
        how = ["--prompts", str(prompts)]
        shared.append(_timed([str(base), *map(str, each), *how], home))
        for name in [name for name in STARTED if name != "vllm" or vllm_venv.is_made()]:
            those = [_timed([str(one), "--engine", name, *how], home) for one in each]
            single.setdefault(name, []).append(those)
    return {
        "prompts": prompts,
        "adapters": ADAPTERS,
        "answer_tokens": ANSWER,
        "one_engine": {
            "wall_s": [round(one["wall_s"], 1) for one in shared],
            "answering_s": [round(one["answering_s"], 1) for one in shared],
        },
        "engines": {name: _summary(shared, found) for name, found in single.items()},
    }


def _summary(shared: Sequence[Figures], single: Sequence[Sequence[Figures]]) -> Figures:
    ratios = sorted(
        sum(one["wall_s"] for one in many) / one_engine["wall_s"]
        for one_engine, many in zip(shared, single, strict=True)
    )
    return {
        "wall_s": [round(sum(one["wall_s"] for one in many), 1) for many in single],
        "answering_s": [round(sum(one["answering_s"] for one in many), 1) for many in single],
        "ratio": [ratios[len(ratios) // 2], ratios[0], ratios[-1]],
        "same_answers": _same(shared[0]["said"], [one["said"][0] for one in single[0]]),
    }


def _timed(arguments: list[str], home: Path) -> Figures:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KMP_BLOCKTIME": "0"}
    command = [sys.executable, "-m", "tests.bench.serving_adapters", *arguments]
    began = time.monotonic()
    with (home / "adapters.log").open("ab") as errors:
        done = subprocess.run(command, cwd=REPO, env=environment, stdout=subprocess.PIPE, stderr=errors, check=False)
    wall_s = time.monotonic() - began
    if done.returncode:
        raise SystemExit(f"an engine failed:\n{(home / 'adapters.log').read_text()[-3000:]}")
    return {**json.loads(done.stdout), "wall_s": wall_s}


def _same(shared: Sequence[Sequence[str]], single: Sequence[Sequence[str]]) -> float:
    """Share of answers that are the same both ways; rounding differs between merged weights and an adapter."""
    alike = [a == b for many, one in zip(shared, single, strict=True) for a, b in zip(many, one, strict=True)]
    return sum(alike) / len(alike)


def main() -> None:
    """Answer all prompts by the models named, and say what was said."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.serving_adapters", description=__doc__)
    parser.add_argument("directories", type=Path, nargs="+")
    parser.add_argument("--engine", choices=ENGINES, default="transformers")
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    args = parser.parse_args()
    first, *others = args.directories
    if others and args.engine == "stock":
        parser.error("transformers' continuous batching knows no adapters")
    torch.set_num_threads(1)
    arms = ENGINES[args.engine](first, others)
    asked = questions(TINY, args.prompts, longest_answer=ANSWER)
    began = time.monotonic()
    said = asyncio.run(_answers(arms, asked))
    print(json.dumps({"answering_s": time.monotonic() - began, "said": said}))
    arms[0].close()


def _transformers(directory: Path, adapters: Sequence[Path]) -> list[Arm]:
    from service.serving.engines.transformers import TransformersEngine  # noqa: PLC0415  # lazy: one engine a process
    from simpo.memory import keep_freed_pages  # noqa: PLC0415  # lazy: as above

    engine = TransformersEngine.load(directory, adapters=len(adapters) > 0)
    keep_freed_pages()
    return _ours(engine, adapters)


def _vllm(directory: Path, adapters: Sequence[Path]) -> list[Arm]:
    from service.serving.engines.vllm import VllmEngine  # noqa: PLC0415  # lazy: as above

    return _ours(VllmEngine.load(directory, python=str(vllm_venv.interpreter()), max_adapters=len(adapters)), adapters)


def _ours(engine: Any, adapters: Sequence[Path]) -> list[Arm]:
    """The engine itself where there are no adapters."""
    return [Ours(engine.adapted(each)) for each in adapters] or [Ours(engine)]


def _stock(directory: Path, adapters: Sequence[Path]) -> list[Arm]:
    from tests.bench.serving_arm import StockBatching  # noqa: PLC0415  # lazy: as above

    return [StockBatching(directory, "float32")]


ENGINES: Mapping[str, Callable[[Path, Sequence[Path]], list[Arm]]] = {
    "transformers": _transformers,
    "vllm": _vllm,
    "stock": _stock,
}
"""Name of an engine -> how it is loaded: a checkpoint alone, or a base and the adapters beside it, an arm for each."""

STARTED: Mapping[str, str] = {
    "stock": "transformers' continuous batching as it comes",
    "vllm": "engine `vllm`",
    "transformers": "engine `transformers`",
}
"""What the table calls those that are started for each adapter, in its order."""


async def _answers(arms: Sequence[Arm], asked: Sequence[Asked]) -> list[list[str]]:
    """[arm][prompt]: what was said, as a digest."""
    said = [[""] * len(asked) for _ in arms]
    todo = iter([(which, number) for which in range(len(arms)) for number in range(len(asked))])

    async def client() -> None:
        for which, number in todo:
            parts = [text async for _, text in arms[which].answer(asked[number].prompt_ids, asked[number].num_tokens)]
            said[which][number] = hashlib.sha256("".join(parts).encode()).hexdigest()[:12]

    await asyncio.gather(*(client() for _ in range(_AT_ONCE)))
    return said


if __name__ == "__main__":
    main()
