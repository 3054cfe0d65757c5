"""A whole sweep on an object store that answers 503 now and then: its driver is killed, its disk lost, it goes on."""

import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from simpo.checkpoint import read_manifest
from sweeps.recorded import recorded_trials
from sweeps.run_dir import RunDir, read_journal, read_result
from sweeps.spec import SweepSpec
from sweeps.working_copy import open_run
from tests.sweeps.drivers import Driver, wait_until
from tests.sweeps.faults.invariants import check
from tests.sweeps.s3_double import S3Double

pytestmark = pytest.mark.ray


def test_a_sweep_outlives_its_driver_and_its_disk(
    spec: SweepSpec, undisturbed: Path, s3: S3Double, tmp_path: Path
) -> None:
    """What a second machine with nothing on its disk finds is what an undisturbed run finds."""
    uri = f"s3://{s3.bucket()}/sweeps/one"
    body = tmp_path / "spec.json"
    body.write_text(spec.model_dump_json())
    faults = [s3.fail("503", every=41, times=math.inf)]
    first, second = tmp_path / "first", tmp_path / "second"
    watcher = open_run(uri, tmp_path / "watcher")

    def over() -> int:
        watcher.place.refresh_attempt(1)
        return sum(trial.outcome is not None for trial in recorded_trials(watcher, below=9).values())

    ends = r"trial\.(completed|pruned|failed|infeasible)$"
    with Driver(body, uri, "--copies", str(first), until=(ends, 2)) as driver:
        wait_until(lambda: over() >= 2)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    shutil.rmtree(first)
    done = over()
    faults.append(s3.fail("lost answer", method="PUT", every=13, times=math.inf))
    faults.append(s3.fail("cut answer", method="GET", every=19, times=math.inf))
    with Driver(body, uri, "--copies", str(second)) as driver:
        assert driver.wait(timeout=600) == 0
    s3.faults.clear()
    assert min(fault.done for fault in faults) >= 3, faults

    run = open_run(uri, tmp_path / "reader")
    records = read_journal(run.attempt(2))
    result = read_result(run.attempt(2))
    assert result is not None
    assert sum(record["type"] == "trial.created" for record in records) <= 6 - done, "finished trials were run again"
    assert any("as prepared by attempt 1" in record["message"] for record in records)
    for row in result["leaderboard"]:
        if row["checkpoint"] is not None:
            assert run.place.pull(run.root / row["checkpoint"])
    check(run.root, like=undisturbed)
    _assert_nothing_is_left_over(run, result, s3)
    fetch = [sys.executable, "-m", "sweeps", "fetch", uri, "--to", str(tmp_path / "winner"), "--copies", str(tmp_path)]
    subprocess.run(fetch, check=True)
    assert read_manifest(tmp_path / "winner")["trial_id"] == result["best"]["trial_id"]
    assert "a-secret-that-no-log-may-hold" not in "".join(path.read_text() for path in run.root.rglob("*.json*"))


def _assert_nothing_is_left_over(run: RunDir, result: dict[str, object], s3: S3Double) -> None:
    """No weights but those of the kept trials, no part of an upload, and the report beside the spec."""
    best = result["best"]
    assert isinstance(best, dict)
    assert read_manifest(run.root / best["checkpoint"])["trial_id"] == best["trial_id"]
    bucket = run.place.uri.removeprefix("s3://").partition("/")[0]
    keys = [
        entry["Key"]
        for page in s3.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        for entry in page["Contents"]
    ]
    assert {"sweeps/one/report.html", "sweeps/one/report.json"} <= set(keys)
    second = [key for key in keys if "/attempts/2/trials/" in key]
    assert not [key for key in second if "/rung-" in key]
    assert not [key for key in keys if "/attempts/2/engine/" in key]
    assert not s3.client().list_multipart_uploads(Bucket=bucket).get("Uploads")


def test_a_second_driver_is_refused_by_the_store(spec: SweepSpec, s3: S3Double, tmp_path: Path) -> None:
    uri = f"s3://{s3.bucket()}/one"
    run = open_run(uri, tmp_path / "a")
    run.write_spec(spec.model_dump(mode="json"))
    run.claim(1)
    body = tmp_path / "spec.json"
    body.write_text(json.dumps(run.read_spec()))
    command = [sys.executable, "-m", "sweeps", "run", str(body), "--out", uri, "--attempt", "1"]
    ended = subprocess.run([*command, "--copies", str(tmp_path / "b")], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "belongs to another driver" in ended.stderr
    s3.fail("ignores conditions", times=math.inf)
    with pytest.raises(Exception, match="ignores If-None-Match"):
        open_run(uri, tmp_path / "c").claim(2)
