"""A private Ray head with the face of `StandIn`, so that the same installation stands on a real one."""

import contextlib
import json
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import psutil

from service.ids import submission_id
from service.local_process import kill_all, members
from service.local_ray import RayHead
from tests.service.faults.world import wait


@dataclass(frozen=True, kw_only=True)
class _Head(RayHead):
    more: Mapping[str, str] = field(default_factory=dict)
    """Further variables of its environment."""

    def _environment(self, token: str) -> Mapping[str, str]:
        return {**super()._environment(token), **self.more}


class RealRay:
    """One head after another on the same ports."""

    def __init__(self, home: Path, token: str) -> None:
        home.mkdir()
        self.home = home
        self.token = token
        self._head = _Head.plan(secrets.token_hex(4))
        self.url = self._head.dashboard_url
        self.port = self._head.ports[1]

    def start(self, *, keep: bool = False) -> None:
        """A head that knows nothing, or with `keep` what its predecessor with `keep` knew (in RocksDB)."""
        self._head.remove()
        kept = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(self.home / "kept")} if keep else {}
        head = replace(self._head, more=kept)
        head.start(self.token, self.home / "head.log")
        wait(lambda: head.answers(self.token), told=lambda: (self.home / "head.log").read_text())

    def kill(self, spare: Collection[int] = ()) -> None:
        """kill -9 of the GCS, which takes the head with it; then of what is left, but for these processes."""
        for process in members(self._head.stack_id, "gcs_server"):
            process.kill()
        wait(lambda: not members(self._head.stack_id, "raylet"))
        for process in members(self._head.stack_id):
            if process.pid not in spare:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def jobs(self) -> dict[str, str]:
        """Id -> status of everything it knows."""
        headers = {"authorization": f"Bearer {self.token}"}
        found = httpx.get(f"{self.url}/api/jobs/", headers=headers, trust_env=False, timeout=120).json()
        return {job["submission_id"]: job["status"] for job in found if job["submission_id"]}

    def created(self) -> list[str]:
        """Ids of the jobs whose drivers began, by all heads so far."""
        lines = (self.home.parent / "starts").read_text().splitlines()
        return [submission_id(start["run"], start["attempt"]) for start in map(json.loads, lines)]

    def close(self) -> None:
        """End it and every job that it ever made."""
        assert kill_all(self._head.stack_id) == []
        self._head.remove()
