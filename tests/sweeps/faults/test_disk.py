"""A disk that fills up midway: the attempt says so and ends, no trial is blamed, and once there is space it goes on."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from simpo.errors import StorageError
from sweeps.driver import run_attempt
from sweeps.run_dir import Record, RunDir, read_journal, read_result
from sweeps.spec import SweepSpec
from tests.sweeps.faults.invariants import check

pytestmark = pytest.mark.ray

MIB = 1024 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB; making one takes a privilege that not every machine gives."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={48 * MIB}", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


# Nothing is left: the journal fails first. 64 KiB: records go on, a checkpoint does not fit.
@pytest.mark.parametrize("left", [0, 64 * 1024], ids=["nothing is left", "records fit, checkpoints do not"])
def test_a_full_disk_ends_the_attempt_and_no_trial(
    spec: SweepSpec, undisturbed: Path, small_disk: Path, left: int
) -> None:
    run = RunDir(small_disk / "run")
    run.write_spec(spec.model_dump(mode="json"))
    ballast = small_disk / "ballast"

    def fill(record: Record) -> None:
        if record["type"] == "trial.completed" and not ballast.exists():
            _fill(ballast, left)

    with pytest.raises(StorageError, match=r"No space left on device.*check space and permissions"):
        run_attempt(run, listeners=[fill])
    assert os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize < MIB, "the disk is still full"
    records = read_journal(run.attempt(1))
    last = records[-1]
    assert (last["type"], last["data"]["class"]) == ("job.failed", "SYSTEM_ERROR"), "the next attempt may go well"
    assert "No space left on device" in last["message"]
    assert not [record for record in records if record["type"] == "trial.failed"], "no trial is to blame"
    assert read_result(run.attempt(1)) is None
    check(run.root)

    with pytest.raises(StorageError):
        run_attempt(run)  # nobody has made space

    ballast.unlink()
    result = run_attempt(run)
    assert result["attempt"] > 1
    check(run.root, like=undisturbed)


def _fill(ballast: Path, left: int) -> None:
    """Take all the space but so many bytes, while others write too."""
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(64 * 1024))
            file.flush()
    with contextlib.suppress(OSError), ballast.open("ab") as file:
        while True:  # what is smaller than a block of ours
            file.write(bytes(4096))
            file.flush()
    if left:
        os.truncate(ballast, ballast.stat().st_size - left)
