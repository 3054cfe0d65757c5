"""The embedded stack for real: up, up again, its API killed and mended, down; nothing left, no secret readable."""

import json
import os
import signal
import stat
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from service import local
from service.local import LocalStack, StackStatus
from service.local_process import members
from service.local_state import StackState
from simpo.errors import ConfigError

pytestmark = pytest.mark.e2e

PATIENCE_S = 300.0


def test_a_stack_lives_and_ends_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_API_GRACE_S", 120)  # one that is slow to leave is not killed over its database
    home = tmp_path / "home"
    stack = LocalStack(home)
    heard: list[str] = []
    try:
        started = stack.up(port=0, progress=lambda stage, sentence: heard.append(stage), timeout_s=PATIENCE_S)
        first = state_of(home)
        assert heard == ["ray", "api", "ready"]
        assert started.key_is_new
        assert_secrets_are_kept(home, first)
        assert call(started.url, started.key) == 200
        assert call(started.url, "sk-simpo-guessed") == 401
        assert list((first.temp_dir / "t").iterdir()), "temporary files of Ray lie where `down` removes them"

        status = running(stack)
        assert (status.state, status.url, status.ray, status.api) == ("running", started.url, True, True)
        assert 0 < status.memory_bytes < 3 * 2**30
        again = stack.up(timeout_s=PATIENCE_S)
        assert (again.url, again.key, again.key_is_new) == (started.url, started.key, False)
        assert state_of(home) == first, "what runs is left alone"
        with pytest.raises(ConfigError, match=r"^port: the stack runs already at"):
            stack.up(port=1)

        assert first.api is not None
        os.kill(first.api.pid, signal.SIGKILL)
        wait_until_gone(first.api.pid)
        assert LocalStack(home).status().state == "partial"
        mended = LocalStack(home).up(timeout_s=PATIENCE_S)  # as a new `simpo up` would
        assert (mended.url, mended.key) == (started.url, started.key)
        second = state_of(home)
        assert (second.ray, second.id) == (first.ray, first.id)
        assert second.api is not None and second.api != first.api
        assert call(started.url, started.key) == 200
        assert metrics_targets(home), "Prometheus finds Ray's nodes"
    finally:
        stopped = stack.down()
    assert stopped
    assert members(first.id) == []
    assert not first.temp_dir.exists()
    assert sorted(path.name for path in home.iterdir()) == ["key", "lock", "logs", "simpo.db"]
    assert stack.status().state == "stopped"
    assert stack.down() is False


def assert_secrets_are_kept(home: Path, state: StackState) -> None:
    for name in ("key", "ray-token", "stack.json"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600, name
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE(state.temp_dir.stat().st_mode) == 0o700
    secrets = [(home / "key").read_text().strip(), (home / "ray-token").read_text().strip()]
    # Command lines are readable by everybody on the machine, logs are passed around.
    public = []
    for process in members(state.id):
        with suppress(psutil.NoSuchProcess):  # it may end between the two looks
            public.append(" ".join(process.cmdline()))
    assert public
    public += [log.read_text() for log in (home / "logs").iterdir()]
    assert not [text for text in public for secret in secrets if secret in text]
    assert secrets[0].encode() not in (home / "simpo.db").read_bytes()


def state_of(home: Path) -> StackState:
    state = StackState.read(home / "stack.json")
    assert state is not None
    return state


def call(url: str, key: str) -> int:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.get(f"{url}/v1/sweeps", headers=headers, trust_env=False, timeout=PATIENCE_S).status_code


def running(stack: LocalStack) -> StackStatus:
    """What is there once both answer a look of three seconds."""
    deadline = time.monotonic() + PATIENCE_S
    while (status := stack.status()).state != "running":
        assert time.monotonic() < deadline, status
        time.sleep(0.1)
    return status


def metrics_targets(home: Path) -> list[str]:
    """Addresses in Ray's file for Prometheus, which it writes when it gets to it."""
    deadline = time.monotonic() + PATIENCE_S
    while not (file := home / "prometheus-targets.json").exists():
        assert file.is_symlink() and time.monotonic() < deadline
        time.sleep(0.1)
    return [target for each in json.loads(file.read_text()) for target in each["targets"]]


def wait_until_gone(pid: int) -> None:
    """Our own child: it stays a zombie until somebody asks."""
    deadline = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.02)
