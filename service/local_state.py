"""What is written down about a running stack, in `<home>/stack.json`."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from service.local_process import Identity


@dataclass(frozen=True, kw_only=True)
class StackState:
    """A stack that was started. Written before each start: a crash midway leaves a trace that `down` can follow."""

    id: str
    """Mark in the environment of each of its processes."""
    url: str
    """Origin of the API."""
    ray_dashboard_url: str
    """Origin of Ray's dashboard."""
    serve_url: str
    """Origin of Ray Serve."""
    temp_dir: Path
    """Ray's temp directory."""
    ray: Identity | None = None
    """Process of the Ray head."""
    api: Identity | None = None
    """Process of the API."""

    @property
    def ray_lives(self) -> bool:
        """Whether the head's process runs."""
        return self.ray is not None and self.ray.alive

    @property
    def api_lives(self) -> bool:
        """Whether the API's process runs."""
        return self.api is not None and self.api.alive

    def with_ray(self, pid: int) -> Self:
        """The same stack, its head running as `pid`."""
        return replace(self, ray=Identity.of(pid))

    def with_api(self, pid: int | None, url: str) -> Self:
        """The same stack, its API running as `pid` (None: about to start) at `url`."""
        return replace(self, api=None if pid is None else Identity.of(pid), url=url)

    def write(self, path: Path) -> Self:
        """Replace the file at once; returns the state itself."""
        body = {
            "id": self.id,
            "url": self.url,
            "ray_dashboard_url": self.ray_dashboard_url,
            "serve_url": self.serve_url,
            "temp_dir": str(self.temp_dir),
            "ray": self.ray and self.ray.as_dict(),
            "api": self.api and self.api.as_dict(),
        }
        write_private(path, json.dumps(body, indent=1) + "\n")
        return self

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """None when there is no file, or none that can be understood."""
        try:
            body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                id=str(body["id"]),
                url=str(body["url"]),
                ray_dashboard_url=str(body["ray_dashboard_url"]),
                serve_url=str(body["serve_url"]),
                temp_dir=Path(body["temp_dir"]),
                ray=Identity.parse(body["ray"]),
                api=Identity.parse(body["api"]),
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, at once: readers see the old text or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    partial.replace(path)
