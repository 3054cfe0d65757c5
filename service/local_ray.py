"""A private Ray head for one machine: own ports, token, home and temp directory, nothing shared with another Ray.

`ray stop` is never used, here or in anything that calls this: it ends every Ray on the machine.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from service.local_process import free_ports, spawn

OBJECT_STORE_BYTES = 200_000_000
_SPARE_CPUS = 2  # logical: so that a deployment and a driver find room beside trials that fill the real cores
_MAX_TEMP_PATH = 35  # Ray and we add up to 72 characters, and the path of a Unix socket may have 107 (sun_path)
_PORT_OPTIONS = (
    "--port",
    "--dashboard-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--metrics-export-port",
    "--ray-client-server-port",
    "--object-manager-port",
    "--node-manager-port",
    "--runtime-env-agent-port",
)


@dataclass(frozen=True, kw_only=True)
class RayHead:
    """What a private head is started with."""

    stack_id: str
    """The stack it belongs to."""
    temp_dir: Path
    """Ray's files; removed with the head."""
    ports: tuple[int, ...]
    """One for each of Ray's listening ports, in the order of `_PORT_OPTIONS`, then Serve's."""

    @classmethod
    def plan(cls, stack_id: str) -> "RayHead":
        """Choose ports and a temp directory; nothing is made yet."""
        parent = Path(tempfile.gettempdir())
        temp_dir = parent / f"simpo-{stack_id}"
        if len(str(temp_dir)) > _MAX_TEMP_PATH:
            temp_dir = Path("/tmp") / temp_dir.name
        return cls(stack_id=stack_id, temp_dir=temp_dir, ports=tuple(free_ports(len(_PORT_OPTIONS) + 1)))

    @property
    def dashboard_url(self) -> str:
        """Ray's dashboard: jobs and Serve over REST."""
        return f"http://127.0.0.1:{self.ports[1]}"

    @property
    def serve_url(self) -> str:
        """Where Serve listens once something is deployed."""
        return f"http://127.0.0.1:{self.ports[-1]}"

    @property
    def metrics_targets(self) -> Path:
        """Where Ray writes the addresses of its nodes' metrics, in the form of Prometheus' file_sd_configs."""
        return self.temp_dir / "r" / "prom_metrics_service_discovery.json"

    def start(self, token: str, log: Path, python: str = sys.executable) -> int:
        """Start the head and return its pid; it is ready when `answers` says so."""
        self.temp_dir.mkdir(mode=0o700)
        (self.temp_dir / "t").mkdir()
        command = [python, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        command += [f"{option}={port}" for option, port in zip(_PORT_OPTIONS, self.ports, strict=False)]
        command += [
            "--dashboard-host=127.0.0.1",
            "--include-dashboard=true",
            "--include-log-monitor=false",  # copies workers' output to drivers; ours write journals
            "--min-worker-port=0",  # any free port, instead of a range that every Ray on the machine shares
            "--max-worker-port=0",
            f"--num-cpus={(os.cpu_count() or 1) + _SPARE_CPUS}",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--temp-dir={self.temp_dir / 'r'}",  # Ray opens its own directory to everybody; the one above stays closed
            "--log-color=false",
        ]
        return spawn(
            command,
            stack_id=self.stack_id,
            environment=self._environment(token),
            fallbacks={"XDG_CACHE_HOME": str(Path.home() / ".cache")},  # HOME is Ray's own; downloaded models are not
            directory=self.temp_dir,
            log=log,
        )

    def answers(self, token: str) -> bool:
        """Whether jobs can be submitted."""
        return dashboard_answers(self.dashboard_url, token)

    def remove(self) -> None:
        """Delete the temp directory of a head that has ended."""
        remove_temp_dir(self.temp_dir, self.stack_id)

    def _environment(self, token: str) -> Mapping[str, str]:
        return {
            "HOME": str(self.temp_dir),  # Ray looks for a token in ~/.ray
            "TMPDIR": str(self.temp_dir / "t"),  # what a killed process leaves behind goes with the head
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            # Ray's State API must find this head also when another Ray runs on the machine: else placement groups leak.
            "RAY_API_SERVER_ADDRESS": self.dashboard_url,
            "RAY_USAGE_STATS_ENABLED": "0",
            "SPT_NOENV": "1",  # process titles must not overwrite the environment, which holds the stack's mark
        }


def dashboard_answers(url: str, token: str) -> bool:
    """Whether a head with this token answers there."""
    try:
        answer = httpx.get(f"{url}/api/jobs/", headers={"Authorization": f"Bearer {token}"}, timeout=3, trust_env=False)
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.OK


def remove_temp_dir(path: Path, stack_id: str) -> None:
    """Delete a head's temp directory, and nothing that does not carry the stack's id in its name."""
    assert path.name == f"simpo-{stack_id}", path
    shutil.rmtree(path, ignore_errors=True)
