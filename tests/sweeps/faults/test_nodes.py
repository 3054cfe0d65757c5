"""More than one node, one of them killed midway; and the death of the head."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from sweeps.driver import run_attempt
from sweeps.run_dir import RunDir, read_journal, read_result
from tests.sweeps.drivers import Driver, leftovers, name_of, wait_for, wait_until
from tests.sweeps.faults.invariants import ENDS, check

pytestmark = pytest.mark.ray


def test_a_node_is_killed_midway_and_the_sweep_finishes_on_the_other(run: RunDir, undisturbed: Path) -> None:
    with _ThreeNodes() as cluster:
        address = ["--ray-address", cluster.address]
        with Driver(run.spec_path, run, *address, environment=cluster.environment, suspending=2) as driver:
            # One of them may be up long before the other. No trial gets beyond its start before it is woken.
            wait_until(lambda: driver.poll() is not None or len(_starts(run)) >= 2)
            one, other = _starts(run)[:2]
            assert {one["node"], other["node"]} == set(cluster.nodes), "trials did not run on both nodes"
            cluster.kill(other["node"])
            os.kill(one["pid"], signal.SIGCONT)
            assert driver.wait(timeout=300) == 0
    check(run.root, like=undisturbed)
    result = read_result(run.attempt(1))
    assert result is not None
    assert result["trials"]["FAILED"] == 0
    again = [start["node"] for start in _starts(run, other["trial_id"])]
    assert again == [other["node"], one["node"]], "a dead node's trial goes on on the other"
    ends = [record["data"] for record in read_journal(run.attempt(1)) if record["type"] in ENDS]
    assert {data["node"] for data in ends} == {one["node"]}


def test_the_head_dies_and_a_new_attempt_goes_on_with_a_fresh_ray(run: RunDir, undisturbed: Path) -> None:
    # Ray waits a minute for a head that may come back; the test need not.
    soon = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
    orphan = Driver(run.spec_path, run, environment=soon, until=("trial.completed", 1))
    with orphan as driver:
        wait_for(run, "trial.completed", 1)
        family = psutil.Process(driver.pid).children(recursive=True)
        (head,) = [process for process in family if name_of(process) == "gcs_server"]
        head.send_signal(signal.SIGKILL)
        orphan.let_go()
        assert driver.wait(timeout=300) != 0, "a driver without a head must not stay"
        assert leftovers(family) == []
    assert read_result(run.attempt(1)) is None
    result = run_attempt(run)
    assert result["attempt"] == 2
    check(run.root, like=undisturbed)


def _starts(run: RunDir, trial_id: str | None = None) -> list[dict[str, Any]]:
    """Of all trials, or of one, in their order."""
    starts = [record["data"] for record in read_journal(run.attempt(1)) if record["type"] == "trial.started"]
    return [start for start in starts if trial_id in (None, start["trial_id"])]


class _ThreeNodes:
    """The program `three_nodes` in a process of its own, with its own token, home and temporary directory."""

    def __enter__(self) -> "_ThreeNodes":
        self._temporary = Path(tempfile.mkdtemp(prefix="tn", dir="/tmp"))  # short: a socket's path has 107 characters
        token = self._temporary / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        (self._temporary / "ray").mkdir()  # where the cluster's address is noted
        self.environment: Mapping[str, str] = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "HOME": str(self._temporary),
            "TMPDIR": str(self._temporary),
            "RAY_API_SERVER_ADDRESS": "",
        }
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        self._log = (self._temporary / "log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.sweeps.faults.three_nodes"],
            env={**environment, **self.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        told = self._answer("address")
        self.address, self.nodes = str(told["address"]), list(told["nodes"])
        return self

    def kill(self, node: str) -> None:
        """SIGKILL, to all its processes."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{node}\n")
        self._process.stdin.flush()
        assert self._answer("gone")["gone"] == node

    def __exit__(self, *exception: object) -> None:
        family = psutil.Process(self._process.pid).children(recursive=True)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=60)
        self._process.stdout.close()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.kill()
        self._process.wait()
        self._log.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _answer(self, key: str) -> dict[str, Any]:
        """The next line of JSON with this key; Ray writes lines of its own between."""
        for line in self._lines():
            with contextlib.suppress(ValueError):
                told: dict[str, Any] = json.loads(line)
                if key in told:
                    return told
        raise AssertionError((self._temporary / "log").read_text()[-2000:])

    def _lines(self) -> Iterator[str]:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            yield line
