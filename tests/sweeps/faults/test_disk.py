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


# Nothing is left: the journal fails first. 192 KiB: records go on, the 250 KB of a rung's checkpoint do not fit.
@pytest.mark.parametrize("left", [0, 192 * 1024], ids=["nothing is left", "records fit, checkpoints do not"])
def test_a_full_disk_ends_the_attempt_and_no_trial(
    spec: SweepSpec, undisturbed: Path, small_disk: Path, left: int
) -> None:
    run = RunDir(small_disk / "run")
    run.write_spec(spec.model_dump(mode="json"))
    ballast = small_disk / "ballast"

    def fill(record: Record) -> None:
        # Again with every record: a trial that ends, or fails to write, gives space back.
        if record["type"] == "trial.completed" or ballast.exists():
            _fill(ballast, left)

    with pytest.raises(StorageError, match=r"No space left on device.*check space and permissions"):
        run_attempt(run, listeners=[fill])
    assert _free(small_disk) < MIB, "the disk is still full"
    records = read_journal(run.attempt(1))
    last = records[-1]
    assert (last["type"], last["data"]["class"]) == ("job.failed", "SYSTEM_ERROR"), "the next attempt may go well"
    assert "No space left on device" in last["message"]
    assert not [record for record in records if record["type"] == "trial.failed"], "no trial is to blame"
    assert read_result(run.attempt(1)) is None
    check(run.root)

    with pytest.raises(StorageError):
        run_attempt(run, listeners=[fill])  # nobody has made space

    ballast.unlink()
    result = run_attempt(run)
    assert result["attempt"] > 1
    check(run.root, like=undisturbed)


def _fill(ballast: Path, left: int) -> None:
    """Take all the space but so many bytes, while others write too."""
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while (free := _free(ballast)) > left:
            file.write(bytes(min(free - left, MIB)))


def _free(place: Path) -> int:
    facts = os.statvfs(place)
    return facts.f_bavail * facts.f_frsize
