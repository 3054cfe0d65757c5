"""Process groups for tests: the same function in several processes, over gloo and a file."""

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATIENCE_S = 300.0
"""For a group to end; a machine under load imports torch slowly."""


def in_group(function: Callable[..., Any], *args: Any, workers: int = 2) -> list[Any]:
    """`function(*args)` in each of `workers` processes that form a group; what they return, by rank.

    The function stands at the top of a module. Raises AssertionError with the traceback of the first that failed.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        pipes = [context.Pipe(duplex=False) for _ in range(workers)]
        processes = [
            context.Process(target=_worker, args=(rank, workers, f"{directory}/store", pipe[1], function, args))
            for rank, pipe in enumerate(pipes)
        ]
        for process in processes:
            process.start()
        for _, theirs in pipes:
            theirs.close()  # so that a process that dies is the end of its pipe
        try:
            return [_received(ours) for ours, _ in pipes]
        finally:
            for process in processes:
                process.terminate()
                process.join()


def _received(pipe: Connection) -> Any:
    assert pipe.poll(PATIENCE_S), "a worker of the group hangs"
    try:
        failed, value = pipe.recv()
    except EOFError:
        raise AssertionError("a worker of the group died") from None
    assert not failed, value
    return value


def _worker(
    rank: int, workers: int, store: str, pipe: Connection, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=Path(store).as_uri(), rank=rank, world_size=workers)
        answer = (False, function(*args))
        dist.destroy_process_group()
    except BaseException:
        answer = (True, traceback.format_exc())
    pipe.send(answer)
