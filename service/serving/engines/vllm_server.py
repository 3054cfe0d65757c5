"""vLLM's own OpenAI server as a child of this process: started, watched, ended. Nothing of vLLM is imported here.

It has an interpreter of its own, because vLLM and this project want different versions of the same libraries. It
listens on a Unix socket in a directory that only its owner may enter: it has routes that no key protects.
"""

import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from service.local_process import handed_on
from service.serving.engines import leash
from service.serving.engines.base import EngineError

START_S = 600.0
"""It imports, loads and compiles: 100 s on a busy machine."""
_POLL_S = 0.2
_STOP_S = 15.0
_ASK_S = 20.0
_SETTINGS = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",  # adapters come and go; nobody but us reaches the route
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    # One replica, one core: trials train on the others, and more threads slow both down.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


class VllmServer:
    """The child process, from its start to its end."""

    def __init__(self, python: str, arguments: Sequence[str]) -> None:
        """Start it with these arguments; `wait_ready` before asking. Raises EngineError: there is no such program."""
        self._home = Path(tempfile.mkdtemp(prefix="vllm-"))  # 0700
        self.socket = self._home / "s"
        self.key = secrets.token_hex(16)
        command = [sys.executable, "-I", "-S", str(leash.__file__), python, "-m", "vllm.entrypoints.openai.api_server"]
        command += [f"--uds={self.socket}", "--disable-uvicorn-access-log", *arguments]
        if shutil.which(python) is None:
            shutil.rmtree(self._home)
            raise EngineError(f"there is no program {python} on this node: SIMPO_VLLM_PYTHON names a Python with vLLM")
        with self._log.open("wb") as log:
            self._leash = subprocess.Popen(
                command,
                env=handed_on() | _SETTINGS | {"VLLM_API_KEY": self.key, "TMPDIR": str(self._home)},
                cwd=self._home,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the process that leads its group."""
        return self._leash.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._leash.poll() is None

    def client(self) -> httpx.AsyncClient:
        """For one answer, in the event loop that wants it."""
        transport = httpx.AsyncHTTPTransport(uds=str(self.socket), verify=False)
        return httpx.AsyncClient(transport=transport, base_url="http://vllm", headers=self._headers, timeout=None)

    def wait_ready(self) -> None:
        """Until it answers. Raises EngineError with what it said last: it ended instead, or took too long."""
        deadline = time.monotonic() + START_S
        while not (self._listens() and self._healthy()):
            if not self.alive:
                raise EngineError(f"vLLM ended before it was ready: {self.last_words()}")
            if time.monotonic() > deadline:
                raise EngineError(f"vLLM was not ready within {START_S:.0f} s: {self.last_words()}")
            time.sleep(_POLL_S)

    def ask(self, path: str, body: dict[str, Any], patience_s: float = _ASK_S) -> httpx.Response:
        """POST, for whoever can wait. Raises EngineError: no answer."""
        try:
            with self._sync() as client:
                return client.post(path, json=body, timeout=patience_s)
        except httpx.HTTPError as error:
            raise EngineError(f"vLLM does not answer ({type(error).__name__}): {self.last_words()}") from error

    def metrics(self) -> str:
        """What it tells Prometheus. Raises EngineError: no answer."""
        try:
            with self._sync() as client:
                return client.get("/metrics").raise_for_status().text
        except httpx.HTTPError as error:
            raise EngineError(f"vLLM does not answer ({type(error).__name__}): {self.last_words()}") from error

    def stop(self) -> None:
        """End it and all that it started, and wait for that."""
        if self._leash.stdin is not None:
            self._leash.stdin.close()
        try:
            self._leash.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._leash.kill()
            self._leash.wait()
        shutil.rmtree(self._home, ignore_errors=True)

    def last_words(self) -> str:
        """The last line it printed that names an error, or the last one."""
        try:
            lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        except OSError:
            return "it was stopped"
        errors = [line for line in lines if "Error" in line and "WARNING" not in line]  # some warnings quote one
        return (errors or lines or ["it said nothing"])[-1][-500:]

    @property
    def _log(self) -> Path:
        return self._home / "log"

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def _sync(self) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=str(self.socket), verify=False)
        return httpx.Client(transport=transport, base_url="http://vllm", headers=self._headers, timeout=_ASK_S)

    def _listens(self) -> bool:
        # httpx leaves a socket open that found nobody listening.
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def _healthy(self) -> bool:
        try:
            with self._sync() as client:
                return client.get("/health").status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False
