"""Ray Jobs as the control plane sees them: five calls, each with its own time-out. No ray import.

Facts this file stands on, measured with Ray 2.60 (they are contract tests): a duplicate `submission_id` is HTTP 500
with "already exists" in a traceback; a timed-out submit may have worked; a malformed id is HTTP 500 *and* leaves a
record that stays PENDING for ever; status is a hint, never proof.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx

_TERMINAL = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})
_ID = re.compile(r"[a-z][a-z0-9-]{0,39}")
_LOG_TAIL = 4000
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class JobsError(Exception):
    """No clear yes from Ray. The call may still have worked: `get` tells.

    `unreachable`: nobody answered, or not with sense; as opposed to a refusal.
    """

    def __init__(self, reason: str, unreachable: bool) -> None:
        super().__init__(reason, unreachable)
        self.reason = reason
        self.unreachable = unreachable

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, kw_only=True)
class JobInfo:
    """What Ray says of a job."""

    submission_id: str
    """Ours."""
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    message: str = ""
    """Ray's words; for a failed one they may hold the log's tail."""
    queued: bool = False
    """Has no place on any cluster now, and waits for one: not yet begun, or its place was taken away."""

    @property
    def terminal(self) -> bool:
        """True once Ray does no more for it."""
        return self.status in _TERMINAL


class Jobs(Protocol):
    """A cluster that runs entrypoints. Every call may raise JobsError."""

    def submit(self, submission_id: str, entrypoint: str, env: Mapping[str, str]) -> None:
        """Returns on a clear yes only. A second submit of the same id raises and changes nothing."""

    def get(self, submission_id: str) -> JobInfo | None:
        """None: Ray knows no such job."""

    def list(self) -> dict[str, JobInfo]:
        """All submitted jobs by submission id, in one call."""

    def stop(self, submission_id: str) -> None:
        """Ask for the end; it comes later. Fine for a job that is over or unknown."""

    def logs(self, submission_id: str) -> str:
        """The last few thousand characters of the driver's log; empty when there is none."""


class RayJobs:
    """Jobs over the REST API of Ray's dashboard."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        driver_resource: str | None = None,
        timeout_s: float = 10.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Describe the cluster.

        Args:
            url: dashboard, e.g. http://127.0.0.1:8265.
            token: Ray's shared token, or None for a cluster without one.
            driver_resource: custom resource of the nodes that may run drivers; None: the head.
            timeout_s: for each call.
            transport: for tests.
        """
        # The second header survives proxies that use the first one themselves.
        headers = {"Authorization": f"Bearer {token}", "X-Ray-Authorization": f"Bearer {token}"} if token else {}
        self._driver_resource = driver_resource
        self._where = urlsplit(url).netloc.rpartition("@")[2]  # people see it: without a password
        # trust_env off: a proxy variable of the machine must not carry Ray's token away.
        self._client = httpx.Client(
            base_url=url,
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 3.0)),
            transport=transport,
            trust_env=False,
            verify=url.startswith("https:"),  # certificates are read only where they are needed
        )

    def submit(self, submission_id: str, entrypoint: str, env: Mapping[str, str]) -> None:
        assert _ID.fullmatch(submission_id), submission_id
        body: dict[str, Any] = {
            "submission_id": submission_id,
            "entrypoint": entrypoint,
            # Ray's API shows these to everyone who may ask it: no secret goes in.
            "runtime_env": {"env_vars": dict(env)},
        }
        if self._driver_resource:
            body["entrypoint_resources"] = {self._driver_resource: 0.01}
        answer = self._ask("POST", "/api/jobs/", json=body)
        if answer.status_code != httpx.codes.OK:
            raise self._refusal(answer)

    def get(self, submission_id: str) -> JobInfo | None:
        answer = self._ask("GET", f"/api/jobs/{submission_id}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        if answer.status_code != httpx.codes.OK:
            raise self._refusal(answer)
        return _info(answer.json())

    def list(self) -> dict[str, JobInfo]:
        answer = self._ask("GET", "/api/jobs/")
        if answer.status_code != httpx.codes.OK:
            raise self._refusal(answer)
        jobs = (_info(job) for job in answer.json() if job.get("submission_id"))
        return {job.submission_id: job for job in jobs}

    def stop(self, submission_id: str) -> None:
        answer = self._ask("POST", f"/api/jobs/{submission_id}/stop")
        if answer.status_code not in (httpx.codes.OK, httpx.codes.NOT_FOUND):
            raise self._refusal(answer)

    def logs(self, submission_id: str) -> str:
        answer = self._ask("GET", f"/api/jobs/{submission_id}/logs")
        if answer.status_code != httpx.codes.OK:
            return ""
        return _ANSI.sub("", str(answer.json().get("logs") or ""))[-_LOG_TAIL:]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise JobsError(
                f"Ray at {self._where} does not answer ({type(error).__name__}: {error})", unreachable=True
            ) from error
        if answer.status_code in (401, 403):
            raise JobsError(
                f"Ray at {self._where} refuses the token; SIMPO_RAY_TOKEN must be the cluster's RAY_AUTH_TOKEN",
                unreachable=True,
            )
        if answer.status_code in (502, 503, 504):
            raise JobsError(f"Ray at {self._where} answered {answer.status_code}", unreachable=True)
        return answer

    def _refusal(self, answer: httpx.Response) -> JobsError:
        reason = _cause(answer.text) or answer.reason_phrase
        return JobsError(f"Ray at {self._where} answered {answer.status_code}: {reason[:500]}", unreachable=False)


def driver_command(
    python: str, run_dir: str | Path, attempt: int, *, verb: str = "run", public_judge: bool = False
) -> str:
    """The entrypoint: a constant form around generated ids, because Ray gives it to a shell. `verb`: or evaluate."""
    arguments = [python, "-m", "sweeps", verb, f"{run_dir}/spec.json", "--out", str(run_dir)]
    return shlex.join([*arguments, "--attempt", str(attempt), *(["--public-judge"] if public_judge else [])])


def driver_env(stop_s: int) -> dict[str, str]:
    """Variables of the driver. Ray's default kills a stopped driver after 3 s, in the middle of its last records."""
    return {"RAY_JOB_STOP_WAIT_TIME_S": str(stop_s), "PYTHONUNBUFFERED": "1"}


def _cause(text: str) -> str:
    """The exception at the end of a traceback, or else the last line that says something."""
    lines = [line.strip() for line in _ANSI.sub("", text).splitlines() if re.search(r"\w", line)]
    exceptions = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (exceptions or lines or [""])[-1]


def _info(job: Mapping[str, Any]) -> JobInfo:
    return JobInfo(
        submission_id=str(job["submission_id"]), status=str(job["status"]), message=str(job.get("message") or "")
    )
