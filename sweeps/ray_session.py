"""A Ray to run on: the cluster whose address was given, or one of our own that ends with us."""

import contextlib
import logging
import os
import secrets
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ray

from simpo.errors import SimPOError
from sweeps.effort_spec import Parallel

OBJECT_STORE_BYTES = 100 * 1024 * 1024
"""Trials share files, not objects: Ray's default of 30 % of the memory would be waste."""
_starting = threading.Lock()


class RayUnavailable(SimPOError):
    """Ray cannot be started or reached, or is too small for one trial."""


class RayUnreachable(RayUnavailable):
    """Of these, Ray does not start or answer: a head that is busy or has just died, memory that is taken for now."""

    passes = True


@contextlib.contextmanager
def ray_session(address: str | None, parallel: Parallel) -> Iterator[None]:
    """Connect for the length of the context. Raises RayUnavailable.

    With an address: connect, and leave the cluster as it was. Without: start a private Ray for so much at once, with
    its own temporary directory and access token, and stop it at the end. A Ray that is there already in this process
    is used as it is.
    """
    quiet_tune()
    with contextlib.ExitStack() as stack:
        with _starting:
            if not ray.is_initialized():
                _connect(address, parallel, stack)
        yield


@contextlib.contextmanager
def ray_ahead(address: str | None, parallel: Parallel) -> Iterator[None]:
    """Start the own Ray of a `ray_session` within this context while whoever will open it imports torch.

    What goes wrong is the session's to say. With an address there is nothing to start, and nothing is done.
    """
    if address is not None:
        yield
        return
    over = threading.Event()

    def hold() -> None:
        # Until the end: Ray's processes die with the thread that started them.
        with contextlib.suppress(RayUnavailable), ray_session(None, parallel):
            over.wait()

    thread = threading.Thread(target=hold, name="ray-ahead")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _connect(address: str | None, parallel: Parallel, stack: contextlib.ExitStack) -> None:
    """What is to be undone goes onto the stack, whatever goes wrong here."""
    if address is not None:
        stack.callback(ray.shutdown)
        _start(address=address, log_to_driver=False)
        return
    # A socket's path has at most 107 characters, and Ray adds 60 of its own to this one.
    place = None if len(tempfile.gettempdir()) <= 30 else "/tmp"
    home = stack.enter_context(tempfile.TemporaryDirectory(prefix="sw", dir=place, ignore_cleanup_errors=True))
    stack.callback(ray.shutdown)
    # Groups of workers come on top of their Tune functions, which wait in a sliver of a core.
    several = parallel.workers_per_trial > 1
    start_private(Path(home), num_cpus=parallel.trials * parallel.workers_per_trial + several, dashboard=several)


def start_private(temporary: Path, *, num_cpus: int, dashboard: bool) -> None:
    """Start a Ray that only this process tree can talk to. Raises RayUnavailable.

    dashboard: multi-worker trials need its State API, or a killed trial keeps its placement group for ever.
    """
    token = temporary / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    # RAY_AUTH_MODE is not touched: ray's C++ read it at import, and a new local cluster asks for a token anyway.
    os.environ |= {
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin for each other stop one another where a core is not free
    }
    more: dict[str, object] = {"include_dashboard": False}
    if dashboard:
        port = _free_port()
        # The cleaner of placement groups must find this dashboard, also beside another Ray on the host.
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
        more = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
    _start(
        address="local",
        num_cpus=num_cpus,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        _temp_dir=str(temporary),
        **more,
    )


def quiet_tune() -> None:
    """Settings of Tune and Train that have no other door; they are read when a run starts."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ |= {
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_AIR_NEW_OUTPUT": "0",  # the newer table is printed even when verbose is 0
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would end the search as if it were complete
        "TUNE_GLOBAL_CHECKPOINT_S": "600",  # nobody reads Tune's snapshot: the journal is the memory
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # each report of a worker group waits for this poll
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }


@dataclass(frozen=True, kw_only=True)
class Room:
    """What the Ray at hand has for the trials of a search."""

    trials: int
    """That run at once."""
    workers: int
    """Of each."""
    gpus: float
    """Of each worker."""
    lends: bool
    """Whether a trial may compute on the cores of slots that have none: they are CPUs of one machine."""


def room_for(parallel: Parallel) -> Room:
    """What this Ray gives of what is wanted. Raises RayUnavailable when not one trial fits: it would wait for ever."""
    import torch  # noqa: PLC0415  # lazy: seconds in which Ray can start

    held = ray.cluster_resources()
    cuda = bool(torch.version.cuda or torch.version.hip)
    machines = sum(node["Alive"] for node in ray.nodes())
    return room_in(parallel, cpus=int(held.get("CPU", 0)), gpus=held.get("GPU", 0.0), cuda=cuda, machines=machines)


def room_in(parallel: Parallel, *, cpus: int, gpus: float, cuda: bool, machines: int) -> Room:
    """The same for a cluster of that size. cuda: whether torch is built for GPUs. Raises RayUnavailable."""
    workers, share = parallel.workers_per_trial, parallel.gpus_per_worker
    if share is None:
        share = 1.0 if gpus and cuda else 0.0
    fewer = "lower parallel.workers_per_trial or add nodes"
    if cpus < workers:
        raise RayUnavailable(f"a trial needs {workers} CPUs, the Ray cluster has {cpus}: {fewer}")
    if gpus < workers * share:
        wanted = f"a trial needs {workers * share:g} GPUs, the Ray cluster has {gpus:g}"
        raise RayUnavailable(f"{wanted}: lower parallel.gpus_per_worker, {fewer}")
    if share and not cuda:
        raise RayUnavailable(
            "parallel.gpus_per_worker asks for GPUs, torch here is built for CPUs: install its CUDA build or ask for 0"
        )
    fit = cpus // workers
    if share:
        fit = min(fit, int(gpus + 1e-9) // int(workers * share) if share >= 1 else int(gpus) * int(1 / share + 1e-9))
    lends = machines == 1 and workers == 1 and not share
    return Room(trials=max(1, min(parallel.trials, fit)), workers=workers, gpus=share, lends=lends)


def _start(**arguments: object) -> None:
    try:
        ray.init(configure_logging=False, **arguments)
    except Exception as error:  # from a busy port to a wrong token: each means that there is no Ray
        reason = str(error).strip().splitlines()
        raise RayUnreachable(
            f"Ray cannot be {'started' if arguments['address'] == 'local' else 'reached'} "
            f"({reason[0] if reason else type(error).__name__}): check memory, /tmp and the address"
        ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
