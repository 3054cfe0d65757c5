"""A whole sweep whose finals are judged behind an endpoint with a key, from the command line, killed on the way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from sweeps.report import read_story, report_json
from sweeps.run_dir import RunDir, read_result
from tests.house import REPO
from tests.sweeps.drivers import leftovers
from tests.sweeps.judge_server import by_score, judge_server, parts
from tests.sweeps.test_judged_finals import GOOD
from tests.sweeps.tiny import tiny_base, tiny_spec

pytestmark = pytest.mark.ray

KEY = "sk-very-secret-0123456789"


def _files_with(root: Path, text: str) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def _run(spec: Path, out: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "TEST_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sweeps", "run", str(spec), "--out", str(out)]
    with log.open("ab") as output:
        return subprocess.Popen(command, cwd=REPO, env=environment, stdout=output, stderr=subprocess.STDOUT)


def test_a_judged_sweep_pays_once_and_tells_no_key(tmp_path: Path) -> None:
    """The driver is killed while the judge is asked; the next attempt buys only what is not on record."""
    let_through = 40

    def script(body: dict[str, Any], number: int) -> Any:
        return "hang" if number >= let_through else GOOD(body, number)

    base, spec, out, log = tiny_base(tmp_path / "base"), tmp_path / "spec.json", tmp_path / "out", tmp_path / "log"
    with judge_server(script) as server:
        judge = {"type": "openai", "url": server.url, "model": "judge", "api_key_env": "TEST_API_KEY", "concurrency": 2}
        body = tiny_spec(base, judge={**judge, "max_requests": 400}, budget={"trials": 4, "steps": 12}, constraints={})
        spec.write_text(body.model_dump_json())
        first = _run(spec, out, log)
        deadline = time.monotonic() + 300
        while len(server.bodies) < let_through + 2:
            assert first.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.05)
        family = psutil.Process(first.pid).children(recursive=True)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        leftovers(family)
        let_through = 10_000
        assert _run(spec, out, log).wait(600) == 0, log.read_text()[-2000:]

        questions = [parts(body) for body in server.bodies]
        assert len(questions) - len(set(questions)) <= 2, "only what was in flight is asked twice"
        assert all(headers["authorization"] == f"Bearer {KEY}" for headers in server.headers)
        result = read_result(RunDir(out).attempt(2))
        assert result is not None
        told = result["judge"]
        assert (told["state"], told["judge"]["model"], told["spent"]["requests"]) == ("VALID", "judge", len(questions))
        assert result["win_rate"] == told["win_rate"] is not None
        assert report_json(read_story(out))["judge"] == told
        assert "VALID" in log.read_text()
        assert _files_with(tmp_path, KEY) == [], "specs, journals, results, records, logs: none holds the key"


def test_a_missing_key_and_a_dead_endpoint_are_the_users_to_mend(tmp_path: Path) -> None:
    base, spec = tiny_base(tmp_path / "base"), tmp_path / "spec.json"
    with judge_server(by_score(lambda instruction, answer: 0.0)) as server:
        url = server.url
    judge = {"type": "openai", "url": url, "model": "judge", "max_requests": 400, "attempts": 1}
    for changes, words in (({"api_key_env": "MISSING_API_KEY"}, "MISSING_API_KEY is not set"), ({}, "gave no answer")):
        spec.write_text(tiny_spec(base, judge={**judge, **changes}).model_dump_json())
        process = subprocess.run(
            [sys.executable, "-m", "sweeps", "run", str(spec), "--out", str(tmp_path / "out"), "--quiet"],
            cwd=REPO,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert process.returncode == 2
        assert words in process.stderr
        assert not (tmp_path / "out").exists()
