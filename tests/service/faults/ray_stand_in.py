"""Ray's dashboard as a program: the Jobs API and Serve's applications over HTTP, with the manners measured of Ray 2.60.

A job is a process of its own session, started through a shell: it outlives this program, as a driver's children outlive
a head. A duplicate id is HTTP 500 with "already exists" in a traceback; a malformed one is 500 and leaves a PENDING
record for ever; an unknown job is 404; what a killed head knew is forgotten, or with `--keep` stays RUNNING until
somebody submits or stops. Every job that is really made becomes a line of `created` in the home.

`POST /script {"submits": [...]}` says how the next submissions are answered, one word each: `lost` (never arrives),
`unsaid` (made, the connection breaks), `slow` (made, answered after the client's patience), `late` (made only after the
client has given up). `{"patience_s": 1}` is how long a client waits.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_ID = re.compile(r"[^/]{1,255}")


class Jobs:
    """What this head knows."""

    def __init__(self, home: Path, keep: bool) -> None:
        self.home = home
        self.known = home / "known"
        self.known.mkdir(exist_ok=True)
        self.keep = keep
        self.lock = threading.RLock()
        self.jobs: dict[str, dict[str, Any]] = {}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.stopped: set[str] = set()
        for path in self.known.glob("*.json") if keep else ():
            self.jobs[path.stem] = json.loads(path.read_text())

    def submit(self, body: dict[str, Any]) -> str | None:
        """None, or the words of the refusal."""
        name = body["submission_id"]
        with self.lock:
            self._wake()
            if name in self.jobs:
                return f"ValueError: Job with submission_id {name} already exists."
            self._become(name, "PENDING")
            if not _ID.fullmatch(name):
                return f"ValueError: {name} is no actor name"
            with (self.home / "created").open("a") as created:
                created.write(json.dumps({"id": name, "entrypoint": body["entrypoint"]}) + "\n")
            with (self.home / f"{name}.log").open("ab") as log:
                self.running[name] = subprocess.Popen(
                    body["entrypoint"],
                    shell=True,
                    env={**os.environ, **body["runtime_env"]["env_vars"]},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            with (self.home / "pids").open("a") as pids:
                pids.write(f"{self.running[name].pid}\n")
            self._become(name, "RUNNING")
        threading.Thread(target=self._wait, args=(name,), daemon=True).start()
        return None

    def stop(self, name: str) -> bool:
        """SIGTERM, and SIGKILL after a while."""
        with self.lock:
            self._wake()
            process = self.running.get(name)
            if process is None or self.jobs[name]["status"] != "RUNNING":
                return False
            self.stopped.add(name)
        _signal(process, signal.SIGTERM)
        threading.Timer(10, _signal, (process, signal.SIGKILL)).start()
        return True

    def _wake(self) -> None:
        """Who submits or stops wakes the job manager, which then finds what it lost with the head before."""
        for name, job in self.jobs.items():
            if job["status"] == "RUNNING" and name not in self.running:
                self._become(name, "FAILED", "Unexpected error occurred: failed to get job supervisor.")

    def _wait(self, name: str) -> None:
        code = self.running[name].wait()
        with self.lock:
            if name in self.stopped:
                self._become(name, "STOPPED")
            elif code:
                self._become(name, "FAILED", f"Job entrypoint command failed with exit code {code}")
            else:
                self._become(name, "SUCCEEDED")

    def _become(self, name: str, status: str, message: str = "") -> None:
        self.jobs[name] = {"submission_id": name, "status": status, "message": message}
        if self.keep and _ID.fullmatch(name):
            (self.known / f"{name}.json").write_text(json.dumps(self.jobs[name]))


def main() -> None:
    """Serve until killed."""
    words = argparse.ArgumentParser()
    words.add_argument("--home", type=Path, required=True)
    words.add_argument("--port", type=int, required=True)
    words.add_argument("--token", required=True)
    words.add_argument("--keep", action="store_true")
    given = words.parse_args()

    class Handler(_Handler):
        jobs = Jobs(given.home, given.keep)
        token = given.token

    server = ThreadingHTTPServer(("127.0.0.1", given.port), Handler)
    server.daemon_threads = True
    server.serve_forever()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two packets: together they would wait for a late ACK
    jobs: Jobs
    token: str
    script: list[str] = []  # noqa: RUF012 (of all connections)
    applications: dict[str, Any] = {}  # noqa: RUF012
    patience_s = 1.0

    def do_GET(self) -> None:
        if self.path == "/api/jobs/":
            with self.jobs.lock:
                self._answer(200, list(self.jobs.jobs.values()))
        elif self.path == "/api/serve/applications/":
            self._answer(200, {"applications": _Handler.applications})
        elif self.path.endswith("/logs"):
            self._answer(200, {"logs": ""})
        else:
            job = self.jobs.jobs.get(self.path.rpartition("/")[2])
            self._answer(200, job) if job else self._answer(404, "no such job")

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/script":
            _Handler.script = body.get("submits", [])
            _Handler.patience_s = body.get("patience_s", 1.0)
            self._answer(200, {})
        elif self.path.endswith("/stop"):
            name = self.path.split("/")[3]
            self._answer(200, {"stopped": self.jobs.stop(name)}) if name in self.jobs.jobs else self._answer(404, "")
        else:
            self._submit(body)

    def do_PUT(self) -> None:
        _Handler.applications = {
            app["name"]: {"name": app["name"], "status": "RUNNING", "deployed_app_config": app, "deployments": {}}
            for app in self._body()["applications"]
        }
        self._answer(200, {})

    def _submit(self, body: dict[str, Any]) -> None:
        manner = _Handler.script.pop(0) if _Handler.script else "plain"
        if manner == "late":
            time.sleep(2 * self.patience_s)
        refusal = None if manner == "lost" else self.jobs.submit(body)
        if manner == "slow":
            time.sleep(2 * self.patience_s)
        if manner in ("lost", "unsaid"):
            self.close_connection = True
            return
        if refusal is None:
            self._answer(200, {"submission_id": body["submission_id"]})
        else:
            self._answer(500, f"Traceback (most recent call last):\n  ...\n{refusal}")

    def _body(self) -> Any:
        text = self.rfile.read(int(self.headers.get("content-length") or 0))
        return json.loads(text) if text else {}

    def _answer(self, status: int, body: Any) -> None:
        if self.headers.get("authorization") != f"Bearer {self.token}":
            status, body = 401, "unauthorized"
        text = (body if isinstance(body, str) else json.dumps(body)).encode()
        try:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
        except OSError:  # the client has gone
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


if __name__ == "__main__":
    main()
