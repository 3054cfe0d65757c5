"""A Ray dashboard made of a tiny HTTP server: jobs and Serve over REST, jobs run by scripted drivers.

It lives in the test's process, so it outlives an API that is killed. Ray's odd answers are kept: a duplicate id is
HTTP 500 with a traceback, an unknown job 404.
"""

import json
import shlex
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from service.cluster import JobsError
from tests.fakes import FakeComparer, FakeDriver, FakeJobs

TRIALS = 6
TOKEN = "a-token"


class RayDouble:
    """`with RayDouble() as ray`: `ray.url` is its dashboard."""

    def __init__(self) -> None:
        self.trial_s = 0.1
        """How long a scripted trial takes."""
        self.trials = TRIALS
        """Of each scripted driver."""
        self.leaves_s = 0.1
        """How long a driver takes to leave after its last word: a real one takes a moment."""
        self.jobs = FakeJobs()
        self.jobs.stops_at_once = False
        self.applications: dict[str, Any] = {}
        self.created: list[str] = []
        """Submission ids in the order in which a job was really made."""
        self._stops: dict[str, threading.Event] = {}
        self._lock = threading.Lock()
        self._drivers: list[threading.Thread] = []
        double = self

        class Handler(_Handler):
            ray = double

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "RayDouble":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        for stop in self._stops.values():
            stop.set()
        for driver in self._drivers:
            driver.join(10)
        self._server.shutdown()
        self._server.server_close()

    def submit(self, body: dict[str, Any]) -> None:
        """Start a driver. Raises JobsError for a known id."""
        name = body["submission_id"]
        with self._lock:
            self.jobs.submit(name, body["entrypoint"], body["runtime_env"]["env_vars"])
            self.created.append(name)
            self._stops[name] = threading.Event()
        driver = threading.Thread(target=self._drive, args=(name, body["entrypoint"]), daemon=True)
        self._drivers.append(driver)
        driver.start()

    def stop(self, name: str) -> None:
        """SIGTERM, in effect."""
        if name in self._stops:
            self._stops[name].set()

    def _drive(self, name: str, entrypoint: str) -> None:
        words = shlex.split(entrypoint)
        out, attempt = Path(words[words.index("--out") + 1]), int(words[words.index("--attempt") + 1])
        stop = self._stops[name]
        if "methods" in json.loads((out / "spec.json").read_text()):
            self._compare(name, FakeComparer(out, attempt))
            return
        driver = FakeDriver(out, attempt).start()
        for number in range(self.trials):
            driver.create(number)
            if stop.wait(self.trial_s):
                self.jobs.become(name, "STOPPED")
                return
            driver.rung(number, 30, number / 20)
            driver.end(number, value=number / 10)
            driver.beat()
        driver.finish(winner=self.trials - 1)
        time.sleep(self.leaves_s)
        self.jobs.become(name, "SUCCEEDED")


    def _compare(self, name: str, driver: FakeComparer) -> None:
        for place in range(len(driver.methods)):
            driver.turn(place)
            if self._stops[name].wait(self.trial_s):
                self.jobs.become(name, "STOPPED")
                return
        driver.finish()
        time.sleep(self.leaves_s)
        self.jobs.become(name, "SUCCEEDED")


class _Handler(BaseHTTPRequestHandler):
    ray: RayDouble

    def do_GET(self) -> None:
        if self.path == "/api/jobs/":
            self._answer(200, [_public(job) for job in self.ray.jobs.list().values()])
        elif self.path == "/api/serve/applications/":
            self._answer(200, {"applications": self.ray.applications})
        elif self.path.endswith("/logs"):
            self._answer(200, {"logs": ""})
        else:
            job = self.ray.jobs.get(self.path.rpartition("/")[2])
            self._answer(200, _public(job)) if job else self._answer(404, {})

    def do_POST(self) -> None:
        body = self._body()
        if self.path.endswith("/stop"):
            self.ray.stop(self.path.split("/")[3])
            self._answer(200, {"stopped": True})
            return
        try:
            self.ray.submit(body)
            self._answer(200, {"submission_id": body["submission_id"]})
        except JobsError as error:
            self._answer(500, f"Traceback (most recent call last):\nValueError: {error}")

    def do_PUT(self) -> None:
        self.ray.applications = {
            app["name"]: {"name": app["name"], "status": "RUNNING", "deployed_app_config": app, "deployments": {}}
            for app in self._body()["applications"]
        }
        self._answer(200, {})

    def _body(self) -> Any:
        text = self.rfile.read(int(self.headers.get("content-length") or 0))
        return json.loads(text) if text else {}

    def _answer(self, status: int, body: Any) -> None:
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            status, body = 401, "unauthorized"
        text = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def _public(job: Any) -> dict[str, Any]:
    return {"submission_id": job.submission_id, "status": job.status, "message": job.message}
