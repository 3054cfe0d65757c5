"""A Ray to run on: the cluster whose address was given, or one of our own that ends with us."""

import contextlib
import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ray

from simpo.errors import SimPOError

OBJECT_STORE_BYTES = 100 * 1024 * 1024
"""Trials share files, not objects: Ray's default of 30 % of the memory would be waste."""


class RayUnavailable(SimPOError):
    """Ray cannot be started or reached, or is too small for one trial."""


@contextlib.contextmanager
def ray_session(address: str | None, *, num_cpus: int, multi_worker: bool) -> Iterator[None]:
    """Connect for the length of the context. Raises RayUnavailable.

    With an address: connect, and leave the cluster as it was. Without: start a private Ray with its own temporary
    directory and access token, and stop it at the end. A Ray that is there already in this process is used as it is.
    """
    quiet_tune()
    if ray.is_initialized():
        yield
        return
    temporary = None
    try:
        if address is not None:
            _start(address=address, log_to_driver=False)
        else:
            # A socket's path has at most 107 characters, and Ray adds 60 of its own to this one.
            short = len(tempfile.gettempdir()) <= 30
            temporary = Path(tempfile.mkdtemp(prefix="sw", dir=None if short else "/tmp"))
            start_private(temporary, num_cpus=num_cpus, dashboard=multi_worker)
        yield
    finally:
        ray.shutdown()
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def start_private(temporary: Path, *, num_cpus: int, dashboard: bool) -> None:
    """Start a Ray that only this process tree can talk to. Raises RayUnavailable.

    dashboard: multi-worker trials need its State API, or a killed trial keeps its placement group for ever.
    """
    token = temporary / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    # RAY_AUTH_MODE is not touched: ray's C++ read it at import, and a new local cluster asks for a token anyway.
    os.environ |= {"RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
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


def trials_that_fit(wanted: int, cpus_each: int) -> int:
    """How many trials run at once here. Raises RayUnavailable when not one fits: it would wait for ever."""
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if cpus < cpus_each:
        raise RayUnavailable(
            f"a trial needs {cpus_each} CPUs, the Ray cluster has {cpus}: lower parallel.workers_per_trial or add nodes"
        )
    return max(1, min(wanted, cpus // cpus_each))


def _start(**arguments: object) -> None:
    try:
        ray.init(configure_logging=False, **arguments)
    except Exception as error:  # from a busy port to a wrong token: each means that there is no Ray
        reason = str(error).strip().splitlines()
        raise RayUnavailable(
            f"Ray cannot be {'started' if arguments['address'] == 'local' else 'reached'} "
            f"({reason[0] if reason else type(error).__name__}): check memory, /tmp and the address"
        ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
