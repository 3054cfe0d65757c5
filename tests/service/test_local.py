"""The embedded stack, as far as it goes without Ray: processes end as a whole, refusals leave nothing."""

import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from service.local import LocalStack, LocalStackError
from service.local_process import MARK, Identity, end, free_ports, kill_all, members, port_is_free, reap, spawn
from service.local_ray import RayHead
from service.local_state import StackState, write_private
from simpo.errors import ConfigError

pytestmark = pytest.mark.quick


@pytest.fixture
def stack_id() -> Iterator[str]:
    """A mark of our own; whatever carries it is gone after the test."""
    mark = os.urandom(4).hex()
    yield mark
    assert kill_all(mark) == []
    reap()


def script(path: Path, text: str) -> str:
    """An executable that stands in for Python."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)


def wait_for(until: object, what: str) -> None:
    deadline = time.monotonic() + 60
    while not until():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_processes_are_found_by_their_mark_also_as_orphans(stack_id: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    # The shell starts a grandchild in a session of its own and ends: init adopts it.
    orphan = ["sh", "-c", "setsid sleep 60 & echo started"]
    pid = spawn(orphan, stack_id=stack_id, environment={}, directory=tmp_path, log=log)

    def only_the_orphan() -> bool:
        with suppress(psutil.NoSuchProcess):  # the shell may end between the two looks
            return [process.cmdline() for process in members(stack_id)] == [["sleep", "60"]]
        return False

    wait_for(only_the_orphan, "only the orphan is left")
    (found,) = members(stack_id)
    assert found.ppid() != pid
    assert members(stack_id, "sleep 61") == []
    assert kill_all(stack_id) == []
    assert members(stack_id) == []
    assert log.read_text() == "started\n"


def test_a_child_gets_our_environment_without_what_is_anothers(
    stack_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "somebody:6379")
    monkeypatch.setenv("SIMPO_STORE", "/elsewhere")
    monkeypatch.setenv("KEPT", "yes")
    command = ["sh", "-c", 'echo "$RAY_ADDRESS|$SIMPO_STORE|$KEPT|$FILLED|$SIMPO_STACK|$MINE"']
    mine = {"MINE": "1"}
    fallbacks = {"KEPT": "no", "FILLED": "2"}
    log = tmp_path / "log"
    spawn(command, stack_id=stack_id, environment=mine, fallbacks=fallbacks, directory=tmp_path, log=log)
    wait_for(lambda: log.read_text().endswith("\n"), "the echo")
    assert log.read_text() == f"||yes|2|{stack_id}|1\n"
    assert MARK == "SIMPO_STACK"


def test_who_ignores_sigterm_is_killed_and_who_does_not_may_finish(stack_id: str, tmp_path: Path) -> None:
    polite = 'trap "echo done; exit" TERM; echo ready; while :; do sleep 0.02; done'
    stubborn = 'trap "" TERM; echo ready; while :; do sleep 0.02; done'
    for name, text in (("polite", polite), ("stubborn", stubborn)):
        spawn(["sh", "-c", text], stack_id=stack_id, environment={}, directory=tmp_path, log=tmp_path / name)
        wait_for(lambda name=name: (tmp_path / name).read_text() == "ready\n", name)
    end(members(stack_id, "echo done"), grace_s=120.0)  # which it does not take
    assert (tmp_path / "polite").read_text() == "ready\ndone\n"
    end(members(stack_id, "trap"), grace_s=0.4)
    assert members(stack_id, "trap") == []


def test_a_recycled_pid_is_another_process() -> None:
    me = Identity.of(os.getpid())
    assert me.alive
    assert Identity.parse(json.loads(json.dumps(me.as_dict()))) == me
    assert not Identity(pid=me.pid, started=me.started - 1).alive
    assert not Identity(pid=2**22 + 1, started=me.started).alive
    assert Identity.parse(None) is None


def test_ports() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5 and all(port_is_free("127.0.0.1", port) for port in ports)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not port_is_free("127.0.0.1", taken.getsockname()[1])


def test_private_files_are_their_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_written_down_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "stack.json"
    assert StackState.read(path) is None
    state = StackState(
        id="0a1b2c3d",
        url="http://127.0.0.1:1",
        ray_dashboard_url="http://127.0.0.1:2",
        serve_url="http://127.0.0.1:3",
        temp_dir=Path("/tmp/simpo-0a1b2c3d"),
    ).with_ray(os.getpid())
    assert StackState.read(path) != state.write(path) == StackState.read(path)
    assert state.ray_lives and not state.api_lives
    path.write_text("{half a fi")
    assert StackState.read(path) is None


def test_ray_gets_ports_of_its_own_and_a_path_short_enough_for_its_sockets() -> None:
    one, other = RayHead.plan("0a1b2c3d"), RayHead.plan("11111111")
    assert len(set(one.ports)) == len(one.ports)
    assert one.temp_dir != other.temp_dir
    assert len(str(one.temp_dir)) <= 35
    assert not one.temp_dir.exists(), "a plan makes nothing"


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    stack = LocalStack(tmp_path / "home", python="/nowhere/python")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"^port: 127.0.0.1:{port} is in use by another program; stop it or choose"
        ):
            stack.up(port=port)
    assert stack.status().state == "stopped"
    assert not (tmp_path / "home" / "stack.json").exists()


def test_ray_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    python = script(
        tmp_path / "python", 'case "$*" in *ray*) echo "OSError: no space left"; exit 1;; *) sleep 60;; esac'
    )
    stack = LocalStack(tmp_path / "home", python=python)
    heard = []
    with pytest.raises(LocalStackError, match=r"^Ray did not start: OSError: no space left \(all of it: .*ray\.log\)$"):
        stack.up(port=0, progress=lambda stage, sentence: heard.append(stage))
    assert heard == ["ray", "api"]
    assert_nothing_left(stack)


def test_an_api_that_cannot_start_says_why_and_takes_ray_down(tmp_path: Path) -> None:
    python = script(tmp_path / "python", 'case "$*" in *ray*) sleep 60;; *) echo "ConfigError: no"; exit 3;; esac')
    stack = LocalStack(tmp_path / "home", python=python)
    with pytest.raises(LocalStackError, match=r"^the API did not start: ConfigError: no"):
        stack.up(port=0)
    assert_nothing_left(stack)


def test_what_never_answers_is_given_up(tmp_path: Path) -> None:
    stack = LocalStack(tmp_path / "home", python=script(tmp_path / "python", "sleep 60"))
    with pytest.raises(LocalStackError, match=r"^Ray did not answer in time"):
        stack.up(port=0, timeout_s=0.3)
    assert_nothing_left(stack)


def test_what_a_killed_up_left_behind_is_cleared(tmp_path: Path, stack_id: str) -> None:
    """`up` writes the id down before it starts anything: `down` finds what nobody wrote down any more."""
    stack = LocalStack(tmp_path / "home")
    stack.home.mkdir()
    head = RayHead.plan(stack_id)
    StackState(
        id=stack_id,
        url="http://127.0.0.1:1",
        ray_dashboard_url=head.dashboard_url,
        serve_url=head.serve_url,
        temp_dir=head.temp_dir,
    ).write(stack.home / "stack.json")
    head.start("0" * 32, tmp_path / "ray.log", script(tmp_path / "python", "sleep 60"))
    assert stack.status().state == "partial"
    assert head.temp_dir.is_dir() and members(stack_id)
    assert stack.down() is True
    assert not head.temp_dir.exists() and members(stack_id) == []
    assert stack.down() is False
    assert_nothing_left(stack)


def test_two_at_work_in_one_home_is_one_too_many(tmp_path: Path) -> None:
    stack = LocalStack(tmp_path / "home")
    with stack._lock(), pytest.raises(LocalStackError, match="another `simpo up` or `simpo down` is at work"):
        LocalStack(tmp_path / "home").up(port=0)


def assert_nothing_left(stack: LocalStack) -> None:
    assert stack.status().state == "stopped"
    assert stack.status().processes == 0
    assert not (stack.home / "stack.json").exists()
    assert not (stack.home / "ray-token").exists()
    us = str(stack.home.parent)
    assert [p for p in psutil.process_iter(["cmdline"]) if us in " ".join(p.info["cmdline"] or [])] == []
