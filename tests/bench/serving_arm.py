"""One engine in a process of its own: it loads a model, then answers a round of questions for each line on stdin.

    python -m tests.bench.serving_arm ours DIR --dtype float32

A line is JSON {"asked": [[prompt ids, tokens], ...], "clients": 8}; the answer's line has the round's figures. All
arms are asked in the same way, without HTTP in between, and greedily: in float32 they must say the same.
"""

import argparse
import asyncio
import hashlib
import json
import queue
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from service.serving.engines.transformers import TransformersEngine
from tests.bench.load_wire import quantile
from tests.bench.serving_face import Arm, Ours, Part


class StockBatching:
    """transformers' continuous batching out of the box, with a cache of sane size: its own guess takes 60 % of RAM."""

    def __init__(self, directory: Path, dtype: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        self._model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
        self._manager = self._model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=ContinuousBatchingConfig(num_blocks=256, max_batch_tokens=256),
        )
        self._manager.start()

    async def answer(self, prompt_ids: Sequence[int], num_tokens: int) -> AsyncIterator[Part]:
        arrived = asyncio.Queue[Any]()
        name = f"q{id(arrived)}-{time.monotonic_ns()}"
        self._manager.register_result_handler(name, arrived.put_nowait)
        self._manager.add_request(list(prompt_ids), request_id=name, max_new_tokens=num_tokens, streaming=True)
        seen = 0
        while True:
            result = await arrived.get()
            if result.error:
                raise RuntimeError(result.error)
            new, seen = len(result.generated_tokens) - seen, len(result.generated_tokens)
            if result.is_finished():
                yield new, self._tokenizer.decode(result.generated_tokens)
                return
            yield new, ""

    def close(self) -> None:
        self._manager.stop(block=True)


class OneAtATime:
    """`generate`, one request after the other: what `transformers serve` does without --continuous-batching."""

    def __init__(self, directory: Path, dtype: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        self._model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
        self._model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
        self._thread = ThreadPoolExecutor(1)

    async def answer(self, prompt_ids: Sequence[int], num_tokens: int) -> AsyncIterator[Part]:
        loop, arrived = asyncio.get_running_loop(), asyncio.Queue[Any]()
        streamer = _Streamer(lambda token: loop.call_soon_threadsafe(arrived.put_nowait, token))
        ids = torch.tensor([list(prompt_ids)])
        done = loop.run_in_executor(self._thread, self._generate, ids, num_tokens, streamer)
        for _ in range(num_tokens):
            await arrived.get()
            yield 1, ""
        yield 0, self._tokenizer.decode((await done)[0, ids.shape[1] :].tolist())

    def close(self) -> None:
        self._thread.shutdown()

    def _generate(self, ids: torch.Tensor, num_tokens: int, streamer: BaseStreamer) -> torch.Tensor:
        made: torch.Tensor = self._model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, streamer=streamer
        )
        return made


class _Streamer(BaseStreamer):
    """Tells of each token; the first thing it is given is the prompt."""

    def __init__(self, tell: Callable[[int], object]) -> None:
        self._tell = tell
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen:
            self._tell(int(value))
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing to flush."""


def ours(directory: Path, dtype: str) -> Arm:
    """Our engine, loaded as a replica loads it."""
    from simpo.memory import keep_freed_pages  # noqa: PLC0415  # lazy: changes the allocator of this arm alone

    engine = TransformersEngine.load(directory, dtype=dtype)
    keep_freed_pages()
    return Ours(engine)


def vllm(directory: Path, dtype: str) -> Arm:
    """The same face before vLLM, in the environment that `make test-vllm` makes."""
    from service.serving.engines.vllm import VllmEngine  # noqa: PLC0415  # lazy: as the others do without it
    from tests.serving import vllm_venv  # noqa: PLC0415  # lazy: likewise

    return Ours(VllmEngine.load(directory, python=str(vllm_venv.interpreter()), dtype=dtype))


ARMS: Mapping[str, Callable[[Path, str], Arm]] = {
    "ours": ours,
    "batching": lambda directory, dtype: StockBatching(directory, dtype),
    "one": lambda directory, dtype: OneAtATime(directory, dtype),
    "vllm": vllm,
}
"""By the name at the command line."""


async def round_of(arm: Arm, asked: Sequence[tuple[list[int], int]], clients: int) -> dict[str, Any]:
    """Ask all, `clients` at a time, each anew as soon as it was answered; figures of the round."""
    firsts, gaps, texts = list[float](), list[float](), [""] * len(asked)
    todo, tokens = iter(enumerate(asked)), 0

    async def client() -> None:
        nonlocal tokens
        for number, (prompt_ids, num_tokens) in todo:
            before, first = time.monotonic(), True
            async for new, text in arm.answer(prompt_ids, num_tokens):
                texts[number] += text
                if not new:
                    continue
                now = time.monotonic()
                (firsts if first else gaps).append(now - before)
                before, first = now, False
                tokens += new

    cpu, began = _cpu_s(), time.monotonic()
    await asyncio.gather(*(client() for _ in range(clients)))
    wall_s = time.monotonic() - began
    return {
        "wall_s": wall_s,
        "cpu_s": _cpu_s() - cpu,
        "tokens": tokens,
        "first_ms": [1000 * quantile(firsts, share) for share in (0.5, 0.95)],
        "gap_ms": [1000 * quantile(gaps, share) for share in (0.5, 0.95)],
        "rss_mb": sum(process.memory_info().rss for process in _family()) / 2**20,
        "said": [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts],
    }


async def _rounds(arm: Arm) -> None:
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=[lines], daemon=True).start()
    while line := await asyncio.to_thread(lines.get):
        job = json.loads(line)
        print(json.dumps(await round_of(arm, job["asked"], job["clients"])), flush=True)


def _read(lines: "queue.SimpleQueue[str]") -> None:
    for line in sys.stdin:
        lines.put(line)
    lines.put("")


def _family() -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def _cpu_s() -> float:
    return sum(sum(process.cpu_times()[:2]) for process in _family())


def main() -> None:
    """Load, say so, answer until stdin ends."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.serving_arm", description=__doc__)
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    arm = ARMS[args.arm](args.directory, args.dtype)
    print(json.dumps({"load_s": time.monotonic() - began}), flush=True)
    try:
        asyncio.run(_rounds(arm))
    finally:
        arm.close()


if __name__ == "__main__":
    main()
