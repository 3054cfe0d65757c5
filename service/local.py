"""The embedded stack: a private Ray head and the API on this machine, started and ended as one.

<home>/stack.json   what runs: addresses, pids with start times
<home>/key          the API key, readable by its owner alone
<home>/ray-token    the token of the private Ray, likewise
<home>/simpo.db     the database;  <home>/store  run directories;  <home>/logs  output of Ray and of the API
"""

import fcntl
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import httpx

from service.auth import Authenticator, create_key, revoke_keys
from service.clock import SystemClock
from service.local_process import end, free_ports, kill_all, members, memory_bytes, port_is_free, spawn
from service.local_ray import RayHead, dashboard_answers, remove_temp_dir
from service.local_state import StackState, write_private
from service.settings import Settings
from service.store import Store
from simpo.errors import ConfigError, SimPOError

Progress = Callable[[str, str], None]
"""Called with (stage, sentence); the stages are ray, api, ready, down."""

KEY_NAME = "local"
_DRIVER = "-m sweeps run"
_DRIVER_GRACE_S = 5.0  # between SIGTERM and SIGKILL: drivers write their last records
_API_GRACE_S = 3
_API_FACTORY = "service.app:factory"
_POLL_S = 0.1


class LocalStackError(SimPOError):
    """The stack cannot start or stop on this machine; one sentence with the remedy."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A running stack."""

    url: str
    """Origin of the API."""
    key: str
    """API key."""
    key_is_new: bool
    """Whether this start made the key."""
    ray_dashboard_url: str
    """Origin of Ray's dashboard; it asks for the token in `<home>/ray-token`."""
    serve_url: str
    """Where deployments answer without a key; loopback only."""


@dataclass(frozen=True, kw_only=True)
class StackStatus:
    """What is there of a stack."""

    state: Literal["running", "partial", "stopped"]
    """partial: Ray or the API is gone or does not answer; `up` mends it."""
    url: str | None
    """Origin of the API, if there is a stack."""
    ray: bool
    """Whether the Ray head answers."""
    api: bool
    """Whether the API is ready."""
    processes: int
    """Living processes of the stack."""
    memory_bytes: int
    """Their memory; pages that they share are counted once."""


class LocalStack:
    """The stack of one home directory; at most one runs there."""

    def __init__(self, home: Path, *, python: str = sys.executable) -> None:
        """`home` is made by `up`; `python` runs Ray and the API."""
        self.home = home.absolute()
        self._python = python
        self.logs = self.home / "logs"
        self._state_file = self.home / "stack.json"
        self._token_file = self.home / "ray-token"
        self._targets = self.home / "prometheus-targets.json"

    def up(
        self,
        *,
        host: str | None = None,
        port: int | None = None,
        progress: Progress = lambda stage, sentence: None,
        timeout_s: float = 120.0,
    ) -> Stack:
        """Start what does not run yet, and return when all of it answers. On failure, what was started is ended again.

        Args:
            host: address of the API; None: the same as before, or SIMPO_BIND_HOST (127.0.0.1).
            port: its port; 0: any free one; None: the same as before, or SIMPO_BIND_PORT (8080).
            progress: is told what happens.
            timeout_s: for all of it.

        Raises:
            ConfigError: the port is in use, or the stack runs already at another address.
            LocalStackError: Ray or the API does not start, or another `up` or `down` is at work.
        """
        deadline = time.monotonic() + timeout_s
        with self._lock():
            last = StackState.read(self._state_file)
            before = self._survivor(last, progress)
            url = _choose_url(last, before is not None and before.api_lives, host, port)
            try:
                state = before or self._start_ray(url, progress)
                key, key_is_new = self._key()
                if not state.api_lives:
                    state = self._start_api(state, url, progress)
                self._wait(state, deadline)
            except BaseException:
                self._undo(before)
                raise
            progress("ready", f"ready at {url}")
            return Stack(
                url=url,
                key=key,
                key_is_new=key_is_new,
                ray_dashboard_url=state.ray_dashboard_url,
                serve_url=state.serve_url,
            )

    def down(self, *, progress: Progress = lambda stage, sentence: None) -> bool:
        """End every process of the stack, see that none is left, remove Ray's files. False: there was no stack.

        Raises:
            LocalStackError: a process would not end, or another `up` or `down` is at work.
        """
        if not self._state_file.exists():
            return False
        with self._lock():
            state = StackState.read(self._state_file)
            if state is None:
                self._state_file.unlink(missing_ok=True)
                return False
            progress("down", f"stopping {len(members(state.id))} processes")
            self._clear(state)
            return True

    def status(self) -> StackStatus:
        """What is there now."""
        state = StackState.read(self._state_file)
        if state is None:
            return StackStatus(state="stopped", url=None, ray=False, api=False, processes=0, memory_bytes=0)
        ray, api = self._ray_answers(state), state.api_lives and _ready(state.url)
        return StackStatus(
            state="running" if ray and api else "partial",
            url=state.url,
            ray=ray,
            api=api,
            processes=len(members(state.id)),
            memory_bytes=memory_bytes(state.id),
        )

    def memory_bytes(self) -> int:
        """Memory of all processes of the stack now, shared pages counted once; 0 when nothing runs."""
        state = StackState.read(self._state_file)
        return 0 if state is None else memory_bytes(state.id)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.logs.mkdir(exist_ok=True)
        with (self.home / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LocalStackError(
                    f"another `simpo up` or `simpo down` is at work in {self.home}; wait for it"
                ) from None
            yield

    def _survivor(self, last: StackState | None, progress: Progress) -> StackState | None:
        """What can be kept of the last stack: nothing without its Ray, whose ports its API knows."""
        if last is None:
            return None
        if not last.ray_lives:
            progress("down", "clearing what an earlier stack left behind")
            self._clear(last)
            return None
        if not last.api_lives:
            self._end_api(last)  # one that nobody wrote down may hold the port
        return last

    def _undo(self, before: StackState | None) -> None:
        """After a failed `up`: back to what ran before it."""
        state = StackState.read(self._state_file)
        if state is not None and before is None:
            self._clear(state)
        elif state is not None and before is not None and not before.api_lives:
            self._end_api(state)
            before.write(self._state_file)

    def _start_ray(self, url: str, progress: Progress) -> StackState:
        progress("ray", "starting a private Ray head")
        head = RayHead.plan(secrets.token_hex(4))
        state = StackState(
            id=head.stack_id,
            url=url,
            ray_dashboard_url=head.dashboard_url,
            serve_url=head.serve_url,
            temp_dir=head.temp_dir,
        )
        state.write(self._state_file)  # before the start: whatever happens now, `down` finds what carries this id
        token = secrets.token_hex(16)
        write_private(self._token_file, token)
        self._targets.unlink(missing_ok=True)
        self._targets.symlink_to(head.metrics_targets)  # under one name for good, where each head has files of its own
        return state.with_ray(head.start(token, self.logs / "ray.log", self._python)).write(self._state_file)

    def _start_api(self, state: StackState, url: str, progress: Progress) -> StackState:
        progress("api", f"starting the API at {url}")
        where = urlsplit(url)
        command = [self._python, "-m", "uvicorn", _API_FACTORY, "--factory", "--http=service.http_head:BoundedHead"]
        command += ["--host", str(where.hostname), "--port", str(where.port)]
        command += ["--no-access-log", f"--timeout-graceful-shutdown={_API_GRACE_S}"]
        pid = spawn(
            command,
            stack_id=state.id,
            environment=self._settings(state, url).to_env(),
            directory=self.home,
            log=self.logs / "api.log",
        )
        return state.with_api(pid, url).write(self._state_file)

    def _settings(self, state: StackState | None = None, url: str | None = None) -> Settings:
        """The person's own settings, with what this stack decides in place of the defaults."""
        mine, default = Settings.from_env(), Settings()
        changes: dict[str, object] = {}
        if mine.database_url == default.database_url:
            changes["database_url"] = f"sqlite:///{self.home / 'simpo.db'}"
        if mine.store == default.store:
            changes["store"] = self.home / "store"
        if mine.log_format == "auto":
            changes["log_format"] = "text"  # logs/api.log is for a person, and `up` repeats its last words
        if state is not None and url is not None:
            changes |= {
                "bind_host": urlsplit(url).hostname,
                "bind_port": urlsplit(url).port,
                "ray_jobs_url": state.ray_dashboard_url,
                "ray_serve_url": None,
                "ray_token": self._token_file.read_text(encoding="utf-8"),
                "serve_url": state.serve_url,
            }
        return replace(mine, **changes)  # type: ignore[arg-type]  # each value has its field's type

    def _key(self) -> tuple[str, bool]:
        """The key in the home directory, and whether it had to be made: a lost or revoked one is replaced."""
        path = self.home / "key"
        clock = SystemClock()
        store = Store(self._settings().database_url)
        try:
            store.migrate()
            if path.exists():
                key = path.read_text(encoding="utf-8").strip()
                if Authenticator(store, clock).caller(f"Bearer {key}") is not None:
                    return key, False
            revoke_keys(store, KEY_NAME, now=clock.now())
            key = create_key(store, KEY_NAME)
            write_private(path, key + "\n")
            return key, True
        finally:
            store.close()

    def _ray_answers(self, state: StackState) -> bool:
        try:
            token = self._token_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return False
        return state.ray_lives and dashboard_answers(state.ray_dashboard_url, token)

    def _wait(self, state: StackState, deadline: float) -> None:
        """Until both answer. A process that ends instead is reported with its last words."""
        pending: dict[str, tuple[Callable[[], bool], Callable[[], bool]]] = {
            "Ray": (lambda: self._ray_answers(state), lambda: state.ray_lives),
            "the API": (lambda: _ready(state.url), lambda: state.api_lives),
        }
        logs = {"Ray": self.logs / "ray.log", "the API": self.logs / "api.log"}
        while True:
            for name, (answers, lives) in list(pending.items()):
                if not lives():
                    raise LocalStackError(f"{name} did not start: {_last_words(logs[name])} (all of it: {logs[name]})")
                if answers():
                    del pending[name]
            if not pending:
                return
            if time.monotonic() > deadline:
                name = next(iter(pending))
                raise LocalStackError(f"{name} did not answer in time; {logs[name]} may say why. Then `simpo up` again")
            time.sleep(_POLL_S)

    def _end_api(self, state: StackState) -> None:
        """By command line, not by pid: an `up` that was killed may have left one that nobody wrote down."""
        end(members(state.id, _API_FACTORY), grace_s=_API_GRACE_S + 2)

    def _clear(self, state: StackState) -> None:
        self._end_api(state)  # first: it would start again what we end
        end(members(state.id, _DRIVER), grace_s=_DRIVER_GRACE_S)
        left = kill_all(state.id)  # Ray's own processes keep nothing that outlives the stack, and take SIGTERM slowly
        if left:
            pids = ", ".join(str(process.pid) for process in left)
            raise LocalStackError(f"these processes of the stack would not end: {pids}; end them, then `simpo down`")
        remove_temp_dir(state.temp_dir, state.id)
        self._token_file.unlink(missing_ok=True)
        self._targets.unlink(missing_ok=True)
        self._state_file.unlink(missing_ok=True)


def _choose_url(last: StackState | None, runs: bool, host: str | None, port: int | None) -> str:
    """Where the API shall listen, or listens already. Raises ConfigError when that is not possible."""
    old = urlsplit(last.url) if last is not None else None
    if runs and old is not None:
        if host not in (None, old.hostname) or port not in (None, 0, old.port):
            raise ConfigError(f"the stack runs already at {old.geturl()}; `simpo down` first to move it", "port")
        return old.geturl()
    mine = Settings.from_env()
    host = host or (old.hostname if old is not None else None) or mine.bind_host
    if port is None:
        port = (old.port if old is not None else None) or mine.bind_port
    if port == 0:
        port = free_ports(1)[0]
    if not port_is_free(host, port):
        raise ConfigError(f"{host}:{port} is in use by another program; stop it or choose another (0: any)", "port")
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _ready(url: str) -> bool:
    where = urlsplit(url)
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(where.hostname))
    if reachable:
        url = url.replace(str(where.hostname), reachable)
    try:
        return httpx.get(f"{url}/readyz", timeout=3, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _last_words(log: Path) -> str:
    """The last line of a log that names an error, or just the last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines[-200:] if "Error" in line or "error" in line]
    return (errors or lines or ["it said nothing"])[-1][:300]
