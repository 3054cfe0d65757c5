"""schemathesis against the whole service on loopback: SQLite, the reconciler at work, doubles of Ray and of Serve.

    python -m tests.service.contract.asking                     as the suite does
    python -m tests.service.contract.asking --examples 50       longer: so many requests an operation and phase
    python -m tests.service.contract.asking --seed 7 -- --include-path-regex sweeps

What follows `--` goes to `schemathesis run`. Exit code 0: nothing was found.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from service.app import create_app
from service.auth import create_key
from service.settings import Settings
from service.store import Store
from tests.house import REPO
from tests.service.ray_double import TOKEN, RayDouble
from tests.service.serve_double import ServeDouble
from tests.service.served import in_thread

CONFIG = Path(__file__).with_name("schemathesis.toml")
HOOKS = "tests.service.contract.hooks"
PHASES = "examples,coverage,fuzzing,stateful"


def ask(
    directory: Path, *, examples: int, seed: int, more: Sequence[str] = (), limit_s: float | None = None
) -> subprocess.CompletedProcess[str]:
    """One run with a key that may do everything. `returncode` 0: nothing found; else `stdout` tells what."""
    with serving(directory) as (url, key):
        words = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(CONFIG)]
        words += ["run", f"{url}/openapi.json", "--checks", "all", "--phases", PHASES, "--no-color"]
        words += ["--max-examples", str(examples), "--seed", str(seed), "--generation-database", "none"]
        words += ["--header", f"Authorization: Bearer {key}", "--request-timeout", "60", "--continue-on-failure"]
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": HOOKS, "PYTHONPATH": str(REPO)}
        given: dict[str, Any] = {"cwd": directory, "env": environment, "timeout": limit_s}
        return subprocess.run([*words, *more], capture_output=True, text=True, check=False, **given)


@contextmanager
def serving(directory: Path, *, trial_s: float = 0.01) -> Iterator[tuple[str, str]]:
    """(address, key) of a service with everything around it. `trial_s`: of each of a sweep's six."""
    with RayDouble() as ray:
        ray.trial_s = trial_s
        settings = Settings(
            database_url=f"sqlite:///{directory / 'simpo.db'}",
            store=directory / "store",
            ray_jobs_url=ray.url,
            ray_token=TOKEN,
            reconcile_interval_s=0.2,
            max_running_sweeps=16,
        )
        store = Store(settings.database_url)
        store.migrate()
        key = create_key(store, "contract")
        nowhere = httpx.MockTransport(lambda request: httpx.Response(204))  # no webhook leaves this machine
        app = create_app(settings, store=store, models=_serve(), webhooks=lambda: nowhere)
        with in_thread(app, log_level="critical", timeout_graceful_shutdown=1) as origin:
            yield origin, key


def _serve() -> ServeDouble:
    def answer(request: httpx.Request) -> httpx.Response:
        said = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": []}
        return httpx.Response(200, json=said)

    return ServeDouble(httpx.MockTransport(answer))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--examples", type=int, default=1, help="requests an operation and phase")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("more", nargs="*", help="after --: options of `schemathesis run`")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        done = ask(Path(directory), examples=given.examples, seed=given.seed, more=given.more)
    print(done.stdout, done.stderr, sep="\n")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
